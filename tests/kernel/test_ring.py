"""The ring reader: order, no loss, time, signals, and what it costs to wait."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import RawMap
from packet_tracer.bpf.ring import RecordBatch, RingBuffer
from packet_tracer.errors import RecordError
from tests.kernel.filling import FORCE_WAKEUP, NO_WAKEUP, SECOND, Filler, drain, records

pytestmark = pytest.mark.usefixtures("syscall_programs")


@pytest.mark.parametrize("size", [24, 104, 240, 336, 4096])
def test_records_come_whole_and_in_order(filler: Filler, size: int) -> None:
    with RingBuffer(filler.rings) as ring:
        for step in range(10):
            filler.fill(step % 2, 10, size=size, first=10 * step)
        batch = ring.read(1)
        assert batch.count == len(batch) == 100
        assert list(batch.sizes) == [size] * 100
        assert all(offset % 8 == 0 for offset in batch.offsets)
        assert len(batch.data) == 100 * size
        found = records(batch)
        assert [record.number for record in found] == list(range(100))
        assert [record.size for record in found] == [size] * 100
        assert [record.producer for record in found[::10]] == [0, 1] * 5
        assert (ring.statistics.records, ring.statistics.bytes) == (100, 100 * size)
        assert ring.read(0).count == 0


def test_many_rings_are_merged_record_by_record() -> None:
    with Filler(count=8) as filler, RingBuffer(filler.rings) as ring:
        for number in range(200):
            filler.fill(number * 5 % 8, 1, first=number)
        assert [record.number for record in drain(ring)] == list(range(200))
        assert ring.statistics.out_of_order == 0


def test_rings_wrap(filler: Filler) -> None:
    """More bytes than a ring has, in steps that are no divisor of its size."""
    with RingBuffer(filler.rings, batch_bytes=1 << 16) as ring:
        numbers = []
        for step in range(60):
            filler.fill(0, 200, size=240, first=200 * step)
            numbers += [record.number for record in drain(ring)]
        assert numbers == list(range(60 * 200))


def test_no_loss_under_two_producers() -> None:
    """Both write as fast as they can while the reader reads."""
    total = 40_000
    with Filler(ring_bytes=16 << 20) as filler, RingBuffer(filler.rings, batch_bytes=1 << 18) as ring:

        def produce(index: int) -> None:
            for start in range(0, total, 1000):
                filler.fill(index, 1000, age_ns=0, flags=NO_WAKEUP, first=start)

        producers = [threading.Thread(target=produce, args=(index,)) for index in range(2)]
        for producer in producers:
            producer.start()
        numbers: tuple[list[int], list[int]] = ([], [])
        newest = 0
        deadline = time.monotonic() + 30
        while sum(map(len, numbers)) < 2 * total and time.monotonic() < deadline:
            for record in records(ring.read(0.5)):
                assert record.timestamp_ns >= newest
                newest = record.timestamp_ns
                numbers[record.producer].append(record.number)
        for producer in producers:
            producer.join()
        assert numbers == (list(range(total)), list(range(total)))
        assert ring.statistics.out_of_order == 0


def test_young_records_wait_for_the_window(filler: Filler) -> None:
    window = 300_000_000
    with RingBuffer(filler.rings, window_ns=window) as ring:
        filler.fill(0, 5, age_ns=0)
        assert ring.read(0).count == 0
        filler.fill(1, 5, age_ns=window // 2, first=100)  # later written, but older
        batch = ring.read(5)
        assert [record.number for record in records(batch)] == [100, 101, 102, 103, 104]
        assert time.monotonic_ns() - records(batch)[-1].timestamp_ns >= window
        assert [record.number for record in records(ring.read(5))] == [0, 1, 2, 3, 4]
        filler.fill(0, 1, age_ns=0)
        assert ring.flush().count == 1


def test_nearly_sorted_records_are_sorted(filler: Filler) -> None:
    with RingBuffer(filler.rings) as ring:
        filler.fill(0, 1000, swap=10)
        found = records(ring.read(1))
        times = [record.timestamp_ns for record in found]
        assert times == sorted(times)
        assert [record.number for record in found] != list(range(1000))
        assert sorted(record.number for record in found) == list(range(1000))
        assert ring.statistics.out_of_order == 0


def test_what_comes_too_late_is_counted(filler: Filler) -> None:
    with RingBuffer(filler.rings) as ring:
        filler.fill(0, 10, age_ns=SECOND)
        assert ring.read(1).count == 10
        filler.fill(1, 7, age_ns=2 * SECOND)
        assert ring.read(1).count == 7
        assert ring.statistics.out_of_order == 7


def test_discarded_records_are_passed_over(filler: Filler) -> None:
    with RingBuffer(filler.rings) as ring:
        filler.fill(0, 100, discard=2)
        filler.fill(1, 50, discard=1)
        assert [record.number for record in drain(ring)] == list(range(1, 100, 2))
        assert ring.statistics.discarded == 100


def test_records_too_large_are_an_error_that_names_them(filler: Filler) -> None:
    with RingBuffer(filler.rings, max_record=200) as ring:
        filler.fill(0, 3, size=104, first=0)
        filler.fill(1, 2, size=240)
        filler.fill(0, 3, size=104, first=3)
        assert [record.number for record in records(ring.read(1))] == list(range(6))
        with pytest.raises(RecordError, match="2 records of ring ring_1 skipped: 240 bytes"):
            ring.read(0)
        assert ring.read(0).count == 0
        filler.fill(0, 1)
        assert ring.read(1).count == 1


def test_records_too_short_for_a_time(filler: Filler) -> None:
    with RingBuffer(filler.rings, timestamp_offset=20) as ring:
        filler.fill(0, 1, size=24)
        with pytest.raises(RecordError, match="1 record of ring ring_0 skipped: 24 bytes"):
            ring.read(0)


def test_a_batch_is_bounded_and_outlives_others(filler: Filler) -> None:
    with RingBuffer(filler.rings, batch_bytes=4096, max_record=104) as ring:
        filler.fill(0, 100)
        batches: list[RecordBatch] = []
        while (batch := ring.read(0)).count:
            batches.append(batch)
        assert [len(batch.data) <= 4096 for batch in batches] == [True] * 3
        numbers = [record.number for batch in batches for record in records(batch)]
        assert numbers == list(range(100))
        view = batches[0].data[batches[0].offsets[5] :]
        del batches, batch
        for _ in range(10):  # the memory a view is left on is not used again
            filler.fill(0, 100, first=1000)
            while ring.read(0).count:
                pass
        assert int.from_bytes(view[16:24], sys.byteorder) == 5
    assert int.from_bytes(view[16:24], sys.byteorder) == 5


def test_memory_is_used_again(filler: Filler) -> None:
    with RingBuffer(filler.rings) as ring:
        addresses = set()
        for _ in range(20):
            filler.fill(0, 10)
            batch = ring.read(1)
            addresses.add(id(batch.data.obj))
            del batch
        assert len(addresses) == 1


@pytest.mark.parametrize("timeout", [0.0, 0.03, 0.25])
def test_the_deadline_is_kept(filler: Filler, timeout: float) -> None:
    with RingBuffer(filler.rings) as ring:
        started = time.monotonic()
        assert ring.read(timeout).count == 0
        took = time.monotonic() - started
        assert timeout <= took < timeout + 0.01 + SLACK


#: A busy machine may be late by a time slice or two.
SLACK = 0.04


def test_the_deadline_is_kept_while_young_records_wait(filler: Filler) -> None:
    with RingBuffer(filler.rings, window_ns=10 * SECOND) as ring:
        filler.fill(0, 1, age_ns=0)
        started = time.monotonic()
        assert ring.read(0.05).count == 0
        assert 0.05 <= time.monotonic() - started < 0.06 + SLACK


@pytest.mark.parametrize(
    ("flags", "at_most"),
    [(0, 0.02), (FORCE_WAKEUP, 0.02), (NO_WAKEUP, 0.1)],
    ids=["default", "force", "silent"],
)
def test_a_waiting_reader_is_woken(filler: Filler, flags: int, at_most: float) -> None:
    """At once where the producer announces its records, within 100 ms where it does not."""
    written = []

    def produce() -> None:
        time.sleep(0.15)
        written.append(time.monotonic())
        filler.fill(0, 3, flags=flags)

    with RingBuffer(filler.rings) as ring:
        producer = threading.Thread(target=produce)
        producer.start()
        count = ring.read(5).count
        late = time.monotonic() - written[0]
        producer.join()
        # Woken by the first, it may have been faster than who wrote the others.
        assert count == 3 or 0 < count == 3 - ring.read(5).count
        assert late < at_most + SLACK


def test_waiting_costs_next_to_nothing(filler: Filler) -> None:
    """Less than 0.5 % of a CPU; on an emulated machine as little as other ways to wake ten times a second."""

    def share(wait: object) -> float:
        before, started = resource.getrusage(resource.RUSAGE_THREAD), time.monotonic()
        assert callable(wait)
        wait()
        after = resource.getrusage(resource.RUSAGE_THREAD)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return used / (time.monotonic() - started)

    with RingBuffer(filler.rings) as ring:
        idle = share(lambda: ring.read(3))
        wakeups = ring.statistics.wakeups
        print(f"idle: {idle:.3%} of a CPU, {wakeups} wake-ups in 3 s")
        assert wakeups <= 5
        assert idle < 0.005 or idle < 4 * share(lambda: [time.sleep(0.1) for _ in range(30)])


def test_another_thread_wakes_it(filler: Filler) -> None:
    with RingBuffer(filler.rings) as ring:
        started = time.monotonic()
        waker = threading.Timer(0.2, ring.wake)
        waker.start()
        assert ring.read(30).count == 0
        assert 0.19 < time.monotonic() - started < 0.2 + SLACK
        waker.join()
        ring.wake()  # and one that does not wait yet
        assert ring.read(30).count == 0
        assert time.monotonic() - started < 0.4 + 2 * SLACK
    ring.wake()  # too late, and no harm


def test_ctrl_c_wakes_it() -> None:
    script = """
