"""Fuzz the filter: expression x packet, and programs that no expression gives, against libpcap's own answer.

    pip install atheris
    python tests/fuzz/filter_fuzz.py -max_total_time=20

An input is read as choices: an expression put together from the grammar of pcap-filter(7), or a classic BPF
program, then a packet, how much of it is linear, and how it is read. Anything but libpcap's answer, or an
exception that is no FilterError, ends the run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["packet_tracer.filter"]):
    from packet_tracer.filter import STUBS, FilterError, LinkType, Stub, cbpf, ebpf
    from packet_tracer.filter.analysis import analyse, reads_metadata, validate
    from packet_tracer.filter.evaluator import evaluate
    from packet_tracer.filter.expression import compile_filter
    from packet_tracer.filter.pcap import OfflineFilter
    from packet_tracer.filter.translate import translate

from tests.filter_corpus import expressions

_WORDS = [word for text in expressions() for word in text.split() if not word.endswith("_free")]
_PRIMITIVES = [text for text in expressions() if text]
_CODES = [
    *(cbpf.LD | mode | size for mode in (cbpf.ABS, cbpf.IND) for size in (cbpf.W, cbpf.H, cbpf.B)),
    *(cbpf.LD | mode for mode in (cbpf.IMM, cbpf.MEM, cbpf.LEN)),
    *(cbpf.LDX | mode for mode in (cbpf.IMM, cbpf.MEM, cbpf.LEN)), cbpf.LDX | cbpf.B | cbpf.MSH,
    cbpf.ST, cbpf.STX,
    *(cbpf.ALU | operation | x for operation in range(0, 0xB0, 0x10) for x in (cbpf.K, cbpf.X)),
    *(cbpf.JMP | operation | x for operation in range(0, 0x50, 0x10) for x in (cbpf.K, cbpf.X)),
    cbpf.RET, cbpf.RET | cbpf.RETURN_A, cbpf.MISC | cbpf.TAX, cbpf.MISC | cbpf.TXA,
]  # fmt: skip


def any_expression(data: atheris.FuzzedDataProvider) -> str:
    """Return primitives joined, or words in any order."""
    if data.ConsumeBool():
        count = data.ConsumeIntInRange(1, 3)
        parts = [_PRIMITIVES[data.ConsumeIntInRange(0, len(_PRIMITIVES) - 1)] for _ in range(count)]
        return (" and " if data.ConsumeBool() else " or not ").join(f"({part})" for part in parts)
    count = data.ConsumeIntInRange(1, 8)
    return " ".join(_WORDS[data.ConsumeIntInRange(0, len(_WORDS) - 1)] for _ in range(count))


def any_program(data: atheris.FuzzedDataProvider) -> tuple[cbpf.Instruction, ...]:
    """Return instructions that libpcap's interpreter takes: jumps inside, nothing undefined in C."""
    # Its scratch memory starts as whatever lies on the stack.
    rows = [(cbpf.LD, 0, 0, 0), *((cbpf.ST, 0, 0, word) for word in range(4))]
    length = data.ConsumeIntInRange(1, 16)
    for index in range(length):
        left = length - index - 1
        code = _CODES[data.ConsumeIntInRange(0, len(_CODES) - 1)]
        k = data.ConsumeIntInRange(0, 70) if data.ConsumeBool() else data.ConsumeInt(4) & 0xFFFFFFFF
        jumps = [0, 0]
        if code & 7 == cbpf.JMP:
            jumps = [data.ConsumeIntInRange(0, left), data.ConsumeIntInRange(0, left)]
            k = jumps[0] if code & 0xF0 == cbpf.JA else k
        elif code in (cbpf.LD | cbpf.MEM, cbpf.LDX | cbpf.MEM, cbpf.ST, cbpf.STX):
            k %= 4
        elif code & 0xF0 in (cbpf.LSH, cbpf.RSH) and code & 7 == cbpf.ALU:
            k %= 32
        rows.append((code, *jumps, k))
    return tuple(cbpf.Instruction(*row) for row in [*rows, (cbpf.RET, 0, 0, data.ConsumeIntInRange(0, 1))])


def check(program: tuple[cbpf.Instruction, ...], stub: Stub, data: atheris.FuzzedDataProvider) -> None:
    """Ask both about one packet."""
    if any(map(reads_metadata, program)):
        return
    try:
        validate(program)
        oracle = OfflineFilter(program)
    except FilterError:
        return
    if any(isinstance(item, int) for item in analyse(program).unwritten):
        # libpcap does so for "geneve or not pppoes ...": it then reads what lies on its stack, we zeros.
        return
    translated = translate(program, stub)
    for function in translated.functions:
        ebpf.encode(function.instructions)
    linear_share = data.ConsumeIntInRange(0, 4)
    packet = data.ConsumeBytes(200)
    linear = len(packet) * linear_share // 4
    ours, theirs = evaluate(translated, stub, packet, linear=linear), oracle.matches(packet)
    if ours != theirs:
        raise AssertionError(f"{ours} but libpcap {theirs}: {packet.hex()}\n{cbpf.disassemble(program)}")


def test_one_input(raw: bytes) -> None:
    """Run one input."""
    data = atheris.FuzzedDataProvider(raw)
    outer = [stub for stub in STUBS if not stub.inner]
    stub = outer[data.ConsumeIntInRange(0, len(outer) - 1)]
    if data.ConsumeBool():
        check(any_program(data), stub, data)
        return
    text = any_expression(data)
    if "host" in text and any(word.isalpha() for word in text.split("host")[1:]):
        return  # a name would be looked up
    try:
        compiled = compile_filter(text)
    except FilterError:
        return
    check(compiled.classic(stub.link_type), stub, data)


if __name__ == "__main__":
    assert LinkType  # imported for its instrumentation
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
