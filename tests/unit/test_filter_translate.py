"""The translated filter's answer is libpcap's own, whatever the packet and however it is read."""

from __future__ import annotations

import struct
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packet_tracer.filter import STUBS, Access, Filter, FilterError, LinkType, Stub, cbpf, ebpf
from packet_tracer.filter.analysis import reads_metadata
from packet_tracer.filter.evaluator import evaluate
from packet_tracer.filter.expression import compile_filter
from packet_tracer.filter.pcap import OfflineFilter
from packet_tracer.filter.translate import translate
from packet_tracer.filter.typed import TypedMemory
from tests.filter_corpus import corpus, expressions, packets

OUTER = [stub for stub in STUBS if not stub.inner]
#: Each stub, and the probes' once more as on kernels that read memory in place.
IN_PLACE = TypedMemory(1, 2)
WAYS = [(stub, None) for stub in OUTER] + [(stub, IN_PLACE) for stub in OUTER if stub.access is Access.PROBE]
TAG = 0x8100_0064


@cache
def filters() -> list[Filter]:
    made = []
    for expression in expressions():
        try:
            made.append(compile_filter(expression))
        except FilterError:
            continue
    return made


@cache
def programs(link_type: LinkType) -> list[tuple[cbpf.Instruction, ...]]:
    """All programs that need nothing but the bytes: what libpcap can answer without a kernel."""
    made = {
        f.classic(link_type): None for f in filters() if not any(map(reads_metadata, f.classic(link_type)))
    }
    return list(made)


@cache
def small_corpus(link_type: LinkType) -> list[bytes]:
    return [b"", *corpus(40, link_header=link_type is LinkType.ETHERNET)]


@pytest.mark.parametrize(
    ("stub", "memory"), WAYS, ids=[f"{stub.symbol}{'-in-place' * bool(memory)}" for stub, memory in WAYS]
)
def test_every_expression_on_the_corpus(stub: Stub, memory: TypedMemory | None) -> None:
    """Zero differences is the bar."""
    compared = accepted = 0
    for program in programs(stub.link_type):
        oracle = OfflineFilter(program)
        translated = translate(program, stub, memory=memory)
        for number, packet in enumerate(small_corpus(stub.link_type)):
            expected = oracle.matches(packet)
            # Every third packet has its tail, and perhaps its headers, outside the linear part.
            linear = None if number % 3 else number
            assert evaluate(translated, stub, packet, linear=linear) == expected, (
                cbpf.disassemble(program),
                packet.hex(),
            )
            compared += 1
            accepted += expected
    assert compared > 9_000
    assert accepted > 1000


@settings(max_examples=400)
@given(st.data())
def test_any_expression_on_any_packet(data: st.DataObject) -> None:
    stub, memory = data.draw(st.sampled_from(WAYS))
    program = data.draw(st.sampled_from(programs(stub.link_type)))
    packet = data.draw(packets(link_header=stub.link_type is LinkType.ETHERNET) | st.binary(max_size=120))
    linear = data.draw(st.none() | st.integers(0, len(packet)))
    length = len(packet) + data.draw(st.sampled_from([0, 0, 1, 1000]))
    expected = OfflineFilter(program).matches(packet, length=length)
    translated = translate(program, stub, memory=memory)
    assert evaluate(translated, stub, packet, linear=linear, length=length) == expected


@settings(max_examples=300)
@given(st.data())
def test_a_tag_beside_the_packet_is_seen_as_if_it_lay_in_it(data: st.DataObject) -> None:
    """Inserting the tag and asking libpcap gives the answer that the filter gives without inserting it."""
    tagged = [f for f in filters() if f.sees_vlan and not any(map(reads_metadata, f.ethernet))]
    chosen = data.draw(st.sampled_from(tagged))
    access = data.draw(st.sampled_from([Access.PROBE, Access.TC]))
    packet = data.draw(packets() | st.binary(max_size=60))
    tag = data.draw(
        st.sampled_from([0x8100 << 16 | 100, 0x88A8 << 16 | 200, 0x8100 << 16, 0x9100 << 16 | 4095])
    )
    linear = data.draw(st.none() | st.integers(0, len(packet)))
    stub = Stub(access, LinkType.ETHERNET)
    on_wire = packet[:12] + tag.to_bytes(4, "big") + packet[12:] if len(packet) >= 12 else packet
    expected = OfflineFilter(chosen.ethernet).matches(on_wire, length=len(packet))
    metadata = tag | 3 << 32
    assert evaluate(chosen.program(stub), stub, packet, linear=linear, metadata=metadata) == expected


