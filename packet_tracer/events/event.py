"""One event as an object: what happened to a packet at one probe.

Making an :class:`Event` decodes a dozen members; everything else is decoded when it is asked for, out of
the event's own copy of its record, so an event may be kept, sent to another thread or outlive its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple

from packet_tracer.events import flags as bits
from packet_tracer.events import names
from packet_tracer.events._layout import EVENT_SIZE, NO_SKB, Hook
from packet_tracer.events.context import Context
from packet_tracer.events.records import FIELD_NAMES, Selection, check, unpacker

if TYPE_CHECKING:
    from packet_tracer.events.headers import Headers

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

#: What an Event is made of, in this order (see EventBatch.__iter__).
HOT = Selection(
    "size",
    "version",
    "hook",
    "probe_id",
    "timestamp_ns",
    "packet_id",
    "skb_address",
    "cpu",
    "pid",
    "netns_inode",
    "ifindex",
    "packet_length",
    "flags",
    "captured_length",
)

_ALL = Selection(*FIELD_NAMES)
_PACKET = Selection(
    "packet_length",
    "flags",
    "captured_length",
    "protocol",
    "l4_protocol",
    "tos",
    "arp_operation",
    "source_port",
    "destination_port",
    "vlan_tci",
    "tcp_flags",
    "ttl",
    "source",
    "destination",
    "tcp_sequence",
    "tcp_acknowledgement",
    "ip_id",
    "fragment_offset",
    "icmp_id",
    "icmp_sequence",
    "icmp_type",
    "icmp_code",
    "network_offset",
)
_tgid = unpacker("tgid")
_comm = unpacker("comm")
_mark = unpacker("mark")
_packet_type = unpacker("packet_type")
_direction = unpacker("direction")
_drop_reason = unpacker("drop_reason")
_location = unpacker("location")
_verdict = unpacker("verdict")
_parent_id = unpacker("parent_id")
_netns_cookie = unpacker("netns_cookie")
_return_value = unpacker("return_value")
_duration_ns = unpacker("duration_ns")
_rx_ifindex = unpacker("rx_ifindex")
_stack_id = unpacker("stack_id")
_mtu = unpacker("mtu")
_protocol = unpacker("protocol")

Address = IPv4Address | IPv6Address


class Namespace(NamedTuple):
    """A network namespace. ``name`` is None for the tracer's own and unknown ones, ``cookie`` if unknown."""

    inode: int
    name: str | None
    cookie: int | None


class Vlan(NamedTuple):
    """An 802.1Q tag. ``in_metadata``: it lies in the skb, not in the packet's bytes."""

    id: int
    priority: int
    drop_eligible: bool
    in_metadata: bool


@dataclass(slots=True)
class Packet:
    """What the kernel side read of a packet's headers. None: not there, or not known (which is not zero).

    ``length`` is the whole packet's in bytes where it was seen (``skb->len``: with or without the link-layer
    header), ``protocol`` an EtherType, ``fragment_offset`` in bytes.
    """

    length: int
    captured_length: int
    protocol: int | None
    source: Address | None
    destination: Address | None
    l4_protocol: int | None
    source_port: int | None
    destination_port: int | None
    ttl: int | None
    tos: int | None
    ip_id: int | None
    fragment: bool
    fragment_offset: int | None
    tcp_flags: int | None
    tcp_sequence: int | None
    tcp_acknowledgement: int | None
    icmp_type: int | None
    icmp_code: int | None
    icmp_id: int | None
    icmp_sequence: int | None
    arp_operation: int | None
    vlan: Vlan | None


