"""Local storage: a value that lives with a socket, a task, an inode or a cgroup, and dies with it.

The keys are file descriptors of that thing (an object with ``fileno()`` will do): nothing can be listed, and
there is no number of entries. The map is found by the thing, not the thing by the map.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import MapType, UpdateFlags
from packet_tracer.bpf.errors import BtfError, describe
from packet_tracer.bpf.maps.codecs import CodecSpec, codec_of, i32
from packet_tracer.bpf.maps.generic import create_fd
from packet_tracer.bpf.maps.hashes import NO_PREALLOC
from packet_tracer.bpf.maps.keyed import KeyedMap

if TYPE_CHECKING:
    from typing_extensions import Self

V = TypeVar("V")
D = TypeVar("D")


class HasFileno(Protocol):
    """A socket, a file, or anything else with a file descriptor."""

    def fileno(self) -> int: ...


Handle: TypeAlias = "int | HasFileno"


def fd_of(handle: Handle) -> int:
    """Return the file descriptor of what may be one already."""
    return handle if isinstance(handle, int) else handle.fileno()


class LocalStorage(KeyedMap[int, V]):
    """What local storages share: values by file descriptor; ``KeyError`` where the thing has no value.

    Thread safety: every method may be called from any thread at once.
    """

    def __init__(self, fd: int, value: CodecSpec[V] | None = None) -> None:
        super().__init__(fd, i32, value)

    @classmethod
    def create(cls, *, value: CodecSpec[V], name: str = "", flags: int = 0) -> Self:
        """Create a map. It describes itself in BTF, which the kernel insists on for these types."""
        assert cls.TYPE is not None
        codec = codec_of(value)
        btf, key_id, value_id = _describe(codec.size)
        fd = create_fd(
            cls.TYPE,
            4,
            codec.size,
            0,
            flags | NO_PREALLOC,
            name,
            btf_fd=lib.btf__fd(btf),
            btf_key_type_id=key_id,
            btf_value_type_id=value_id,
        )
        return cls(fd, codec)

    def __getitem__(self, handle: Handle) -> V:
        """Return the value of a thing; KeyError where it has none, MapError for what is no such thing."""
        found = self._lookup(i32.encode(fd_of(handle)))
        if found is None:
            raise KeyError(handle)
        return self.value_codec.decode(found)

    def __setitem__(self, handle: Handle, value: V) -> None:
        self._set(fd_of(handle), value)

    def __delitem__(self, handle: Handle) -> None:
        try:
            self._delete(fd_of(handle))
        except KeyError:
            raise KeyError(handle) from None

    def __contains__(self, handle: object) -> bool:
        return self._lookup(i32.encode(fd_of(handle))) is not None  # type: ignore[arg-type]

    def get(self, handle: Handle, default: D | None = None) -> V | D | None:
        """Return the value of a thing, or a default where it has none."""
        found = self._lookup(i32.encode(fd_of(handle)))
        return default if found is None else self.value_codec.decode(found)

    def insert(self, handle: Handle, value: V) -> bool:
        """Set a value only where there is none yet (BPF_NOEXIST); return whether it was set."""
        return self._set(fd_of(handle), value, UpdateFlags.NOEXIST) == 0


class SkStorage(LocalStorage[V]):
    """SK_STORAGE: a value per socket (Linux 5.2). Needs no program.

    MapError ENOTSOCK for what is not a socket.

    >>> with SkStorage.create(value=u64) as marks, socket.socket() as connection:
    ...     marks[connection] = 7
    ...     marks[connection], marks[connection.fileno()]
    (7, 7)
    """

    TYPE: ClassVar[MapType] = MapType.SK_STORAGE


class TaskStorage(LocalStorage[V]):
    """TASK_STORAGE: a value per thread (Linux 5.11). Needs no program.

    The keys are pidfds (pidfd_open(2)), which name the main thread of a process. MapError EBADF for
    others.

    >>> pidfd = os.pidfd_open(os.getpid())
    >>> with TaskStorage.create(value=u64) as marks:
    ...     marks[pidfd] = 7
    ...     marks[pidfd]
    7
    >>> os.close(pidfd)
    """

    TYPE: ClassVar[MapType] = MapType.TASK_STORAGE


class InodeStorage(LocalStorage[V]):
    """INODE_STORAGE: a value per inode (Linux 5.10). Needs no program; only LSM programs reach it.

    Two descriptors of one file have the same value. MapError EBADF where the kernel was not started with the
    bpf LSM.

    >>> with InodeStorage.create(value=u64) as marks, open("/proc/self/exe", "rb") as file:
    ...     marks[file] = 7
    ...     marks[file], marks.get(file.fileno())
    (7, 7)
    """

    TYPE: ClassVar[MapType] = MapType.INODE_STORAGE


class CgrpStorage(LocalStorage[V]):
    """CGRP_STORAGE: a value per cgroup of the second version (Linux 6.2). Needs no program.

    The keys are descriptors of the cgroup's directory. It is the successor of
    :class:`~packet_tracer.bpf.maps.cgroups.CgroupStorage`, and any program can use it.

    >>> with CgrpStorage.create(value=u64) as marks, cgroup_directory() as directory:
    ...     marks[directory] = 7
    ...     marks[directory]
    7
    """

    TYPE: ClassVar[MapType] = MapType.CGRP_STORAGE


def _describe(value_size: int) -> tuple[Any, int, int]:
    """Load BTF with an ``int`` key and a value of so many bytes; return it and both type ids."""
    btf = ffi.gc(lib.btf__new_empty(), lib.btf__free)
    key = lib.btf__add_int(btf, b"int", 4, 1)
    byte = lib.btf__add_int(btf, b"unsigned char", 1, 0)
    if value_size in (1, 2, 4, 8):
        value = lib.btf__add_int(btf, f"u{8 * value_size}".encode(), value_size, 0)
    else:
        value = lib.btf__add_array(btf, key, byte, value_size)
    result = lib.btf__load_into_kernel(btf)
    if result < 0:
        raise BtfError(f"types of the map cannot be loaded: {describe(-result)}", errno=-result or errno.EIO)
    return btf, key, value