@settings(max_examples=200)
@given(st.data())
def test_an_inner_packet_is_read_from_where_it_begins(data: st.DataObject) -> None:
    link_type = data.draw(st.sampled_from(list(LinkType)))
    access = data.draw(st.sampled_from(list(Access)))
    # A packet without a link-layer header need not begin where TC's and XDP's bytes do either.
    stub = Stub(access, link_type, inner=link_type is LinkType.ETHERNET or data.draw(st.booleans()))
    program = data.draw(st.sampled_from(programs(link_type)))
    inner = data.draw(packets(link_header=link_type is LinkType.ETHERNET))
    start = data.draw(st.sampled_from([20, 28, 50, 64]))
    packet = b"\xa5" * start + inner
    # Only what is inside another packet can begin behind the linear part: skb->data lies in it.
    first = start if access is Access.PROBE and not stub.inner else 0
    linear = data.draw(st.none() | st.integers(first, len(packet)))
    expected = OfflineFilter(program).matches(inner)
    memory = IN_PLACE if access is Access.PROBE and data.draw(st.booleans()) else None
    translated = translate(program, stub, memory=memory)
    assert evaluate(translated, stub, packet, linear=linear, start=start) == expected


def test_without_the_word_vlan_a_tag_beside_the_packet_changes_nothing() -> None:
    """As a live tcpdump: the device took the tag off, so `tcp` sees a TCP packet."""
    frame = bytes(12) + b"\x08\x00" + b"\x45" + bytes(8) + b"\x06" + bytes(30)
    for access in (Access.PROBE, Access.TC):
        stub = Stub(access, LinkType.ETHERNET)
        assert evaluate(compile_filter("tcp").program(stub), stub, frame, metadata=TAG)
        assert evaluate(compile_filter("vlan 100 and tcp").program(stub), stub, frame, metadata=TAG)
        assert not evaluate(compile_filter("vlan 101").program(stub), stub, frame, metadata=TAG)
        assert not evaluate(compile_filter("vlan 100").program(stub), stub, frame, metadata=0)


@pytest.mark.parametrize(
    ("text", "sees"), [("vlan", True), ("not (vlan 5)", True), ("host vlan.example", False)]
)
def test_which_expressions_see_vlan_tags(text: str, sees: bool) -> None:
    assert Filter(text, (), ()).sees_vlan is sees


@pytest.mark.parametrize("stub", OUTER, ids=lambda stub: stub.symbol)
def test_metadata(stub: Stub) -> None:
    def answer(text: str, metadata: int) -> bool:
        return evaluate(compile_filter(text).program(stub), stub, bytes(60), metadata=metadata)

    outgoing, interface = 4 << 60, 7 << 32
    assert answer("outbound", outgoing | interface)
    assert not answer("outbound", interface)
    assert answer("inbound", interface | (0 if stub.has_offset else TAG))
    assert not answer("inbound", outgoing)
    if stub.link_type is LinkType.ETHERNET:
        assert answer("ifindex 7", outgoing | interface | TAG)
        assert not answer("ifindex 7", 8 << 32)


def run(program: list[tuple[int, int, int, int]], packet: bytes = b"", stub: Stub = OUTER[0]) -> list[bool]:
    made = tuple(cbpf.Instruction(*row) for row in program)
    stubs = [one for one in OUTER if one.link_type is stub.link_type]
    return [evaluate(translate(made, one), one, packet) for one in stubs]


_VALUES = st.sampled_from([0, 1, 2, 3, 7, 31, 32, 33, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]) | st.integers(
    0, 2**32 - 1
)