@dataclass(slots=True)
class Event:
    """What happened to a packet at one probe. Times are in nanoseconds, lengths in bytes.

    ``timestamp_ns`` is wall-clock time since 1970, ``monotonic_ns`` the record's own CLOCK_MONOTONIC.
    ``packet_id`` is 0 for a packet that is not tracked. ``skb_address`` is the ``sk_buff``'s, at XDP the
    ``xdp_buff``'s. ``pid`` is the thread that ran, not necessarily the packet's owner.
    """

    timestamp_ns: int
    monotonic_ns: int
    probe: str
    probe_id: int
    packet_id: int
    skb_address: int
    cpu: int
    pid: int
    netns_inode: int
    ifindex: int
    length: int
    flags: int
    record: bytes = field(repr=False)
    context: Context = field(repr=False, compare=False)
    _hook: int = field(repr=False)
    _packet: Packet | None = field(default=None, init=False, repr=False, compare=False)
    _headers: Headers | None = field(default=None, init=False, repr=False, compare=False)

    @staticmethod
    def from_record(record: bytes, context: Context) -> Event:
        """Return the event of one record. Raises RecordError if it is damaged."""
        size = check(record, 0, len(record))
        _, _, hook, probe_id, monotonic_ns, *rest, flags, _ = HOT.unpack_from(record, 0)
        packet_id, skb_address, cpu, pid, netns_inode, ifindex, length = rest
        return Event(
            monotonic_ns + context.wall_clock_offset_ns,
            monotonic_ns,
            context.probe_name(probe_id),
            probe_id,
            packet_id,
            skb_address,
            cpu,
            pid,
            netns_inode,
            ifindex,
            length,
            flags,
            bytes(record[:size]),
            context,
            hook,
        )

    @property
    def timestamp(self) -> datetime:
        """The wall-clock time in UTC; a datetime holds no more than microseconds."""
        return _EPOCH + timedelta(microseconds=self.timestamp_ns // 1000)

    @property
    def hook(self) -> Hook | int:
        """Where in the stack the probe sits; a number if this version does not know it."""
        try:
            return Hook(self._hook)
        except ValueError:
            return self._hook

    @property
    def tgid(self) -> int:
        """The process that ran."""
        return int(_tgid(self.record))

    @property
    def comm(self) -> str:
        """The name of the task that ran, taken in the kernel at that moment; it may hold any character."""
        return names.comm_text(_comm(self.record))

    @property
    def netns(self) -> Namespace | None:
        """The packet's network namespace, None if it is not known."""
        if not self.netns_inode:
            return None
        cookie = _netns_cookie(self.record)
        return Namespace(self.netns_inode, self.context.netns_name(self.netns_inode), cookie or None)

    @property
    def interface(self) -> str | None:
        """The name of the packet's device, None if it has none here or the name is not known."""
        return self.context.interface_name(self.netns_inode, self.ifindex)

    @property
    def rx_ifindex(self) -> int | None:
        """The index of the interface the packet came in by, None if it did not come in."""
        return _rx_ifindex(self.record) or None

    @property
    def mtu(self) -> int | None:
        """The MTU of the packet's device."""
        return _mtu(self.record) or None

    @property
    def mark(self) -> int | None:
        """The packet's mark; None at XDP, where there is none yet."""
        return None if _packet_type(self.record) == NO_SKB else int(_mark(self.record))

    @property
    def direction(self) -> str | None:
        """``ingress``, ``egress``, ``forward``, or None where the probe has no direction."""
        return names.DIRECTIONS.get(_direction(self.record))

    @property
    def drop_reason(self) -> str | None:
        """Why the packet was dropped, by name; None if it was not, or the kernel gave no reason."""
        if not self.flags & bits.DROP_REASON:
            return None
        return self.context.drop_reasons.name(_drop_reason(self.record))

    @property
    def drop_location(self) -> str | None:
        """The code that dropped the packet: a symbol, or the address where symbols are hidden."""
        if not self.flags & bits.DROP_LOCATION:
            return None
        address = _location(self.record)
        return self.context.symbols.name(address) or f"{address:#x}"

    @property
    def verdict(self) -> str | None:
        """The verdict by name: ``XDP_PASS``, ``TC_ACT_SHOT``, ``NF_DROP``, ``NETDEV_TX_OK``; None without."""
        if not self.flags & bits.VERDICT:
            return None
        return names.verdict_name(self._hook, _verdict(self.record), xdp=bool(self.flags & bits.XDP))

    @property
    def return_value(self) -> int | None:
        """What a traced function or program returned."""
        return int(_return_value(self.record)) if self._hook in _RETURNS else None

    @property
    def duration_ns(self) -> int | None:
        """Time inside a traced function or program, at its return."""
        return int(_duration_ns(self.record)) if self._hook in _RETURNS else None

    @property
    def parent_id(self) -> int | None:
        """The packet this one was made from: by segmentation, fragmentation, a copy."""
        return _parent_id(self.record) or None

    @property
    def stack_id(self) -> int | None:
        """The kernel stack's id in the session's stack map, None if none was taken."""
        identifier = int(_stack_id(self.record))
        return identifier if identifier >= 0 else None

    @property
    def data(self) -> bytes:
        """The captured bytes of the packet; with a link-layer header where LINK_HEADER is in ``flags``."""
        return self.record[EVENT_SIZE:]

    @property
    def packet(self) -> Packet:
        """What the kernel side read of the headers."""
        if self._packet is None:
            self._packet = decode_packet(self.record)
        return self._packet

    @property
    def headers(self) -> Headers:
        """The captured bytes, parsed down to the payload."""
        if self._headers is None:
            # Imported when first asked for: no other use has to wait for the parser.
            from packet_tracer.events.headers import LinkType, parse

            link = LinkType.ETHERNET if self.flags & bits.LINK_HEADER else LinkType.NONE
            self._headers = parse(self.data, link, protocol=_protocol(self.record))
        return self._headers

    def raw(self) -> dict[str, Any]:
        """Return every member of the record as it is, by its name in records.h."""
        return dict(zip(FIELD_NAMES, _ALL.unpack_from(self.record, 0), strict=True))


_RETURNS = (Hook.FUNCTION_RETURN, Hook.PROGRAM_RETURN)


def decode_packet(record: bytes) -> Packet:
    """Return the packet of a record that has been checked."""
    (
        length,
        flags,
        captured,
        protocol,
        l4_protocol,
        tos,
        arp_operation,
        source_port,
        destination_port,
        tci,
        tcp_flags,
        ttl,
        source,
        destination,
        sequence,
        acknowledgement,
        ip_id,
        fragment_offset,
        icmp_id,
        icmp_sequence,
        icmp_type,
        icmp_code,
        _network_offset,
    ) = _PACKET.unpack_from(record, 0)
    ip, ports, tcp, icmp = flags & bits.IP, flags & bits.PORTS, flags & bits.TCP, flags & bits.ICMP
    fragment, addresses = bool(flags & bits.FRAGMENT), flags & (bits.IP | bits.ARP)
    echo = icmp and names.is_echo(l4_protocol, icmp_type)
    return Packet(
        length=length,
        captured_length=captured,
        protocol=protocol or None,
        source=names.address_of(source) if addresses else None,
        destination=names.address_of(destination) if addresses else None,
        l4_protocol=l4_protocol if ip else None,
        source_port=source_port if ports else None,
        destination_port=destination_port if ports else None,
        ttl=ttl if ip else None,
        tos=tos if ip else None,
        # IPv6 has an identification in fragments only
        ip_id=ip_id if ip and (fragment or source[:12] == names.MAPPED_PREFIX) else None,
        fragment=fragment,
        fragment_offset=fragment_offset if fragment else None,
        tcp_flags=tcp_flags if tcp else None,
        tcp_sequence=sequence if tcp else None,
        tcp_acknowledgement=acknowledgement if tcp else None,
        icmp_type=icmp_type if icmp else None,
        icmp_code=icmp_code if icmp else None,
        icmp_id=icmp_id if echo else None,
        icmp_sequence=icmp_sequence if echo else None,
        arp_operation=arp_operation if flags & bits.ARP else None,
        vlan=(
            Vlan(tci & 0xFFF, tci >> 13, bool(tci & 0x1000), bool(flags & bits.VLAN_IN_METADATA))
            if flags & bits.VLAN
            else None
        ),
    )
