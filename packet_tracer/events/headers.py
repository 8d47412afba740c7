"""Protocol headers of captured bytes, from Ethernet down to the payload.

:func:`parse` never raises: bytes that end too early, or that contradict themselves, end the parsing, and
:attr:`Headers.stopped` says where and why. What was parsed before stays valid, and every byte is accounted
for: headers, payload and padding together are the bytes given.

Formats: IEEE 802.3 and 802.1Q, RFC 826 (ARP), RFC 791 (IPv4), RFC 8200 (IPv6), RFC 4302 (AH), RFC 9293
(TCP), RFC 768 (UDP), RFC 792 and 4443 (ICMP), RFC 9260 (SCTP), RFC 2784 and 2890 (GRE), RFC 7348 (VXLAN),
RFC 8926 (Geneve).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

H = TypeVar("H", bound="Header")


class LinkType(Enum):
    """What the bytes start with."""

    ETHERNET = "ethernet"
    #: No link-layer header: the protocol is given, or told from the IP version.
    NONE = "none"


@dataclass(slots=True)
class Header:
    """A header at byte ``offset`` that takes ``size`` bytes, options included."""

    offset: int
    size: int


@dataclass(slots=True)
class Ethernet(Header):
    """``protocol`` is an EtherType, or the length of an 802.3 frame (below 1536)."""

    destination: str
    source: str
    protocol: int


@dataclass(slots=True)
class VlanTag(Header):
    """An 802.1Q or 802.1ad tag; ``protocol`` is what follows it."""

    priority: int
    drop_eligible: bool
    id: int
    protocol: int


@dataclass(slots=True)
class Arp(Header):
    """Hardware addresses as text, protocol addresses as IPv4Address where they are IPv4, else as bytes."""

    hardware_type: int
    protocol_type: int
    operation: int
    sender_hardware: str
    sender: IPv4Address | bytes
    target_hardware: str
    target: IPv4Address | bytes


@dataclass(slots=True)
class Ipv4(Header):
    """``fragment_offset`` in bytes; ``options`` as they are."""

    tos: int
    total_length: int
    identification: int
    dont_fragment: bool
    more_fragments: bool
    fragment_offset: int
    ttl: int
    protocol: int
    checksum: int
    source: IPv4Address
    destination: IPv4Address
    options: bytes


@dataclass(slots=True)
class Ipv6(Header):
    """The fixed header; extension headers are layers of their own."""

    traffic_class: int
    flow_label: int
    payload_length: int
    next_header: int
    hop_limit: int
    source: IPv6Address
    destination: IPv6Address


@dataclass(slots=True)
class Ipv6Extension(Header):
    """Hop-by-hop options (0), routing (43), destination options (60), mobility (135), ...: by ``kind``."""

    kind: int
    next_header: int
    body: bytes


@dataclass(slots=True)
class Ipv6Fragment(Header):
    """The fragment header; ``fragment_offset`` in bytes."""

    next_header: int
    fragment_offset: int
    more_fragments: bool
    identification: int


@dataclass(slots=True)
class Authentication(Header):
    """An IPsec authentication header, of IPv4 or IPv6."""

    next_header: int
    security_parameters_index: int
    sequence: int


@dataclass(slots=True)
class Tcp(Header):
    """``flags`` are the eight from CWR to FIN; ``options`` are (kind, value) pairs, padding left out."""

    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int
    flags: int
    window: int
    checksum: int
    urgent: int
    options: tuple[tuple[int, bytes], ...]


@dataclass(slots=True)
class Udp(Header):
    """``length`` counts header and payload."""

    source_port: int
    destination_port: int
    length: int
    checksum: int


@dataclass(slots=True)
class Icmp(Header):
    """ICMP, or ICMPv6 where ``version`` is 6. ``rest`` is the second word, which means what the type says."""

    version: int
    type: int
    code: int
    checksum: int
    rest: int

    @property
    def identifier(self) -> int:
        """An echo's identifier."""
        return self.rest >> 16

    @property
    def sequence(self) -> int:
        """An echo's sequence number."""
        return self.rest & 0xFFFF


@dataclass(slots=True)
class Sctp(Header):
    """The common header; chunks are payload."""

    source_port: int
    destination_port: int
    verification_tag: int
    checksum: int


@dataclass(slots=True)
class Gre(Header):
    """``key`` and ``sequence`` are None where their bit is not set."""

    protocol: int
    key: int | None
    sequence: int | None


@dataclass(slots=True)
class Vxlan(Header):
    """``vni`` is valid if bit 3 of ``flags`` is set, which RFC 7348 demands."""

    flags: int
    vni: int


@dataclass(slots=True)
class Geneve(Header):
    """``options`` as they are."""

    vni: int
    protocol: int
    options: bytes


@dataclass(slots=True)
class Headers:
    """What :func:`parse` found.

    ``padding`` is what lies behind the end that an IP or UDP header declares. ``stopped`` says why
    parsing ended before the payload: ``"TCP: 12 of 20 bytes"``, ``"IPv4: header length 8 is below 20"``.
    """

    layers: tuple[Header, ...]
    payload: bytes
    padding: bytes
    stopped: str | None

    def __iter__(self) -> Iterator[Header]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def all(self, kind: type[H]) -> list[H]:
        """Return the headers of a kind, outermost first."""
        return [layer for layer in self.layers if isinstance(layer, kind)]

    def get(self, kind: type[H]) -> H | None:
        """Return the outermost header of a kind, or None."""
        return next(iter(self.all(kind)), None)


def parse(data: bytes, link: LinkType = LinkType.ETHERNET, *, protocol: int = 0) -> Headers:
    """Return the headers of a packet's bytes. Without a link-layer header ``protocol`` is its EtherType."""
    from packet_tracer.events.parser import Parser

    parser = Parser(data)
    if link is LinkType.ETHERNET:
        parser.run(parser.ethernet)
    else:
        parser.run(lambda: parser.by_ether_type(protocol or parser.guess()))
    return Headers(tuple(parser.layers), data[parser.offset : parser.end], data[parser.end :], parser.stopped)
