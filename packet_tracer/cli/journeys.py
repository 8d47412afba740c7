"""``ptrace capture --journeys``: packets as each is over, instead of events as they come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from packet_tracer.cli.output import JsonOutput, Output, Writer
from packet_tracer.cli.stacks import Stacks
from packet_tracer.diagnostics import say
from packet_tracer.formats.journey_json import JourneyJson
from packet_tracer.formats.journeys import JourneyText
from packet_tracer.journey import Journey, Journeys

if TYPE_CHECKING:
    from packet_tracer.capture import Tracer
    from packet_tracer.cli.stacks import Frames
    from packet_tracer.cli.totals import Totals
    from packet_tracer.events import EventBatch
    from packet_tracer.probes.setup import Counters


class JourneyFormatter(Protocol):
    """Turns journeys into whole lines."""

    def format(self, journeys: Iterable[Journey]) -> str:
        """Return the lines of some journeys."""
        ...


class Grouping:
    """A formatter that keeps events until their journey is over; ``written`` counts journeys."""

    def __init__(self, stacks: Stacks | None) -> None:
        self.journeys = Journeys()
        self.formatter: JourneyFormatter | None = None
        self.written = 0
        self._stacks = stacks

    def format(self, batch: EventBatch) -> str:
        """Take a batch; return the journeys that are over."""
        if self._stacks is not None:
            self._stacks.learn(batch)
        return self._lines(self.journeys.add(batch))

    def expire(self) -> str:
        """Return the journeys that are over by now."""
        return self._lines(self.journeys.expire(time.monotonic_ns()))

    def finish(self) -> str:
        """Return the journeys that are left."""
        return self._lines(self.journeys.finish())

    def _lines(self, over: list[Journey]) -> str:
        assert self.formatter is not None
        self.written += len(over)
        return self.formatter.format(over)

    def say_forgotten(self) -> None:
        """Say what had to be given out early."""
        if forgotten := self.journeys.forgotten:
            say(f"{forgotten:,} packets were forgotten: too many were under way", forgotten=forgotten)


class JourneyOutput(Output):
    """Journeys as text; with ``frames`` each hop has its kernel stack."""

    def __init__(self, writer: Writer, *, color: bool, frames: Frames | None = None) -> None:
        stacks = Stacks(frames) if frames is not None else None
        self._grouping = Grouping(stacks)
        self._grouping.formatter = JourneyText(color=color, stack_of=stacks.of if stacks else None)
        super().__init__(writer, self._grouping)

    def idle(self) -> None:
        """Write what is over, where no event says so."""
        if text := self._grouping.expire():
            self._writer.write(text)

    def end(self, totals: Totals, stats: Mapping[str, Counters]) -> None:
        """Write what is left, and say what was forgotten."""
        with suppress(OSError):
            self._writer.write(self._grouping.finish())
        self._grouping.say_forgotten()


class JourneyJsonOutput(JsonOutput):
    """Journeys as JSON lines, between a first and a last one; with ``frames`` hops have their stacks."""

    def __init__(self, writer: Writer, *, frames: Frames | None = None) -> None:
        self._stacks = Stacks(frames) if frames is not None else None
        self._grouping = Grouping(self._stacks)
        super().__init__(writer, self._grouping)

    def begin(self, tracer: Tracer, snaplen: int) -> None:
        """Write the first line. Only now is it known how packets are told apart."""
        super().begin(tracer, snaplen)
        stack_of = self._stacks.of if self._stacks else None
        self._grouping.formatter = JourneyJson(exact=tracer.exact_identity, stack_of=stack_of)

    def idle(self) -> None:
        """Write what is over, where no event says so."""
        if text := self._grouping.expire():
            self._writer.write(text)

    def end(self, totals: Totals, stats: Mapping[str, Counters]) -> None:
        """Write what is left, then the last line, and say what was forgotten."""
        with suppress(OSError):
            self._writer.write(self._grouping.finish())
        super().end(totals, stats)
        self._grouping.say_forgotten()

    def _also_at_end(self) -> dict[str, int]:
        return {"journeys": self._grouping.written, "forgotten": self._grouping.journeys.forgotten}
