"""Journeys: all that was seen of one packet, together: where it went, what changed, how it ended.

::

    with Tracer(netns="client", profile="path") as tracer:
        for journey in follow(tracer, timeout=5.0):
            print(journey.end, [hop.stage for hop in journey.hops])

:class:`Journeys` sorts the records of a capture by packet id as they come. What it holds and how long it
waits is bounded: see there, and docs/journeys.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from packet_tracer.changes import Change, Changes
from packet_tracer.events import Context, Event, EventBatch, Hook
from packet_tracer.events import flags as bits
from packet_tracer.events.records import Selection
from packet_tracer.probes.stages import stage_of

if TYPE_CHECKING:
    from packet_tracer.capture import Tracer

MAX_JOURNEYS = 65_536
MAX_EVENTS = 262_144
#: A packet that ended, and of which no copy is known to live, may still show that one does, for so long.
SETTLE_NS = 200_000_000
IDLE_NS = 2_000_000_000
#: Where a neighbour's address is asked for packets wait for three seconds, and longer than they are idle.
NEIGHBOUR_NS = 4_000_000_000

#: How often a capture in which nothing happens is looked at for journeys that are over, in seconds.
_TICK = 0.1
_SEEN = Selection("size", "probe_id", "timestamp_ns", "packet_id", "skb_address", "flags", "parent_id")
#: Verdicts of a traced XDP program that end a packet: the driver takes its buffer back, and nobody tells.
_XDP_DROPS = ("XDP_DROP", "XDP_ABORTED")
_NEIGHBOUR = "neighbour"
_FREED = "freed"
#: Stages whose event ends an skb; a clone of it may live on.
_ENDINGS = ("merged", _FREED, "dropped")
#: What the kernel says where nobody gave it a reason.
_NO_REASON = "NOT_SPECIFIED"
#: Its event says that the same bytes go out once more, as another packet; this one may have ended long ago.
_SENT_AGAIN = "sent again"


class EndKind(str, Enum):
    """How a journey ended, as far as was seen."""

    READ = "read"  # a process took it from its socket
    DROPPED = "dropped"
    SENT = "sent"  # a driver took it, and nobody saw it again
    CONSUMED = "consumed"  # its regular end, with nothing more known
    MERGED = "merged"  # it became part of another packet, its parent
    QUEUED = "queued"  # it lies in a socket's queue
    UNFINISHED = "unfinished"  # not seen for a while, or the capture ended
    FORGOTTEN = "forgotten"  # there were more packets under way than are remembered

    @property
    def final(self) -> bool:
        """Whether nothing more is to come."""
        return self not in (EndKind.QUEUED, EndKind.UNFINISHED, EndKind.FORGOTTEN)


@dataclass(frozen=True, slots=True)
class End:
    """How a journey ended, and the event that shows it.

    ``process`` (``"curl:4711"``) read it, or ran when a packet was consumed, which need not be its reader.
    ``reason`` and ``location`` are a drop's, None where the kernel doesn't tell, or of what a driver sent and
    then freed as if it were dropped.
    """

    kind: EndKind
    event: Event
    process: str | None = None
    reason: str | None = None
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Hop:
    """One event of a journey: ``since_ns`` after the hop before, with what has changed since then."""

    event: Event
    stage: str | None
    since_ns: int
    changes: tuple[Change, ...]


@dataclass(slots=True)
class Journey:
    """What was seen of one packet. Clones and copies have the packet's id, so theirs is among it.

    ``number`` counts packets from 1 in the order of their first events; a packet seen again after its
    journey was given out keeps its number and is ``resumed``. ``parent_id`` is the packet it was ``made``
    from, or, if it ``merged``, became part of (0: none); ``parent`` is its number, where it was seen.
    ``children`` are the numbers of packets that name this one as parent. ``records`` are in order of time.
    """

    number: int
    packet_id: int
    context: Context
    resumed: bool = False
    parent_id: int = 0
    parent: int | None = None
    made: bool = False
    merged: bool = False
    forgotten: bool = False
    children: list[int] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    last_ns: int = 0
    _living: set[int] = field(default_factory=set)
    _events: list[Event] | None = None

    @property
    def events(self) -> list[Event]:
        """Its events, in order of time."""
        if self._events is None:
            self._events = list(EventBatch.from_bytes(b"".join(self.records), self.context))
        return self._events

    @property
    def begun(self) -> bool:
        """Whether its first event is the packet's first, or that of one made from another."""
        first = self.events[0]
        return self.made or bool(first.flags & bits.FIRST_SIGHT)

    @property
    def complete(self) -> bool:
        """Whether both its beginning and its end were seen."""
        return self.begun and not self.resumed and self.end.kind.final

    @property
    def hops(self) -> list[Hop]:
        """Its events, each with its stage, the time since the one before and what changed."""
        changes, before, hops = Changes(self.context), self.events[0].monotonic_ns, []
        for event in self.events:
            since_ns, before = event.monotonic_ns - before, event.monotonic_ns
            hops.append(Hop(event, stage_of(event.probe), since_ns, changes.at(event)))
        return hops

    @property
    def end(self) -> End:
        """How it ended."""
        events = self._events_of_its_own()
        if self.forgotten or not events:
            kind = EndKind.FORGOTTEN if self.forgotten else EndKind.UNFINISHED
            return End(kind, self.events[-1])
        last = events[-1]
        if last.hook == Hook.PROGRAM_RETURN and last.verdict in _XDP_DROPS:
            return End(EndKind.DROPPED, last, None, last.verdict, last.probe.removesuffix(" returns"))
        before, ending = last, []
        for before in reversed(events):
            if stage_of(before.probe) not in _ENDINGS:
                break
            ending.append(before)
        stage = stage_of(before.probe)
        if stage == "read":
            return End(EndKind.READ, before, f"{before.comm}:{before.pid}")
        if self.merged or any(stage_of(event.probe) == "merged" for event in ending):
            return End(EndKind.MERGED, last)
        # The last skb to end says it, unless it stayed behind: TCP keeps what it sent until it is confirmed.
        own = last.skb_address
        on_its_way = events[: len(events) - len(ending) - 1]
        stayed = {event.skb_address for event in on_its_way} - {before.skb_address}
        if own in stayed and before.skb_address in {event.skb_address for event in ending}:
            own = before.skb_address
        for event in ending:
            if event.skb_address == own and stage_of(event.probe) == "dropped":
                if stage == "driver out" and _freed_when_sent(event):
                    return End(EndKind.SENT, before, None, event.drop_reason, event.drop_location)
                return End(EndKind.DROPPED, event, None, event.drop_reason, event.drop_location)
        if stage == "driver out":
            return End(EndKind.SENT, before)
        if ending:
            return End(EndKind.CONSUMED, last, f"{last.comm}:{last.pid}")
        return End(EndKind.QUEUED if stage == "socket queue" else EndKind.UNFINISHED, last)

    def _events_of_its_own(self) -> list[Event]:
        """Return the events that tell how it ended: not what is sent again, and not the end of an skb that
        was not seen before, while others held its bytes: a clone made to be looked at (by a packet socket, or
        for what asks for a neighbour's address).
        """
        stages = [(event, stage_of(event.probe)) for event in self.events]
        seen = {event.skb_address for event, stage in stages if stage not in _ENDINGS}
        return [
            event
            for event, stage in stages
            if stage != _SENT_AGAIN
            and not (stage == _FREED and event.flags & bits.SHARED and event.skb_address not in seen)
        ]


