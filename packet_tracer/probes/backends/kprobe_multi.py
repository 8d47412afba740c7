"""``kprobe-multi``: one program and one link for all functions (Linux 5.18, CONFIG_FPROBE).

Attached and detached at once. With returns it is a kprobe session (Linux 6.10).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from packet_tracer.bpf import link as links
from packet_tracer.bpf.errors import AttachError
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.parallel import load_together
from packet_tracer.bpf.program import Program
from packet_tracer.filter.patch import load_filtered
from packet_tracer.filter.typed import typed_memory
from packet_tracer.probes.backends.common import Attaching, functions
from packet_tracer.probes.function_probes import FunctionProbe, Way

#: The programs by how a function's packet is come by.
_ENTRIES: dict[Way, str] = {
    "skb": "kprobe_multi_entry",
    "buffer": "kprobe_multi_buffer",
    "made": "kretprobe_multi_skb",
}
#: One for all functions that take a packet, if the kernel takes that.
_EITHER: dict[Way, str] = _ENTRIES | {"skb": "kprobe_multi_either", "buffer": "kprobe_multi_either"}
#: With returns.
_CALLS: dict[Way, str] = _ENTRIES | {"skb": "kprobe_session", "buffer": "kprobe_session"}


def attach(attaching: Attaching, probes: Sequence[FunctionProbe]) -> Iterator[Link]:
    """Attach to all functions; yield a link for each way to come by a packet."""
    # Else the verifier would blame the program: a helper that it needs is as new.
    reason = links.kprobe_multi_missing() or (attaching.returns and links.kprobe_session_missing())
    if reason:
        raise AttachError("kprobe-multi", functions(len(probes)), errno=errno.EOPNOTSUPP, reason=reason)
    usable = attaching.in_registers(probes)
    programs = _programs(attaching, usable)
    groups: dict[str, list[FunctionProbe]] = {}
    for probe in usable:
        groups.setdefault(programs[probe.way], []).append(probe)
    prepared = attaching.load("kprobe", sorted(groups))
    loaded = load_together(
        {name: partial(load_filtered, prepared[name], attaching.filter) for name in groups}
    )
    for program in loaded.values():
        attaching.keep(program)
    for name, group in groups.items():
        returns = name == _ENTRIES["made"]
        yield from attaching.by_halves(group, partial(_attach_all, attaching, loaded[name], returns=returns))


def _programs(attaching: Attaching, probes: Sequence[FunctionProbe]) -> Mapping[Way, str]:
    if attaching.returns:
        return _CALLS
    if typed_memory() is None or not any(probe.way == "buffer" for probe in probes):
        return _ENTRIES
    return _EITHER


def _attach_all(
    attaching: Attaching, program: Program, probes: Sequence[FunctionProbe], *, returns: bool
) -> Link:
    cookies = [attaching.cookie(probe) for probe in probes]
    if all(probe.function.address for probe in probes):
        addresses = [probe.function.address for probe in probes]
        return links.attach_kprobe_multi(program, addresses=addresses, cookies=cookies, returns=returns)
    symbols = [probe.function.name for probe in probes]
    return links.attach_kprobe_multi(program, symbols=symbols, cookies=cookies, returns=returns)
