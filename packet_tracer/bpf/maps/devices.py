"""Where XDP programs redirect to: DEVMAP, DEVMAP_HASH, CPUMAP, XSKMAP."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps.arrays import IndexedMap
from packet_tracer.bpf.maps.codecs import i32, u32
from packet_tracer.bpf.maps.generic import Map, create_fd
from packet_tracer.bpf.maps.keyed import KeyedMap
from packet_tracer.bpf.maps.objects import ObjectArray
from packet_tracer.bpf.program import Program

if TYPE_CHECKING:
    from typing_extensions import Self


E = TypeVar("E")


class Device(NamedTuple):
    """Where a DEVMAP entry leads: an interface, and the id of the XDP program run there (or None)."""

    ifindex: int
    program_id: int | None = None


class Cpu(NamedTuple):
    """A CPUMAP entry: packets that its queue holds, and the id of the XDP program run there (or None)."""

    queue_size: int
    program_id: int | None = None


def _entry(number: int, program: Program | int | None, size: int, owner: Map) -> bytes:
    """Return ``struct bpf_devmap_val`` or ``bpf_cpumap_val``: 8 bytes, or 4 without room for a program."""
    if size == 4:
        if program is not None:
            raise owner.error("update", 22, "its values are 4 bytes, which have no room for a program")
        return u32.encode(number)
    fd = -1 if program is None else program if isinstance(program, int) else program.fd
    return u32.encode(number) + i32.encode(fd)


def _pair(raw: bytes | bytearray) -> tuple[int, int | None]:
    number, program_id = struct.unpack("=II", bytes(raw).ljust(8, b"\0"))
    return number, program_id or None


class _Redirects(IndexedMap[int], Generic[E]):
    """Slots that name where to redirect to, and a program to run there."""

    _read: ClassVar[type[Any]]

    def __init__(self, fd: int) -> None:
        super().__init__(fd)

    def __len__(self) -> int:
        """Number of slots, empty ones included."""
        return self.max_entries

    def __getitem__(self, index: int) -> E:
        """Return what a slot leads to; KeyError where it is empty."""
        found = self._lookup(u32.encode(self._index(index)))
        if found is None:
            raise KeyError(index)
        entry: E = type(self)._read(*_pair(found))
        return entry

    def __setitem__(self, index: int, number: int) -> None:
        self._fill(index, number, None)

    def __delitem__(self, index: int) -> None:
        """Empty a slot, filled or not."""
        self._delete(self._index(index))

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self._lookup(u32.encode(self._index(index))) is not None

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of filled slots."""
        return (index for index in range(self.max_entries) if index in self)

    def _fill(self, index: int, number: int, program: Program | int | None) -> None:
        raw = _entry(number, program, self.value_size, self)
        self._update(u32.encode(self._index(index)), raw)


class DevMap(_Redirects[Device]):
    """DEVMAP: network interfaces by index, for ``bpf_redirect_map`` (Linux 4.14). Only useful to a program.

    ``devices[0] = ifindex`` fills a slot, which empties itself when the interface goes. Programs run on the
    egress side need Linux 5.8. Interfaces are those of the network namespace of the caller.

    Thread safety: every method may be called from any thread at once.

    >>> with DevMap.create(max_entries=4) as devices:
    ...     devices[2] = socket.if_nametoindex("lo")
    ...     devices[2], list(devices)
    (Device(ifindex=1, program_id=None), [2])
    """

    TYPE: ClassVar[MapType] = MapType.DEVMAP
    _read = Device

    @classmethod
    def create(cls, *, max_entries: int, value_size: int = 8, name: str = "", flags: int = 0) -> Self:
        """Create a map with empty slots; values of 4 bytes for kernels before 5.8."""
        return cls(create_fd(MapType.DEVMAP, 4, value_size, max_entries, flags, name))

    def set(self, index: int, ifindex: int, *, program: Program | int | None = None) -> None:
        """Fill a slot, with an XDP program (loaded for ``xdp/devmap``) to run on the way out."""
        self._fill(index, ifindex, program)


