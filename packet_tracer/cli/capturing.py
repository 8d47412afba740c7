"""A capture from its start to its totals: reading, writing, status line, all the ways in which it ends."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from packet_tracer.bpf.privileges import missing_capabilities
from packet_tracer.cli.output import Output
from packet_tracer.cli.totals import Totals, counted, duration_text, loss_text, lost_by_probe
from packet_tracer.diagnostics import Settings, logger, say
from packet_tracer.errors import EXIT_NOT_PERMITTED, BpfError, NotPermittedError
from packet_tracer.events import EventBatch
from packet_tracer.events.batch import RecordBlock
from packet_tracer.terminal import StatusLine

if TYPE_CHECKING:
    from packet_tracer.capture import Tracer
    from packet_tracer.probes.function_probes import Backend

#: How often the status line is written, and how often a reader's going is looked for, in seconds.
_STATUS_INTERVAL = 0.25
_WATCH_INTERVAL = 1.0
#: From so many functions on a packet's time in the kernel is mostly ours.
_MANY_FUNCTIONS = 300


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a capture by itself: a number of events, a time in seconds; None is no limit."""

    count: int | None = None
    seconds: float | None = None


class Capture:
    """Runs a tracer until its limits, a signal, or a reader that has gone."""

    def __init__(
        self,
        tracer: Tracer,
        outputs: Sequence[Output],
        limits: Limits,
        *,
        snaplen: int,
        ring_bytes: int,
        quiet: bool = False,
    ) -> None:
        self._tracer = tracer
        self._outputs = outputs
        self._left = limits.count
        self._seconds = limits.seconds
        self._snaplen = snaplen
        self._ring_bytes = ring_bytes
        self._quiet = quiet
        self._status = StatusLine(sys.stderr, wanted=not quiet)
        self._stopped = False
        self._shown_at = 0.0
        self._shown_events = 0
        self._exact = False
        self._backend: Backend | None = None
        self.totals = Totals()

    def run(self) -> None:
        """Capture. The totals are told, and written to every file, whatever ends it."""
        with self._signals():
            try:
                with privileges_explained(), self._tracer:
                    self._exact = self._tracer.exact_identity
                    self._backend = self._tracer.backend
                    self._announce()
                    for output in self._outputs:
                        output.begin(self._tracer, self._snaplen)
                    with self.totals.timed():
                        self._read()
            finally:
                self._status.clear()
                if self.totals.started:
                    self._finish()

    def _read(self) -> None:
        tracer, deadline = self._tracer, None if self._seconds is None else time.monotonic() + self._seconds
        while not self._full:
            wait = _STATUS_INTERVAL if self._status.enabled else _WATCH_INTERVAL
            if deadline is not None:
                wait = max(min(wait, deadline - time.monotonic()), 0.001)
            seen = self.totals.events
            for batch in tracer.batches(timeout=wait):
                self._take(batch)
                if self._full:
                    return
            if self.totals.events == seen:
                for output in self._outputs:
                    output.idle()
            if self._stopped:
                # A signal may have come after the last look: the rings then still hold something.
                for batch in tracer.batches():
                    self._take(batch)
                return
            if deadline is not None and time.monotonic() >= deadline:
                self._stop()
            elif any(output.reader_gone() for output in self._outputs):
                return
            self._show()

    @property
    def _full(self) -> bool:
        return self._left is not None and self._left <= 0

    def _stop(self) -> None:
        self._stopped = True
        self._tracer.stop()

    def _take(self, batch: EventBatch) -> None:
        if self._left is not None:
            batch = first(batch, self._left)
            self._left -= batch.count
        self._status.clear()
        for output in self._outputs:
            output.write(batch)
        self.totals.add(batch)
        self._show()

    # What the user is told

    def _announce(self) -> None:
        skipped = self._tracer.skipped
        functions = sum(function.name not in skipped for function in self._tracer.functions)
        programs = sum(program.name not in skipped for program in self._tracer.programs)
        many = functions > _MANY_FUNCTIONS
        if not self._quiet and (many or not self._status.enabled):
            count = len(self._tracer.probes)
            what = [counted(count, "probe")] * bool(count)
            # With its backend: "1698 functions by kprobe-multi, 25 left out".
            what += [
                note for note in self._tracer.notes if " functions by " in note or " BPF programs, " in note
            ]
            cost = "; so many slow the host's network down" if many else ""
            say(
                f"tracing with {' and '.join(what)}{cost}, ctrl-C ends it",
                probes=count,
                functions=functions,
                programs=programs,
            )
        if Settings.level != "warning":  # last: the logger takes longer to import than the kernel to attach
            log = logger("capture")
            log.info("attached", probes=[probe.name for probe in self._tracer.probes])
            for note in self._tracer.notes:
                log.info("attached", how=note)
            for name, reason in self._tracer.skipped.items():
                log.info("left out", name=name, reason=reason)

    def _show(self) -> None:
        if not self._status.enabled:
            return
        now = time.monotonic()
        if now - self._shown_at < _STATUS_INTERVAL:
            return
        since = now - self._shown_at
        rate = (self.totals.events - self._shown_events) / since if self._shown_at else 0
        self._shown_at, self._shown_events = now, self.totals.events
        lost = sum(counters.lost_ring for counters in self._tracer.stats().values())
        so_far = f"{self.totals.events:,} events, {rate:,.0f}/s, {lost:,} lost"
        self._status.show(f"{so_far}, {duration_text(self.totals.seconds)} (ctrl-C ends it)")

    def _finish(self) -> None:
        stats = self._tracer.stats()
        for output in self._outputs:
            output.end(self.totals, stats)
        loss = loss_text(
            stats,
            ring_bytes=self._ring_bytes,
            backlog_bytes=self._tracer.backlog_bytes,
            missed=self._tracer.missed(),
            backend=self._backend,
        )
        if not self._quiet:
            known = "exactly" if self._exact else "by best effort"
            text = f"{self.totals.text()}{'' if loss else ', none lost'}; packets told apart {known}"
            identity = "exact" if self._exact else "best effort"
            say(text, **self.totals.fields(stats), identity=identity)
        if loss:
            say(loss, lost=lost_by_probe(stats))

    # Signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the capture as if its time were up; a second one interrupts at once."""
        handled = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            handled.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopped:
            raise KeyboardInterrupt
        self._stop()


@contextmanager
def privileges_explained() -> Iterator[None]:
    """Say all that is lacking, instead of what the first refused call lacked."""
    try:
        yield
    except BpfError as error:
        missing = missing_capabilities("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")
        if error.exit_code != EXIT_NOT_PERMITTED or not missing:
            raise
        what = f"tracing needs {', '.join(missing)}: run it as root (sudo), or grant them"
        raise NotPermittedError(what) from error


def first(batch: EventBatch, count: int) -> EventBatch:
    """Return the batch's first ``count`` events, as a batch."""
    if batch.count <= count:
        return batch
    records = batch.records
    return EventBatch(
        RecordBlock(count, records.data, records.offsets[:count], records.sizes[:count]), batch.context
    )
