"""Constants put into a program's code: each clone of it can have its own, without attach cookies.

In C::

    __weak __noinline __u64 function_address(void) { return 0; }

``__weak`` keeps the compiler from folding the 0 into the callers. It compiles to ``r0 = 0; exit``, and
:func:`patch_constants` puts another number there.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from packet_tracer.errors import UsageError

if TYPE_CHECKING:
    from packet_tracer.bpf.program import PreparedProgram

_INSTRUCTION = struct.Struct("=BBhi")
_MOV32_R0 = 0xB4  # BPF_ALU | BPF_MOV | BPF_K: the upper half becomes zero
_MOV64_R0 = 0xB7  # BPF_ALU64 | BPF_MOV | BPF_K: the number is sign-extended
_LD_IMM64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW, two instructions long
_EXIT = 0x95
_NOTHING = _INSTRUCTION.pack(0x05, 0, 0, 0)  # ja +0


def patch_constants(
    program: PreparedProgram, values: Mapping[str, int], *, instructions: bytes | None = None
) -> bytes:
    """Return the program's instructions with the named functions returning these numbers.

    Starts from ``instructions`` where given (already patched otherwise, of unchanged offsets). The length
    stays, so func_info and line_info stay right. A number beyond 32 bits needs three instructions of room,
    which ``return 0x1122334455667788;`` in the source gives. Raises UsageError where there is no such
    function, or no room.
    """
    code = bytearray(program.instructions if instructions is None else instructions)
    starts = sorted(start for _, start in program.functions)
    offsets = dict(program.functions)
    for name, value in values.items():
        if name not in offsets:
            raise UsageError(f"program {program.name} has no function {name}")
        start = offsets[name]
        end = next((other for other in starts if other > start), len(program.instructions) // 8)
        body = _returning(name, value)
        room = (end - start) * 8
        if len(body) > room:
            raise UsageError(f"{name} of program {program.name} has no room for a 64-bit number")
        # Room that is left comes first, as no-ops: behind the exit the verifier would refuse it as dead code.
        filled = _NOTHING * ((room - len(body)) // 8) + body
        code[start * 8 : start * 8 + room] = filled
    return bytes(code)


def _returning(name: str, value: int) -> bytes:
    if not -(1 << 63) <= value < 1 << 64:
        raise UsageError(f"{value} for {name} does not fit 64 bits")
    if 0 <= value < 1 << 32:
        load = _INSTRUCTION.pack(_MOV32_R0, 0, 0, value - (value >> 31 << 32))
    elif -(1 << 31) <= value < 0:
        load = _INSTRUCTION.pack(_MOV64_R0, 0, 0, value)
    else:
        low, high = struct.unpack("<ii", struct.pack("<Q", value & (1 << 64) - 1))
        load = _INSTRUCTION.pack(_LD_IMM64, 0, 0, low) + _INSTRUCTION.pack(0, 0, 0, high)
    return load + _INSTRUCTION.pack(_EXIT, 0, 0, 0)
