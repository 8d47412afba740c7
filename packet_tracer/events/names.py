"""Names for the numbers in a record: verdicts, protocols, flags, addresses.

Constants are those of the kernel's user-space headers, which never change; what changes between kernels (drop
reasons) is read from the running one, see :mod:`packet_tracer.events.drop_reasons`.
"""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from packet_tracer.events._layout import Direction, Hook

#: linux/bpf.h, enum xdp_action
XDP_ACTIONS = {0: "XDP_ABORTED", 1: "XDP_DROP", 2: "XDP_PASS", 3: "XDP_TX", 4: "XDP_REDIRECT"}

#: linux/pkt_cls.h; TCX uses the same numbers (linux/bpf.h, enum tcx_action_base)
TC_ACTIONS = {
    -1: "TC_ACT_UNSPEC",
    0: "TC_ACT_OK",
    1: "TC_ACT_RECLASSIFY",
    2: "TC_ACT_SHOT",
    3: "TC_ACT_PIPE",
    4: "TC_ACT_STOLEN",
    5: "TC_ACT_QUEUED",
    6: "TC_ACT_REPEAT",
    7: "TC_ACT_REDIRECT",
    8: "TC_ACT_TRAP",
}

#: linux/netfilter.h; the upper bits hold a queue's number or an errno
NETFILTER_VERDICTS = {
    0: "NF_DROP",
    1: "NF_ACCEPT",
    2: "NF_STOLEN",
    3: "NF_QUEUE",
    4: "NF_REPEAT",
    5: "NF_STOP",
}

#: What a cgroup_skb program returns (kernel/bpf/cgroup.c): bit 0 lets pass, bit 1 signals congestion
CGROUP_VERDICTS = {0: "DROP", 1: "PASS", 2: "DROP_CN", 3: "PASS_CN"}

#: What ndo_start_xmit returns, and the queueing codes in between (linux/netdevice.h)
TRANSMIT_VERDICTS = {
    0x00: "NETDEV_TX_OK",
    0x01: "NET_XMIT_DROP",
    0x02: "NET_XMIT_CN",
    0x10: "NETDEV_TX_BUSY",
}

#: linux/if_ether.h, in the short names tcpdump uses
ETHER_TYPES = {
    0x0800: "ipv4",
    0x0806: "arp",
    0x8035: "rarp",
    0x8100: "vlan",
    0x86DD: "ipv6",
    0x8809: "lacp",
    0x8847: "mpls",
    0x8848: "mpls-mc",
    0x8863: "pppoe-discovery",
    0x8864: "pppoe",
    0x888E: "eapol",
    0x88A8: "qinq",
    0x88CC: "lldp",
    0x88E5: "macsec",
    0x88F7: "ptp",
    0x8906: "fcoe",
}

#: linux/in.h, linux/in6.h
IP_PROTOCOLS = {
    0: "hopopt",
    1: "icmp",
    2: "igmp",
    4: "ipip",
    6: "tcp",
    17: "udp",
    33: "dccp",
    41: "ipv6",
    43: "ipv6-route",
    44: "ipv6-frag",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "icmp6",
    59: "ipv6-nonxt",
    60: "ipv6-opts",
    89: "ospf",
    94: "ipip",
    103: "pim",
    112: "vrrp",
    115: "l2tp",
    132: "sctp",
    135: "mobility",
    136: "udplite",
    137: "mpls",
}

#: linux/if_packet.h
PACKET_TYPES = {
    0: "host",
    1: "broadcast",
    2: "multicast",
    3: "otherhost",
    4: "outgoing",
    5: "loopback",
    6: "user",
    7: "kernel",
}

#: linux/skbuff.h, CHECKSUM_*
CHECKSUMS = {0: "none", 1: "unnecessary", 2: "complete", 3: "partial"}

#: RFC 826, RFC 903
ARP_OPERATIONS = {1: "request", 2: "reply", 3: "reverse-request", 4: "reverse-reply"}

