"""What a capture came to: events, packets, loss, time."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from packet_tracer.events._layout import EVENT_FIELDS
from packet_tracer.formats.frame import totals

if TYPE_CHECKING:
    from packet_tracer.events import EventBatch
    from packet_tracer.probes.function_probes import Backend
    from packet_tracer.probes.setup import Counters

#: Packets that are told apart at once; beyond it the oldest are taken to be gone.
_REMEMBERED = 1 << 17
#: Whoever had less is advised as if it were this much.
_SMALL_BACKLOG = 64 << 20

_OFFSET = next(field.offset for field in EVENT_FIELDS if field.name == "packet_id")
_PACKET_ID = struct.Struct(f"={_OFFSET}xQ")


class Totals:
    """Counts events and the packets they belong to, and measures the time."""

    def __init__(self) -> None:
        self.events = 0
        self._packets: set[int] = set()
        self._forgotten = 0
        self._started_at: float | None = None
        self._stopped_at: float | None = None

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure the time that a block takes: the reading alone. What is detached after it may take seconds,
        in which no event can come.
        """
        self._started_at = time.monotonic()
        try:
            yield
        finally:
            self._stopped_at = time.monotonic()

    @property
    def started(self) -> bool:
        """Whether the block was begun."""
        return self._started_at is not None

    @property
    def seconds(self) -> float:
        """Time in the block so far, or all of it."""
        if self._started_at is None:
            return 0.0
        return (self._stopped_at or time.monotonic()) - self._started_at

    @property
    def packets(self) -> int:
        """How many packets the events belong to; events without a packet id are left out."""
        return self._forgotten + len(self._packets)

    def add(self, batch: EventBatch) -> None:
        """Count a batch."""
        self.events += batch.count
        unpack, data = _PACKET_ID.unpack_from, batch.data
        self._packets.update([unpack(data, at)[0] for at in batch.records.offsets])
        self._packets.discard(0)
        if len(self._packets) > _REMEMBERED:
            # An id begins with the time of the packet's first sight, so the smallest are the oldest.
            oldest = sorted(self._packets)[: _REMEMBERED // 2]
            self._packets.difference_update(oldest)
            self._forgotten += len(oldest)

    def text(self) -> str:
        """Return the totals in words, without loss."""
        events, packets = counted(self.events, "event"), counted(self.packets, "packet")
        return f"{events} of {packets} in {duration_text(self.seconds)}"

    def fields(self, stats: Mapping[str, Counters]) -> dict[str, object]:
        """Return the totals for programs."""
        return totals(self.events, self.packets, self.seconds, stats)


def counted(number: int, noun: str) -> str:
    """Return ``"1 event"``, ``"1,200 events"``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def duration_text(seconds: float) -> str:
    """Return a time as people write it: ``3.2 s``, ``2 m 05 s``, ``1 h 02 m``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} m"


def lost_by_probe(stats: Mapping[str, Counters]) -> dict[str, int]:
    """Return the events lost of each probe that lost some."""
    return {name: counters.lost_ring for name, counters in stats.items() if counters.lost_ring}


def loss_text(
    stats: Mapping[str, Counters],
    *,
    ring_bytes: int,
    backlog_bytes: int,
    missed: int = 0,
    backend: Backend | None = None,
) -> str:
    """Return what was lost, of which probes, and what to do about it; "" if nothing was.

    All but the first are the tracer's.
    """
    lost = lost_by_probe(stats)
    parts = []
    if lost:
        each = ", ".join(f"{name} {count:,} of {stats[name].seen:,}" for name, count in lost.items())
        total = counted(sum(lost.values()), "event")
        memory = f"--backlog {larger(max(backlog_bytes, _SMALL_BACKLOG))} --ring-size {larger(ring_bytes)}"
        advice = f"read faster (-w FILE), see less (-i, --netns, --probe) or use {memory}"
        parts.append(f"LOST {total}, the rings were full: {each}; {advice}")
    stacks = sum(counters.lost_stack for counters in stats.values())
    if stacks:
        parts.append(f"LOST {counted(stacks, 'kernel stack')}")
    if unreturned := sum(
        max(counters.seen - stats[f"{name} returns"].seen, 0)
        for name, counters in stats.items()
        if f"{name} returns" in stats
    ):
        parts.append(
            f"NO RETURN of {counted(unreturned, 'call')}: under way at the end, or the kernel missed it"
        )
    if missed:
        text = f"MISSED {counted(missed, 'packet')} of the host, met while a probe was running on that CPU"
        # A kprobe's program is left out where any other's runs, a trampoline's only where its own does.
        fewer = "; --backend fentry misses fewer, and ends later" if backend and backend != "fentry" else ""
        parts.append(text + fewer)
    return "; ".join(parts)


def larger(size: int) -> str:
    """Return four times a size in bytes, as options take it."""
    wanted = 4 * size
    return f"{wanted >> 20}M" if wanted >= 1 << 20 else f"{wanted >> 10}K"
