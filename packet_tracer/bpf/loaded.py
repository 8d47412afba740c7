"""BPF programs that the kernel has, whoever loaded them, in whatever network namespace they are attached."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.btf import Btf
from packet_tracer.bpf.library import CData
from packet_tracer.bpf.program import Program
from packet_tracer.errors import BpfError, error_text


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """A program in the kernel.

    ``name`` is its function's in C where its BTF tells that, else the kernel's own (15 bytes at most, perhaps
    none), which is ``short_name``. ``function`` is the function's type id in its BTF, 0 without.
    """

    id: int
    type: int
    name: str
    short_name: str
    function: int


def ids(next_id: Callable[[int, CData], int]) -> Iterator[int]:
    """Yield all ids that one of libbpf's ``bpf_*_get_next_id`` walks over. Raises BpfError: EPERM without
    CAP_SYS_ADMIN.
    """
    last, found = 0, ffi.new("__u32 *")
    while True:
        result = next_id(last, found)
        if result == -errno.ENOENT:  # that was the last
            return
        if result < 0:
            raise BpfError(f"listing needs CAP_SYS_ADMIN: {error_text(-result)}", errno=-result)
        last = found[0]
        yield last


def loaded_programs(types: Collection[int]) -> list[LoadedProgram]:
    """Return the programs of some types (``ProgramType``), by id. Raises BpfError: EPERM without
    CAP_SYS_ADMIN.
    """
    found = []
    for identifier in ids(lib.bpf_prog_get_next_id):
        try:
            with Program.from_id(identifier) as program:
                if program.type in types:
                    found.append(_described(program))
        except BpfError as error:
            if error.errno != errno.ENOENT:  # else it is gone meanwhile
                raise
    return found


def _described(program: Program) -> LoadedProgram:
    function = program.main_function()
    name = program.name
    if function:
        name = Btf.from_id(program.info().btf_id).type(function).name or name
    return LoadedProgram(program.id, program.type, name, program.name, function)
