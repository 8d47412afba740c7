"""What a BPF trampoline hands to a program (fentry, fexit): a function's arguments and its return value.

The context is an array of 64-bit words, one for each register that the arguments take, and behind them what
was returned. A program may read it at constant offsets only, so each function's clone gets its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from packet_tracer.bpf.constants import patch_constants
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.filter.expression import Filter
from packet_tracer.filter.patch import Patched, patch_for_kernel
from packet_tracer.probes.function_probes import FunctionProbe
from packet_tracer.probes.returns import cookie_with_return, prototype_of

#: Offsets in the templates of bpf_src/fentry.bpf.c, which no function's context has.
_ARGUMENT_OFFSET, _RETURN_OFFSET = 0x7E8, 0x7F0
_LOAD_DOUBLE_WORD = 0x79  # BPF_LDX | BPF_MEM | BPF_DW
_OFFSET = struct.Struct("=h")


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
        types, prototype = prototype_of(probe.function)
        return self.load(
            cookie_with_return(probe),
            target=probe.name,
            argument_at=probe.argument.index if probe.argument else 0,
            return_at=sum(-(-types.size_of(parameter.type_id) // 8) for parameter in prototype.parameters),
            attach_btf_id=probe.function.btf_id,
            attach_btf_obj_fd=module_fd,
        )