import sys
from packet_tracer.bpf.ring import RingBuffer
from tests.kernel.filling import Filler
with Filler() as filler, RingBuffer(filler.rings) as ring:
    print("ready", flush=True)
    try:
        ring.read()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - started < 0.15 + SLACK
        assert process.wait(5) == 0


def test_an_exception_at_the_wrong_moment_loses_nothing(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the reader's taking records and its handing them out: the next read has them."""

    def interrupted(*_: object) -> RecordBatch:
        raise KeyboardInterrupt

    with RingBuffer(filler.rings, batch_bytes=4096, max_record=104) as ring:
        filler.fill(0, 60)
        with monkeypatch.context() as patched:
            patched.setattr(ring._buffers, "batch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ring.read(1)
        assert ring.statistics.records > 0
        assert [record.number for record in drain(ring)] == list(range(60))


def test_a_signal_handler_that_returns_does_not_end_the_wait(filler: Filler) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with RingBuffer(filler.rings) as ring:
            started = time.monotonic()
            assert ring.read(0.3).count == 0
            assert time.monotonic() - started >= 0.3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == [signal.SIGALRM]


@pytest.mark.parametrize("flags", [0, NO_WAKEUP])
def test_asyncio_waits_on_the_descriptor(filler: Filler, flags: int) -> None:
    async def run(ring: RingBuffer) -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        calls = found = 0

        def readable() -> None:
            nonlocal calls, found
            calls += 1
            while batch := ring.read(0):
                found += batch.count
            if found == 15 and not done.done():
                done.set_result(None)

        loop.add_reader(ring.fileno(), readable)
        try:
            for step in range(5):
                loop.call_later(0.02 * step, lambda: filler.fill(0, 3, age_ns=0, flags=flags))
            await asyncio.wait_for(done, 5)
        finally:
            loop.remove_reader(ring.fileno())
        return calls, found

    with RingBuffer(filler.rings) as ring:
        calls, found = asyncio.run(run(ring))
        assert found == 15
        assert calls < 30  # it does not spin while records are held back


def test_the_descriptor_falls_quiet(filler: Filler) -> None:
    with RingBuffer(filler.rings) as ring:
        poll = select.poll()
        poll.register(ring.fileno(), select.POLLIN)
        filler.fill(0, 3)
        assert poll.poll(1000)
        assert ring.read(0).count == 3
        assert poll.poll(20) == []
        assert poll.poll(1000)  # the timer, for what is not announced
        assert ring.read(0).count == 0


def test_a_fork_does_not_disturb_the_reader(filler: Filler) -> None:
    """A child that has the descriptor and ends takes nothing from the parent."""
    with RingBuffer(filler.rings) as ring:
        ring.fileno()
        filler.fill(0, 3)
        child = subprocess.run(
            [sys.executable, "-c", f"import os; os.fstat({ring.fileno()})"], capture_output=True, check=False
        )
        assert b"Bad file descriptor" in child.stderr  # not inherited by programs
        assert not os.get_inheritable(ring.fileno())
        assert ring.read(1).count == 3


def test_what_is_no_ring() -> None:
    with (
        RawMap.create(MapType.ARRAY, 4, 8, 1, name="plain") as array,
        pytest.raises(MapError, match=r"reading of map plain \(array\) failed: .*it is not a ring buffer"),
    ):
        RingBuffer([array])
    with pytest.raises(ValueError, match="at least one"):
        RingBuffer([])


def test_closing(filler: Filler) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    ring = RingBuffer(filler.rings)
    ring.fileno()
    filler.fill(0, 3)
    batch = ring.read(1)
    ring.close()
    ring.close()
    assert len(records(batch)) == 3
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with pytest.raises(ValueError, match="closed"):
        ring.read(0)