class DevMapHash(KeyedMap[int, int]):
    """DEVMAP_HASH: network interfaces by any number, for ``bpf_redirect_map`` (Linux 5.4).

    Only useful to a program. Thread safety: every method may be called from any thread at once.

    >>> with DevMapHash.create(max_entries=4) as devices:
    ...     devices[77] = socket.if_nametoindex("lo")
    ...     devices[77].ifindex, list(devices), 78 in devices
    (1, [77], False)
    """

    TYPE: ClassVar[MapType] = MapType.DEVMAP_HASH

    def __init__(self, fd: int) -> None:
        super().__init__(fd, u32)

    @classmethod
    def create(cls, *, max_entries: int, value_size: int = 8, name: str = "", flags: int = 0) -> Self:
        """Create an empty map; values of 4 bytes for kernels before 5.8."""
        return cls(create_fd(MapType.DEVMAP_HASH, 4, value_size, max_entries, flags, name))

    def __getitem__(self, key: int) -> Device:
        """Return what a key leads to; KeyError."""
        found = self._lookup(u32.encode(key))
        if found is None:
            raise KeyError(key)
        return Device(*_pair(found))

    def __setitem__(self, key: int, ifindex: int) -> None:
        self.set(key, ifindex)

    def set(self, key: int, ifindex: int, *, program: Program | int | None = None) -> None:
        """Set where a key leads; MapFull."""
        self._update(u32.encode(key), _entry(ifindex, program, self.value_size, self))

    def __delitem__(self, key: int) -> None:
        self._delete(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int) and self._lookup(u32.encode(key)) is not None

    def __iter__(self) -> Iterator[int]:
        return iter([u32.decode(key) for key in self._walk_keys()])

    def __len__(self) -> int:
        """Number of keys, by counting them."""
        return len(self._walk_keys())


class CpuMap(_Redirects[Cpu]):
    """CPUMAP: CPUs to move packets to, for ``bpf_redirect_map`` (Linux 4.15). Only useful to a program.

    ``cpus[1] = 192`` gives CPU 1 a queue of 192 packets (16384 at most: EOVERFLOW) and a kernel thread.
    Programs run on that CPU need Linux 5.9.

    Thread safety: every method may be called from any thread at once.

    >>> with CpuMap.create(max_entries=2) as cpus:
    ...     cpus[0] = 192
    ...     cpus[0], 1 in cpus
    (Cpu(queue_size=192, program_id=None), False)
    """

    TYPE: ClassVar[MapType] = MapType.CPUMAP
    _read = Cpu

    @classmethod
    def create(cls, *, max_entries: int, value_size: int = 8, name: str = "", flags: int = 0) -> Self:
        """Create a map for the CPUs below ``max_entries``; values of 4 bytes for kernels before 5.9."""
        return cls(create_fd(MapType.CPUMAP, 4, value_size, max_entries, flags, name))

    def set(self, cpu: int, queue_size: int, *, program: Program | int | None = None) -> None:
        """Give a CPU a queue, with an XDP program (loaded for ``xdp/cpumap``) to run there."""
        self._fill(cpu, queue_size, program)


class XskMap(ObjectArray):
    """XSKMAP: AF_XDP sockets by queue, for ``bpf_redirect_map`` (Linux 4.18). Only useful to a program.

    The kernel does not tell what is in it. A socket's slot empties itself when the socket is closed.

    Thread safety: every method may be called from any thread at once.

    >>> with XskMap.create(max_entries=2) as queues, xdp_socket() as receiver:
    ...     queues[1] = receiver
    ...     del queues[1]
    """

    TYPE: ClassVar[MapType] = MapType.XSKMAP

    @classmethod
    def create(cls, *, max_entries: int, name: str = "", flags: int = 0) -> Self:
        """Create a map with empty slots."""
        return cls(create_fd(MapType.XSKMAP, 4, 4, max_entries, flags, name))