def _freed_when_sent(drop: Event) -> bool:
    """Whether a driver, not in its transmit call any more, frees what it took, as if dropped and without a
    reason: so do some with what they have sent.
    """
    return bool(drop.flags & bits.OUTSIDE_TRANSMIT) and drop.drop_reason in (None, _NO_REASON)


class Journeys:
    """Sorts records into journeys, and gives each out once it is over.

    A journey is over ``settle_ns`` after an event that ended its packet, if no other clone of it is known to
    live, else when the packet was not seen for ``idle_ns``, or ``neighbour_ns`` where it may be waiting for a
    neighbour's address. Journeys under way are at most ``max_journeys`` with at most ``max_events`` events;
    beyond that those unseen longest are given out: first ended ones, for which that is only less patience,
    then others, which are then counted in ``forgotten``.
    """

    def __init__(
        self,
        *,
        max_journeys: int = MAX_JOURNEYS,
        max_events: int = MAX_EVENTS,
        settle_ns: int = SETTLE_NS,
        idle_ns: int = IDLE_NS,
        neighbour_ns: int = NEIGHBOUR_NS,
    ) -> None:
        self.forgotten = 0
        self._max_journeys = max_journeys
        self._max_events = max_events
        # Each in the order in which packets were last seen.
        self._ended: dict[int, Journey] = {}
        self._under_way: dict[int, Journey] = {}
        self._waiting: dict[int, Journey] = {}
        self._patience = ((self._ended, settle_ns), (self._under_way, idle_ns), (self._waiting, neighbour_ns))
        self._events = 0
        self._last_number = 0
        self._numbers: dict[int, int] = {}
        self._older_numbers: dict[int, int] = {}
        self._context: Context | None = None
        self._endings: frozenset[int] = frozenset()
        self._freeings: frozenset[int] = frozenset()
        self._neighbours: frozenset[int] = frozenset()

    @property
    def open(self) -> int:
        """How many journeys are not given out yet."""
        return sum(len(journeys) for journeys, _ in self._patience)

    def add(self, batch: EventBatch) -> list[Journey]:
        """Take a batch and return the journeys that are over. Raises RecordError at a damaged record."""
        batch.check()
        if batch.context is not self._context:
            self._use(batch.context)
        context, data, unpack = batch.context, batch.data, _SEEN.unpack_from
        under_way, ended, waiting = self._under_way, self._ended, self._waiting
        endings, freeings, neighbours = self._endings, self._freeings, self._neighbours
        over: list[Journey] = []
        timestamp_ns = 0
        for at in batch.records.offsets:
            size, probe_id, timestamp_ns, packet_id, skb, flags, parent_id = unpack(data, at)
            journey = (
                under_way.pop(packet_id, None) or ended.pop(packet_id, None) or waiting.pop(packet_id, None)
            )
            if journey is None:
                journey = self._begin(packet_id, context, first=bool(flags & bits.FIRST_SIGHT))
            if parent_id != journey.parent_id:
                self._set_parent(journey, parent_id)
            journey.merged = bool(flags & bits.MERGED)
            journey.records.append(data[at : at + (size + 7 & ~7)])
            journey.last_ns = timestamp_ns
            self._events += 1
            living = journey._living
            of_clone = probe_id in freeings and flags & bits.SHARED and skb not in living
            if probe_id in endings:
                living.discard(skb)
            elif not flags & bits.XDP:
                living.add(skb)
            if not packet_id:  # without an id it stands for itself
                over.append(self._give(journey))
            elif of_clone or probe_id in neighbours:
                waiting[packet_id] = journey
            elif living or probe_id not in endings:
                under_way[packet_id] = journey
            else:
                ended[packet_id] = journey
            held = len(under_way) + len(ended) + len(waiting)
            if self._events > self._max_events or held > self._max_journeys:
                over.append(self._make_room())
        return over + self.expire(timestamp_ns)

    def expire(self, now_ns: int) -> list[Journey]:
        """Return the journeys that are over by ``now_ns`` (CLOCK_MONOTONIC)."""
        over = []
        for journeys, patience in self._patience:
            while journeys:
                packet_id = next(iter(journeys))
                if now_ns - journeys[packet_id].last_ns < patience:
                    break
                over.append(self._give(journeys.pop(packet_id)))
        over.sort(key=lambda journey: journey.number)
        return over

    def finish(self) -> list[Journey]:
        """Return all that are left: the capture has ended."""
        left = [journey for journeys, _ in self._patience for journey in journeys.values()]
        for journeys, _ in self._patience:
            journeys.clear()
        return [self._give(journey) for journey in sorted(left, key=lambda journey: journey.number)]

    def _use(self, context: Context) -> None:
        self._context = context
        stages = {number: stage_of(name) for number, name in context.probes.items()}
        self._endings = frozenset(number for number, stage in stages.items() if stage in _ENDINGS)
        self._freeings = frozenset(number for number, stage in stages.items() if stage == _FREED)
        self._neighbours = frozenset(number for number, stage in stages.items() if stage == _NEIGHBOUR)

    def _begin(self, packet_id: int, context: Context, *, first: bool) -> Journey:
        known = self._number_of(packet_id)
        if known is not None and not first:
            return Journey(known, packet_id, context, resumed=True)
        self._last_number += 1
        if len(self._numbers) >= self._max_journeys:  # those not seen since the last time are forgotten
            self._older_numbers, self._numbers = self._numbers, {}
        if packet_id:
            self._numbers[packet_id] = self._last_number
        return Journey(self._last_number, packet_id, context)

    def _number_of(self, packet_id: int) -> int | None:
        return self._numbers.get(packet_id) or self._older_numbers.get(packet_id)

    def _set_parent(self, journey: Journey, parent_id: int) -> None:
        if not parent_id:
            return
        if not journey.records:  # one that gets it later becomes a part of it
            journey.made = True
        journey.parent_id = parent_id
        journey.parent = self._number_of(parent_id)
        parent = next((journeys[parent_id] for journeys, _ in self._patience if parent_id in journeys), None)
        if parent is not None:
            parent.children.append(journey.number)

    def _make_room(self) -> Journey:
        """Give out the journey of the packet longest unseen, an ended one if there is any."""
        journeys = self._ended or self._under_way or self._waiting
        journey = journeys.pop(next(iter(journeys)))
        if journeys is not self._ended:
            journey.forgotten = True
            self.forgotten += 1
        return self._give(journey)

    def _give(self, journey: Journey) -> Journey:
        self._events -= len(journey.records)
        return journey


def follow(
    tracer: Tracer, *, timeout: float | None = None, journeys: Journeys | None = None
) -> Iterator[Journey]:
    """Yield the journeys of a capture as each is over, until the time-out (seconds) or ``tracer.stop()``.

    At the end those under way are yielded too. ``journeys`` sets other bounds.
    """
    grouped = journeys or Journeys()
    deadline = None if timeout is None else time.monotonic() + timeout
    while not tracer.stopped and (deadline is None or time.monotonic() < deadline):
        wait = _TICK if deadline is None else min(_TICK, deadline - time.monotonic())
        quiet = True
        for batch in tracer.batches(timeout=wait):
            quiet = False
            yield from grouped.add(batch)
        if quiet:  # else the records tell the time: the reader may be behind
            yield from grouped.expire(time.monotonic_ns())
    if tracer.stopped:
        for batch in tracer.batches():
            yield from grouped.add(batch)
    yield from grouped.finish()
