"""The generic map: keys and values are bytes, exactly as the kernel keeps them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import MapType, UpdateFlags, name_of
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.library import CData, Descriptor, object_name, options, possible_cpus, text

_PER_CPU = frozenset(
    {
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_PERCPU_HASH,
        MapType.PERCPU_CGROUP_STORAGE,
    }
)


class Map(Descriptor):
    """A map of any type, by file descriptor: a context manager that closes it.

    The map itself lives for as long as somebody (a program, a pin, another process) holds it. All element
    operations raise MapError with the errno; only :meth:`lookup` has a word for "not there": None.
    """

    def __init__(self, fd: int) -> None:
        """Take over a map's file descriptor. The kernel is asked for the map's properties once, here."""
        super().__init__(fd)
        info = ffi.new("struct bpf_map_info *")
        size = ffi.new("__u32 *", ffi.sizeof(info[0]))
        result = lib.bpf_map_get_info_by_fd(fd, info, size)
        if result < 0:
            self.close()
            raise MapError("opening", f"fd {fd}", "unknown type", errno=-result)
        self._describe(info)

    def _describe(self, info: CData) -> None:
        self.id: int = info.id
        self.name: str = text(info.name)
        self.type: int = info.type
        self.key_size: int = info.key_size
        self.value_size: int = info.value_size
        self.max_entries: int = info.max_entries
        self.flags: int = info.map_flags
        self.extra: int = info.map_extra
        self.btf_id: int = info.btf_id
        self.btf_key_type_id: int = info.btf_key_type_id
        self.btf_value_type_id: int = info.btf_value_type_id

    @classmethod
    def create(
        cls,
        type: int,  # noqa: A002
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        name: str = "",
        *,
        extra: int = 0,
        inner: Map | None = None,
        numa_node: int | None = None,
        ifindex: int = 0,
        btf_fd: int = 0,
        btf_key_type_id: int = 0,
        btf_value_type_id: int = 0,
    ) -> Map:
        """Create a map (bpf(2), BPF_MAP_CREATE). Sizes in bytes; ``inner`` is the template of a map of maps.

        Raises MapError: EINVAL for sizes or flags the type does not take, E2BIG and ENOMEM for too much,
        EPERM without CAP_BPF. On kernels before memory cgroup accounting RLIMIT_MEMLOCK is raised first.
        """
        opts = options("bpf_map_create_opts", map_flags=flags, map_extra=extra, map_ifindex=ifindex)
        if inner is not None:
            opts.inner_map_fd = inner.fd
        if numa_node is not None:
            opts.map_flags |= 1 << 2  # BPF_F_NUMA_NODE
            opts.numa_node = numa_node
        opts.btf_fd = btf_fd
        opts.btf_key_type_id = btf_key_type_id
        opts.btf_value_type_id = btf_value_type_id
        fd = lib.bpf_map_create(type, object_name(name), key_size, value_size, max_entries, opts)
        if fd < 0:
            raise MapError("creation", name, name_of(MapType, type), errno=-fd)
        return cls(fd)

    @classmethod
    def from_fd(cls, fd: int) -> Map:
        """Return a map over a duplicate of a file descriptor, which stays its owner's."""
        return cls(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))

    @classmethod
    def from_id(cls, id: int) -> Map:  # noqa: A002
        """Open a map by id. Raises MapError: ENOENT where there is none, EPERM without CAP_SYS_ADMIN."""
        fd = lib.bpf_map_get_fd_by_id(id)
        if fd < 0:
            raise MapError("opening", f"id {id}", "unknown type", errno=-fd)
        return cls(fd)

    @classmethod
    def from_pin(cls, path: Path | str) -> Map:
        """Open the map pinned at a path of a BPF file system. Raises MapError, ENOENT where there is none."""
        fd = lib.bpf_obj_get(os.fsencode(path))
        if fd < 0:
            raise MapError("opening", str(path), "pin", errno=-fd)
        return cls(fd)

    def __enter__(self) -> Map:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} id {self.id} {self.type_name}>"

    @property
    def type_name(self) -> str:
        """The type in words: ``"percpu_array"``."""
        return name_of(MapType, self.type)

    @property
    def value_buffer_size(self) -> int:
        """Bytes of a value as user space sees it; a per-CPU map has one, padded to 8, for each possible CPU."""
        if self.type in _PER_CPU:
            return (self.value_size + 7) // 8 * 8 * possible_cpus()
        return self.value_size

    def error(self, operation: str, number: int, reason: str = "") -> MapError:
        """Return the error to raise for an errno."""
        return MapError(operation, self.name, self.type_name, errno=number, reason=reason)

    def _bytes(self, what: str, data: bytes, size: int) -> CData:
        if len(data) != size:
            raise self.error(what, errno.EINVAL, f"{len(data)} bytes where {size} belong")
        return ffi.from_buffer(data) if size else ffi.NULL

    def lookup(self, key: bytes, flags: int = 0) -> bytes | None:
        """Return the value of a key, or None where it has none."""
        value = ffi.new("char[]", max(self.value_buffer_size, 1))
        result = lib.bpf_map_lookup_elem_flags(
            self.fd, self._bytes("lookup", key, self.key_size), value, flags
        )
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self.error("lookup", -result)
        return bytes(ffi.buffer(value, self.value_buffer_size))

    def update(self, key: bytes, value: bytes, flags: int = UpdateFlags.ANY) -> None:
        """Set the value of a key. MapError: E2BIG when full, EEXIST and ENOENT by the flags."""
        raw_key = self._bytes("update", key, self.key_size)
        raw_value = self._bytes("update", value, self.value_buffer_size)
        result = lib.bpf_map_update_elem(self.fd, raw_key, raw_value, flags)
        if result < 0:
            raise self.error("update", -result)

    def delete(self, key: bytes) -> bool:
        """Remove a key. Returns whether it was there."""
        result = lib.bpf_map_delete_elem(self.fd, self._bytes("delete", key, self.key_size))
        if result < 0 and result != -errno.ENOENT:
            raise self.error("delete", -result)
        return result == 0

    def lookup_and_delete(self, key: bytes, flags: int = 0) -> bytes | None:
        """Remove a key and return its value, in one step; None where it has none."""
        value = ffi.new("char[]", max(self.value_buffer_size, 1))
        raw_key = self._bytes("lookup and delete", key, self.key_size)
        result = lib.bpf_map_lookup_and_delete_elem_flags(self.fd, raw_key, value, flags)
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self.error("lookup and delete", -result)
        return bytes(ffi.buffer(value, self.value_buffer_size))

    def next_key(self, key: bytes | None) -> bytes | None:
        """Return the key after a key, the first after None, None after the last."""
        following = ffi.new("char[]", max(self.key_size, 1))
        previous = ffi.NULL if key is None else self._bytes("iteration", key, self.key_size)
        result = lib.bpf_map_get_next_key(self.fd, previous, following)
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self.error("iteration", -result)
        return bytes(ffi.buffer(following, self.key_size))

    def keys(self) -> Iterator[bytes]:
        """Yield the keys. A map that changes meanwhile may repeat or miss some, but the end is bounded:

        MapError EAGAIN after twice as many keys as the map can hold.
        """
        key = None
        for _ in range(2 * self.max_entries + 1):
            key = self.next_key(key)
            if key is None:
                return
            yield key
        raise self.error("iteration", errno.EAGAIN, "the map changes faster than it can be read")

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys with their values; keys that vanish meanwhile are passed over."""
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def freeze(self) -> None:
        """Let user space write no more (bpf(2), BPF_MAP_FREEZE, Linux 5.2)."""
        result = lib.bpf_map_freeze(self.fd)
        if result < 0:
            raise self.error("freezing", -result)

    def pin(self, path: Path | str) -> None:
        """Keep the map alive at a path of a BPF file system, until :meth:`unpin`."""
        result = lib.bpf_obj_pin(self.fd, os.fsencode(path))
        if result < 0:
            raise self.error(f"pinning at {path}", -result)

    @staticmethod
    def unpin(path: Path | str) -> None:
        """Remove a pin."""
        Path(path).unlink()
