"""``ptrace capture --journeys``: packets as each is over, instead of events as they come."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from packet_tracer.cli.output import Formatter, Output, Writer
from packet_tracer.diagnostics import say
from packet_tracer.formats.journeys import JourneyText
from packet_tracer.journey import Journeys

if TYPE_CHECKING:
    from packet_tracer.cli.totals import Totals
    from packet_tracer.events import EventBatch
    from packet_tracer.probes.setup import Counters


class JourneyLines:
    """A formatter that keeps events until their journey is over."""

    def __init__(self, *, color: bool) -> None:
        self.journeys = Journeys()
        self._text = JourneyText(color=color)

    def format(self, batch: EventBatch) -> str:
        """Take a batch; return the journeys that are over."""
        return self._text.format(self.journeys.add(batch))

    def expire(self) -> str:
        """Return the journeys that are over by now."""
        return self._text.format(self.journeys.expire(time.monotonic_ns()))

    def finish(self) -> str:
        """Return the journeys that are left."""
        return self._text.format(self.journeys.finish())


class JourneyOutput(Output):
    """Journeys as text."""

    def __init__(self, writer: Writer, *, color: bool) -> None:
        self._lines = JourneyLines(color=color)
        formatter: Formatter = self._lines
        super().__init__(writer, formatter)

    def idle(self) -> None:
        """Write what is over, where no event says so."""
        if text := self._lines.expire():
            self._writer.write(text)

    def end(self, totals: Totals, stats: Mapping[str, Counters]) -> None:
        """Write what is left, and say what was forgotten."""
        with suppress(OSError):
            self._writer.write(self._lines.finish())
        if forgotten := self._lines.journeys.forgotten:
            say(f"{forgotten:,} packets were forgotten: too many were under way", forgotten=forgotten)
