"""Packets inside packets: which tunnels are known, and where the inner packet begins.

The kernel side finds it in bpf_src/tunnel.bpf.h; this is the same in Python, for packets read from a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntFlag
from typing import NamedTuple

from packet_tracer.errors import UsageError
from packet_tracer.filter.pcap import LinkType

#: UDP ports (RFC 7348, and what Linux took before it; RFC 8926).
VXLAN_PORTS = (4789, 8472)
GENEVE_PORT = 6081

_IPV4, _IPV6, _BRIDGED = 0x0800, 0x86DD, 0x6558
_VLANS = (0x8100, 0x88A8)
_VLANS_MAX, _EXTENSIONS_MAX = 2, 6
_FRAGMENT = 44


class Tunnel(IntFlag):
    """Kinds of tunnels; the values are the bits of ``filter_tunnels`` in bpf_src/tunnel.bpf.h."""

    VXLAN = 1
    GENEVE = 2
    GRE = 4
    IPIP = 8


NONE = Tunnel(0)
ALL = Tunnel.VXLAN | Tunnel.GENEVE | Tunnel.GRE | Tunnel.IPIP


def tunnels(names: Iterable[str]) -> Tunnel:
    """Return the kinds of these names: ``vxlan``, ``geneve``, ``gre``, ``ipip``. Raises UsageError."""
    found = NONE
    for name in names:
        try:
            found |= Tunnel[name.upper()]
        except KeyError:
            known = ", ".join(kind.name.lower() for kind in Tunnel if kind.name)
            raise UsageError(f"no tunnel {name!r}: there are {known}") from None
    return found


class Inner(NamedTuple):
    """Where the inner packet begins, and with what."""

    offset: int
    link_type: LinkType


class _Missing(Exception):
    """The packet ends before what was looked for."""


def find_inner(packet: bytes, link_type: LinkType, kinds: Tunnel) -> Inner | None:
    """Return where the packet inside one of these tunnels begins, None if there is none."""
    try:
        return _find(packet, link_type, kinds)
    except _Missing:
        return None


def _number(packet: bytes, offset: int, size: int) -> int:
    if offset + size > len(packet):
        raise _Missing
    return int.from_bytes(packet[offset : offset + size], "big")


def _find(packet: bytes, link_type: LinkType, kinds: Tunnel) -> Inner | None:
    offset = 0
    if link_type is LinkType.ETHERNET:
        offset, ether_type = 14, _number(packet, 12, 2)
        for _ in range(_VLANS_MAX):
            if ether_type in _VLANS:
                ether_type = _number(packet, offset + 2, 2)
                offset += 4
        if ether_type not in (_IPV4, _IPV6):
            return None
    first = _number(packet, offset, 1)
    if first >> 4 == 4:
        if _number(packet, offset + 6, 2) & 0x1FFF:
            return None
        protocol: int | None = _number(packet, offset + 9, 1)
        offset += (first & 0x0F) * 4
    elif first >> 4 == 6:
        protocol, offset = _skip_extensions(packet, _number(packet, offset + 6, 1), offset + 40)
    else:
        return None
    if protocol == 17:
        return _in_udp(packet, offset, kinds)
    if protocol == 47 and kinds & Tunnel.GRE:
        return _in_gre(packet, offset)
    if protocol in (4, 41) and kinds & Tunnel.IPIP:
        return Inner(offset, LinkType.RAW)
    return None


def _skip_extensions(packet: bytes, protocol: int, offset: int) -> tuple[int | None, int]:
    for _ in range(_EXTENSIONS_MAX):
        if protocol not in (0, 43, _FRAGMENT, 60):
            return protocol, offset
        following, length = _number(packet, offset, 1), _number(packet, offset + 1, 1)
        if protocol == _FRAGMENT:
            length = 0
            if _number(packet, offset + 2, 2) & 0xFFF8:
                return None, offset
        protocol = following
        offset += (length + 1) * 8
    return None, offset


def _inside(offset: int, protocol: int) -> Inner | None:
    if protocol == _BRIDGED:
        return Inner(offset, LinkType.ETHERNET)
    return Inner(offset, LinkType.RAW) if protocol in (_IPV4, _IPV6) else None


def _in_udp(packet: bytes, offset: int, kinds: Tunnel) -> Inner | None:
    port = _number(packet, offset + 2, 2)
    if kinds & Tunnel.VXLAN and port in VXLAN_PORTS:
        return Inner(offset + 16, LinkType.ETHERNET)
    if kinds & Tunnel.GENEVE and port == GENEVE_PORT:
        options = (_number(packet, offset + 8, 1) & 0x3F) * 4
        return _inside(offset + 16 + options, _number(packet, offset + 10, 2))
    return None


def _in_gre(packet: bytes, offset: int) -> Inner | None:
    flags = _number(packet, offset, 2)
    if flags & 0x4007:  # source routing, or another version
        return None
    optional = sum(4 for bit in (0x8000, 0x2000, 0x1000) if flags & bit)
    return _inside(offset + 4 + optional, _number(packet, offset + 2, 2))