@settings(max_examples=400)
@given(st.sampled_from(sorted(range(0, 0xB0, 0x10))), _VALUES, _VALUES, st.booleans(), st.data())
def test_arithmetic_is_libpcaps(
    operation: int, left: int, right: int, by_x: bool, data: st.DataObject
) -> None:
    if operation in (cbpf.LSH, cbpf.RSH) and not by_x:
        right %= 32  # more is undefined in C; libpcap does not compile it
    if operation in (cbpf.DIV, cbpf.MOD) and not by_x:
        right = right or 1  # libpcap's validator refuses a constant zero
    if operation == cbpf.NEG:
        by_x = False
    program = [
        (cbpf.LD | cbpf.IMM, 0, 0, left),
        (cbpf.LDX | cbpf.IMM, 0, 0, right),
        (cbpf.ALU | operation | (cbpf.X if by_x else cbpf.K), 0, 0, 0 if by_x else right),
        (cbpf.JMP | cbpf.JEQ, 0, 1, data.draw(_VALUES)),
        (cbpf.RET, 0, 0, 1),
        (cbpf.RET | cbpf.RETURN_A, 0, 0, 0),
    ]
    expected = OfflineFilter([cbpf.Instruction(*row) for row in program]).matches(b"")
    assert set(run(program)) == {expected}


@settings(max_examples=300)
@given(
    st.sampled_from([cbpf.JEQ, cbpf.JGT, cbpf.JGE, cbpf.JSET]), _VALUES, _VALUES, st.booleans(), st.booleans()
)
def test_jumps_are_libpcaps(operation: int, left: int, right: int, by_x: bool, swapped: bool) -> None:
    program = [
        (cbpf.LD | cbpf.IMM, 0, 0, left),
        (cbpf.LDX | cbpf.IMM, 0, 0, right),
        (cbpf.JMP | operation | (cbpf.X if by_x else cbpf.K), int(swapped), int(not swapped), right),
        (cbpf.RET, 0, 0, 0),
        (cbpf.RET, 0, 0, 9),
    ]
    expected = OfflineFilter([cbpf.Instruction(*row) for row in program]).matches(b"")
    assert set(run(program)) == {expected}


_PLACES = st.integers(0, 40) | st.sampled_from([95, 96, 97, 65535, 2**31, 2**32 - 1, 2**32 - 4])
_NOTHING = st.just(0)


def _rows(
    codes: list[int], k: st.SearchStrategy[int], jump: st.SearchStrategy[int] = _NOTHING
) -> st.SearchStrategy[tuple[int, int, int, int]]:
    return st.tuples(st.sampled_from(codes), jump, jump, k)


def _any_instruction(left: int) -> st.SearchStrategy[tuple[int, int, int, int]]:
    """Any instruction that `left` others follow."""
    jump = st.integers(0, left)
    return st.one_of(
        _rows([0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0xB1], _PLACES),
        _rows([0x60, 0x61, 0x02, 0x03], st.integers(0, 3)),
        _rows([0x80, 0x81, 0x87, 0x07, 0x84], _NOTHING),
        _rows([0x04, 0x14, 0x24, 0x44, 0x54, 0xA4], _VALUES),
        _rows([0x0C, 0x1C, 0x2C, 0x3C, 0x4C, 0x5C, 0x6C, 0x7C, 0x9C, 0xAC], _NOTHING),
        _rows([0x15, 0x25, 0x35, 0x45, 0x1D, 0x2D, 0x3D, 0x4D], _VALUES, jump),
        _rows([0x05], jump),
        _rows([0x06], st.sampled_from([0, 1])),
    )


