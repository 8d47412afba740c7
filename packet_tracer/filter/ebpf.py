"""eBPF instructions as values, their text as ``bpftool prog dump xlated`` writes it, and an assembler.

Only what filters need. The encoding is that of Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

# Classes.
LDX, STX, ALU, JMP, JMP32, ALU64 = 0x01, 0x03, 0x04, 0x05, 0x06, 0x07
ST = 0x02
MEM = 0x60
_SIZE_BITS = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}
SIZES = {bits: size for size, bits in _SIZE_BITS.items()}
IMMEDIATE, REGISTER = 0x00, 0x08

ARITHMETIC = {
    "add": 0x00, "sub": 0x10, "mul": 0x20, "div": 0x30, "or": 0x40, "and": 0x50, "lsh": 0x60,
    "rsh": 0x70, "neg": 0x80, "mod": 0x90, "xor": 0xA0, "mov": 0xB0, "swap": 0xD0,
}  # fmt: skip
JUMPS = {
    "ja": 0x00, "==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "s>": 0x60, "s>=": 0x70,
    "call": 0x80, "exit": 0x90, "<": 0xA0, "<=": 0xB0, "s<": 0xC0, "s<=": 0xD0,
}  # fmt: skip
ARITHMETIC_NAMES = {code: name for name, code in ARITHMETIC.items()}
JUMP_NAMES = {code: name for name, code in JUMPS.items()}
_SIGNS = {
    "add": "+=", "sub": "-=", "mul": "*=", "div": "/=", "or": "|=", "and": "&=", "lsh": "<<=",
    "rsh": ">>=", "mod": "%=", "xor": "^=", "mov": "=",
}  # fmt: skip

#: Source register of a call that names a function of the same program (BPF_PSEUDO_CALL).
PSEUDO_CALL = 1
#: The same of a call that names a function of the kernel, by its BTF id (BPF_PSEUDO_KFUNC_CALL).
PSEUDO_KFUNC_CALL = 2
#: bpf_probe_read_kernel(destination, size, source) (linux/bpf.h, kernel 5.5).
PROBE_READ_KERNEL = 113

_ENCODING = struct.Struct("<BBhi")
_MAX_JUMP = 0x7FFF


class Register(IntEnum):
    """r0 is the result, r1 to r5 are arguments and die at a call, r6 to r9 survive, r10 is the frame."""

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


class Instruction(NamedTuple):
    """One eBPF instruction. A call of another function of the program names it in ``symbol``."""

    opcode: int
    destination: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0
    symbol: str = ""

    def encode(self) -> bytes:
        """Return the eight bytes of ``struct bpf_insn``; ``symbol`` must have been resolved."""
        return _ENCODING.pack(self.opcode, self.destination | self.source << 4, self.offset, self.immediate)

    @property
    def instruction_class(self) -> int:
        """One of ``LDX``, ``ST``, ``STX``, ``ALU``, ``ALU64``, ``JMP``, ``JMP32``."""
        return self.opcode & 0x07

    def text(self) -> str:
        """Return the instruction in the style of ``bpftool prog dump xlated``."""
        kind = self.instruction_class
        if kind in (LDX, ST, STX):
            return self._memory_text()
        if kind in (ALU, ALU64):
            return self._arithmetic_text("r" if kind == ALU64 else "w")
        name = JUMP_NAMES[self.opcode & 0xF0]
        if name == "exit":
            return "exit"
        if name == "call":
            if self.symbol:
                return f"call {self.symbol}"
            if self.source == PSEUDO_KFUNC_CALL:
                return f"call kernel-function#{self.immediate}"
            return f"call pc{self.immediate:+d}" if self.source == PSEUDO_CALL else f"call #{self.immediate}"
        if name == "ja":
            return f"goto pc{self.offset:+d}"
        prefix = "r" if kind == JMP else "w"
        return f"if {prefix}{self.destination} {name} {self._operand(prefix)} goto pc{self.offset:+d}"

    def _operand(self, prefix: str) -> str:
        if self.opcode & REGISTER:
            return f"{prefix}{self.source}"
        return f"{self.immediate & 0xFFFFFFFF:#x}" if prefix == "w" else f"{self.immediate:#x}"

    def _memory_text(self) -> str:
        width = f"u{SIZES[self.opcode & 0x18] * 8}"
        if self.instruction_class == LDX:
            return f"r{self.destination} = *({width} *)(r{self.source} {self.offset:+d})"
        value = f"r{self.source}" if self.instruction_class == STX else str(self.immediate)
        return f"*({width} *)(r{self.destination} {self.offset:+d}) = {value}"

    def _arithmetic_text(self, prefix: str) -> str:
        name = ARITHMETIC_NAMES[self.opcode & 0xF0]
        target = f"{prefix}{self.destination}"
        if name == "swap":
            return f"r{self.destination} = be{self.immediate} r{self.destination}"
        if name == "neg":
            return f"{target} = -{target}"
        return f"{target} {_SIGNS[name]} {self._operand(prefix)}"


class Function(NamedTuple):
    """One function: its name, and its instructions with jumps resolved and calls still by name."""

    name: str
    instructions: tuple[Instruction, ...]


class Program(NamedTuple):
    """What a filter becomes for one stub: the function to call first, then those it calls.

    Calls of names that are not here are calls of functions of the program that it is put into.
    """

    functions: tuple[Function, ...]

    @property
    def size(self) -> int:
        """Number of instructions of all functions."""
        return sum(len(function.instructions) for function in self.functions)


def disassemble(program: Program) -> str:
    """Return the text of every function, numbered from 0, without a final line break."""
    lines: list[str] = []
    number = 0
    for function in program.functions:
        lines.append(f"{function.name}:")
        for instruction in function.instructions:
            lines.append(f"{number:4d}: {instruction.text()}")
            number += 1
    return "\n".join(lines)


class AssemblyError(Exception):
    """A jump reaches further than its 16 bits: the program is too large."""


Operand = int | Register


class Assembler:
    """Collects instructions; jumps go to labels, which are resolved at the end."""

    def __init__(self) -> None:
        self._instructions: list[Instruction] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}
        self._wanted: set[str] = set()
        self._fresh = 0
        self.reachable = True
        """Whether control can reach the next instruction; unreachable code is refused by the kernel."""

    def wanted(self, label: str) -> bool:
        """Whether something jumps to ``label`` already."""
        return label in self._wanted

    def fresh_label(self) -> str:
        """Return a label that nothing else uses."""
        self._fresh += 1
        return f".{self._fresh}"

    def label(self, name: str) -> None:
        """Put ``name`` here."""
        self._labels[name] = len(self._instructions)
        self.reachable = self.reachable or self.wanted(name)

    def _refer(self, label: str) -> None:
        self._jumps.append((len(self._instructions), label))
        self._wanted.add(label)

    def _emit(self, instruction: Instruction) -> None:
        self._instructions.append(instruction)

    def alu(self, name: str, destination: Register, operand: Operand = 0, *, wide: bool = False) -> None:
        """Arithmetic on 32 bits (the upper half becomes zero), or on 64 if ``wide``."""
        opcode = ARITHMETIC[name] | (ALU64 if wide else ALU)
        if isinstance(operand, Register):
            self._emit(Instruction(opcode | REGISTER, destination, operand))
        else:
            self._emit(Instruction(opcode, destination, 0, 0, _signed(operand)))

    def mov(self, destination: Register, operand: Operand) -> None:
        """Copy a whole register, or set it to a sign-extended constant."""
        self.alu("mov", destination, operand, wide=True)

    def to_host_order(self, register: Register, size: int) -> None:
        """Turn ``size`` bytes of network order into a number; nothing to do for one byte."""
        if size > 1:
            self._emit(Instruction(ALU | ARITHMETIC["swap"] | REGISTER, register, 0, 0, size * 8))

    def load(self, size: int, destination: Register, base: Register, offset: int) -> None:
        """``destination = *(base + offset)``, zero-extended."""
        self._emit(Instruction(LDX | MEM | _SIZE_BITS[size], destination, base, offset))

    def store(self, size: int, base: Register, offset: int, value: Operand) -> None:
        """``*(base + offset) = value``."""
        if isinstance(value, Register):
            self._emit(Instruction(STX | MEM | _SIZE_BITS[size], base, value, offset))
        else:
            self._emit(Instruction(ST | MEM | _SIZE_BITS[size], base, 0, offset, _signed(value)))

    def jump(self, name: str, left: Register, right: Operand, label: str, *, wide: bool = False) -> None:
        """Go to ``label`` if ``left NAME right``: of the lower 32 bits, or of all 64 if ``wide``."""
        opcode = JUMPS[name] | (JMP if wide else JMP32)
        self._refer(label)
        if isinstance(right, Register):
            self._emit(Instruction(opcode | REGISTER, left, right))
        else:
            self._emit(Instruction(opcode, left, 0, 0, _signed(right)))

    def goto(self, label: str) -> None:
        """Go to ``label``."""
        self._refer(label)
        self._emit(Instruction(JMP | JUMPS["ja"]))
        self.reachable = False

    def call_helper(self, number: int) -> None:
        """Call a kernel helper."""
        self._emit(Instruction(JMP | JUMPS["call"], 0, 0, 0, number))

    def call_kfunc(self, btf_id: int) -> None:
        """Call a function of the kernel."""
        self._emit(Instruction(JMP | JUMPS["call"], 0, PSEUDO_KFUNC_CALL, 0, btf_id))

    def call(self, symbol: str) -> None:
        """Call another function of the same program."""
        self._emit(Instruction(JMP | JUMPS["call"], 0, PSEUDO_CALL, 0, -1, symbol))

    def exit(self) -> None:
        """Return r0."""
        self._emit(Instruction(JMP | JUMPS["exit"]))
        self.reachable = False

    def finish(self) -> tuple[Instruction, ...]:
        """Resolve the jumps. A jump to the next instruction is left out, for it does nothing.

        Raises AssemblyError if a jump is too far, KeyError for a label that was never placed.
        """
        self._drop_empty_jumps()
        for index, label in self._jumps:
            distance = self._labels[label] - index - 1
            if distance > _MAX_JUMP:
                raise AssemblyError(f"a jump over {distance} instructions")
            self._instructions[index] = self._instructions[index]._replace(offset=distance)
        return tuple(self._instructions)

    def _drop_empty_jumps(self) -> None:
        empty = {index for index, label in self._jumps if self._labels[label] == index + 1}
        if not empty:
            return
        kept_before = [0]
        for index in range(len(self._instructions)):
            kept_before.append(kept_before[-1] + (index not in empty))
        self._instructions = [i for index, i in enumerate(self._instructions) if index not in empty]
        self._jumps = [(kept_before[index], label) for index, label in self._jumps if index not in empty]
        self._labels = {label: kept_before[index] for label, index in self._labels.items()}


def encode(instructions: Iterable[Instruction]) -> bytes:
    """Return the instructions as the kernel takes them."""
    return b"".join(instruction.encode() for instruction in instructions)


def decode(data: bytes) -> tuple[Instruction, ...]:
    """The inverse of :func:`encode`. Raises ValueError if ``data`` is no whole number of instructions."""
    if len(data) % _ENCODING.size:
        raise ValueError(f"{len(data)} bytes are no whole number of eBPF instructions")
    return tuple(
        Instruction(opcode, registers & 0x0F, registers >> 4, offset, immediate)
        for opcode, registers, offset, immediate in _ENCODING.iter_unpack(data)
    )


def _signed(value: int) -> int:
    """Return the 32 bits of ``value`` as the signed number that the encoding holds."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


def find_function(functions: Sequence[Function], name: str) -> Function | None:
    """Return the function of that name, or None."""
    return next((function for function in functions if function.name == name), None)
