"""A counter from its start to its totals: shown as it goes or at the end, until time or a signal ends it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from packet_tracer.cli.capturing import privileges_explained
from packet_tracer.count import Counter, Snapshot
from packet_tracer.diagnostics import say
from packet_tracer.formats.counts import Table, json_lines, totals_text
from packet_tracer.terminal import BOLD, colors_wanted, paint

_LIVE_INTERVAL = 1.0
#: Lines of a terminal that are not rows: the totals, the heading, and the one the cursor is left in.
_OTHER_LINES = 3
#: ECMA-48: to the top left; erase to the end of the line, of the screen.
_HOME, _ERASE_LINE, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


class Counting:
    """Runs a counter. ``interval`` None is every second on a terminal, else only at the end; ``seconds`` None
    is until a signal; ``top`` None is what fits a terminal, else every row.
    """

    def __init__(
        self,
        counter: Counter,
        *,
        as_json: bool,
        interval: float | None,
        seconds: float | None,
        top: int | None,
        quiet: bool,
    ) -> None:
        self._counter = counter
        self._json = as_json
        self._live = not as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._interval = interval or (_LIVE_INTERVAL if self._live else None)
        self._seconds = seconds
        self._top = top
        self._quiet = quiet
        self._table = Table(counter.by)
        self._started = 0.0

    def run(self) -> None:
        """Count; what was counted is shown whatever ends it."""
        with _signals_held() as signals:
            with privileges_explained(), self._counter:
                self._started = time.monotonic()
                if not (self._live or self._quiet):
                    say(f"counting by {self._counter.by}, ctrl-C ends it", by=self._counter.by)
                self._show_until(signals)
                stopped = time.monotonic() - self._started  # detaching takes its time
            last = self._counter.snapshot()
            self._show(last, stopped)
            self._finish(last)

    def _show_until(self, signals: set[signal.Signals]) -> None:
        """Show what is counted at each interval until the time is up or one of ``signals`` comes."""
        end = self._started + (self._seconds if self._seconds is not None else float("inf"))
        following = self._started
        while True:
            following = min(end, following + (self._interval or float("inf")))
            # Not for ever: the longest wait that every system takes.
            if signal.sigtimedwait(signals, min(max(following - time.monotonic(), 0), 1e6)) is not None:
                return
            now = time.monotonic()
            if now >= end:
                return
            if now >= following:
                self._show(self._counter.snapshot(), now - self._started)
                following = max(following, now - (self._interval or 0))

    def _show(self, snapshot: Snapshot, seconds: float) -> None:
        if self._json:
            text = json_lines(self._counter.by, snapshot, seconds, time.time(), self._top)
        elif self._live:
            text = self._screen(snapshot, seconds)
        else:
            text = "\n".join([*self._table.lines(snapshot, seconds, self._top), ""])
        sys.stdout.write(text)
        sys.stdout.flush()

    def _screen(self, snapshot: Snapshot, seconds: float) -> str:
        """Return a table that covers the terminal's screen, without flicker."""
        columns, height = shutil.get_terminal_size()
        top = min(self._top or height, max(height - _OTHER_LINES, 1))
        heading, *rows = (line[:columns] for line in self._table.lines(snapshot, seconds, top))
        lines = [
            totals_text(snapshot.totals)[:columns],
            paint(heading, BOLD, color=colors_wanted()),
            *rows,
        ]
        return _HOME + "".join(f"{line}{_ERASE_LINE}\n" for line in lines) + _ERASE_BELOW

    def _finish(self, last: Snapshot) -> None:
        totals = last.totals
        if not self._quiet or totals.evicted_packets or totals.failed or totals.missed:
            say(totals_text(totals), **asdict(totals))


@contextmanager
def _signals_held() -> Iterator[set[signal.Signals]]:
    """Hold back the signals that end a command, so that they can be waited for; yield which."""
    held = {signal.SIGINT, signal.SIGTERM}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not under nohup
        held.add(signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield held
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
