"""What can be known about a classic BPF program before it is translated.

All of it rests on one property that is checked first: jumps only go forward, so one pass in order
sees every predecessor of an instruction before the instruction, and one pass backward every successor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from packet_tracer.filter import cbpf
from packet_tracer.filter.errors import FilterError

#: Bytes that no packet has: no way from here accepts the packet.
NEVER = 1 << 40
#: The greatest 32-bit number: nothing is known about X.
_ANYTHING = 0xFFFFFFFF
_VALID_ALU = frozenset(range(cbpf.ADD, cbpf.XOR + 1, 0x10))
#: What a load beyond ``cbpf.ANCILLARY`` may read here; any other is a place that no packet has.
METADATA = (
    cbpf.ANCILLARY_PACKET_TYPE,
    cbpf.ANCILLARY_IFINDEX,
    cbpf.ANCILLARY_VLAN_TAG,
    cbpf.ANCILLARY_VLAN_TAG_PRESENT,
)


class Known(NamedTuple):
    """What holds before an instruction, on whichever way control came."""

    proven: int
    """The packet has at least this many bytes: a check for them has passed."""
    x_maximum: int
    """X is at most this."""
    written: frozenset[int | str]
    """``"a"``, ``"x"`` and the words of scratch memory that have a value."""

    def merge(self, other: Known) -> Known:
        """What still holds where two ways meet."""
        return Known(
            min(self.proven, other.proven),
            max(self.x_maximum, other.x_maximum),
            self.written & other.written,
        )


class Analysis(NamedTuple):
    """The facts about a whole program, by index of instruction."""

    needed: tuple[int, ...]
    """Bytes that a packet must have for any way from here to accept it; ``NEVER`` if none does.

    A packet that is shorter is rejected whatever else it holds, so one check for this many bytes
    stands for all the checks that would follow."""
    known: tuple[Known | None, ...]
    """What holds before each instruction; None where control never comes."""
    unwritten: frozenset[int | str]
    """Registers and words that may be read before they are written: they start as zero."""
    words: tuple[int, ...]
    """The words of scratch memory in use."""
    reads_metadata: bool
    reads_length: bool


def validate(program: Sequence[cbpf.Instruction], expression: str = "") -> None:
    """Check that the translator can take the program.

    Raises FilterError that names a backward jump, an unknown instruction, or a jump out of the program.
    """
    if not program:
        raise FilterError(expression, "an empty program")
    for index, instruction in enumerate(program):
        if instruction.code == cbpf.JMP | cbpf.JA and instruction.jump_offset < 0:
            raise FilterError(
                expression,
                "it needs a loop ('protochain' does), and a filter in the kernel cannot jump backward; "
                "name the header that follows instead",
            )
        if not _is_valid(instruction):
            raise FilterError(expression, f"unsupported instruction {instruction.text(index)}")
        if any(target >= len(program) for target in successors(program, index)):
            raise FilterError(expression, f"a jump out of the program at {instruction.text(index)}")


def _is_valid(i: cbpf.Instruction) -> bool:
    if i.code in (cbpf.LD | cbpf.MEM, cbpf.LDX | cbpf.MEM, cbpf.ST, cbpf.STX):
        return i.k < cbpf.MEMORY_WORDS
    if i.instruction_class == cbpf.LD:
        return (i.size != 0 and i.mode in (cbpf.ABS, cbpf.IND)) or i.code in (cbpf.LD, cbpf.LD | cbpf.LEN)
    if i.instruction_class == cbpf.LDX:
        return i.code in (cbpf.LDX, cbpf.LDX | cbpf.LEN, cbpf.LDX | cbpf.B | cbpf.MSH)
    if i.instruction_class == cbpf.ALU:
        return i.operation in _VALID_ALU and i.code != cbpf.ALU | cbpf.NEG | cbpf.X
    if i.instruction_class == cbpf.JMP:
        return i.operation <= cbpf.JSET and i.code != cbpf.JMP | cbpf.JA | cbpf.X
    if i.instruction_class == cbpf.RET:
        return i.code in (cbpf.RET, cbpf.RET | cbpf.RETURN_A)
    return i.code in (cbpf.MISC | cbpf.TAX, cbpf.MISC | cbpf.TXA)


def successors(program: Sequence[cbpf.Instruction], index: int) -> tuple[int, ...]:
    """The instructions that control may go to after ``index``."""
    instruction = program[index]
    if instruction.instruction_class == cbpf.RET:
        return ()
    if instruction.code == cbpf.JMP | cbpf.JA:
        return (index + 1 + instruction.jump_offset,)
    if instruction.instruction_class == cbpf.JMP:
        return (index + 1 + instruction.jump_true, index + 1 + instruction.jump_false)
    return (index + 1,)


def reads_bytes(instruction: cbpf.Instruction) -> bool:
    """Whether it loads from a constant place in the packet."""
    if instruction.instruction_class == cbpf.LD:
        return instruction.mode == cbpf.ABS and instruction.k not in METADATA
    return instruction.code == cbpf.LDX | cbpf.B | cbpf.MSH


def reads_metadata(instruction: cbpf.Instruction) -> bool:
    """Whether it loads what the kernel keeps beside the packet's bytes."""
    return instruction.code & 0xE7 == cbpf.LD | cbpf.ABS and instruction.k in METADATA


