"""What all maps share, and the generic map whose keys and values are bytes as the kernel keeps them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import MapType, UpdateFlags, name_of
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.library import CData, Descriptor, object_name, options, possible_cpus, text
from packet_tracer.bpf.maps.errors import MapTypeError, map_error
from packet_tracer.bpf.maps.info import MapInfo, read_info

if TYPE_CHECKING:
    from typing_extensions import Self

    from packet_tracer.bpf.btf import Btf

_PER_CPU = frozenset(
    {
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_PERCPU_HASH,
        MapType.PERCPU_CGROUP_STORAGE,
    }
)


class Map(Descriptor):
    """A map of any type, by file descriptor: a context manager that closes it. Base of all map classes.

    It says what the map is and keeps it alive; what can be done with the elements, each type's class adds.
    The map itself lives for as long as somebody (a program, a pin, another process) holds it.
    """

    #: The one type that a class is for; None where it takes any.
    TYPE: ClassVar[MapType | None] = None

    _libbpf: CData = None

    def __init__(self, fd: int) -> None:
        """Take over a map's file descriptor. The kernel is asked for the map's properties once, here.

        Raises MapError, and MapTypeError where the map is not of this class's type; the descriptor is
        closed then.
        """
        super().__init__(fd)
        info = ffi.new("struct bpf_map_info *")
        result = lib.bpf_map_get_info_by_fd(fd, info, ffi.new("__u32 *", ffi.sizeof(info[0])))
        if result < 0:
            self.close()
            raise MapError("opening", f"fd {fd}", "unknown type", errno=-result)
        self._describe(info)
        if self.TYPE not in (None, self.type):
            self.close()
            wanted = name_of(MapType, self.TYPE)
            raise MapTypeError(f"map {self.name or self.id} is a {self.type_name}, not a {wanted}")

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
        self.btf_vmlinux_value_type_id: int = info.btf_vmlinux_value_type_id

    @classmethod
    def from_fd(cls, fd: int, **codecs: Any) -> Self:
        """Return a map over a duplicate of a file descriptor, which stays its owner's.

        ``Map.from_fd``, ``Map.from_id`` and ``Map.from_pin`` return an object of the class for the map's
        type; called on such a class they raise MapTypeError for maps of other types.
        ``key=`` and ``value=`` say how elements are laid out, for classes that take them.
        """
        return cls._open(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0), **codecs)

    @classmethod
    def from_id(cls, id: int, **codecs: Any) -> Self:  # noqa: A002
        """Open a map by id. Raises MapError: ENOENT where there is none, EPERM without CAP_SYS_ADMIN."""
        return cls._open(_fd_by_id(id), **codecs)

    @classmethod
    def from_pin(cls, path: Path | str, **codecs: Any) -> Self:
        """Open the map pinned at a path of a BPF file system. Raises MapError, ENOENT where there is none."""
        return cls._open(_fd_by_pin(path), **codecs)

    @classmethod
    def from_map(cls, other: Map, **codecs: Any) -> Self:
        """Return the same map over a descriptor of its own, as another class or with other codecs."""
        return cls.from_fd(other.fd, **codecs)

    @classmethod
    def _open(cls, fd: int, **codecs: Any) -> Self:
        if cls is Map:
            from packet_tracer.bpf.maps.registry import wrap  # it imports every family

            return wrap(fd, **codecs)  # type: ignore[return-value]
        try:
            return cls(fd, **codecs)
        except TypeError as error:
            if not isinstance(error, MapTypeError):  # such a one has closed it
                os.close(fd)
            raise

    def _release(self) -> int:
        """Give up the descriptor to who takes it over."""
        fd, self._fd = self.fd, -1
        return fd

    def __enter__(self) -> Self:
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
    def per_cpu(self) -> bool:
        """Whether each value is one per possible CPU."""
        return self.type in _PER_CPU

    @property
    def value_buffer_size(self) -> int:
        """Bytes of a value as user space sees it: a per-CPU map has one, padded to 8, per possible CPU."""
        if self.per_cpu:
            return (self.value_size + 7) // 8 * 8 * possible_cpus()
        return self.value_size

    @property
    def raw(self) -> RawMap:
        """The same map over bytes, for what the class does not offer; it lives as long as this object."""
        view = _RawView.__new__(_RawView)
        view.__dict__.update(self.__dict__)
        view._owner = self
        return view

    def bind(self, handle: CData) -> None:
        """Take note of libbpf's own ``struct bpf_map``, of an object that libbpf loaded; it outlives this.

        Types that only libbpf can fill need it: STRUCT_OPS and ARENA.
        """
        self._libbpf = handle

    def describe(self, btf: Btf, key_type_id: int, value_type_id: int) -> None:
        """Be told by an object how it declares the map: the kernel keeps no BTF for maps of some types."""

    def info(self) -> MapInfo:
        """Return what the kernel says of the map now: sizes, flags, whether frozen, memory in bytes."""
        return read_info(self)

    def freeze(self) -> None:
        """Let user space write no more (bpf(2), BPF_MAP_FREEZE, Linux 5.2); programs still may.

        MapError EBUSY while the map is mapped writable, EBUSY or EPERM when it is frozen already, ENOTSUPP
        for types that hold kernel objects.
        """
        result = lib.bpf_map_freeze(self.fd)
        if result < 0:
            raise self.error("freezing", -result)

    def pin(self, path: Path | str) -> None:
        """Keep the map alive at a path of a BPF file system, until :meth:`unpin`.

        MapError EEXIST where something is pinned there, EPERM where it is not a BPF file system.
        """
        result = lib.bpf_obj_pin(self.fd, os.fsencode(path))
        if result < 0:
            raise self.error(f"pinning at {path}", -result)

    @staticmethod
    def unpin(path: Path | str) -> None:
        """Remove a pin."""
        Path(path).unlink()

    def error(self, operation: str, number: int, reason: str = "") -> MapError:
        """Return the error to raise for an errno."""
        return map_error(operation, self.name, self.type_name, number, reason)


class RawMap(Map):
    """A map of any type over bytes: all element operations, whether this map's type has them or not.

    They raise MapError with the errno; only :meth:`lookup` has a word for "not there": None. It is the
    class of types this library does not know; known types have their own.
    """

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
    ) -> Self:
        """Create a map (bpf(2), BPF_MAP_CREATE); see :func:`create_fd` for the arguments and errors."""
        fd = create_fd(
            type,
            key_size,
            value_size,
            max_entries,
            flags,
            name,
            extra=extra,
            inner=inner,
            numa_node=numa_node,
            ifindex=ifindex,
            btf_fd=btf_fd,
            btf_key_type_id=btf_key_type_id,
            btf_value_type_id=btf_value_type_id,
        )
        return cls(fd)

    def _bytes(self, what: str, data: bytes, size: int) -> CData:
        if len(data) != size:
            raise self.error(what, errno.EINVAL, f"{len(data)} bytes where {size} belong")
        return ffi.from_buffer(data) if size else ffi.NULL

    def lookup(self, key: bytes, flags: int = 0) -> bytes | None:
        """Return the value of a key, or None where it has none."""
        value = bytearray(max(self.value_buffer_size, 1))
        raw_key = self._bytes("lookup", key, self.key_size)
        result = lib.bpf_map_lookup_elem_flags(self.fd, raw_key, ffi.from_buffer(value), flags)
        return self._found("lookup", result, value)

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
        value = bytearray(max(self.value_buffer_size, 1))
        raw_key = self._bytes("lookup and delete", key, self.key_size)
        result = lib.bpf_map_lookup_and_delete_elem_flags(self.fd, raw_key, ffi.from_buffer(value), flags)
        return self._found("lookup and delete", result, value)

    def _found(self, operation: str, result: int, value: bytearray) -> bytes | None:
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self.error(operation, -result)
        return bytes(value[: self.value_buffer_size])

    def next_key(self, key: bytes | None) -> bytes | None:
        """Return the key after a key, the first after None, None after the last."""
        following = bytearray(max(self.key_size, 1))
        previous = ffi.NULL if key is None else self._bytes("iteration", key, self.key_size)
        result = lib.bpf_map_get_next_key(self.fd, previous, ffi.from_buffer(following))
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self.error("iteration", -result)
        return bytes(following[: self.key_size])

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


class _RawView(RawMap):
    """A map over bytes that borrows its descriptor."""

    _owner: Map

    @property
    def fd(self) -> int:
        return self._owner.fd

    def close(self) -> None:
        """Do nothing: the descriptor is the owner's."""


