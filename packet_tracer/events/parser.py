"""The parser behind :func:`packet_tracer.events.headers.parse`: one method a header."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from packet_tracer.events import headers as h

_LAYERS_MAX = 64

_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH")
_IPV4 = struct.Struct("!BBHHHBBHII")
_IPV6 = struct.Struct("!IHBB16s16s")
_TCP = struct.Struct("!HHIIBBHHH")
_UDP = struct.Struct("!HHHH")
_ICMP = struct.Struct("!BBHI")
_SCTP = struct.Struct("!HHII")
_FRAGMENT = struct.Struct("!BBHI")
_AUTHENTICATION = struct.Struct("!BBHII")
_TAG = struct.Struct("!HH")
_WORDS = struct.Struct("!II")

_IPV4_TYPE, _IPV6_TYPE = 0x0800, 0x86DD


class _StopError(Exception):
    """Ends the parsing; its text becomes Headers.stopped."""


def _mac(address: bytes) -> str:
    return address.hex(":")


class Parser:
    """Goes over ``data`` once. The next header starts at ``offset``, the packet ends at ``end``."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0
        self.end = len(data)
        self.layers: list[h.Header] = []
        self.stopped: str | None = None

    def run(self, first: Callable[[], None]) -> None:
        """Parse from ``first`` on, until the payload or until something stops it."""
        try:
            first()
        except _StopError as stop:
            self.stopped = str(stop)

    def guess(self) -> int:
        """Return the EtherType of bytes that start with an IP header."""
        version = self.data[0] >> 4 if self.data else 0
        return {4: _IPV4_TYPE, 6: _IPV6_TYPE}.get(version, 0)

    def _need(self, size: int, what: str) -> None:
        left = self.end - self.offset
        if left < size:
            raise _StopError(f"{what}: {left} of {size} bytes")
        if len(self.layers) >= _LAYERS_MAX:
            raise _StopError(f"{what}: more than {_LAYERS_MAX} headers")

    def _add(self, layer: h.Header) -> None:
        self.layers.append(layer)
        self.offset += layer.size

    def _limit(self, length: int) -> None:
        """Let the packet end ``length`` bytes from here: what follows is padding."""
        self.end = min(self.end, self.offset + length)

    def by_ether_type(self, protocol: int) -> None:
        """Go on with what an EtherType names; an unknown one leaves the payload."""
        if protocol == _IPV4_TYPE:
            self.ipv4()
        elif protocol == _IPV6_TYPE:
            self.ipv6()
        elif protocol in (0x8100, 0x88A8, 0x9100):
            self.vlan()
        elif protocol == 0x0806:
            self.arp()
        elif protocol == 0x6558:  # transparent Ethernet bridging, inside GRE and Geneve
            self.ethernet()

    def by_ip_protocol(self, protocol: int, version: int) -> None:
        """Go on with what an IP protocol number names; an unknown one leaves the payload."""
        if protocol == 6:
            self.tcp()
        elif protocol in (17, 136):
            self.udp(is_lite=protocol == 136)
        elif (protocol, version) in ((1, 4), (58, 6)):
            self.icmp(version)
        elif protocol == 4:
            self.ipv4()
        elif protocol == 41:
            self.ipv6()
        elif protocol == 47:
            self.gre()
        elif protocol == 51:
            self.authentication(version)
        elif protocol == 132:
            self.sctp()
        elif version == 6 and protocol == 44:
            self.ipv6_fragment()
        elif version == 6 and protocol in (0, 43, 60, 135, 139, 140):
            self.ipv6_extension(protocol)

    def ethernet(self) -> None:
        """IEEE 802.3."""
        self._need(14, "Ethernet")
        destination, source, protocol = _ETHERNET.unpack_from(self.data, self.offset)
        self._add(h.Ethernet(self.offset, 14, _mac(destination), _mac(source), protocol))
        self.by_ether_type(protocol)

    def vlan(self) -> None:
        """IEEE 802.1Q; tags may be stacked."""
        self._need(4, "VLAN")
        tci, protocol = _TAG.unpack_from(self.data, self.offset)
        self._add(h.VlanTag(self.offset, 4, tci >> 13, bool(tci & 0x1000), tci & 0xFFF, protocol))
        self.by_ether_type(protocol)

    def arp(self) -> None:
        """RFC 826, with addresses of any length."""
        self._need(8, "ARP")
        hardware, protocol, hardware_length, length, operation = _ARP.unpack_from(self.data, self.offset)
        size = 8 + 2 * (hardware_length + length)
        self._need(size, "ARP")
        at = self.offset + 8
        parts = []
        for width in (hardware_length, length, hardware_length, length):
            parts.append(self.data[at : at + width])
            at += width

        def address(value: bytes) -> IPv4Address | bytes:
            return IPv4Address(value) if protocol == _IPV4_TYPE and length == 4 else value

        self._add(
            h.Arp(
                self.offset,
                size,
                hardware,
                protocol,
                operation,
                _mac(parts[0]),
                address(parts[1]),
                _mac(parts[2]),
                address(parts[3]),
            )
        )

    def ipv4(self) -> None:
        """RFC 791. A total length of zero (segmentation offload) sets no end."""
        self._need(20, "IPv4")
        (first, tos, total, identification, fragment, ttl, protocol, checksum, source, destination) = (
            _IPV4.unpack_from(self.data, self.offset)
        )
        size = (first & 15) * 4
        if first >> 4 != 4:
            raise _StopError(f"IPv4: version {first >> 4}")
        if size < 20:
            raise _StopError(f"IPv4: header length {size} is below 20")
        if 0 < total < size:
            raise _StopError(f"IPv4: total length {total} is below the header's {size}")
        self._need(size, "IPv4")
        if total:
            self._limit(total)
        offset = (fragment & 0x1FFF) * 8
        options = self.data[self.offset + 20 : self.offset + size]
        self._add(
            h.Ipv4(
                self.offset,
                size,
                tos,
                total,
                identification,
                bool(fragment & 0x4000),
                bool(fragment & 0x2000),
                offset,
                ttl,
                protocol,
                checksum,
                IPv4Address(source),
                IPv4Address(destination),
                options,
            )
        )
        if not offset:  # only the first fragment has the next header
            self.by_ip_protocol(protocol, 4)

    def ipv6(self) -> None:
        """RFC 8200. A payload length of zero (jumbogram, segmentation offload) sets no end."""
        self._need(40, "IPv6")
        word, length, following, hops, source, destination = _IPV6.unpack_from(self.data, self.offset)
        if word >> 28 != 6:
            raise _StopError(f"IPv6: version {word >> 28}")
        if length:
            self._limit(40 + length)
        self._add(
            h.Ipv6(
                self.offset,
                40,
                word >> 20 & 0xFF,
                word & 0xFFFFF,
                length,
                following,
                hops,
                IPv6Address(source),
                IPv6Address(destination),
            )
        )
        self.by_ip_protocol(following, 6)

    def ipv6_extension(self, kind: int) -> None:
        """RFC 8200 section 4: options, routing and those with the same shape (RFC 6564)."""
        self._need(8, "IPv6 extension header")
        following, length = self.data[self.offset], self.data[self.offset + 1]
        size = (length + 1) * 8
        self._need(size, "IPv6 extension header")
        body = self.data[self.offset + 2 : self.offset + size]
        self._add(h.Ipv6Extension(self.offset, size, kind, following, body))
        self.by_ip_protocol(following, 6)

    def ipv6_fragment(self) -> None:
        """RFC 8200 section 4.5."""
        self._need(8, "IPv6 fragment header")
        following, _, word, identification = _FRAGMENT.unpack_from(self.data, self.offset)
        self._add(h.Ipv6Fragment(self.offset, 8, following, word & 0xFFF8, bool(word & 1), identification))
        if not word & 0xFFF8:
            self.by_ip_protocol(following, 6)

    def authentication(self, version: int) -> None:
        """RFC 4302: its length counts words of four bytes, less two."""
        self._need(12, "AH")
        following, length, _, index, sequence = _AUTHENTICATION.unpack_from(self.data, self.offset)
        size = (length + 2) * 4
        if size < 12:
            raise _StopError(f"AH: length {size} is below 12")
        self._need(size, "AH")
        self._add(h.Authentication(self.offset, size, following, index, sequence))
        self.by_ip_protocol(following, version)

    def tcp(self) -> None:
        """RFC 9293."""
        self._need(20, "TCP")
        source, destination, sequence, acknowledgement, offset, flags, window, checksum, urgent = (
            _TCP.unpack_from(self.data, self.offset)
        )
        size = (offset >> 4) * 4
        if size < 20:
            raise _StopError(f"TCP: header length {size} is below 20")
        self._need(size, "TCP")
        options, damage = _tcp_options(self.data[self.offset + 20 : self.offset + size])
        self._add(
            h.Tcp(
                self.offset,
                size,
                source,
                destination,
                sequence,
                acknowledgement,
                flags,
                window,
                checksum,
                urgent,
                options,
            )
        )
        if damage:
            raise _StopError(damage)

    def udp(self, *, is_lite: bool = False) -> None:
        """RFC 768; in UDP-Lite (RFC 3828) the length is the checksum's coverage. Then tunnels, by port."""
        self._need(8, "UDP")
        source, destination, length, checksum = _UDP.unpack_from(self.data, self.offset)
        if 0 < length < 8:
            raise _StopError(f"UDP: length {length} is below 8")
        if length and not is_lite:
            self._limit(length)
        self._add(h.Udp(self.offset, 8, source, destination, length, checksum))
        if destination in (4789, 8472):  # the standard's port, and Linux's default
            self.vxlan()
        elif destination == 6081:
            self.geneve()

    def icmp(self, version: int) -> None:
        """RFC 792, RFC 4443."""
        self._need(8, "ICMP")
        kind, code, checksum, rest = _ICMP.unpack_from(self.data, self.offset)
        self._add(h.Icmp(self.offset, 8, version, kind, code, checksum, rest))

    def sctp(self) -> None:
        """RFC 9260."""
        self._need(12, "SCTP")
        self._add(h.Sctp(self.offset, 12, *_SCTP.unpack_from(self.data, self.offset)))

    def gre(self) -> None:
        """RFC 2784 with RFC 2890's key and sequence number; other versions and routing stop here."""
        self._need(4, "GRE")
        flags, protocol = _TAG.unpack_from(self.data, self.offset)
        if flags & 0x4007:
            raise _StopError(f"GRE: flags {flags:#06x} not known here")
        size = 4 + 4 * sum(bool(flags & bit) for bit in (0x8000, 0x2000, 0x1000))
        self._need(size, "GRE")
        at = self.offset + (8 if flags & 0x8000 else 4)
        key = sequence = None
        if flags & 0x2000:
            key = int.from_bytes(self.data[at : at + 4], "big")
            at += 4
        if flags & 0x1000:
            sequence = int.from_bytes(self.data[at : at + 4], "big")
        self._add(h.Gre(self.offset, size, protocol, key, sequence))
        self.by_ether_type(protocol)

    def vxlan(self) -> None:
        """RFC 7348. Without its flag for a valid VNI it is something else on the same port: payload."""
        self._need(8, "VXLAN")
        flags, vni = _WORDS.unpack_from(self.data, self.offset)
        if not flags & 0x08000000:
            return
        self._add(h.Vxlan(self.offset, 8, flags >> 24, vni >> 8))
        self.ethernet()

    def geneve(self) -> None:
        """RFC 8926. Another version than 0 is payload."""
        self._need(8, "Geneve")
        first, vni = _WORDS.unpack_from(self.data, self.offset)
        if first >> 30:
            return
        size, protocol = 8 + (first >> 24 & 0x3F) * 4, first & 0xFFFF
        self._need(size, "Geneve")
        options = self.data[self.offset + 8 : self.offset + size]
        self._add(h.Geneve(self.offset, size, vni >> 8, protocol, options))
        self.by_ether_type(protocol)


def _tcp_options(data: bytes) -> tuple[tuple[tuple[int, bytes], ...], str | None]:
    """Return TCP options and what is wrong with them."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        kind = data[at]
        if kind == 0:  # end of the list
            break
        if kind == 1:  # no operation
            at += 1
            continue
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2 or at + length > len(data):
            return tuple(found), f"TCP: option {kind} has length {length}, {len(data) - at} bytes are left"
        found.append((kind, data[at + 2 : at + length]))
        at += length
    return tuple(found), None
