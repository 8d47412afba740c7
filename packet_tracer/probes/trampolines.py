"""What a BPF trampoline hands to a program (fentry, fexit): a function's arguments and its return value.

The context is an array of 64-bit words, one for each register that the arguments take, and behind them what
was returned. A program may read it at constant offsets only, so each function's clone gets its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from packet_tracer.bpf.btf import Btf, BtfType, Enum, Int, Prototype, Reference
from packet_tracer.bpf.constants import patch_constants
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.filter.expression import Filter
from packet_tracer.filter.patch import Patched, patch_for_kernel
from packet_tracer.probes.function_probes import FunctionProbe
from packet_tracer.probes.functions import KERNEL, SkbFunction

#: Offsets in the templates of bpf_src/fentry.bpf.c, which no function's context has.
_ARGUMENT_OFFSET, _RETURN_OFFSET = 0x7E8, 0x7F0
_LOAD_DOUBLE_WORD = 0x79  # BPF_LDX | BPF_MEM | BPF_DW
_OFFSET = struct.Struct("=h")


class Returns(IntEnum):
    """What of the register a return value takes: enum return_kind in bpf_src/functions.bpf.h."""

    REGISTER = 0
    INT = 1
    UNSIGNED = 2
    BYTE = 3
    NOTHING = 4


@dataclass(frozen=True, slots=True)
class Context:
    """A function's context: the number of words that arguments take, and what is returned."""

    arguments: int
    returns: Returns

    @staticmethod
    def of(function: SkbFunction) -> Context:
        """Return a function's, as its BTF describes it."""
        types = Btf.vmlinux() if function.module == KERNEL else Btf.module(function.module)
        described = types.type(function.btf_id)
        assert isinstance(described, Reference)
        prototype = types.type(described.type_id)
        assert isinstance(prototype, Prototype)
        words = sum(-(-types.size_of(parameter.type_id) // 8) for parameter in prototype.parameters)
        return Context(words, _returns(types.resolve(prototype.type_id) if prototype.type_id else None))


@dataclass(frozen=True, slots=True)
class Template:
    """A program of bpf_src/ with the filter in it, of which each function (or BPF program) gets a clone.

    ``arguments`` and ``returns`` are the places in ``code.instructions`` of the offsets that differ.
    """

    program: PreparedProgram
    code: Patched
    arguments: tuple[int, ...]
    returns: tuple[int, ...]

    @staticmethod
    def of(program: PreparedProgram, filter_: Filter | None) -> Template:
        """Put the filter into a program, and find the places in its code."""
        code = patch_for_kernel(program, filter_)
        places: dict[int, list[int]] = {_ARGUMENT_OFFSET: [], _RETURN_OFFSET: []}
        for at in range(0, len(code.instructions), 8):
            if code.instructions[at] == _LOAD_DOUBLE_WORD:
                (offset,) = _OFFSET.unpack_from(code.instructions, at + 2)
                if offset in places:
                    places[offset].append(at + 2)
        return Template(program, code, tuple(places[_ARGUMENT_OFFSET]), tuple(places[_RETURN_OFFSET]))

    def load(
        self,
        cookie: int,
        *,
        target: str,
        argument_at: int = 0,
        return_at: int = 0,
        attach_btf_id: int | None = None,
        attach_btf_obj_fd: int | None = None,
        attach_prog_fd: int | None = None,
        log: bool = False,
    ) -> Program:
        """Load the clone that has this cookie; what it is given lies so many words into its context.

        The rest is :meth:`PreparedProgram.load`'s.
        """
        code = patch_constants(self.program, {"function_cookie": cookie}, instructions=self.code.instructions)
        instructions = bytearray(code)
        for places, words in ((self.arguments, argument_at), (self.returns, return_at)):
            for at in places:
                _OFFSET.pack_into(instructions, at, 8 * words)
        return self.program.load(
            instructions=bytes(instructions),
            func_info=self.code.func_info,
            line_info=self.code.line_info,
            attach_btf_id=attach_btf_id,
            attach_btf_obj_fd=attach_btf_obj_fd,
            attach_prog_fd=attach_prog_fd,
            target=target,
            log=log,
        )

    def load_for(self, probe: FunctionProbe, *, module_fd: int | None) -> Program:
        """Load the clone of a function: of a module by its BTF's descriptor, None for the kernel's own."""
        context = Context.of(probe.function)
        return self.load(
            probe.cookie | context.returns << 28,
            target=probe.name,
            argument_at=probe.argument.index if probe.argument else 0,
            return_at=context.arguments,
            attach_btf_id=probe.function.btf_id,
            attach_btf_obj_fd=module_fd,
        )


def _returns(described: BtfType | None) -> Returns:
    """The upper bits of the register are whatever the function left there: -EPERM would be 4294967295."""
    if described is None:
        return Returns.NOTHING
    if isinstance(described, Enum):
        return Returns.INT
    if not isinstance(described, Int) or described.size > 4:
        return Returns.REGISTER
    if described.size < 4:
        return Returns.BYTE if described.size == 1 else Returns.UNSIGNED
    return Returns.INT if described.signed else Returns.UNSIGNED
