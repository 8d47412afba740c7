"""What is kept while nobody reads: more than the rings have room for, in order, and within its limit."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.ring import RingBuffer
from tests.kernel.filling import FORCE_WAKEUP, SECOND, Filler, drain, records

SIZE = 240
#: Records that fill a quarter of a ring, and no more.
STEP = 1000


pytestmark = pytest.mark.usefixtures("syscall_programs")


def fill(filler: Filler, steps: int) -> None:
    """Fill both rings in turn, by as much as a thread can take out of them meanwhile."""
    for step in range(steps):
        filler.fill(step % 2, STEP, size=SIZE, flags=FORCE_WAKEUP, first=step * STEP)
        time.sleep(0.01)


def numbers_left(ring: RingBuffer) -> list[int]:
    return [record.number for record in drain(ring)]


def memory() -> int:
    """Return the bytes of memory that this process has in RAM and shares with nobody's file."""
    with Path("/proc/self/status").open(encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_more_than_the_rings_have_room_for(filler: Filler) -> None:
    """Both together hold some 8,000 of these records; 60,000 are written before anyone reads."""
    with RingBuffer(filler.rings, backlog_bytes=64 << 20) as ring:
        fill(filler, 60)
        assert numbers_left(ring) == list(range(60 * STEP))
        assert ring.statistics.records == 60 * STEP
        assert ring.statistics.bytes == 60 * STEP * SIZE
        assert ring.statistics.out_of_order == 0


def test_without_it_that_is_lost(filler: Filler) -> None:
    with RingBuffer(filler.rings) as ring:
        fill(filler, 60)
        assert len(numbers_left(ring)) < 10 * STEP


def test_it_stops_at_its_limit_and_goes_on_when_that_was_read(filler: Filler) -> None:
    limit = 2 << 20
    with RingBuffer(filler.rings, backlog_bytes=limit) as ring:
        fill(filler, 60)
        kept = numbers_left(ring)
        # A block may reach beyond the limit by what was in the rings when it was taken.
        assert limit <= len(kept) * SIZE < limit + (4 << 20)
        assert kept == sorted(set(kept))
        fill(filler, 8)
        assert numbers_left(ring) == list(range(8 * STEP))


def test_its_memory_comes_with_what_it_keeps_and_goes_when_that_was_read(filler: Filler) -> None:
    with RingBuffer(filler.rings, batch_bytes=1 << 20, backlog_bytes=64 << 20) as ring:
        before = memory()
        fill(filler, 100)
        held = memory() - before
        size = 100 * STEP * (SIZE + 8)
        assert 0.7 * size < held < 1.1 * size + (1 << 20)
        while ring.flush().count:
            pass
        assert memory() - before < held / 4


def test_young_records_wait_for_the_window(filler: Filler) -> None:
    """What is kept meanwhile is in order, too, with what another CPU was late to write."""
    window = 300_000_000
    with RingBuffer(filler.rings, window_ns=window, backlog_bytes=64 << 20) as ring:
        for number in range(10):
            filler.fill(0, 100, age_ns=0, flags=FORCE_WAKEUP, first=1000 + 100 * number)
        filler.fill(1, 100, age_ns=window // 2, flags=FORCE_WAKEUP)
        time.sleep(2 * window / SECOND)
        filler.fill(0, 1, age_ns=window // 2, flags=FORCE_WAKEUP, first=5000)
        time.sleep(0.05)
        assert numbers_left(ring) == [*range(100), *range(1000, 2000), 5000]
        assert ring.statistics.out_of_order == 0


def test_closing_ends_its_thread_and_gives_back_what_it_kept(filler: Filler) -> None:
    others = threads()
    before = memory()
    ring = RingBuffer(filler.rings, backlog_bytes=64 << 20)
    assert threads() == others + 1
    fill(filler, 60)
    assert memory() - before > 10 << 20
    ring.close()
    assert threads() == others
    assert memory() - before < 4 << 20


def test_a_fork_that_closes_it_does_not_end_it(filler: Filler) -> None:
    with RingBuffer(filler.rings, backlog_bytes=64 << 20) as ring:
        child = os.fork()
        if not child:
            ring.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        fill(filler, 60)
        assert numbers_left(ring) == list(range(60 * STEP))


def test_what_it_takes_cannot_be_had(filler: Filler) -> None:
    """One more descriptor: enough for a reader, too few for a thread that can be ended."""
    before = memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path("/dev/null").open() as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 2, hard))
        try:
            with pytest.raises(MapError, match=r"no backlog can be had; do without \(--backlog 0\)"):
                RingBuffer(filler.rings, backlog_bytes=64 << 20)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert memory() - before < 4 << 20


def test_who_waits_has_all_at_once(filler: Filler) -> None:
    """A reader that keeps up reads the rings themselves."""
    with RingBuffer(filler.rings, backlog_bytes=64 << 20) as ring:
        numbers: list[int] = []
        for step in range(20):
            filler.fill(0, STEP, size=SIZE, flags=FORCE_WAKEUP, first=step * STEP)
            numbers += [record.number for record in records(ring.read(1))]
        numbers += numbers_left(ring)
        assert numbers == list(range(20 * STEP))
