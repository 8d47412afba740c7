"""What a BPF trampoline hands to a program (fentry, fexit): a function's arguments and its return value.

The context is an array of 64-bit words, one for each register that the arguments take, and behind them what
was returned. A program may read it at constant offsets only, so each function's clone gets its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from packet_tracer.bpf.btf import Btf, BtfType, Enum, Int, Prototype, Reference
from packet_tracer.probes.functions import KERNEL, Argument, SkbFunction

#: Offsets in the templates of bpf_src/fentry.bpf.c, which no function's context has.
_ARGUMENT_OFFSET, _RETURN_OFFSET = 0x7E8, 0x7F0
_LOAD_DOUBLE_WORD = 0x79  # BPF_LDX | BPF_MEM | BPF_DW


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

    def place(self, code: bytes, argument: Argument | None) -> bytes:
        """Return a template's code with the offsets of the packet's argument and of the return value."""
        places = {_RETURN_OFFSET: 8 * self.arguments}
        if argument is not None:
            places[_ARGUMENT_OFFSET] = 8 * argument.index
        patched = bytearray(code)
        for at in range(0, len(code), 8):
            if code[at] == _LOAD_DOUBLE_WORD:
                (offset,) = struct.unpack_from("=h", code, at + 2)
                if offset in places:
                    struct.pack_into("=h", patched, at + 2, places[offset])
        return bytes(patched)


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
