"""How often an event is with the right packet, and how many journeys are complete, by labelled packets.

    python -m benchmarks.identity [KERNEL]     in a virtual machine; KERNEL as of tests.matrix (trixie)
    python -m benchmarks.identity --native     here, as far as it goes: without functions, by best effort

Everything that the kernel does to packets (``tests/mechanisms.py``) is done to packets whose numbers lie in
their payload, by two busy CPUs, under one capture; ``tests/labelled.py`` then judges each event. Two levels:
exact, with the functions of the profile ``path``, and best effort, with tracepoints only. Ends with exit
status 1 if a bar is missed. Exact: all events with the right packet, none lost, 99 % of journeys complete,
for each mechanism. Best effort, and with more packets than can be remembered: no id for two packets.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from packet_tracer.capture import Tracer
from packet_tracer.errors import NotSupportedError
from packet_tracer.lab import Lab
from packet_tracer.probes.function_probes import BACKENDS, Backend
from packet_tracer.probes.objects import CaptureObjects
from tests.labelled import Score
from tests.matrix.cards import plugged
from tests.mechanisms import MECHANISMS, PRESSURE, Mechanism, all_batches, called, flush, judged

_INTERFACES = ("c0", "r0", "r1", "s0")
#: Large enough that a packet that two numbers of bytes away from its start is read has all its label, and
#: that what lies in pages is read at all.
_SNAPLEN = 144
#: Journeys that have to be complete, in per cent.
_COMPLETE = 99.0
#: How many packets can be remembered when more come.
_PLACES = 512
_TITLES = ("mechanism", "events", "right %", "mixed", "ids", "buffers", "journeys", "complete %")
_LINE = "{:44} {:>8} {:>8} {:>6} {:>6} {:>8} {:>9} {:>10}"


@dataclass(frozen=True, slots=True)
class Level:
    """How packets are traced: a profile, whether it makes identity exact, what functions are traced by."""

    name: str
    profile: str
    exact: bool
    backend: Backend | None = None


LEVELS = (Level("exact", "path", True), Level("best", "tracepoints", False))


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one mechanism: a score, or why there is none; events lost, packets forgotten,
    and how often the kernel left a program out.
    """

    mechanism: Mechanism
    score: Score | None
    why: str = ""
    lost: int = 0
    forgotten: int = 0
    missed: int = 0

    def absent(self, level: Level) -> str:
        """Say what the mechanism lacks to have happened, "" if it has."""
        if self.score is None or not level.exact:
            return ""
        calls = self.mechanism.uncalled(self.score)
        if calls:
            return f"{', '.join(calls)} not called"
        return "" if self.mechanism.happened(self.score) else "did not happen"

    def shortcoming(self, level: Level) -> str:
        """Return which bar is missed, "" if none is."""
        score = self.score
        if score is None:
            return ""
        if score.mixed:
            return f"{score.mixed} events under another packet's id"
        if self.mechanism is PRESSURE:
            return "" if self.forgotten else "nothing was forgotten"
        if not level.exact:
            return ""
        if self.absent(level):
            return "it did not happen" if self.mechanism.possible else ""
        if score.right < score.events or self.lost:
            return f"{score.events - score.right} events with a wrong packet, {self.lost} lost"
        return "journeys are incomplete" if score.complete_percent < _COMPLETE else ""


