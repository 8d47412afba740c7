"""The engine of maps whose values are kernel objects: put in by file descriptor, read back as a number."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from packet_tracer.bpf.maps.arrays import IndexedMap
from packet_tracer.bpf.maps.codecs import i32, u32
from packet_tracer.bpf.maps.storage import Handle, fd_of


class ObjectArray(IndexedMap[int]):
    """Slots for kernel objects, empty at first. A filled slot keeps its object alive.

    Thread safety: every method may be called from any thread at once.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd)

    def __len__(self) -> int:
        """Number of slots, empty ones included."""
        return self.max_entries

    def __setitem__(self, index: int, handle: Handle) -> None:
        """Fill a slot, by descriptor or by what has one; MapError where it is no such object."""
        self._update(u32.encode(self._index(index)), i32.encode(fd_of(handle)))

    def __delitem__(self, index: int) -> None:
        """Empty a slot; KeyError where it is empty."""
        self._delete(self._index(index))


class ReadableObjectArray(ObjectArray):
    """Slots that can be read: a filled one as a number that names its object."""

    def __contains__(self, index: object) -> bool:
        """Whether the slot is filled."""
        return isinstance(index, int) and self._number(self._index(index)) is not None

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of filled slots."""
        return iter(self.filled())

    def filled(self) -> dict[int, int]:
        """Return index -> number for all filled slots."""
        numbers = ((index, self._number(index)) for index in range(self.max_entries))
        return {index: number for index, number in numbers if number is not None}

    def _number(self, index: int) -> int | None:
        found = self._lookup(u32.encode(index))
        return None if found is None else int.from_bytes(found, sys.byteorder)

    def _required(self, index: int) -> int:
        number = self._number(self._index(index))
        if number is None:
            raise KeyError(index)
        return number
