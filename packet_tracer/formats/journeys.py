"""Journeys as text: a line that says which packet, a line a hop, a line that says how it ended.

::

    packet 12  10:58:51.123456789  len 84    IP 192.0.2.2 > 198.51.100.2: icmp echo request ...
         +0.0us  IP output   __ip_local_out     client/c0
        +12.4us  forward     ip_forward         router/r0   ttl 64 -> 63
      DROPPED NETFILTER_DROP at nf_hook_slow+0x42, 61.0us after its first event
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from packet_tracer.events import Hook
from packet_tracer.events import flags as bits
from packet_tracer.formats.journey_json import StackOf
from packet_tracer.formats.text import packet_text, printable, stack_lines
from packet_tracer.journey import EndKind, Hop, Journey
from packet_tracer.probes.stages import stage_of
from packet_tracer.terminal import BOLD, DIM, GREEN, RED, YELLOW, paint

_CHANGE = YELLOW
_COLORS = {EndKind.DROPPED: RED, EndKind.FORGOTTEN: YELLOW, EndKind.UNFINISHED: YELLOW}
#: Place is shown by columns, not as a change.
_PLACES = ("namespace", "interface")
_WIDEST = 48
#: Here the verdict is our own program's: go on.
_OUR_VERDICTS = (Hook.XDP, Hook.TC, Hook.NETFILTER)


class JourneyText:
    """Formats journeys. ``color`` writes ANSI colours: for terminals only. ``stack_of`` adds kernel stacks.

    Columns grow with what they hold, up to a bound, and don't shrink, so that journeys stay aligned.
    """

    def __init__(self, *, color: bool = False, stack_of: StackOf | None = None) -> None:
        self._color = color
        self._stack_of = stack_of
        self._widths = [9, 12, 18, 9]

    def format(self, journeys: Iterable[Journey]) -> str:
        """Return each journey's lines, and an empty one after each."""
        return "".join(self._journey(journey) for journey in journeys)

    def _journey(self, journey: Journey) -> str:
        hops = journey.hops
        rows = [self._cells(hop) for hop in hops]
        for row in rows:
            for index, cell in enumerate(row):
                self._widths[index] = max(self._widths[index], min(len(cell), _WIDEST))
        lines = [self._title(journey)]
        for hop, row in zip(hops, rows, strict=True):
            lines.append(self._line(hop, row))
            if self._stack_of is not None:
                lines += [f"    {line}" for line in stack_lines(self._stack_of(hop.event))]
        return "\n".join([*lines, self._end(journey), "", ""])

    def _title(self, journey: Journey) -> str:
        # The first event may be from before the headers were written.
        first = journey.events[0]
        shown = next((event for event in journey.events if event.packet.source is not None), first)
        moment = time.strftime("%H:%M:%S", time.localtime(first.timestamp_ns // 1_000_000_000))
        title = f"packet {journey.number}"
        if journey.resumed:
            title += " (again)"
        if journey.parent_id:
            parent = f"packet {journey.parent}" if journey.parent is not None else "a packet not seen"
            title += f" (part of {parent})" if journey.merged else f" (made from {parent})"
        stamp = f"{moment}.{first.timestamp_ns % 1_000_000_000:09d}"
        headers = paint(packet_text(shown.record), BOLD, color=self._color)
        return f"{paint(title, BOLD, color=self._color)}  {paint(stamp, DIM, color=self._color)}  {headers}"

    def _cells(self, hop: Hop) -> list[str]:
        event = hop.event
        netns = event.context.netns_label(event.netns_inode)
        interface = event.interface or (f"if{event.ifindex}" if event.ifindex else "-")
        return [
            f"+{duration_text(hop.since_ns)}",
            hop.stage or "-",
            printable(event.probe),
            printable(f"{netns}/{interface}" if netns else interface),
        ]

    def _line(self, hop: Hop, cells: list[str]) -> str:
        since, stage, probe, where = (
            cell.rjust(width) if index == 0 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, self._widths, strict=True))
        )
        if any(change.what in _PLACES for change in hop.changes):
            where = paint(where, BOLD, color=self._color)
        marks = [printable(str(change)) for change in hop.changes if change.what not in _PLACES]
        if hop.event.drop_reason:  # also where it is no end: that of a clone
            marks.append(printable(hop.event.drop_reason))
        elif hop.event.flags & bits.SHARED:
            marks.append("a clone")
        elif hop.event.verdict and hop.event.hook not in _OUR_VERDICTS:
            marks.append(hop.event.verdict)
        changes = paint("; ".join(marks), _CHANGE, color=self._color)
        return f"{paint(since, DIM, color=self._color)}  {stage}  {probe}  {where}  {changes}".rstrip()

    def _end(self, journey: Journey) -> str:
        text = f"{end_text(journey)}, {duration_text(_lifetime_ns(journey))} after its first event"
        if journey.children:
            shown = ", ".join(map(str, journey.children[:8])) + (", ..." if len(journey.children) > 8 else "")
            text += f"; see packet{'s' if len(journey.children) > 1 else ''} {shown}"
        if not journey.begun and not journey.resumed:
            text += "; its beginning was not seen"
        return "  " + paint(text, BOLD, _COLORS.get(journey.end.kind, GREEN), color=self._color)


def _lifetime_ns(journey: Journey) -> int:
    return journey.end.event.monotonic_ns - journey.events[0].monotonic_ns


def end_text(journey: Journey) -> str:
    """Return how a journey ended, as ``DROPPED NETFILTER_DROP at nf_hook_slow+0x42``."""
    end = journey.end
    where = end.event.interface or "a device"
    text = {
        EndKind.READ: f"READ by {end.process}",
        EndKind.DROPPED: f"DROPPED {end.reason or 'without a reason'}"
        + (f" at {end.location}" if end.location else ""),
        EndKind.SENT: f"SENT at {where}"
        + (f"; its driver frees what it sent as dropped, at {end.location}" if end.location else ""),
        EndKind.CONSUMED: f"CONSUMED while {end.process} ran",
        EndKind.MERGED: "MERGED into another packet",
        EndKind.QUEUED: "QUEUED at a socket, not read yet",
        EndKind.UNFINISHED: f"NOT SEEN AGAIN after {stage_of(end.event.probe) or end.event.probe}",
        EndKind.FORGOTTEN: "FORGOTTEN: too many packets under way",
    }[end.kind]
    return printable(text)


def duration_text(nanoseconds: int) -> str:
    """Return a time between hops in the unit that suits: ``12.4us``, ``3.1ms``, ``2.0s``."""
    if abs(nanoseconds) < 1_000_000:
        return f"{nanoseconds / 1e3:.1f}us"
    if abs(nanoseconds) < 1_000_000_000:
        return f"{nanoseconds / 1e6:.1f}ms"
    return f"{nanoseconds / 1e9:.1f}s"
