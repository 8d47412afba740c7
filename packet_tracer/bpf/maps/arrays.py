"""Arrays: ARRAY, and per CPU PERCPU_ARRAY."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

from packet_tracer.bpf.enums import MapType, UpdateFlags
from packet_tracer.bpf.maps.codecs import Codec, CodecSpec, codec_of, u32
from packet_tracer.bpf.maps.generic import create_fd
from packet_tracer.bpf.maps.keyed import KeyedMap
from packet_tracer.bpf.maps.memory import MMAPABLE, MappedMemory
from packet_tracer.bpf.maps.percpu import PerCpuCodec, PerCpuValues

if TYPE_CHECKING:
    from typing_extensions import Self

V = TypeVar("V")


class IndexedMap(KeyedMap[int, V]):
    """A map with the keys 0 to ``max_entries - 1``."""

    def __init__(self, fd: int, value: CodecSpec[V] | None = None) -> None:
        super().__init__(fd, u32, value)

    def _index(self, index: int) -> int:
        """Return a plain index for one that may count from the end; IndexError."""
        plain = index + self.max_entries if index < 0 else index
        if not 0 <= plain < self.max_entries:
            raise IndexError(f"index {index} of map {self.name or self.id}, which has {self.max_entries}")
        return plain


class ArrayBase(IndexedMap[V], Sequence[V]):
    """What arrays share: a sequence of fixed length, all zero at first; elements can't be removed.

    Slices and iteration read by batch (Linux 5.6; 5.13 per CPU), so an iteration is a snapshot.

    Thread safety: every method may be called from any thread at once. Values of up to 8 bytes are read
    and written whole; larger ones may be seen half written by a program.
    """

    def __len__(self) -> int:
        return self.max_entries

    @overload
    def __getitem__(self, index: int) -> V: ...
    @overload
    def __getitem__(self, index: slice) -> list[V]: ...
    def __getitem__(self, index: int | slice) -> V | list[V]:
        if isinstance(index, slice):
            return self._read_all()[1][index]
        return self._get(self._index(index))

    def __setitem__(self, index: int, value: V) -> None:
        self._set(self._index(index), value)

    def __iter__(self) -> Iterator[V]:
        return iter(self._read_all()[1])

    def update_many(self, items: Mapping[int, V] | Iterable[tuple[int, V]]) -> None:
        """Set many elements with few system calls (Linux 5.6; 5.13 per CPU; one by one before it)."""
        pairs = items.items() if isinstance(items, Mapping) else items
        self._update_many([(self._index(index), value) for index, value in pairs], UpdateFlags.ANY)

    @classmethod
    def _create(
        cls, value: CodecSpec[Any], max_entries: int, name: str, flags: int, numa_node: int | None
    ) -> Self:
        assert cls.TYPE is not None
        codec = codec_of(value)
        fd = create_fd(cls.TYPE, 4, codec.size, max_entries, flags, name, numa_node=numa_node)
        return cls(fd, codec)


class Array(ArrayBase[V]):
    """ARRAY: a fixed number of values (Linux 3.19). Needs no program; both sides read and write.

    Data sections of objects (``.rodata``, ``.bss``) are such maps too, with one value.

    >>> with Array.create(value=u64, max_entries=4) as counters:
    ...     counters[0] = 5
    ...     counters[-1] = 7
    ...     list(counters), counters[1:], len(counters)
    ([5, 0, 0, 7], [0, 0, 7], 4)
    """

    TYPE: ClassVar[MapType] = MapType.ARRAY

    @classmethod
    def create(
        cls,
        *,
        value: CodecSpec[V],
        max_entries: int,
        name: str = "",
        mmapable: bool = False,
        flags: int = 0,
        numa_node: int | None = None,
    ) -> Self:
        """Create a map; ``mmapable`` ones have :meth:`memory` (BPF_F_MMAPABLE, Linux 5.5)."""
        return cls._create(value, max_entries, name, flags | (MMAPABLE if mmapable else 0), numa_node)

    def memory(self, *, writable: bool = True) -> MappedMemory:
        """Map the values into memory: each at a multiple of its size rounded up to 8.

        MapError EINVAL where the map is not ``mmapable``, EPERM for writing to a frozen one.

        >>> with Array.create(value=u64, max_entries=4, mmapable=True) as counters:
        ...     with counters.memory() as memory:
        ...         memory.view[8:16] = (9).to_bytes(8, "little")
        ...     counters[1]
        9
        """
        size = (self.value_size + 7) // 8 * 8 * self.max_entries
        return MappedMemory(self, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, writable=writable)


class PerCpuArray(ArrayBase[PerCpuValues[V]], Generic[V]):
    """PERCPU_ARRAY: a fixed number of values, one of each per possible CPU (Linux 4.6). Needs no program.

    Programs write the value of the CPU they run on, without locks. Values written from here are sequences of
    exactly one per possible CPU, as ``PerCpuValues.same(0)``.

    >>> with PerCpuArray.create(value=u64, max_entries=2) as packets:
    ...     packets[1] = PerCpuValues.same(3)
    ...     packets[1].sum() == 3 * possible_cpus(), packets.totals()[0]
    (True, 0)
    """

    TYPE: ClassVar[MapType] = MapType.PERCPU_ARRAY

    @classmethod
    def create(cls, *, value: CodecSpec[V], max_entries: int, name: str = "", flags: int = 0) -> Self:
        """Create a map; ``value`` is one CPU's value."""
        return cls._create(value, max_entries, name, flags, None)

    def __setitem__(self, index: int, value: Sequence[V]) -> None:
        super().__setitem__(index, PerCpuValues(value))

    def update_many(self, items: Mapping[int, Sequence[V]] | Iterable[tuple[int, Sequence[V]]]) -> None:
        """Set many elements with few system calls (Linux 5.13; one by one before it)."""
        pairs = items.items() if isinstance(items, Mapping) else items
        super().update_many((index, PerCpuValues(value)) for index, value in pairs)

    def totals(self) -> list[V]:
        """Return the sum over all CPUs for each index, of one snapshot."""
        return [values.sum() for values in self]

    def _wrap_value(self, codec: Codec[Any]) -> Codec[PerCpuValues[V]]:
        return PerCpuCodec(codec)
