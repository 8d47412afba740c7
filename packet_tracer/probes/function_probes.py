"""Kernel functions as probes: what is to be traced, and what the kernel side is told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from packet_tracer.errors import UsageError
from packet_tracer.events._layout import ProbeId
from packet_tracer.probes.functions import Argument, ArgumentKind, SkbFunction

Backend = Literal["fentry", "fentry-multi", "kprobe-multi", "kprobe"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

#: How the packet of a function is come by: it returns an skb, takes an XDP buffer, or takes an skb.
Way = Literal["made", "buffer", "skb"]

_KINDS = {
    ArgumentKind.SKB: 0,
    ArgumentKind.SKB_POINTER: 1,
    ArgumentKind.XDP_BUFF: 2,
    ArgumentKind.XDP_FRAME: 3,
}


class FunctionProbe(NamedTuple):
    """A function to be traced, and the probe ids of its entry and, one more, of its return."""

    name: str
    probe_id: int
    function: SkbFunction

    @property
    def argument(self) -> Argument | None:
        """The argument that leads to the packet; None for a function that makes one."""
        return self.function.packet

    @property
    def way(self) -> Way:
        """How its packet is come by."""
        argument = self.argument
        if argument is None:
            return "made"
        return "buffer" if argument.kind in (ArgumentKind.XDP_BUFF, ArgumentKind.XDP_FRAME) else "skb"

    @property
    def cookie(self) -> int:
        """What the kernel side is told of it; see COOKIE_PROBE in bpf_src/functions.bpf.h."""
        argument = self.argument
        if argument is None:
            return self.probe_id
        return self.probe_id | argument.index << 16 | _KINDS[argument.kind] << 24


def number(functions: Iterable[SkbFunction]) -> tuple[FunctionProbe, ...]:
    """Give functions probe ids and names: ``name``, or ``name@address`` where several have one name."""
    usable = list(functions)
    if len(usable) > (0xFFFF - ProbeId.FUNCTION) // 2:
        raise UsageError(f"{len(usable)} functions are more than can be numbered")
    names = Counter(one.name for one in usable)
    return tuple(
        FunctionProbe(
            f"{one.name}@{one.address:x}" if names[one.name] > 1 else one.name,
            ProbeId.FUNCTION + 2 * index,
            one,
        )
        for index, one in enumerate(usable)
    )