HOOKS = {member.value: member.name.lower().replace("_", "-") for member in Hook}
DIRECTIONS = {
    member.value: None if member is Direction.UNKNOWN else member.name.lower() for member in Direction
}

_ICMP_ECHO = {(1, 0), (1, 8), (58, 128), (58, 129)}
_ICMP = {
    (1, 0): "echo reply",
    (1, 3): "unreachable",
    (1, 5): "redirect",
    (1, 8): "echo request",
    (1, 11): "time exceeded",
    (1, 12): "parameter problem",
    (58, 1): "unreachable",
    (58, 2): "packet too big",
    (58, 3): "time exceeded",
    (58, 4): "parameter problem",
    (58, 128): "echo request",
    (58, 129): "echo reply",
    (58, 130): "multicast listener query",
    (58, 131): "multicast listener report",
    (58, 132): "multicast listener done",
    (58, 133): "router solicitation",
    (58, 134): "router advertisement",
    (58, 135): "neighbor solicitation",
    (58, 136): "neighbor advertisement",
    (58, 137): "redirect",
    (58, 143): "multicast listener report v2",
}

_TCP_FLAGS = "FSRP.UEW"  # from bit 0 on; as tcpdump writes them


def verdict_name(hook: int, verdict: int, *, xdp: bool = False) -> str:
    """Return a verdict's name as its hook means it: ``XDP_PASS``, ``TC_ACT_SHOT``, ``NF_DROP``.

    ``xdp``: the packet had no skb yet, so a traced BPF program was one of XDP, else of tc. A number without
    a name there is returned in digits.
    """
    if hook == Hook.XDP or (hook == Hook.PROGRAM_RETURN and xdp):
        names = XDP_ACTIONS
    elif hook in (Hook.TC, Hook.PROGRAM_RETURN):
        names = TC_ACTIONS
    elif hook == Hook.NETFILTER:
        name = NETFILTER_VERDICTS.get(verdict & 0xFF)
        extra = verdict >> 16
        return str(verdict) if name is None else f"{name}({extra})" if extra else name
    elif hook == Hook.CGROUP:
        names = CGROUP_VERDICTS
    elif hook == Hook.TRACEPOINT:
        names = TRANSMIT_VERDICTS
    else:
        names = {}
    return names.get(verdict) or str(verdict)


def tcp_flags_text(flags: int) -> str:
    """Return TCP flags as tcpdump does: ``S``, ``S.``, ``P.``, ``none``."""
    return "".join(letter for bit, letter in enumerate(_TCP_FLAGS) if flags >> bit & 1) or "none"


def is_echo(l4_protocol: int, icmp_type: int) -> bool:
    """Whether an ICMP or ICMPv6 message is an echo request or reply, which have identifier and sequence."""
    return (l4_protocol, icmp_type) in _ICMP_ECHO


def icmp_text(l4_protocol: int, icmp_type: int, icmp_code: int) -> str:
    """Return what an ICMP message is: ``echo request``, ``unreachable code 3``, ``type 42 code 0``."""
    name = _ICMP.get((l4_protocol, icmp_type))
    if name is None:
        return f"type {icmp_type} code {icmp_code}"
    return f"{name} code {icmp_code}" if icmp_code else name


#: What an IPv4 address starts with in a record.
MAPPED_PREFIX = bytes(10) + b"\xff\xff"


@lru_cache(maxsize=65536)
def address_text(address: bytes) -> str:
    """Return the text of a record's 16-byte address; IPv4 is v4-mapped in there."""
    if address[:12] == MAPPED_PREFIX:
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


@lru_cache(maxsize=65536)
def address_of(address: bytes) -> IPv4Address | IPv6Address:
    """Return a record's 16-byte address as an object; IPv4 is v4-mapped in there."""
    if address[:12] == MAPPED_PREFIX:
        return IPv4Address(address[12:])
    return IPv6Address(address)


@lru_cache(maxsize=4096)
def comm_text(comm: bytes) -> str:
    """Return a task's name up to its NUL. It may hold any byte: undecodable ones become U+FFFD."""
    return comm.partition(b"\0")[0].decode("utf-8", "replace")
