"""Labelled traffic, and the judgement of what a capture says of it: is each event with the right packet?

Each datagram's payload is full of units that hold its number and their own place in it, so that any piece of
it tells what it is a piece of. What is sent by TCP is labelled by its connection and the sequence number of
its first byte. Nothing here looks at how packets were traced.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from packet_tracer.events import Event, EventBatch
from packet_tracer.events import flags as bits
from packet_tracer.events.records import unpacker
from packet_tracer.journey import EndKind, Journey, Journeys

MAGIC = b"\xf0id#"
_UNIT = struct.Struct("!4sII")
_NUMBER = b"\xf1\xf2\xf3\xf4"
#: TCP's numbers go round; what is this far ahead is behind.
_HALF, _ROUND = 1 << 31, 1 << 32
_HOUR_NS = 3600 * 10**9

_transport_offset = unpacker("transport_offset")
_head_address = unpacker("head_address")


def payload_template(size: int) -> bytes:
    """Return the payload of datagrams of a size, without their number: see :func:`payload`."""
    units = (MAGIC + _NUMBER + struct.pack("!I", at) for at in range(0, size, _UNIT.size))
    return b"".join(units)[:size]


def payload(template: bytes, number: int) -> bytes:
    """Return the payload of datagram ``number``."""
    return template.replace(_NUMBER, struct.pack("!I", number))


def number_in(data: bytes) -> tuple[int, int] | None:
    """Return a datagram's number by some of its bytes, and the place in it of the first whole unit."""
    at = data.find(MAGIC)
    if at < 0 or at > len(data) - _UNIT.size:
        return None
    _, number, place = _UNIT.unpack_from(data, at)
    return number, place


@dataclass(frozen=True, slots=True)
class Label:
    """What the bytes say: a datagram's number or a connection's port, and which of its bytes these are.

    For a datagram ``start`` is the place of the first whole unit, and ``end`` is not known.
    """

    family: int
    start: int
    end: int


@dataclass(slots=True)
class Known:
    """All that was seen under one id."""

    labels: Counter[tuple[int, int]] = field(default_factory=Counter)
    parents: list[int] = field(default_factory=list)
    first_ns: int = 0
    netns: int = 0
    end: int = 0
    surplus: int = 0
    grown: bool = False
    heads: set[int] = field(default_factory=set)
    places: set[tuple[str, int, int]] = field(default_factory=set)

    @property
    def label(self) -> tuple[int, int]:
        """The family and the start that most of its events have."""
        return self.labels.most_common(1)[0][0]


@dataclass(slots=True)
class Score:
    """How well a capture knew its packets.

    ``right`` events of ``events``; of the others those ``mixed`` are under another packet's id, the rest
    under a second one of their own packet's. ``unread`` events of known packets showed no label. ``complete``
    of ``journeys``. ``packets`` had ids, ``moved`` of them lay in more than one buffer, ``grown`` of them got
    longer and ``related`` have a parent; all lay in ``buffers`` buffers. ``probes`` saw them.
    ``wrong`` and ``incomplete`` are the first few, in words.
    """

    events: int = 0
    right: int = 0
    mixed: int = 0
    unread: int = 0
    journeys: int = 0
    complete: int = 0
    packets: int = 0
    moved: int = 0
    grown: int = 0
    related: int = 0
    buffers: int = 0
    probes: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    def add(self, other: Score) -> None:
        """Add what another score counted."""
        for each in fields(self):
            mine, more = getattr(self, each.name), getattr(other, each.name)
            setattr(self, each.name, mine | more if isinstance(mine, set) else mine + more)

    @property
    def right_percent(self) -> float:
        """Events with the right packet."""
        return 100 * self.right / self.events if self.events else 0.0

    @property
    def complete_percent(self) -> float:
        """Journeys with their beginning and their end."""
        return 100 * self.complete / self.journeys if self.journeys else 0.0


