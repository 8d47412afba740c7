"""Maps whose values user space can map into its memory: no system call to read or write."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from packet_tracer.bpf.maps.generic import Map

if TYPE_CHECKING:
    from typing_extensions import Self

MMAPABLE = 1 << 10  # BPF_F_MMAPABLE


class MappedMemory:
    """A map's memory: a context manager over ``view``, a memoryview of bytes shared with the programs.

    ``view.cast("Q")`` and the like give numbers. Nothing orders accesses: a value that a program writes in
    several steps may be seen half written.
    """

    _mapping: mmap.mmap | None

    def __init__(self, map: Map, size: int, *, writable: bool) -> None:  # noqa: A002
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self._mapping = mmap.mmap(map.fd, size, mmap.MAP_SHARED, protection)
        except OSError as error:
            raise map.error("mapping", error.errno or 0) from None
        self.view = memoryview(self._mapping)

    @classmethod
    def borrowed(cls, view: memoryview) -> Self:
        """Return memory that somebody else mapped, and will unmap."""
        memory = cls.__new__(cls)
        memory._mapping = None
        memory.view = view
        return memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap; BufferError while casts or slices of the view are alive."""
        self.view.release()
        if self._mapping is not None:
            self._mapping.close()
