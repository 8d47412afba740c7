"""Classic BPF to eBPF: a pure function.

The meaning kept is that of libpcap's own interpreter: a read past the end, an offset that does not
fit 32 bits and a division by zero reject the packet. How bytes are reached is a :class:`Reader`'s
business (:mod:`packet_tracer.filter.readers`); this module knows the arithmetic and the jumps.

A filter is two functions. The first reads the linear part of the packet with as few instructions as
can be. Where that is not enough (headers in the non-linear part, a read across an inserted VLAN tag) it gives
up and returns what the second says, which starts again and reads each value through a function in C
that knows every case. A filter has no side effects, so starting again is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from packet_tracer.filter import cbpf, ebpf
from packet_tracer.filter.addressed import TypedReader, WindowReader
from packet_tracer.filter.analysis import (
    NEVER,
    Analysis,
    analyse,
    load_end,
    reads_bytes,
    successors,
    validate,
)
from packet_tracer.filter.direct import DirectReader
from packet_tracer.filter.errors import FilterError
from packet_tracer.filter.readers import ACCEPT, REJECT, CallReader, Reader
from packet_tracer.filter.stubs import ENTRY, SLOW, Access, Stub
from packet_tracer.filter.typed import TypedMemory

_ALU = {
    cbpf.ADD: "add", cbpf.SUB: "sub", cbpf.MUL: "mul", cbpf.DIV: "div", cbpf.OR: "or", cbpf.AND: "and",
    cbpf.LSH: "lsh", cbpf.RSH: "rsh", cbpf.NEG: "neg", cbpf.MOD: "mod", cbpf.XOR: "xor",
}  # fmt: skip
_JUMPS = {cbpf.JEQ: "==", cbpf.JGT: ">", cbpf.JGE: ">=", cbpf.JSET: "&"}
_INVERSE = {"==": "!=", ">": "<=", ">=": "<"}


@cache
def translate(
    program: tuple[cbpf.Instruction, ...],
    stub: Stub,
    *,
    vlan: bool = False,
    expression: str = "",
    memory: TypedMemory | None = None,
) -> ebpf.Program:
    """Return the eBPF program that gives ``program``'s answer when called in place of ``stub``.

    ``vlan``: see a tag that the kernel keeps beside the packet as if it lay in the bytes. ``memory``: the
    kernel it is for reads memory in place.
    Raises FilterError, naming what cannot be done: a backward jump, a program too large.
    """
    validate(program, expression)
    facts = analyse(program)
    try:
        reader = _fast_reader(stub, program, facts, vlan=vlan, memory=memory)
        fast = _Translator(program, facts, reader).function(ENTRY)
        functions = [fast]
        if any(instruction.symbol == SLOW for instruction in fast.instructions):
            functions.append(_Translator(program, facts, CallReader(stub, facts, vlan=vlan)).function(SLOW))
    except ebpf.AssemblyError as error:
        raise FilterError(
            expression, f"too large ({error}); a set of addresses is better given as a file of prefixes"
        ) from error
    return ebpf.Program(tuple(functions))


class _Translator:
    """One pass over the program, in order, for one reader."""

    def __init__(self, program: Sequence[cbpf.Instruction], facts: Analysis, reader: Reader) -> None:
        self._program = program
        self._facts = facts
        self._reader = reader
        self._asm = reader.asm

    def function(self, name: str) -> ebpf.Function:
        asm, reader, facts = self._asm, self._reader, self._facts
        if facts.needed[0] == NEVER:
            asm.goto(REJECT)
        else:
            reader.prologue()
            self._zero_unwritten()
        for index in range(len(self._program)):
            asm.label(_place(index))
            if asm.reachable:
                self._instruction(index)
        self._verdict(ACCEPT, 1)
        reader.epilogue()
        self._verdict(REJECT, 0)
        return ebpf.Function(name, asm.finish())

    def _verdict(self, label: str, result: int) -> None:
        if self._asm.wanted(label):
            self._asm.label(label)
            self._asm.alu("mov", ebpf.Register.R0, result)
            self._asm.exit()

    def _zero_unwritten(self) -> None:
        for item in sorted(self._facts.unwritten, key=str):
            if isinstance(item, int):
                self._asm.store(4, ebpf.Register.R10, self._reader.word(item), 0)
            else:
                self._asm.alu("mov", self._reader.a if item == "a" else self._reader.x, 0)

    def _instruction(self, index: int) -> None:
        instruction = self._program[index]
        if self._facts.needed[index] == NEVER:
            self._asm.goto(REJECT)
            return
        kind = instruction.instruction_class
        if kind in (cbpf.LD, cbpf.LDX):
            self._load(index, instruction)
        elif kind in (cbpf.ST, cbpf.STX):
            source = self._reader.a if kind == cbpf.ST else self._reader.x
            self._asm.store(4, ebpf.Register.R10, self._reader.word(instruction.k), source)
        elif kind == cbpf.ALU:
            self._arithmetic(instruction)
        elif kind == cbpf.JMP:
            self._jump(index, instruction)
        elif kind == cbpf.RET:
            self._return(instruction)
        elif instruction.code == cbpf.MISC | cbpf.TAX:
            self._asm.alu("mov", self._reader.x, self._reader.a)
        else:
            self._asm.alu("mov", self._reader.a, self._reader.x)

    def _load(self, index: int, instruction: cbpf.Instruction) -> None:
        asm, reader = self._asm, self._reader
        target = reader.a if instruction.instruction_class == cbpf.LD else reader.x
        known = self._facts.known[index]
        assert known is not None
        if reads_bytes(instruction):
            end = load_end(instruction)
            check = self._facts.needed[index] if known.proven < end else 0
            reader.load(target, instruction.k, end - instruction.k, check)
            if asm.reachable and instruction.instruction_class == cbpf.LDX:
                asm.alu("and", target, 0x0F)
                asm.alu("lsh", target, 2)
        elif instruction.mode == cbpf.ABS:
            reader.metadata(target, instruction.k)
        elif instruction.mode == cbpf.IND:
            reader.load_indirect(target, instruction.k, instruction.size, known.x_maximum)
        elif instruction.mode == cbpf.LEN:
            reader.length(target)
        elif instruction.mode == cbpf.IMM:
            asm.alu("mov", target, instruction.k)
        else:
            asm.load(4, target, ebpf.Register.R10, reader.word(instruction.k))

    def _arithmetic(self, instruction: cbpf.Instruction) -> None:
        asm, a, x = self._asm, self._reader.a, self._reader.x
        name = _ALU[instruction.operation]
        if name == "neg":
            asm.alu(name, a)
        elif not instruction.uses_x:
            if name in ("lsh", "rsh") and instruction.k > 31:
                asm.alu("mov", a, 0)
            else:
                asm.alu(name, a, instruction.k)
        elif name in ("lsh", "rsh"):
            # The machine takes the shift modulo 32; libpcap's result is zero.
            shift, done = asm.fresh_label(), asm.fresh_label()
            asm.jump("<=", x, 31, shift)
            asm.alu("mov", a, 0)
            asm.goto(done)
            asm.label(shift)
            asm.alu(name, a, x)
            asm.label(done)
        else:
            if name in ("div", "mod"):
                asm.jump("==", x, 0, REJECT)
            asm.alu(name, a, x)

    def _jump(self, index: int, instruction: cbpf.Instruction) -> None:
        asm = self._asm
        targets = successors(self._program, index)
        if len(set(targets)) == 1:
            asm.goto(self._label(targets[0]))
            return
        name = _JUMPS[instruction.operation]
        right: ebpf.Operand = self._reader.x if instruction.uses_x else instruction.k
        if targets[0] == index + 1 and name in _INVERSE:
            asm.jump(_INVERSE[name], self._reader.a, right, self._label(targets[1]))
            return
        asm.jump(name, self._reader.a, right, self._label(targets[0]))
        if targets[1] != index + 1:
            asm.goto(self._label(targets[1]))

    def _label(self, index: int) -> str:
        """Where a jump to ``index`` goes: straight to the verdict if that is all there is."""
        target = self._program[index]
        if self._facts.needed[index] == NEVER:
            return REJECT
        return ACCEPT if target.code == cbpf.RET else _place(index)

    def _return(self, instruction: cbpf.Instruction) -> None:
        if instruction.code == cbpf.RET:
            self._asm.goto(ACCEPT)
            return
        if self._reader.a != ebpf.Register.R0:
            self._asm.alu("mov", ebpf.Register.R0, self._reader.a)
        self._asm.exit()


def _fast_reader(
    stub: Stub,
    program: Sequence[cbpf.Instruction],
    facts: Analysis,
    *,
    vlan: bool,
    memory: TypedMemory | None,
) -> Reader:
    if stub.access is not Access.PROBE:
        return DirectReader(stub, facts, vlan=vlan)
    if memory is not None and not vlan:
        return TypedReader(stub, facts, memory)
    return WindowReader(stub, program, facts, vlan=vlan)


def _place(index: int) -> str:
    return f"i{index}"
