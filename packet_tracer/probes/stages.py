"""The stages of a packet's way through Linux, and the probes that stand for each: the profile ``path``.

One table, to be read. A stage has a name that anyone understands; its probes are those of the catalogue (of
netfilter, globs) and kernel functions. Functions have other names on other kernels (Linux 5.10 to 7.3 were
looked at), or are in modules that are not loaded: those that are not there are left out. Taken are functions
that a packet passes once and that every backend reaches, with an ``sk_buff *`` among their arguments, where
its headers are written already.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from functools import lru_cache

from packet_tracer.errors import NotSupportedError
from packet_tracer.probes.catalogue import PROBES
from packet_tracer.probes.functions import ArgumentKind, FunctionTable, SkbFunction, compile_pattern

#: In the order in which a packet meets them: in, through, to a socket; out of a socket, out; its end.
STAGES: Mapping[str, tuple[str, ...]] = {
    "driver in": ("napi_gro_receive_entry", "netif_rx", "enqueue_to_backlog"),
    "XDP": ("xdp", "xdp:*", "do_xdp_generic", "netif_receive_generic_xdp", "bpf_prog_run_generic_xdp"),
    "GRO": ("napi_gro_receive", "gro_receive_skb", "skb_gro_receive"),
    "device in": ("netif_receive_skb",),
    "TC in": ("tc:ingress", "tcf_classify_ingress"),
    "TC": ("tcf_classify", "tc:*#*"),
    "redirect": ("skb_do_redirect",),
    "bridge": ("br_handle_frame_finish", "br_pass_frame_up", "br_flood", "__br_forward", "br_dev_xmit"),
    "prerouting": (
        "ip_rcv_core",
        "ip_rcv",
        "ip6_rcv_core",
        "ipv6_rcv",
        "arp_rcv",
        "netfilter:*:prerouting",
    ),
    "reassembly": ("ip_defrag", "ipv6_frag_rcv", "nf_ct_frag6_gather"),
    "NAT": ("nf_nat_manip_pkt", "nf_nat_ipv4_manip_pkt", "nf_nat_ipv6_manip_pkt"),
    "routing": ("ip_route_input_noref", "ip6_route_input"),
    "forward": ("ip_forward", "ip6_forward", "netfilter:*:forward"),
    "local in": ("ip_local_deliver", "ip6_input", "netfilter:*:input"),
    "tunnel in": ("vxlan_rcv", "ip_tunnel_rcv", "__iptunnel_pull_header"),
    "TCP receive": ("tcp_v4_rcv", "tcp_v6_rcv", "tcp_rcv_established", "tcp_rcv_state_process"),
    "UDP receive": ("udp_rcv", "udpv6_rcv"),
    "ICMP receive": ("icmp_rcv", "icmpv6_rcv"),
    "socket queue": (
        "tcp_data_queue",
        "tcp_add_backlog",
        "__udp_enqueue_schedule_skb",
        "sock_queue_rcv_skb",
        "sock_queue_rcv_skb_reason",
    ),
    "read": ("skb_copy_datagram_iter", "skb_consume_udp"),
    "write": (
        "tcp_skb_entail",
        "skb_entail",
        "ip_send_skb",
        "ip6_send_skb",
    ),
    "TCP send": ("__tcp_transmit_skb",),
    "sent again": ("__tcp_retransmit_skb",),
    "IP output": ("__ip_queue_xmit", "ip6_xmit", "__ip_local_out", "__ip6_local_out", "netfilter:*:output"),
    "postrouting": ("ip_output", "ip6_output", "ip_mc_output", "netfilter:*:postrouting"),
    "fragment": ("ip_do_fragment", "ip6_fragment"),
    "segment": ("skb_segment", "skb_segment_list"),
    "neighbour": ("ip_finish_output2", "ip6_finish_output2", "neigh_resolve_output"),
    "tunnel out": ("ip_tunnel_xmit", "iptunnel_xmit", "vxlan_xmit"),
    "device out": ("__dev_queue_xmit",),
    "TC out": ("tc:egress",),
    "qdisc": ("net_dev_queue", "sch_direct_xmit"),
    "driver out": ("dev_hard_start_xmit", "net_dev_start_xmit", "net_dev_xmit", "veth_xmit", "loopback_xmit"),
    "merged": ("kfree_skb_partial", "napi_skb_free_stolen_head"),
    "freed": (
        "consume_skb",
        "skb_attempt_defer_free",
        "__kfree_skb",
        "__kfree_skb_defer",
        "__napi_kfree_skb",
    ),
    "dropped": ("kfree_skb", "kfree_skb_reason", "sk_skb_reason_drop"),
}

#: Seen through a tracepoint already: hooks that ``path`` does without. net_dev_queue comes early in
#: __dev_queue_xmit(), net_dev_start_xmit at once behind sch_direct_xmit(), and behind that the driver. What
#: veth and loopback queue to a CPU's backlog has just come by there, and goes on at netif_receive_skb.
_WITH_TRACEPOINT = {
    "__dev_queue_xmit",
    "sch_direct_xmit",
    "dev_hard_start_xmit",
    "veth_xmit",
    "loopback_xmit",
    "enqueue_to_backlog",
    "kfree_skb_reason",
    "sk_skb_reason_drop",
}

#: Not needed where there is the other. All packets pass ip_rcv_core(): a driver with NAPI and GRO, or veth
#: with an XDP program, hands over a list of them, and that goes by ip_list_rcv(). What waits for a
#: neighbour's address passes neigh_resolve_output(), and all else goes straight on to net_dev_queue.
_WITH_OTHER = {
    "ip_rcv": "ip_rcv_core",
    "ipv6_rcv": "ip6_rcv_core",
    "ip_finish_output2": "neigh_resolve_output",
    "ip6_finish_output2": "neigh_resolve_output",
}

_CATALOGUE = {probe.name for probe in PROBES}
_BY_NAME = {name: stage for stage, names in STAGES.items() for name in names if "*" not in name}
_BY_GLOB = {name: stage for stage, names in STAGES.items() for name in names if "*" in name}


@lru_cache(maxsize=16384)
def stage_of(probe_name: str) -> str | None:
    """Return the stage that a probe stands for, None for one that stands for none.

    Takes the names of output: ``ip_rcv``, ``ip_rcv@ffffffff81`` (of several namesakes), ``ip_rcv returns``.
    """
    name = probe_name.removesuffix(" returns").partition("@")[0]
    return _BY_NAME.get(name) or next(
        (stage for glob, stage in _BY_GLOB.items() if fnmatch.fnmatchcase(name, glob)), None
    )


def path_functions(table: FunctionTable) -> list[SkbFunction]:
    """Return the functions of :data:`STAGES` that this kernel has, in the order of the table.

    Raises NotSupportedError where it has none of them.
    """
    by_name: dict[str, list[SkbFunction]] = {}
    for function in table.functions:
        if function.argument(ArgumentKind.SKB) is not None:
            by_name.setdefault(function.name, []).append(function)
    found = [
        function
        for name in _BY_NAME
        if name not in _CATALOGUE
        and name not in _WITH_TRACEPOINT
        and not by_name.get(_WITH_OTHER.get(name, ""))
        for function in by_name.get(name, ())
    ]
    if not found:
        raise NotSupportedError(f"none of the functions of the profile path can be traced: {table.source}")
    return found


def choose(patterns: Sequence[str], exclude: Sequence[str], *, path: bool) -> list[SkbFunction]:
    """Return this kernel's functions that patterns name and, with ``path``, those of that profile too.

    Those that ``exclude`` names are in neither. Raises UsageError, NotSupportedError.
    """
    if not patterns and not path:
        return []
    table = FunctionTable.read()
    chosen = table.select(patterns, exclude) if patterns else []
    if path:
        unwanted = [compile_pattern(pattern) for pattern in exclude]
        chosen += [
            function
            for function in path_functions(table)
            if function not in chosen and not any(pattern.matches(function) for pattern in unwanted)
        ]
    return chosen
