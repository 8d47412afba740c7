"""PROG_ARRAY: programs to jump to (tail calls)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps.generic import create_fd
from packet_tracer.bpf.maps.objects import ReadableObjectArray
from packet_tracer.bpf.program import Program

if TYPE_CHECKING:
    from typing_extensions import Self


class ProgramArray(ReadableObjectArray):
    """PROG_ARRAY: programs by index, for ``bpf_tail_call`` (Linux 4.2). Only useful to a program.

    ``programs[3] = program`` fills a slot, ``del`` empties it, ``programs[3]`` is the program's id and
    ``programs.program(3)`` the program. The first program put in fixes which types may follow (EINVAL). The
    kernel empties the map when nobody holds it open or pinned, even while a program that uses it runs.

    Thread safety: every method may be called from any thread at once; a running program sees the old or
    the new target.

    >>> with ProgramArray.create(max_entries=4) as targets, xdp_program() as program:
    ...     targets[2] = program
    ...     targets[2] == program.id, list(targets)
    (True, [2])
    """

    TYPE: ClassVar[MapType] = MapType.PROG_ARRAY

    @classmethod
    def create(cls, *, max_entries: int, name: str = "", flags: int = 0) -> Self:
        """Create a map with empty slots."""
        return cls(create_fd(MapType.PROG_ARRAY, 4, 4, max_entries, flags, name))

    def __getitem__(self, index: int) -> int:
        """Return the id of the program in a slot; KeyError where it is empty."""
        return self._required(index)

    def program(self, index: int) -> Program:
        """Open the program in a slot; KeyError where it is empty."""
        return Program.from_id(self[index])
