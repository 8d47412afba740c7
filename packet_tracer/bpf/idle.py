"""Programs that do nothing, to find out by trying what a kernel takes."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from packet_tracer.bpf.enums import ProgramType
from packet_tracer.bpf.program import PreparedProgram, Program

#: A function that exists to be traced: the kernel calls it in test runs only (net/bpf/test_run.c, Linux 5.5).
QUIET_FUNCTION = "bpf_fentry_test1"

_MOVE_TO_R0, _EXIT = 0xB7, 0x95


def idle_program(
    type_: ProgramType,
    attach_type: int = 0,
    *,
    section: str = "",
    target: str | None = None,
    returns: int = 0,
) -> Program:
    """Load a program that does nothing but return a number: two instructions."""
    code = ((_MOVE_TO_R0, 0, 0, returns), (_EXIT, 0, 0, 0))
    return small_program(type_, code, attach_type, section=section, target=target)


def small_program(
    type_: ProgramType,
    instructions: Iterable[tuple[int, int, int, int]],
    attach_type: int = 0,
    *,
    section: str = "",
    target: str | None = None,
) -> Program:
    """Load a program from its instructions: code, registers, offset and immediate of each."""
    prepared = PreparedProgram(
        name="ptrace_doctor",
        section=section,
        type=type_,
        expected_attach_type=attach_type,
        flags=0,
        instructions=b"".join(struct.pack("=BBhi", *each) for each in instructions),
        func_info=b"",
        func_info_record_size=8,
        line_info=b"",
        line_info_record_size=16,
        functions=(),
        license="GPL",
        target=target,
        btf_fd=-1,
    )
    return prepared.load(log=False)
