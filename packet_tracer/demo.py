"""``ptrace demo``: packets of a small network, each with the places that it passed and what became of it.

The network is :mod:`packet_tracer.lab`'s: a client, a router that drops one port, a server. Nothing else is
touched.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, TextIO

from packet_tracer import lab
from packet_tracer.capture import Tracer
from packet_tracer.doctor.availability import availability
from packet_tracer.events import Hook
from packet_tracer.formats.text import packet_text, printable
from packet_tracer.lab import Lab, Route
from packet_tracer.probes.catalogue import PROBES
from packet_tracer.terminal import BOLD, DIM, RED, paint

if TYPE_CHECKING:
    from packet_tracer.events import Event

#: Where packets are watched, beside netfilter in each namespace.
_PROFILE = "tracepoints"
#: How long a packet may still be under way when the last one was sent, in seconds.
_SETTLE = 0.1


@dataclass(frozen=True, slots=True)
class Scene:
    """Some traffic, and what to expect of it."""

    title: str
    play: Callable[[Route], object]


SCENES = (
    Scene("ping over IPv4: there and back", lambda route: lab.ping(route)),
    Scene("ping over IPv6", lambda route: lab.ping(route, version=6)),
    Scene("a question and an answer over UDP, IPv4", lambda route: lab.udp_exchange(route)),
    Scene("the same over IPv6", lambda route: lab.udp_exchange(route, version=6)),
    Scene("a page over HTTP", lambda route: lab.http(route, body=200)),
    Scene("a TCP port where nobody listens", lambda route: lab.refused(route)),
    Scene("a UDP port that is closed", lambda route: lab.closed_udp(route)),
    Scene("a UDP port that the router's nftables drop", lambda route: lab.dropped(route)),
    Scene(
        "the same port over TCP and IPv6",
        lambda route: lab.dropped(route, version=6, protocol="tcp"),
    ),
)


@dataclass(slots=True)
class Trail:
    """One packet's events, in order."""

    number: int
    events: list[Event] = field(default_factory=list)

    @property
    def dropped(self) -> bool:
        """Whether the last that was seen of it is its drop; before that it is a copy that is dropped."""
        return self.events[-1].probe == "kfree_skb"


def run(*, color: bool, stream: TextIO | None = None) -> None:
    """Play all scenes, then print what was seen of each packet.

    Raises NotPermittedError, NotSupportedError. What was made is gone when it ends, also when interrupted.
    """
    stream = stream or sys.stdout
    started = time.monotonic()
    with Lab() as network:
        names = [node.name for node in network.nodes]
        tracer = Tracer(netns=names, probes=_netfilter(), profile=_PROFILE)
        with tracer:
            tracer.context.netns_labels = network.labels
            boundaries = _play(network.route)
            time.sleep(_SETTLE)
            tracer.stop()
            events = list(tracer.events())
            lines = list(_report(boundaries, events, color=color))
        lost = sum(counters.lost_ring for counters in tracer.stats().values())
    for line in lines:
        print(line, file=stream)
    trails = list(_trails(events))
    drops = sum(trail.dropped for trail in trails)
    summary = f"{len(trails)} packets, {len(events)} events, {drops} packets dropped, {lost} events lost"
    print(paint(f"{summary}; {time.monotonic() - started:.1f} s", BOLD, color=color), file=stream, flush=True)


def _netfilter() -> list[str]:
    """Return the netfilter probes that work here (links to it are of Linux 6.4)."""
    probes = [probe for probe in PROBES if probe.hook == Hook.NETFILTER]
    return [name for name, finding in availability(probes).items() if finding.works]


def _play(route: Route) -> list[tuple[int, Scene]]:
    """Return when each scene began, CLOCK_MONOTONIC in nanoseconds."""
    began = []
    for scene in SCENES:
        began.append((time.monotonic_ns(), scene))
        scene.play(route)
    return began


def _trails(events: Iterable[Event]) -> Iterator[Trail]:
    by_packet: dict[int, Trail] = {}
    for event in events:
        # An event without an id stands for itself.
        key = event.packet_id or -event.monotonic_ns
        by_packet.setdefault(key, Trail(len(by_packet) + 1)).events.append(event)
    yield from by_packet.values()


def _report(began: list[tuple[int, Scene]], events: list[Event], *, color: bool) -> Iterator[str]:
    ends = [start for start, _ in began[1:]] + [sys.maxsize]
    trails = list(_trails(events))
    for (start, scene), end in zip(began, ends, strict=True):
        yield paint(f"== {scene.title}", BOLD, color=color)
        for trail in trails:
            if start <= trail.events[0].monotonic_ns < end:
                yield from _trail_lines(trail, color=color)
        yield ""


def _trail_lines(trail: Trail, *, color: bool) -> Iterator[str]:
    """Yield a packet's headline, then a line for each stay at an interface."""
    first = trail.events[0]
    yield f"packet {trail.number}: {packet_text(first.record)}"
    for place, stay in groupby(trail.events, _place):
        events = list(stay)
        elapsed = (events[0].monotonic_ns - first.monotonic_ns) / 1000
        when = paint(f"{elapsed:9.1f} us", DIM, color=color)
        steps = " > ".join(_step(event, last=event is trail.events[-1], color=color) for event in events)
        yield f"  {when}  {printable(place):<10}  {steps}"


def _place(event: Event) -> str:
    name = event.netns.name if event.netns is not None else None
    return f"{name or '-'} {event.interface or '-'}"


def _step(event: Event, *, last: bool, color: bool) -> str:
    if event.probe != "kfree_skb":
        return event.probe.removeprefix("netfilter:")
    where = f" in {event.drop_location}" if event.drop_location else ""
    text = printable(f"{event.drop_reason or 'without a reason'}{where}")
    if last:
        return paint(f"DROPPED: {text}", BOLD, RED, color=color)
    # A raw socket, a tap or a retransmission queue has the packet too, and theirs goes on.
    return paint(f"a copy ends: {text}", DIM, color=color)