def load_end(instruction: cbpf.Instruction) -> int:
    """One past the last byte of a load from a constant place."""
    return instruction.k + (1 if instruction.instruction_class == cbpf.LDX else instruction.size)


def _always_rejects(i: cbpf.Instruction) -> bool:
    divides = i.instruction_class == cbpf.ALU and i.operation in (cbpf.DIV, cbpf.MOD)
    return (i.code == cbpf.RET and i.k == 0) or (divides and not i.uses_x and i.k == 0)


def _needed(program: Sequence[cbpf.Instruction]) -> tuple[int, ...]:
    needed = [0] * len(program)
    for index in range(len(program) - 1, -1, -1):
        instruction = program[index]
        after = min((needed[target] for target in successors(program, index)), default=0)
        if _always_rejects(instruction):
            after = NEVER
        needed[index] = max(after, load_end(instruction)) if reads_bytes(instruction) else after
    return tuple(needed)


def _reads(i: cbpf.Instruction) -> Iterator[int | str]:
    kind = i.instruction_class
    if kind in (cbpf.LD, cbpf.LDX) and i.mode == cbpf.MEM:
        yield i.k
    if kind == cbpf.LD and i.mode == cbpf.IND:
        yield "x"
    if i.code == cbpf.STX or i.code == cbpf.MISC | cbpf.TXA:
        yield "x"
    if i.code in (cbpf.ST, cbpf.RET | cbpf.RETURN_A, cbpf.MISC | cbpf.TAX):
        yield "a"
    if kind == cbpf.ALU or (kind == cbpf.JMP and i.operation != cbpf.JA):
        yield "a"
        if i.uses_x:
            yield "x"


def _writes(i: cbpf.Instruction) -> int | str | None:
    kind = i.instruction_class
    if kind in (cbpf.ST, cbpf.STX):
        return i.k
    if kind in (cbpf.LD, cbpf.ALU) or i.code == cbpf.MISC | cbpf.TXA:
        return "a"
    if kind == cbpf.LDX or i.code == cbpf.MISC | cbpf.TAX:
        return "x"
    return None


def _after(instruction: cbpf.Instruction, before: Known, needed: int) -> Known:
    proven, x_maximum = before.proven, before.x_maximum
    if reads_bytes(instruction) and proven < load_end(instruction):
        proven = needed
    target = _writes(instruction)
    if target == "x":
        x_maximum = _ANYTHING
        if instruction.code == cbpf.LDX | cbpf.B | cbpf.MSH:
            x_maximum = 0x0F << 2
        elif instruction.code == cbpf.LDX | cbpf.IMM:
            x_maximum = instruction.k
    written = before.written if target is None else before.written | {target}
    return Known(proven, x_maximum, written)


def analyse(program: Sequence[cbpf.Instruction]) -> Analysis:
    """Return the facts about a program that :func:`validate` has passed."""
    needed = _needed(program)
    known: list[Known | None] = [None] * len(program)
    known[0] = Known(0, 0, frozenset())
    unwritten: set[int | str] = set()
    for index, instruction in enumerate(program):
        before = known[index]
        if before is None or needed[index] == NEVER:
            continue
        unwritten.update(item for item in _reads(instruction) if item not in before.written)
        after = _after(instruction, before, needed[index])
        for target in successors(program, index):
            earlier = known[target]
            known[target] = after if earlier is None else earlier.merge(after)
    live = [i for i, before in zip(program, known, strict=True) if before is not None]
    return Analysis(
        needed,
        tuple(known),
        frozenset(unwritten),
        tuple(
            sorted(
                {i.k for i in live if i.code in (cbpf.ST, cbpf.STX, cbpf.LD | cbpf.MEM, cbpf.LDX | cbpf.MEM)}
            )
        ),
        any(reads_metadata(i) for i in live),
        any(i.code in (cbpf.LD | cbpf.LEN, cbpf.LDX | cbpf.LEN) for i in live),
    )