@settings(max_examples=200)
@given(st.data())
def test_random_programs(data: st.DataObject) -> None:
    """Programs that no compiler would make: scratch memory, loads anywhere, jumps forward to anywhere."""
    length = data.draw(st.integers(1, 12))
    # libpcap's scratch memory starts as whatever lies on the stack.
    program = [(cbpf.LD | cbpf.IMM, 0, 0, 0), *((cbpf.ST, 0, 0, n) for n in range(4))]
    program += [data.draw(_any_instruction(length - index - 1)) for index in range(length)]
    program.append(data.draw(st.sampled_from([(0x06, 0, 0, 0), (0x06, 0, 0, 5), (0x16, 0, 0, 0)])))
    packet = data.draw(st.binary(max_size=50))
    classic = tuple(cbpf.Instruction(*row) for row in program)
    expected = OfflineFilter(classic).matches(packet)
    for stub in OUTER:
        made = translate(classic, stub)
        for linear in (None, len(packet) // 2):
            assert evaluate(made, stub, packet, linear=linear) == expected, ebpf.disassemble(made)


@pytest.mark.parametrize(
    "program",
    [
        [],
        [(cbpf.JMP | cbpf.JA, 0, 0, 0xFFFFFFFF)],
        [(cbpf.JMP | cbpf.JEQ, 5, 0, 1), (cbpf.RET, 0, 0, 1)],
        [(cbpf.LD | cbpf.IMM, 0, 0, 1)],
        [(cbpf.ST, 0, 0, 16), (cbpf.RET, 0, 0, 1)],
        [(0xFF, 0, 0, 0), (cbpf.RET, 0, 0, 1)],
        [(cbpf.LDX | cbpf.IND, 0, 0, 0), (cbpf.RET, 0, 0, 1)],
    ],
)
def test_what_is_no_program_is_refused(program: list[tuple[int, int, int, int]]) -> None:
    with pytest.raises(FilterError):
        run(program)


def test_division_by_zero_rejects() -> None:
    by_zero = [(cbpf.LD | cbpf.IMM, 0, 0, 5), (cbpf.ALU | cbpf.DIV, 0, 0, 0), (cbpf.RET, 0, 0, 1)]
    assert set(run(by_zero)) == {False}


def test_no_instruction_is_left_that_control_cannot_reach() -> None:
    """The kernel refuses a program with one."""
    for stub in STUBS:
        for program in programs(stub.link_type):
            for function in translate(program, stub).functions:
                assert reached(function) == len(function.instructions), function


def reached(function: ebpf.Function) -> int:
    seen: set[int] = set()
    waiting = [0]
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        i = function.instructions[index]
        name = ebpf.JUMP_NAMES.get(i.opcode & 0xF0) if i.opcode & 7 in (ebpf.JMP, ebpf.JMP32) else None
        if name == "exit":
            continue
        if name == "ja" or name not in (None, "call"):
            waiting.append(index + 1 + i.offset)
            assert i.offset >= 0
        if name != "ja":
            waiting.append(index + 1)
    return len(seen)


def test_a_program_is_small() -> None:
    """Straight code: at most a few instructions for each of the classic program's."""
    for link_type in LinkType:
        for program in programs(link_type):
            stub = Stub(Access.TC, link_type)
            fast = translate(program, stub).functions[0]
            assert len(fast.instructions) <= 8 * len(program) + 16


def test_an_expression_that_is_too_large_says_so() -> None:
    # As from thousands of hosts; libpcap's optimizer would take minutes for them.
    rows = [(cbpf.LD | cbpf.W | cbpf.ABS, 0, 0, 26)]
    for _ in range(20_000):
        rows += [(cbpf.JMP | cbpf.JEQ, 0, 1, 5), (cbpf.JMP | cbpf.JA, 0, 0, 40_001 - len(rows) - 1)]
    program = tuple(cbpf.Instruction(*row) for row in [*rows, (cbpf.RET, 0, 0, 0), (cbpf.RET, 0, 0, 1)])
    with pytest.raises(FilterError, match="file of prefixes"):
        translate(program, Stub(Access.PROBE, LinkType.ETHERNET))


def test_encoding_and_decoding_are_inverse() -> None:
    for stub in STUBS:
        for function in compile_filter("vlan and tcp port 80").program(stub).functions:
            plain = tuple(i._replace(symbol="") for i in function.instructions)
            assert ebpf.decode(ebpf.encode(plain)) == plain
    with pytest.raises(ValueError, match="whole number"):
        ebpf.decode(b"1234567")


def test_matches() -> None:
    frame = (
        bytes(12)
        + b"\x08\x00"
        + b"\x45"
        + bytes(8)
        + b"\x11"
        + bytes(10)
        + struct.pack("!HH", 53, 9)
        + bytes(30)
    )
    assert compile_filter("udp port 53").matches(frame)
    assert compile_filter("").matches(b"")
    assert not compile_filter("tcp").matches(frame)
    assert compile_filter("greater 100").matches(frame, length=200)
    assert compile_filter("udp port 53").matches(frame[14:], link_type=LinkType.RAW)
    assert not compile_filter("udp port 53").matches(frame[:30], length=len(frame))