class Judge:
    """Holds a capture's events against their labels.

    An id is right if all its events have one label, and it is either the first of that label, first seen in
    the ``sender``'s namespace, or names a parent that leads to a packet of the same family which holds its
    bytes, or which became a part of one on that way. A packet goes through a device once (unless it is
    ``copied``): an id that does so twice is two.

    A journey is complete if it begins with the sender, or where its packet was made of its parent, and shows
    how it ended, as the traffic knows: it was read, or, of what nobody read, dropped; a part of another
    packet was merged or ended with it; of what was sent twice, one may be dropped.

    Only events ``within`` a namespace are looked at, if one is given: one end of a wire. Of a packet that
    ``leaves`` no more can be known than that a driver took it; and what ``arrives`` twice because TCP sent it
    again are two packets that know nothing of each other.
    """

    def __init__(
        self,
        sender: int,
        *,
        within: int = 0,
        leaves: bool = False,
        arrives: bool = False,
        copied: bool = False,
        ports: frozenset[int] = frozenset(),
    ) -> None:
        self._sender = sender
        self._within = within
        self._leaves = leaves
        self._arrives = arrives
        self._copied = copied
        self._ports = ports
        self._ids: dict[int, Known] = {}
        self._families: dict[int, list[tuple[int, Known]]] = defaultdict(list)
        self._bases: dict[int, int] = {}
        self._parts: dict[int, set[int]] = defaultdict(set)
        self._journeys = Journeys(
            max_journeys=1 << 24, max_events=1 << 28, settle_ns=_HOUR_NS, idle_ns=_HOUR_NS
        )
        self.score = Score()

    def add(self, batch: EventBatch, wanted: Iterable[int]) -> None:
        """Take a batch of events; those of other labels than ``wanted`` (their upper bits) are left out."""
        upper = set(wanted)
        self._journeys.add(batch)
        for event in batch:
            if self._within and event.netns_inode != self._within:
                continue
            label = self._label(event)
            if event.packet_id and event.flags & bits.MERGED:
                self._parts[event.parent_id].add(event.packet_id)
            if label is None:
                if event.packet_id in self._ids:
                    self.score.unread += 1
                    self.score.probes.add(event.probe)
            elif label.family in self._ports or label.family >> 24 in upper:
                self._take(event, label)

    def _label(self, event: Event) -> Label | None:
        if event.flags & bits.TCP:
            return self._segment(event)
        found = number_in(event.data)
        return Label(*found, 0) if found else None

    def _segment(self, event: Event) -> Label | None:
        packet = event.packet
        port, sequence = packet.source_port, packet.tcp_sequence
        if port not in self._ports or sequence is None:
            return None
        if (packet.tcp_flags or 0) & 2:  # SYN: the first byte has the next number
            self._bases.setdefault(port, sequence + 1)
            return None
        at = int(_transport_offset(event.record))
        start = (sequence - self._bases.get(port, sequence)) % _ROUND
        length = event.length - at - (event.data[at + 12] >> 4) * 4 if len(event.data) > at + 12 else 0
        return Label(port, start, start + length) if length > 0 and start < _HALF else None

    def _take(self, event: Event, label: Label) -> None:
        self.score.events += 1
        self.score.probes.add(event.probe)
        if not event.packet_id:
            self._wrong(f"no id: {label} at {event.probe}")
            return
        known = self._ids.get(event.packet_id)
        if known is None:
            known = Known(first_ns=event.monotonic_ns, netns=event.netns_inode)
            self._ids[event.packet_id] = known
        known.labels[label.family, label.start] += 1
        known.grown |= 0 < known.end < label.end
        known.end = max(known.end, label.end)
        parent = event.parent_id
        if parent and parent not in known.parents:
            known.parents.append(parent)
        known.heads.add(_head_address(event.record))
        if not self._copied and event.probe in ("netif_receive_skb", "net_dev_queue"):
            place = (event.probe, event.netns_inode, event.ifindex)
            known.surplus += place in known.places
            known.places.add(place)

    def _wrong(self, what: str) -> None:
        if len(self.score.wrong) < 5:
            self.score.wrong.append(what)

    def finish(self, expected: set[int], arrived: set[int], *, read: bool) -> Score:
        """Return the score. ``expected`` numbers were sent, those in ``arrived`` were read, the others
        dropped; ``read``: a journey has to show who read it.
        """
        score = self.score
        by_label: dict[tuple[int, int], list[int]] = defaultdict(list)
        for identifier, known in sorted(self._ids.items(), key=lambda item: item[1].first_ns):
            by_label[known.label].append(identifier)
            score.mixed += sum(known.labels.values()) - known.labels[known.label] + known.surplus
            if len(known.labels) > 1 or known.surplus:
                self._wrong(
                    f"one id for {len(known.labels)} packets, {known.surplus} passes too many: {known.label}"
                    f" to {known.end}, parents {known.parents}"
                )
        for identifier, known in self._ids.items():
            if self._attributed(identifier, known, by_label):
                score.right += max(known.labels[known.label] - known.surplus, 0)
            else:
                where = "elsewhere" if known.netns != self._sender else "with the sender"
                self._wrong(f"an id without a parent for {known.label}, first seen {where}")
        score.packets = len(self._ids)
        everything = list(self._ids.values())
        score.moved = sum(len(known.heads) > 1 for known in everything)
        score.grown = sum(known.grown for known in everything)
        score.related = sum(bool(known.parents) for known in everything)
        score.buffers = len(set().union(*(known.heads for known in everything)))
        for identifier, known in self._ids.items():
            self._families[known.label[0]].append((identifier, known))
        score.journeys = len(everything) + len(expected - self._families.keys())
        for journey in self._journeys.finish():
            if journey.packet_id in self._ids:
                family = self._ids[journey.packet_id].label[0]
                delivered = family in arrived or family in self._ports
                if self._complete(journey, delivered=delivered, read=read):
                    score.complete += 1
                elif len(score.incomplete) < 5:
                    score.incomplete.append(self._shortcoming(journey))
        return score

    def _attributed(self, identifier: int, known: Known, by_label: dict[tuple[int, int], list[int]]) -> bool:
        """Whether an id is its packet's own: see the class."""
        family, start = known.label
        again = self._arrives and family in self._ports
        if (again or by_label[known.label][0] == identifier) and known.netns == self._sender:
            return True
        seen, waiting = {identifier}, list(known.parents)
        while waiting:
            parent = waiting.pop()
            if parent in seen or parent not in self._ids:
                continue
            seen.add(parent)
            whole = self._ids[parent]
            covers = whole.label[1] <= start and (not whole.end or whole.end > start)
            if whole.label[0] == family and covers and whole.netns == self._sender:
                return True
            waiting += (*whole.parents, *self._parts[parent])
        return False

    def _complete(self, journey: Journey, *, delivered: bool, read: bool) -> bool:
        begun = journey.begun and (journey.made or journey.events[0].netns_inode == self._sender)
        if not begun or journey.resumed or journey.forgotten:
            return False
        kind = journey.end.kind
        if self._leaves and delivered:
            return kind is EndKind.SENT or (kind is EndKind.CONSUMED and bool(journey.children))
        if not delivered:
            return kind is EndKind.DROPPED or bool(journey.children)
        if kind is EndKind.READ or any(hop.stage == "read" for hop in journey.hops):
            return True
        split = bool(journey.parent_id or journey.children)
        good = {EndKind.MERGED, EndKind.CONSUMED} if split or not read else set()
        if self._sent_twice(journey.packet_id):
            good.add(EndKind.DROPPED)
        return kind in good

    def _sent_twice(self, identifier: int) -> bool:
        """Whether the same bytes went out under another id too, one made from the other."""
        known = self._ids[identifier]
        if known.label[0] not in self._ports:
            return False
        return any(
            other is not known
            and other.label[0] == known.label[0]
            and other.label[1] < known.end
            and other.end > known.label[1]
            and (self._arrives or identifier in other.parents or number in known.parents)
            for number, other in self._families[known.label[0]]
        )

    @staticmethod
    def _shortcoming(journey: Journey) -> str:
        way = [hop.stage or hop.event.probe for hop in journey.hops]
        begun = "made" if journey.made else "begun" if journey.begun else "not begun"
        return f"{begun}, ends {journey.end.kind.value}: {', '.join(way[:3])} ... {', '.join(way[-4:])}"
