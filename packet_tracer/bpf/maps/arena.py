"""ARENA: memory that programs and user space share, pointers included."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, ClassVar

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps.generic import Map, create_fd
from packet_tracer.bpf.maps.memory import MMAPABLE, MappedMemory

if TYPE_CHECKING:
    from typing_extensions import Self


class Arena(Map):
    """ARENA: up to 4 GiB of memory shared with programs (Linux 6.9; x86-64 and arm64).

    Pages appear when a program allocates them or user space touches them. User space can map it once, at
    one address: of an object that libbpf loaded, libbpf has done so, and :meth:`memory` is that mapping. It
    has no elements. Needs no program, but without one it is only memory.

    Thread safety: as for any shared memory, nothing orders accesses.

    >>> with Arena.create(pages=4) as arena, arena.memory() as memory:
    ...     memory.view[:5] = b"hello"
    ...     bytes(memory.view[:5]), len(memory.view) // 4
    (b'hello', 4096)
    """

    TYPE: ClassVar[MapType] = MapType.ARENA

    @classmethod
    def create(cls, *, pages: int, address: int = 0, name: str = "", flags: int = 0) -> Self:
        """Create an arena of ``pages``; ``address`` fixes where user space has to map it (``map_extra``)."""
        return cls(create_fd(MapType.ARENA, 0, 0, pages, flags | MMAPABLE, name, extra=address))

    @property
    def size_bytes(self) -> int:
        """The whole arena's size."""
        return self.max_entries * mmap.PAGESIZE

    def memory(self) -> MappedMemory:
        """Return the arena's memory; MapError EINVAL for a second mapping, EBUSY where there was one."""
        if self._libbpf is not None:
            pointer = lib.bpf_map__initial_value(self._libbpf, ffi.new("size_t *"))
            if pointer:
                return MappedMemory.borrowed(memoryview(ffi.buffer(pointer, self.size_bytes)))
        return MappedMemory(self, self.size_bytes, writable=True)
