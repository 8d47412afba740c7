"""Classic BPF, the machine that libpcap compiles for: one instruction as a value, and its text.

Opcodes are those of ``linux/filter.h``; the text is byte for byte what ``tcpdump -d`` prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Instruction classes.
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
# Load sizes and modes.
W, H, B = 0x00, 0x08, 0x10
IMM, ABS, IND, MEM, LEN, MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
# Arithmetic, jumps, and their operand: the constant K or the register X.
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR = range(0x00, 0xB0, 0x10)
JA, JEQ, JGT, JGE, JSET = range(0x00, 0x50, 0x10)
K, X = 0x00, 0x08
#: ``ret a`` returns the accumulator.
RETURN_A = 0x10
TAX, TXA = 0x00, 0x80

#: Words of scratch memory, ``M[0]`` to ``M[15]``.
MEMORY_WORDS = 16
#: Loads from here on read the packet's metadata, not its bytes (SKF_AD_OFF, linux/filter.h).
ANCILLARY = 0xFFFFF000
ANCILLARY_PACKET_TYPE = ANCILLARY + 4
ANCILLARY_IFINDEX = ANCILLARY + 8
ANCILLARY_VLAN_TAG = ANCILLARY + 44
ANCILLARY_VLAN_TAG_PRESENT = ANCILLARY + 48

_ANCILLARY_NAMES = {
    0: "proto", 4: "type", 8: "ifidx", 12: "nla", 16: "nlan", 20: "mark", 24: "queue", 28: "hatype",
    32: "rxhash", 36: "cpu", 40: "xor_x", 44: "vlan_tci", 48: "vlanp", 52: "poff", 56: "random",
    60: "vlan_tpid",
}  # fmt: skip
_SIZES = {W: ("", 4), H: ("h", 2), B: ("b", 1)}
_ALU_NAMES = {
    ADD: "add", SUB: "sub", MUL: "mul", DIV: "div", OR: "or", AND: "and",
    LSH: "lsh", RSH: "rsh", NEG: "neg", MOD: "mod", XOR: "xor",
}  # fmt: skip
_JUMP_NAMES = {JA: "ja", JEQ: "jeq", JGT: "jgt", JGE: "jge", JSET: "jset"}


class Instruction(NamedTuple):
    """One classic BPF instruction: ``struct sock_filter``. ``k`` is unsigned, 32 bits."""

    code: int
    jump_true: int
    jump_false: int
    k: int

    @property
    def instruction_class(self) -> int:
        """``LD`` .. ``MISC``."""
        return self.code & 0x07

    @property
    def operation(self) -> int:
        """The operation of ``ALU`` and ``JMP`` instructions."""
        return self.code & 0xF0

    @property
    def mode(self) -> int:
        """The addressing mode of ``LD`` and ``LDX``."""
        return self.code & 0xE0

    @property
    def size(self) -> int:
        """Bytes that a load reads: 1, 2 or 4 (0 for a size that does not exist)."""
        return _SIZES.get(self.code & 0x18, ("", 0))[1]

    @property
    def uses_x(self) -> bool:
        """Whether the operand is X rather than the constant."""
        return bool(self.code & X)

    @property
    def jump_offset(self) -> int:
        """The constant as the signed distance of ``ja``."""
        return self.k - (1 << 32) if self.k & 0x80000000 else self.k

    def text(self, index: int) -> str:
        """Return the line of ``tcpdump -d`` for this instruction at ``index``."""
        name, operand = self._image(index)
        if self.instruction_class == JMP and self.operation != JA:
            return (
                f"({index:03d}) {name:<8} {operand:<16} "
                f"jt {index + 1 + self.jump_true}\tjf {index + 1 + self.jump_false}"
            )
        return f"({index:03d}) {name:<8} {operand}"

    def _image(self, index: int) -> tuple[str, str]:
        kind = self.instruction_class
        constant = str(_signed(self.k))
        if kind == RET and self.code in (RET | K, RET | RETURN_A):
            return "ret", f"#{constant}" if self.code == RET | K else ""
        if kind in (LD, LDX):
            load = self._load_image()
            if load:
                return load
        if self.code in (ST, STX):
            return "st" if self.code == ST else "stx", f"M[{constant}]"
        if self.code == JMP | JA:
            return "ja", str(_signed(index + 1 + self.k))
        if kind == JMP and self.operation in _JUMP_NAMES and self.operation != JA:
            return _JUMP_NAMES[self.operation], "x" if self.uses_x else f"#{self.k:#x}"
        if kind == ALU and self.operation in _ALU_NAMES:
            name = _ALU_NAMES[self.operation]
            if self.operation == NEG:
                return (name, "") if not self.uses_x else ("unimp", f"{self.code:#x}")
            if self.uses_x:
                return name, "x"
            return name, f"#{self.k:#x}" if self.operation in (AND, OR, XOR) else f"#{constant}"
        if self.code in (MISC | TAX, MISC | TXA):
            return "tax" if self.code == MISC | TAX else "txa", ""
        return "unimp", f"{self.code:#x}"

    def _load_image(self) -> tuple[str, str] | None:
        kind, mode = self.instruction_class, self.mode
        name = "ld" if kind == LD else "ldx"
        size = self.code & 0x18
        constant = _signed(self.k)
        if size not in _SIZES:
            return None
        if kind == LD and mode == ABS:
            ancillary = _ANCILLARY_NAMES.get(self.k - ANCILLARY) if self.k >= ANCILLARY else None
            return name + _SIZES[size][0], f"[{ancillary or constant}]"
        if kind == LD and mode == IND:
            return name + _SIZES[size][0], f"[x + {constant}]"
        if kind == LDX and mode == MSH and size == B:
            return "ldxb", f"4*([{constant}]&0xf)"
        if size != W:
            return None
        operands = {IMM: f"#{self.k:#x}", MEM: f"M[{constant}]"}
        if kind == LD:
            operands[LEN] = "#pktlen"
        return (name, operands[mode]) if mode in operands else None


def _signed(value: int) -> int:
    """Print as C's ``%d`` does."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


def disassemble(program: Sequence[Instruction]) -> str:
    """Return the program as ``tcpdump -d`` prints it, without a final line break."""
    return "\n".join(instruction.text(index) for index, instruction in enumerate(program))


def c_array(program: Sequence[Instruction]) -> str:
    """Return the program as ``tcpdump -dd`` prints it: the rows of a C array."""
    return "\n".join(f"{{ {i.code:#x}, {i.jump_true}, {i.jump_false}, 0x{i.k:08x} }}," for i in program)
