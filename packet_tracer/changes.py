"""What changes about a packet on its way: its place, addresses, TTL, length, tunnel, VLAN, mark."""

from __future__ import annotations

from typing import NamedTuple

from packet_tracer.events import Context, Event, names
from packet_tracer.events import flags as bits
from packet_tracer.events.records import Selection
from packet_tracer.probes.stages import stage_of

#: IP in IP, GRE, ESP, L2TP, MPLS: by IP protocol (IANA).
_TUNNELS = {4, 41, 47, 50, 115, 137}
#: VXLAN (RFC 7348 and Linux's own), Geneve, GUE, GRE in UDP: by UDP destination port.
_TUNNEL_PORTS = {4789: "VXLAN", 8472: "VXLAN", 6081: "Geneve", 6080: "GUE", 4754: "GRE in UDP"}
_UDP = 17
#: What a tunnel's outer header has at least.
_SMALLEST_HEADER = 20


class Change(NamedTuple):
    """One thing that changed. ``what``: ``namespace``, ``interface``, ``source``, ``destination``, ``ttl``,
    ``length`` (of the IP packet, in bytes), ``encapsulated``, ``decapsulated``, ``vlan``, ``mark``.
    """

    what: str
    before: str
    after: str

    def __str__(self) -> str:
        if self.what in ("encapsulated", "decapsulated"):
            return f"{self.what}: {self.before} -> {self.after}"
        return f"{self.what} {self.before} -> {self.after}"


class _Headers(NamedTuple):
    """Members of a record, in its order, that may change."""

    packet_length: int
    flags: int
    protocol: int
    l4_protocol: int
    source_port: int
    destination_port: int
    vlan_tci: int
    ttl: int
    source: bytes
    destination: bytes
    mark: int
    network_offset: int

    @property
    def length(self) -> int:
        """Of the IP packet, without a link-layer header."""
        return self.packet_length - self.network_offset

    @property
    def tunnel(self) -> str | None:
        """What kind of tunnel these are the outer headers of."""
        if self.l4_protocol in _TUNNELS:
            return names.IP_PROTOCOLS.get(self.l4_protocol) or f"ip-proto-{self.l4_protocol}"
        if self.l4_protocol == _UDP and self.flags & bits.PORTS:
            return _TUNNEL_PORTS.get(self.destination_port)
        return None

    @property
    def vlan(self) -> str:
        return str(self.vlan_tci & 0xFFF) if self.flags & bits.VLAN else "none"

    def end(self, *, source: bool, ports: bool) -> str:
        """One end of its flow as text."""
        address = names.address_text(self.source if source else self.destination)
        port = self.source_port if source else self.destination_port
        return f"{address}.{port}" if ports else address

    def __str__(self) -> str:
        ports = bool(self.flags & bits.PORTS)
        ends = f"{self.end(source=True, ports=ports)} > {self.end(source=False, ports=ports)}"
        return f"{self.tunnel or names.IP_PROTOCOLS.get(self.l4_protocol) or 'IP'} {ends}"


_HEADERS = Selection(*_Headers._fields)


class _Seen:
    """What was last known of a packet, or of one clone of it."""

    __slots__ = ("headers", "ifindex", "link", "mark", "netns_inode")

    def __init__(self) -> None:
        self.netns_inode = 0
        self.ifindex = 0
        self.mark: int | None = None
        self.headers: _Headers | None = None  # the last ones with IP
        self.link: _Headers | None = None  # the last ones with a link-layer header

    def copy(self) -> _Seen:
        other = _Seen()
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other


class Changes:
    """Tells what changed from event to event of one packet.

    A clone is compared with itself: its headers may be those from before NAT, and that is no change back.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._last = _Seen()
        self._clones: dict[int, _Seen] = {}

    def at(self, event: Event) -> tuple[Change, ...]:
        """Return what is different at this event, in the order place, headers, metadata."""
        seen = self._clones.get(event.skb_address)
        if seen is None:
            seen = self._clones[event.skb_address] = self._last.copy()
        self._last = seen
        changes = self._place(seen, event)
        if event.flags & bits.NO_PACKET:  # what it says of headers is remembered
            return tuple(changes)
        now = _Headers._make(_HEADERS.unpack_from(event.record, 0))
        if now.flags & bits.IP:
            if seen.headers is not None:
                changes += _header_changes(seen.headers, now)
            seen.headers = now
        if now.flags & bits.LINK_HEADER:
            if seen.link is not None and seen.link.vlan != now.vlan:
                changes.append(Change("vlan", seen.link.vlan, now.vlan))
            seen.link = now
        # TCP keeps something else in its place (reserved_tailroom) until the packet is given to a device, and
        # in the copy that it holds on to.
        if not event.flags & bits.XDP and event.ifindex and stage_of(event.probe) not in ("freed", "dropped"):
            if seen.mark is not None and seen.mark != now.mark:
                changes.append(Change("mark", f"{seen.mark:#x}", f"{now.mark:#x}"))
            seen.mark = now.mark
        return tuple(changes)

    def _place(self, seen: _Seen, event: Event) -> list[Change]:
        changes = []
        inode, ifindex = event.netns_inode, event.ifindex
        moved = bool(inode and seen.netns_inode and inode != seen.netns_inode)
        if moved:
            changes.append(Change("namespace", self._namespace(seen.netns_inode), self._namespace(inode)))
        if ifindex and seen.ifindex and (moved or ifindex != seen.ifindex):
            before = self._interface(seen.netns_inode, seen.ifindex)
            changes.append(Change("interface", before, self._interface(inode or seen.netns_inode, ifindex)))
        seen.netns_inode = inode or seen.netns_inode
        seen.ifindex = ifindex or seen.ifindex
        return changes

    def _namespace(self, inode: int) -> str:
        return self._context.netns_label(inode) or "own"

    def _interface(self, inode: int, ifindex: int) -> str:
        return self._context.interface_name(inode, ifindex) or f"if{ifindex}"


def _header_changes(before: _Headers, now: _Headers) -> list[Change]:
    if before[2:] == now[2:] and before.packet_length == now.packet_length:
        return []
    grown = now.length - before.length
    if now.tunnel and grown >= _SMALLEST_HEADER:
        return [Change("encapsulated", str(before), f"{now}, {grown:+d} bytes")]
    if before.tunnel and -grown >= _SMALLEST_HEADER:
        return [Change("decapsulated", str(before), f"{now}, {grown:+d} bytes")]
    ports = bool(before.flags & now.flags & bits.PORTS)
    changes = [
        Change(what, before.end(source=source, ports=ports), now.end(source=source, ports=ports))
        for what, source in (("source", True), ("destination", False))
    ]
    changes.append(Change("ttl", str(before.ttl), str(now.ttl)))
    changes.append(Change("length", str(before.length), str(now.length)))
    return [change for change in changes if change.before != change.after]