def main(words: list[str]) -> int:
    """Measure, print the tables, and return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity", description=__doc__)
    parser.add_argument("kernel", nargs="?", default="trixie", help="see tests.matrix (trixie)")
    parser.add_argument("--native", action="store_true", help="here, not in a virtual machine")
    parser.add_argument("--guest", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=50, help="packets of each of two senders (50)")
    parser.add_argument("--level", choices=[level.name for level in LEVELS], help="only this one")
    parser.add_argument("--only", action="append", default=[], help="a part of mechanisms' names; repeatable")
    parser.add_argument("--backend", choices=BACKENDS, help="of the exact level's functions")
    parser.add_argument("-v", "--verbose", action="store_true", help="show some of what is wrong")
    options = parser.parse_args(words)
    if not (options.native or options.guest):
        command = [
            sys.executable,
            "-m",
            "tests.matrix",
            "--memory",
            "3G",
            "--timeout",
            "1500",
            options.kernel,
        ]
        rest = [word for word in words if word != options.kernel]
        guest = [sys.executable, "-m", "benchmarks.identity", "--guest", *rest]
        return subprocess.run([*command, "--", *guest], check=False).returncode
    chosen = [
        each
        for each in (*MECHANISMS, PRESSURE)
        if not options.only or any(part in each.name for part in options.only)
    ]
    levels = [
        replace(level, backend=options.backend if level.exact else None)
        for level in LEVELS
        if options.level in (None, level.name)
    ]
    return int(sum(measure_level(level, chosen, options) for level in levels) > 0)


def measure_level(level: Level, chosen: list[Mechanism], options: argparse.Namespace) -> bool:
    """Measure all mechanisms at one level and print the table; return whether a bar is missed."""
    results: list[Result] = []
    try:
        with Lab() as network, plugged(network) as cards:
            for result in measure_all(network, level, chosen, options.count, cards):
                results.append(result)
                report(result, level, verbose=options.verbose)
    except NotSupportedError as error:
        print(f"{level.name}: not measured: {error}")
        return bool(options.guest)
    missed = any(result.shortcoming(level) for result in results)
    total = Score()
    for result in results:
        if result.score is not None and result.mechanism is not PRESSURE:
            total.add(result.score)
    print(_row(f"{level.name}: all", total), "MISSED" if missed else "", flush=True)
    return missed


def measure_all(
    network: Lab, level: Level, chosen: list[Mechanism], count: int, cards: list[str]
) -> Iterator[Result]:
    """Yield the results of all mechanisms, by as few captures as can be. ``cards`` are interfaces too."""
    for interfaces in ([], [*_INTERFACES, *cards]):
        if group := [each for each in chosen if each.xdp == bool(interfaces) and each is not PRESSURE]:
            yield from measure(network, level, group, count, interfaces)
    if PRESSURE in chosen:
        with places(_PLACES):
            yield from measure(network, level, [PRESSURE], 2 * _PLACES)


def measure(
    network: Lab, level: Level, mechanisms: list[Mechanism], count: int, xdp: Sequence[str] = ()
) -> Iterator[Result]:
    """Trace mechanisms by one capture, and judge each; ``xdp``: with programs on these interfaces."""
    tracer = Tracer(
        netns=[node.name for node in network.nodes],
        interface=xdp or None,
        probes=["xdp"] if xdp else (),
        functions=called(mechanisms) if level.exact else (),
        backend=level.backend,
        profile=level.profile,
        snaplen=_SNAPLEN,
        ring_bytes=512 << 20,
    )
    started = time.monotonic()
    tracer.start()
    with closing(tracer):
        if level.exact and not tracer.exact_identity:
            raise NotSupportedError("identity is not exact here")
        how = "; ".join(tracer.notes) or "tracepoints"
        print(f"# {level.name}: {how}; attached in {time.monotonic() - started:.0f} s")
        print(_LINE.format(*_TITLES), flush=True)
        for mechanism in mechanisms:
            yield one(network, tracer, level, mechanism, count)


def one(network: Lab, tracer: Tracer, level: Level, mechanism: Mechanism, count: int) -> Result:
    """Play one mechanism and judge what was seen of it."""
    index = MECHANISMS.index(mechanism) + 1 if mechanism in MECHANISMS else 0
    lost, forgotten, missed = _lost(tracer), tracer.tracking().forgotten, tracer.missed()
    for _ in all_batches(tracer):  # what came late of the one before
        pass
    try:
        sent = mechanism.play(network, index, min(max(count // 10, 4), 20) if mechanism.stream else count)
    except NotSupportedError as error:
        return Result(mechanism, None, str(error))
    time.sleep(0.2)
    flush(network)
    time.sleep(0.1)
    score = judged(mechanism, network, sent, all_batches(tracer), read=level.exact)
    lost, forgotten = _lost(tracer) - lost, tracer.tracking().forgotten - forgotten
    return Result(mechanism, score, lost=lost, forgotten=forgotten, missed=tracer.missed() - missed)


def _lost(tracer: Tracer) -> int:
    return sum(counters.lost_ring + counters.untracked for counters in tracer.stats().values())


@contextmanager
def places(count: int) -> Iterator[None]:
    """Have captures remember only so many packets."""
    share = CaptureObjects._share_maps

    def smaller(self: CaptureObjects, opened: Any) -> None:
        share(self, opened)
        if "packets" not in self.maps and "packets" in opened.maps:
            opened.maps["packets"].max_entries = count

    CaptureObjects._share_maps = smaller  # type: ignore[method-assign]
    try:
        yield
    finally:
        CaptureObjects._share_maps = share  # type: ignore[method-assign]


def report(result: Result, level: Level, *, verbose: bool) -> None:
    """Print a row of the table."""
    if result.score is None:
        print(f"{result.mechanism.name:44} not measured: {result.why}", flush=True)
        return
    print(_row(result.mechanism.name, result.score), _remark(result, level), flush=True)
    if verbose:
        for line in (*result.score.wrong, *result.score.incomplete):
            print(f"    {line}")


def _row(name: str, score: Score) -> str:
    right, complete = f"{score.right_percent:.2f}", f"{score.complete_percent:.2f}"
    return _LINE.format(
        name, score.events, right, score.mixed, score.packets, score.buffers, score.journeys, complete
    )


def _remark(result: Result, level: Level) -> str:
    assert result.score is not None
    said = []
    if result.forgotten:
        said.append(f"{result.forgotten} forgotten")
    if result.lost:
        said.append(f"{result.lost} lost")
    if result.missed:
        said.append(f"{result.missed} missed")
    if absent := result.absent(level):
        said.append(absent)
    if shortcoming := result.shortcoming(level):
        said.append(f"MISSED: {shortcoming}")
    return "; ".join(said)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
