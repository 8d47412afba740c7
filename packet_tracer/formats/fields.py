"""The one table of what is written about an event: text, JSON and the JSON schema are all made from it.

A record's members fall into four groups by how often they change, because formatting a member costs more than
looking up what was formatted before:

- *place*: where it happened and who ran. Few combinations in any capture, so its text is cached.
- *kind*: which protocols and flags the packet has. Few combinations too, each with a template that is cached.
- *outcome*: what became of it. Cached.
- *moment*: what is different each time. It is written by the ``%`` template of the kind.

Addresses and ports belong to the moment, though all packets of a flow share them: a capture can see millions
of flows, and a text of each would have to be made, kept and found again.

A value is None where it is not known, and then JSON says null: a key is never left out, and zero means zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from packet_tracer.events import Context, Hook, names
from packet_tracer.events import flags as bits
from packet_tracer.events._layout import NO_SKB
from packet_tracer.events.records import Selection

Value = str | int | bool | None


class Place(NamedTuple):
    """Members that say where it happened and who ran."""

    hook: int
    probe_id: int
    cpu: int
    pid: int
    tgid: int
    netns_inode: int
    ifindex: int
    mtu: int
    direction: int
    comm: bytes
    netns_cookie: int
    rx_ifindex: int
    mark: int
    queue: int
    packet_type: int
    checksum: int


class Kind(NamedTuple):
    """Members that say which protocols and flags the packet has."""

    hook: int
    flags: int
    protocol: int
    l4_protocol: int
    arp_operation: int
    tcp_flags: int
    icmp_type: int
    icmp_code: int
    ipv6: bool  # of the addresses; no member of the record

    def has(self, flag: int) -> bool:
        """Whether what the flag stands for is known."""
        return bool(self.flags & flag)


class Outcome(NamedTuple):
    """Members that say what became of the packet."""

    hook: int
    drop_reason: int
    verdict: int
    flags: int
    location: int


class Moment(NamedTuple):
    """Members that are different each time."""

    timestamp_ns: int
    packet_id: int
    skb_address: int
    packet_length: int
    captured_length: int
    tos: int
    source_port: int
    destination_port: int
    vlan_tci: int
    ttl: int
    source: bytes
    destination: bytes
    parent_id: int
    head_address: int
    return_value: int
    duration_ns: int
    hash: int
    tcp_sequence: int
    tcp_acknowledgement: int
    ip_id: int
    stack_id: int
    data_length: int
    fragment_offset: int
    icmp_id: int
    icmp_sequence: int
    gso_size: int
    gso_segments: int


PLACE = Selection(*Place._fields)
KIND = Selection(*(name for name in Kind._fields if name != "ipv6"))
OUTCOME = Selection(*Outcome._fields)
MOMENT = Selection(*Moment._fields)

PlaceValue = Callable[[Context, Place], Value]
KindValue = Callable[[Kind], Value]
OutcomeValue = Callable[[Context, Outcome], Value]


class Field(NamedTuple):
    """One key: its JSON type, whether it may be null, what it means, and where its value comes from.

    Exactly one source is given. ``moment`` is a printf conversion of JSON; with ``known`` it is null for
    kinds of which that is false.
    """

    key: str
    type: str
    description: str
    nullable: bool = True
    constant: str | None = None
    place: PlaceValue | None = None
    kind: KindValue | None = None
    outcome: OutcomeValue | None = None
    moment: str | None = None
    known: Callable[[Kind], bool] | None = None


def _has_skb(kind: Kind) -> bool:
    return not kind.flags & bits.XDP


def _returns(kind: Kind) -> bool:
    return kind.hook in _RETURNS


def _is_echo(kind: Kind) -> bool:
    return kind.has(bits.ICMP) and names.is_echo(kind.l4_protocol, kind.icmp_type)


def _has_ip_id(kind: Kind) -> bool:
    """IPv6 has an identification in fragments only."""
    return kind.has(bits.IP) and (kind.has(bits.FRAGMENT) or not kind.ipv6)


def _if_skb(value: Callable[[Place], Value]) -> PlaceValue:
    return lambda context, place: None if place.packet_type == NO_SKB else value(place)


def _if(flag: int, value: Callable[[Kind], Value]) -> KindValue:
    return lambda kind: value(kind) if kind.flags & flag else None


def _has(flag: int) -> Callable[[Kind], bool]:
    return lambda kind: kind.has(flag)


def _drop_reason(context: Context, outcome: Outcome) -> str | None:
    return context.drop_reasons.name(outcome.drop_reason) if outcome.flags & bits.DROP_REASON else None


def _drop_location(context: Context, outcome: Outcome) -> str | None:
    if not outcome.flags & bits.DROP_LOCATION:
        return None
    return context.symbols.name(outcome.location) or f"{outcome.location:#x}"


def _verdict(context: Context, outcome: Outcome) -> str | None:
    if not outcome.flags & bits.VERDICT:
        return None
    return names.verdict_name(outcome.hook, outcome.verdict, xdp=bool(outcome.flags & bits.XDP))


_RETURNS = (int(Hook.FUNCTION_RETURN), int(Hook.PROGRAM_RETURN))
_ADDRESSES = bits.IP | bits.ARP
_INT, _STR, _BOOL = "integer", "string", "boolean"

#: Every key, in the order in which JSON has them.
FIELDS: tuple[Field, ...] = (
    Field("type", _STR, "always `event`; other lines of a file have another type", False, constant="event"),
    Field("timestamp", _STR, "wall-clock time in UTC, RFC 3339 with nanoseconds", False, moment='"%s.%09dZ"'),
    Field("timestamp_ns", _INT, "the same, in nanoseconds since 1970", False, moment="%d"),
    Field("monotonic_ns", _INT, "CLOCK_MONOTONIC in nanoseconds, as the kernel took it", False, moment="%d"),
    Field("probe", _STR, "the probe's name", False, place=lambda c, p: c.probe_name(p.probe_id)),
    Field(
        "hook", _STR, "the kind of place", False, place=lambda c, p: names.HOOKS.get(p.hook) or str(p.hook)
    ),
    Field(
        "direction",
        _STR,
        "`ingress`, `egress` or `forward`; null where the probe has none",
        place=lambda c, p: names.DIRECTIONS.get(p.direction),
    ),
    Field("cpu", _INT, "the CPU it ran on", False, place=lambda c, p: p.cpu),
    Field(
        "pid",
        _INT,
        "the thread that ran, not necessarily the packet's owner",
        False,
        place=lambda c, p: p.pid,
    ),
    Field("tgid", _INT, "its process", False, place=lambda c, p: p.tgid),
    Field("comm", _STR, "its name, taken in the kernel", False, place=lambda c, p: names.comm_text(p.comm)),
    Field("netns", _INT, "inode of the network namespace", place=lambda c, p: p.netns_inode or None),
    Field(
        "netns_name",
        _STR,
        "its name; null for the tracer's own and where it is not known",
        place=lambda c, p: c.netns_name(p.netns_inode),
    ),
    Field(
        "netns_cookie",
        _INT,
        "its cookie; null on kernels without",
        place=lambda c, p: p.netns_cookie or None,
    ),
    Field(
        "ifindex",
        _INT,
        "index of the packet's device; null without one",
        place=lambda c, p: p.ifindex or None,
    ),
    Field(
        "interface",
        _STR,
        "name of that device",
        place=lambda c, p: c.interface_name(p.netns_inode, p.ifindex),
    ),
    Field(
        "rx_ifindex", _INT, "index of the interface it came in by", place=lambda c, p: p.rx_ifindex or None
    ),
    Field("mtu", _INT, "MTU of the packet's device, in bytes", place=lambda c, p: p.mtu or None),
    Field(
        "mark", _INT, "the packet's mark; null at XDP, where there is none", place=_if_skb(lambda p: p.mark)
    ),
    Field("queue", _INT, "queue mapping; at XDP the receive queue", False, place=lambda c, p: p.queue),
    Field(
        "packet_type",
        _STR,
        "`host`, `broadcast`, `multicast`, `otherhost`, `outgoing`, ...; null at XDP",
        place=_if_skb(lambda p: names.PACKET_TYPES.get(p.packet_type) or str(p.packet_type)),
    ),
    Field(
        "checksum",
        _STR,
        "`none`, `unnecessary`, `complete` or `partial` (skb->ip_summed); null at XDP",
        place=_if_skb(lambda p: names.CHECKSUMS.get(p.checksum) or str(p.checksum)),
    ),
    Field("packet_id", _INT, "the same for all events of a packet; null if it is not tracked", moment="%s"),
    Field("parent_id", _INT, "the packet it was made from: a segment's, a fragment's", moment="%s"),
    Field("skb", _STR, "address of the sk_buff, at XDP of the xdp_buff", False, moment='"0x%x"'),
    Field("head", _STR, "address of its data (skb->head)", False, moment='"0x%x"'),
    Field("hash", _INT, "flow hash (skb->hash); null at XDP", moment="%s", known=_has_skb),
    Field("length", _INT, "bytes of the whole packet there (skb->len)", False, moment="%d"),
    Field(
        "nonlinear_length", _INT, "those in pages (skb->data_len); null at XDP", moment="%s", known=_has_skb
    ),
    Field(
        "gso_size", _INT, "bytes a segment will have; 0: not GSO; null at XDP", moment="%s", known=_has_skb
    ),
    Field("gso_segments", _INT, "how many segments it stands for; null at XDP", moment="%s", known=_has_skb),
    Field("protocol", _INT, "EtherType", kind=lambda k: k.protocol or None),
    Field("protocol_name", _STR, "its name", kind=lambda k: names.ETHER_TYPES.get(k.protocol)),
    Field("vlan", _INT, "VLAN id of the outer tag", moment="%s", known=_has(bits.VLAN)),
    Field("vlan_priority", _INT, "its priority", moment="%s", known=_has(bits.VLAN)),
    Field(
        "source",
        _STR,
        "source address; of ARP, the sender's protocol address",
        moment='"%s"',
        known=_has(_ADDRESSES),
    ),
    Field(
        "destination",
        _STR,
        "destination address; of ARP, the target's protocol address",
        moment='"%s"',
        known=_has(_ADDRESSES),
    ),
    Field("source_port", _INT, "null in later fragments", moment="%s", known=_has(bits.PORTS)),
    Field(
        "destination_port",
        _INT,
        "null in later fragments",
        moment="%s",
        known=_has(bits.PORTS),
    ),
    Field(
        "l4_protocol",
        _INT,
        "IP protocol, behind all extension headers",
        kind=_if(bits.IP, lambda k: k.l4_protocol),
    ),
    Field(
        "l4_protocol_name",
        _STR,
        "its name",
        kind=_if(bits.IP, lambda k: names.IP_PROTOCOLS.get(k.l4_protocol)),
    ),
    Field("ttl", _INT, "TTL or hop limit", moment="%s", known=_has(bits.IP)),
    Field("tos", _INT, "DSCP and ECN; IPv6 traffic class", moment="%s", known=_has(bits.IP)),
    Field("ip_id", _INT, "identification; in IPv6 of fragments only", moment="%s", known=_has_ip_id),
    Field("fragment", _BOOL, "whether it is a fragment of an IP packet", False, kind=_has(bits.FRAGMENT)),
    Field(
        "fragment_offset",
        _INT,
        "its offset in bytes; null if it is none",
        moment="%s",
        known=_has(bits.FRAGMENT),
    ),
    Field("tcp_flags", _INT, "bits from FIN (1) to CWR (128)", kind=_if(bits.TCP, lambda k: k.tcp_flags)),
    Field(
        "tcp_flags_text",
        _STR,
        "as tcpdump writes them: `S.`",
        kind=_if(bits.TCP, lambda k: names.tcp_flags_text(k.tcp_flags)),
    ),
    Field("tcp_sequence", _INT, "sequence number", moment="%s", known=_has(bits.TCP)),
    Field("tcp_acknowledgement", _INT, "acknowledgement number", moment="%s", known=_has(bits.TCP)),
    Field("icmp_type", _INT, "of ICMP or ICMPv6", kind=_if(bits.ICMP, lambda k: k.icmp_type)),
    Field("icmp_code", _INT, "of ICMP or ICMPv6", kind=_if(bits.ICMP, lambda k: k.icmp_code)),
    Field("icmp_id", _INT, "identifier of an echo", moment="%s", known=_is_echo),
    Field("icmp_sequence", _INT, "sequence number of an echo", moment="%s", known=_is_echo),
    Field(
        "arp_operation",
        _INT,
        "1: request, 2: reply",
        kind=_if(bits.ARP, lambda k: k.arp_operation),
    ),
    Field("encapsulated", _BOOL, "skb->encapsulation", False, kind=_has(bits.ENCAPSULATED)),
    Field("first_sight", _BOOL, "the first event of this packet id", False, kind=_has(bits.FIRST_SIGHT)),
    Field(
        "followed",
        _BOOL,
        "did not match the filter itself, but belongs to a packet that did",
        False,
        kind=_has(bits.FOLLOWED),
    ),
    Field(
        "remembered",
        _BOOL,
        "the packet could not be read any more: what is said of it was remembered",
        False,
        kind=_has(bits.NO_PACKET),
    ),
    Field(
        "drop_reason", _STR, "why it was dropped; null if it was not, or there is none", outcome=_drop_reason
    ),
    Field("drop_location", _STR, "the code that dropped it", outcome=_drop_location),
    Field("verdict", _STR, "`XDP_PASS`, `TC_ACT_SHOT`, `NF_DROP`, `NETDEV_TX_OK`, ...", outcome=_verdict),
    Field(
        "return_value", _INT, "what a traced function or BPF program returned", moment="%s", known=_returns
    ),
    Field("duration_ns", _INT, "time inside it, in nanoseconds", moment="%s", known=_returns),
    Field("stack_id", _INT, "id of the kernel stack", moment="%s"),
    Field("link_header", _BOOL, "whether `data` starts with Ethernet", False, kind=_has(bits.LINK_HEADER)),
    Field("captured_length", _INT, "how many bytes of the packet were captured", False, moment="%d"),
    Field("data", _STR, "those bytes in hexadecimal; null unless asked for", moment="%s"),
)


def place_values(context: Context, place: Place) -> dict[str, Value]:
    """Return key -> value of the fields that depend on the place alone."""
    return {field.key: field.place(context, place) for field in FIELDS if field.place is not None}


def kind_values(kind: Kind) -> dict[str, Value]:
    """Return key -> value of the fields that depend on the kind alone."""
    return {field.key: field.kind(kind) for field in FIELDS if field.kind is not None}


def outcome_values(context: Context, outcome: Outcome) -> dict[str, Value]:
    """Return key -> value of the fields that depend on the outcome alone."""
    return {field.key: field.outcome(context, outcome) for field in FIELDS if field.outcome is not None}


def known_moments(kind: Kind) -> set[str]:
    """Return the keys of the moment that mean something for this kind."""
    return {
        field.key
        for field in FIELDS
        if field.moment is not None and (field.known is None or field.known(kind))
    }
