"""Packets in tunnels, made by scapy, for the filter's tests."""

from __future__ import annotations

from typing import NamedTuple

from scapy.all import GRE, IP, TCP, UDP, Dot1Q, Ether, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.vxlan import VXLAN

from packet_tracer.filter import LinkType, Tunnel


class Case(NamedTuple):
    """A packet, the kind of tunnel that it is, and what is inside."""

    packet: bytes
    kind: Tunnel
    inner: bytes
    link_type: LinkType


FRAME = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="192.168.7.1", dst="192.168.7.2")
FRAME = FRAME / TCP(sport=4444, dport=80) / b"inner"
PACKET4 = IP(src="192.168.7.1", dst="192.168.7.2") / TCP(sport=4444, dport=80) / b"inner"
PACKET6 = IPv6(src="fd07::1", dst="fd07::2") / TCP(sport=4444, dport=80) / b"inner"
OUTER = Ether(src="02:00:00:00:00:03", dst="02:00:00:00:00:04")
OUTER4 = OUTER / IP(src="10.0.0.1", dst="10.0.0.2")
OUTER6 = OUTER / IPv6(src="fd00::1", dst="fd00::2")
OPTION = GeneveOptions(classid=1, type=2, data=b"12345678")

_TUNNELS = [
    (OUTER4 / UDP(dport=4789) / VXLAN(vni=7) / FRAME, Tunnel.VXLAN, FRAME),
    (OUTER6 / UDP(dport=8472) / VXLAN(vni=7) / FRAME, Tunnel.VXLAN, FRAME),
    (OUTER4 / UDP(dport=6081) / GENEVE(proto=0x6558, vni=7) / FRAME, Tunnel.GENEVE, FRAME),
    (OUTER4 / UDP(dport=6081) / GENEVE(proto=0x6558, vni=7, options=[OPTION]) / FRAME, Tunnel.GENEVE, FRAME),
    (OUTER6 / UDP(dport=6081) / GENEVE(proto=0x0800, vni=7) / PACKET4, Tunnel.GENEVE, PACKET4),
    (OUTER4 / GRE(proto=0x0800) / PACKET4, Tunnel.GRE, PACKET4),
    (OUTER4 / GRE(proto=0x86DD, key_present=1, key=9) / PACKET6, Tunnel.GRE, PACKET6),
    (OUTER6 / GRE(proto=0x6558, chksum_present=1, seqnum_present=1) / FRAME, Tunnel.GRE, FRAME),
    (OUTER4 / PACKET4, Tunnel.IPIP, PACKET4),
    (OUTER4 / PACKET6, Tunnel.IPIP, PACKET6),
    (OUTER6 / PACKET4, Tunnel.IPIP, PACKET4),
    (OUTER / Dot1Q(vlan=5) / Dot1Q(vlan=6) / IP() / UDP(dport=4789) / VXLAN() / FRAME, Tunnel.VXLAN, FRAME),
    (OUTER / IP(options=[b"\x07\x07\x04\0\0\0\0\0"]) / GRE(proto=0x0800) / PACKET4, Tunnel.GRE, PACKET4),
    (OUTER6 / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)]) / GRE() / PACKET4, Tunnel.GRE, PACKET4),
    (OUTER6 / IPv6ExtHdrFragment(offset=0, m=1) / GRE(proto=0x0800) / PACKET4, Tunnel.GRE, PACKET4),
]

TUNNELS = [
    Case(bytes(packet), kind, bytes(inner), LinkType.ETHERNET if inner is FRAME else LinkType.RAW)
    for packet, kind, inner in _TUNNELS
]

#: Nearly tunnels.
OTHERS = [
    bytes(packet)
    for packet in (
        OUTER4 / UDP(dport=4790) / VXLAN() / FRAME,
        OUTER4 / TCP(dport=4789) / (b"x" * 60),
        OUTER / IP(frag=100) / UDP(dport=4789) / VXLAN() / FRAME,
        OUTER6 / IPv6ExtHdrFragment(offset=10) / GRE(proto=0x0800) / PACKET4,
        OUTER4 / GRE(proto=0x88BE) / FRAME,
        OUTER / IP(proto=47) / (b"\0\x01\x08\0" + bytes(PACKET4)),
        OUTER / IP(proto=47) / (b"\x40\0\x08\0" + bytes(PACKET4)),
        OUTER4 / UDP(dport=6081) / GENEVE(proto=0x0806) / (b"x" * 40),
        OUTER / (b"x" * 60),
    )
]
