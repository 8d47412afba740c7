"""What kernel functions return, and what the kernel side is told of it."""

from __future__ import annotations

from enum import IntEnum

from packet_tracer.bpf.btf import Btf, BtfType, Enum, Int, Prototype, Reference
from packet_tracer.probes.function_probes import FunctionProbe
from packet_tracer.probes.functions import KERNEL, SkbFunction


class Returns(IntEnum):
    """What of the register a return value takes: enum return_kind in bpf_src/functions.bpf.h."""

    REGISTER = 0
    INT = 1
    UNSIGNED = 2
    BYTE = 3
    NOTHING = 4


def prototype_of(function: SkbFunction) -> tuple[Btf, Prototype]:
    """Return a function's prototype, and the types that it is written in."""
    types = Btf.vmlinux() if function.module == KERNEL else Btf.module(function.module)
    described = types.type(function.btf_id)
    assert isinstance(described, Reference)
    prototype = types.type(described.type_id)
    assert isinstance(prototype, Prototype)
    return types, prototype


def returned(types: Btf, prototype: Prototype) -> Returns:
    """Return what of the register the value takes.

    The upper bits are whatever the function left there: -EPERM would be 4294967295.
    """
    if not prototype.type_id:
        return Returns.NOTHING
    described: BtfType = types.resolve(prototype.type_id)
    if isinstance(described, Enum):
        return Returns.INT
    if not isinstance(described, Int) or described.size > 4:
        return Returns.REGISTER
    if described.size < 4:
        return Returns.BYTE if described.size == 1 else Returns.UNSIGNED
    return Returns.INT if described.signed else Returns.UNSIGNED


def cookie_with_return(probe: FunctionProbe) -> int:
    """Return a function's cookie for programs that look at its return; see COOKIE_RETURNS in
    bpf_src/functions.bpf.h.
    """
    return probe.cookie | returned(*prototype_of(probe.function)) << 28
