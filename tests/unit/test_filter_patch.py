"""Putting a filter into a program: a pure function on bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest

from packet_tracer.bpf.constants import patch_constants
from packet_tracer.filter import Access, Filter, FilterError, LinkType, Stub, ebpf
from packet_tracer.filter.expression import compile_filter
from packet_tracer.filter.patch import patch, replace_functions

EXIT = ebpf.Instruction(ebpf.JMP | ebpf.JUMPS["exit"])
ONE = ebpf.Instruction(ebpf.ALU | ebpf.ARITHMETIC["mov"], 0, 0, 0, 1)
NOTHING = ebpf.Instruction(ebpf.JMP | ebpf.JUMPS["ja"])


def call(at: int, target: int) -> ebpf.Instruction:
    return ebpf.Instruction(0x85, 0, ebpf.PSEUDO_CALL, 0, target - at - 1)


@dataclass(frozen=True)
class Code:
    """A prepared program: a caller, a stub of three instructions, one of two, and what filters call."""

    name: str = "program"
    instructions: bytes = ebpf.encode([call(0, 2), EXIT, ONE, ONE, EXIT, ONE, EXIT, ONE, EXIT])
    func_info: bytes = struct.pack("=8I", 0, 11, 2, 12, 5, 13, 7, 14)
    func_info_record_size: int = 8
    line_info: bytes = struct.pack("=16I", 0, 1, 2, 3, 2, 4, 5, 6, 5, 7, 8, 9, 7, 1, 1, 1)
    line_info_record_size: int = 16
    functions: tuple[tuple[str, int], ...] = (
        ("program", 0),
        ("pcap_filter_tc_l2", 2),
        ("pcap_filter_tc_l3", 5),
        ("filter_tc_load", 7),
    )


def starts_of(filter_: Filter) -> list[int]:
    """Where each function of the two filters in a patched `Code` begins, and where the last one ends."""
    starts = [9]
    for link_type in LinkType:
        for function in filter_.program(Stub(Access.TC, link_type)).functions:
            starts.append(starts[-1] + len(function.instructions))
    return starts


def test_calls_of_the_stub_go_to_the_filter_and_nothing_moves() -> None:
    program = Code()
    filter_ = compile_filter("tcp port 80")
    fast, slow, fast3, slow3, end = starts_of(filter_)
    after = ebpf.decode(patch(program, filter_).instructions)
    assert len(after) == end
    assert after[:2] == (call(0, fast), EXIT)
    assert after[7:9] == ebpf.decode(program.instructions)[7:9]
    # What is left of the stubs: a no-op for the room that is too much, a call of the second function, exit.
    assert after[2:5] == (NOTHING, call(3, slow), EXIT)
    assert after[5:7] == (call(5, slow3), EXIT)
    targets = {
        index: index + 1 + i.immediate
        for index, i in enumerate(after)
        if i.opcode == 0x85 and i.source == ebpf.PSEUDO_CALL
    }
    # The first function of each calls the stub, the second filter_tc_load.
    assert {target for at, target in targets.items() if fast <= at < slow} == {2}
    assert {target for at, target in targets.items() if fast3 <= at < slow3} == {5}
    assert {target for at, target in targets.items() if slow <= at < fast3 or at >= slow3} == {7}


def test_a_filter_of_one_function_is_called_from_the_stub() -> None:
    after = ebpf.decode(patch(Code(), compile_filter("greater 80")).instructions)
    assert after[:5] == (call(0, 2), EXIT, NOTHING, call(3, 9), EXIT)


def test_each_function_has_its_records() -> None:
    filter_ = compile_filter("tcp port 80")
    program, patched = Code(), patch(Code(), filter_)
    assert patched.func_info.startswith(program.func_info)
    assert patched.line_info.startswith(program.line_info)
    new = list(struct.iter_unpack("=2I", patched.func_info[len(program.func_info) :]))
    lines = list(struct.iter_unpack("=4I", patched.line_info[len(program.line_info) :]))
    starts = starts_of(filter_)[:-1]
    assert [start for start, _ in new] == starts
    assert [kind for _, kind in new] == [12, 12, 13, 13]
    assert [line for line, *_ in lines] == starts
    assert [rest for _, *rest in lines] == [[4, 5, 6], [4, 5, 6], [7, 8, 9], [7, 8, 9]]


def test_a_program_without_line_info_stays_without() -> None:
    assert patch(Code(line_info=b""), compile_filter("tcp")).line_info == b""


def test_no_filter_or_no_stub_changes_nothing() -> None:
    program = Code()
    assert patch(program, None).arguments() == {
        "instructions": program.instructions,
        "func_info": program.func_info,
        "line_info": program.line_info,
    }
    without = Code(functions=(("program", 0),))
    assert patch(without, compile_filter("tcp")).instructions == without.instructions


def test_inner_stubs_take_the_inner_filter_only() -> None:
    program = Code(functions=(("program", 0), ("pcap_filter_tc_inner_l2", 2), ("filter_tc_load", 7)))
    assert patch(program, compile_filter("tcp")).instructions == program.instructions
    patched = patch(program, compile_filter("tcp", inner="udp"))
    assert len(patched.instructions) > len(program.instructions)


def test_it_goes_together_with_constants() -> None:
    program = Code(functions=(*Code().functions, ("constant", 7)))
    constants = patch_constants(program, {"constant": 77})  # type: ignore[arg-type]
    patched = patch(program, compile_filter("len > 5"), instructions=constants)
    assert ebpf.decode(patched.instructions)[7].immediate == 77
    assert (
        patch_constants(program, {"constant": 77}, instructions=patched.instructions) == patched.instructions
    )  # type: ignore[arg-type]


def test_what_the_filter_calls_must_be_there() -> None:
    with pytest.raises(FilterError, match="filter_tc_load"):
        patch(Code(functions=(("program", 0), ("pcap_filter_tc_l2", 2))), compile_filter("tcp"))


def test_a_function_without_debug_information_is_refused() -> None:
    program = Code(func_info=struct.pack("=2I", 0, 11))
    with pytest.raises(FilterError, match="debug information"):
        patch(program, compile_filter("len > 5"))


def test_a_stub_too_small_is_refused() -> None:
    program = Code(instructions=ebpf.encode([EXIT, EXIT]), functions=(("program", 0), ("stub", 1)))
    function = ebpf.Function("pcap_filter", (ONE, EXIT))
    with pytest.raises(FilterError, match="room"):
        replace_functions(
            Code(
                instructions=program.instructions,
                functions=program.functions,
                func_info=struct.pack("=2I", 1, 1),
                line_info=b"",
            ),
            {"stub": ebpf.Program((function,))},
        )