def create_fd(
    type: int,  # noqa: A002
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int = 0,
    name: str = "",
    *,
    inner: Map | None = None,
    numa_node: int | None = None,
    ifindex: int = 0,
    **members: int,
) -> int:
    """Create a map and return its file descriptor (bpf(2), BPF_MAP_CREATE).

    Sizes are in bytes; ``inner`` is the template of a map of maps; ``extra`` is ``map_extra``; other
    members are those of libbpf's ``bpf_map_create_opts``. libbpf raises RLIMIT_MEMLOCK first on kernels
    that count maps against it (before 5.11). Raises MapError: EINVAL for sizes or flags that the type does
    not take, E2BIG and ENOMEM for too much, EPERM without CAP_BPF; Unsupported where the kernel does not
    have the type.
    """
    opts = options("bpf_map_create_opts", map_flags=flags, map_ifindex=ifindex)
    opts.map_extra = members.pop("extra", 0)
    if inner is not None:
        opts.inner_map_fd = inner.fd
    if numa_node is not None:
        opts.map_flags |= 1 << 2  # BPF_F_NUMA_NODE
        opts.numa_node = numa_node
    for member, value in members.items():
        setattr(opts, member, value)
    fd = lib.bpf_map_create(type, object_name(name), key_size, value_size, max_entries, opts)
    if fd < 0:
        words = name_of(MapType, type)
        if fd == -errno.EINVAL and lib.libbpf_probe_bpf_map_type(type, ffi.NULL) == 0:
            raise map_error("creation", name, words, 524, f"this kernel has no {words} maps")
        raise map_error("creation", name, words, -fd)
    return fd


def _fd_by_id(id: int) -> int:  # noqa: A002
    fd = lib.bpf_map_get_fd_by_id(id)
    if fd < 0:
        raise MapError("opening", f"id {id}", "unknown type", errno=-fd)
    return fd


def _fd_by_pin(path: Path | str) -> int:
    fd = lib.bpf_obj_get(os.fsencode(path))
    if fd < 0:
        raise MapError("opening", str(path), "pin", errno=-fd)
    return fd
