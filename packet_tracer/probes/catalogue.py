"""The probes that packet-tracer knows by name, and how a choice of them is written.

Kernel functions are not listed here: there are thousands, and each kernel has its own
(:mod:`packet_tracer.probes.functions`).
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from packet_tracer.errors import UsageError
from packet_tracer.events._layout import Hook, ProbeId

Family = Literal["ipv4", "ipv6"]


class Probe(NamedTuple):
    """One place in the kernel where packets can be seen.

    ``object`` and ``programs`` name what is loaded and attached for it. ``argument`` is what a program that
    serves several probes needs to know of this one: ``(family, hook)`` in netfilter.
    """

    name: str
    probe_id: int
    hook: Hook
    object: str
    programs: tuple[str, ...]
    summary: str
    argument: tuple[Family, int] | None = None

    @property
    def needs_interface(self) -> bool:
        """Whether it is attached to one interface: XDP and TC."""
        return self.hook in (Hook.XDP, Hook.TC)

    @property
    def needs_netns(self) -> bool:
        """Whether it sees one network namespace only, the one it is attached in."""
        return self.needs_interface or self.hook == Hook.NETFILTER


def _tracepoint(probe_id: ProbeId, summary: str, *programs: str) -> Probe:
    name = probe_id.name.lower()
    return Probe(name, probe_id, Hook.TRACEPOINT, "tracepoints", programs or (name,), summary)


_NETFILTER_HOOKS = (
    ("prerouting", "as a packet comes in, before it is routed"),
    ("input", "on the way to a socket of this host"),
    ("forward", "on the way through this host"),
    ("output", "as a packet of this host goes out"),
    ("postrouting", "as a packet leaves, after it is routed"),
)


def _netfilter() -> Iterable[Probe]:
    families: tuple[tuple[Family, int], ...] = (
        ("ipv4", ProbeId.NETFILTER_IPV4),
        ("ipv6", ProbeId.NETFILTER_IPV6),
    )
    for family, first in families:
        for number, (hook, summary) in enumerate(_NETFILTER_HOOKS):
            yield Probe(
                f"netfilter:{family}:{hook}",
                first + number,
                Hook.NETFILTER,
                "netfilter",
                ("netfilter_hook",),
                f"{'IPv4' if family == 'ipv4' else 'IPv6'}, {summary}",
                (family, number),
            )


#: Every probe, in the order in which a packet meets them on its way in, then out, then at its end.
PROBES: tuple[Probe, ...] = (
    Probe("xdp", ProbeId.XDP, Hook.XDP, "xdp", ("xdp",), "the driver's receive path, before there is an skb"),
    _tracepoint(ProbeId.NAPI_GRO_RECEIVE_ENTRY, "a driver hands a packet to GRO"),
    _tracepoint(ProbeId.NETIF_RX, "a packet is queued to a CPU's backlog (loopback, veth, tunnels)"),
    Probe(
        "tc:ingress",
        ProbeId.TC_INGRESS,
        Hook.TC,
        "tc",
        ("tc_ingress",),
        "traffic control, as a packet comes in",
    ),
    _tracepoint(
        ProbeId.NETIF_RECEIVE_SKB, "the stack starts on a received packet: what tcpdump sees coming in"
    ),
    *_netfilter(),
    _tracepoint(ProbeId.NET_DEV_QUEUE, "a packet is queued to a device"),
    Probe(
        "tc:egress", ProbeId.TC_EGRESS, Hook.TC, "tc", ("tc_egress",), "traffic control, as a packet goes out"
    ),
    _tracepoint(ProbeId.NET_DEV_START_XMIT, "a packet is handed to the driver: what tcpdump sees going out"),
    _tracepoint(
        ProbeId.NET_DEV_XMIT, "the driver's answer to it", "net_dev_start_xmit_remember", "net_dev_xmit"
    ),
    _tracepoint(ProbeId.CONSUME_SKB, "a packet's regular end: read by a socket, sent, answered"),
    _tracepoint(ProbeId.KFREE_SKB, "a packet is dropped, and why"),
)

_TRACEPOINTS = ("netif_receive_skb", "net_dev_queue", "net_dev_start_xmit", "kfree_skb", "consume_skb")
#: Without functions: what every kernel has.
TRACEPOINTS = "tracepoints"
#: And functions, see packet_tracer.probes.stages.
PATH = "path"

#: Named choices of probes, for ``--profile``.
PROFILES: Mapping[str, tuple[str, ...]] = {
    PATH: _TRACEPOINTS,
    TRACEPOINTS: _TRACEPOINTS,
    "drops": ("kfree_skb",),
    "device": (
        "napi_gro_receive_entry",
        "netif_rx",
        "netif_receive_skb",
        "net_dev_queue",
        "net_dev_start_xmit",
        "net_dev_xmit",
    ),
}

_BY_ID = {probe.probe_id: probe for probe in PROBES}


def probe_names() -> dict[int, str]:
    """Return the name of every probe by its id."""
    return {probe.probe_id: probe.name for probe in PROBES}


def by_id(probe_id: int) -> Probe:
    """Return the probe with this id; KeyError if there is none."""
    return _BY_ID[probe_id]


def select(patterns: Iterable[str] = (), profile: str | None = None) -> tuple[Probe, ...]:
    """Return the probes that glob patterns and a profile name, in catalogue order, each once.

    Neither given means the profile ``tracepoints``. Raises UsageError for a pattern that matches no probe and
    for a profile that does not exist, with what there is.
    """
    wanted = list(patterns)
    if profile is not None or not wanted:
        name = profile or TRACEPOINTS
        if name not in PROFILES:
            raise UsageError(f"no profile {name!r}; there are: {', '.join(PROFILES)}")
        wanted += PROFILES[name]
    chosen: set[str] = set()
    for pattern in wanted:
        found = [probe.name for probe in PROBES if fnmatch.fnmatchcase(probe.name, pattern)]
        if not found:
            raise UsageError(f"no probe {pattern!r}{_near(pattern)}; `ptrace probes` lists them")
        chosen.update(found)
    return tuple(probe for probe in PROBES if probe.name in chosen)


def _near(pattern: str) -> str:
    near = difflib.get_close_matches(pattern, [probe.name for probe in PROBES], n=3)
    return f" (is {' or '.join(near)} meant?)" if near else ""
