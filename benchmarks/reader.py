"""How fast records leave the ring buffers: copied, as columns, as tuples, as dataclasses.

    sudo .venv/bin/python -m benchmarks.reader [--seconds 1] [--json]

Rings are filled by a BPF program (tests/bpf/ring_fill.bpf.c), one producer thread a ring, both at once, so
that their records interleave in time; then the time to empty them is taken. The peer is a plain copy
(memcpy) of as many bytes: the ratio says how much of what the memory can do is left. Time is the reading
thread's own on a CPU, so that what else the machine does counts less. Needs root and the test objects, which
`python3 build.py test` makes.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from packet_tracer.bpf.ring import RecordBatch, RingBuffer
from packet_tracer.events import Context, EventBatch, FixedNames
from packet_tracer.events._layout import EVENT_SIZE, RECORD_VERSION, Hook, ProbeId
from tests.kernel.filling import NO_WAKEUP, Filler

#: The second word of an event: its version, hook and probe.
EVENT_WORD = RECORD_VERSION | Hook.TRACEPOINT << 8 | ProbeId.NETIF_RECEIVE_SKB << 16
CONTEXT = Context(probes={ProbeId.NETIF_RECEIVE_SKB: "netif_receive_skb"}, interface_names=FixedNames())
#: Records a second that are claimed, by path.
CLAIMS = {"copied": 20e6, "dataclasses": 1e6}

RING_BYTES = 64 << 20
RINGS = 2
#: A small record, an event's head alone, an event with the default 96 bytes of its packet.
SIZES = (104, 240, 336)


@dataclass(slots=True)
class Result:
    """One line of the table."""

    path: str
    record_bytes: int
    records_per_second: float
    bytes_per_second: float
    ratio_to_memcpy: float


def copied(batch: RecordBatch) -> int:
    """Nothing more than what the reader did."""
    return batch.count


def columns(batch: RecordBatch) -> int:
    """NumPy: a structured array over the events' heads, and the largest of one column."""
    rows = EventBatch(batch, CONTEXT).to_numpy()
    int(rows["timestamp_ns"].max())
    return len(rows)


def tuples(batch: RecordBatch) -> int:
    """One tuple of all members of the head an event."""
    return len(EventBatch(batch, CONTEXT).to_tuples())


def dataclasses(batch: RecordBatch) -> int:
    """One Event each, as the Tracer gives it."""
    count = 0
    for _ in EventBatch(batch, CONTEXT):
        count += 1
    return count


def paths(size: int) -> tuple[Callable[[RecordBatch], int], ...]:
    """Return what can be done with records of a size: those shorter than an event are only copied."""
    return (copied, columns, tuples, dataclasses) if size >= EVENT_SIZE else (copied,)


def fill(filler: Filler, count: int, size: int) -> None:
    """Fill all rings at once."""

    def produce(ring: int) -> None:
        for start in range(0, count, 2000):
            filler.fill(
                ring,
                min(2000, count - start),
                size=size,
                flags=NO_WAKEUP,
                first=start,
                producer=EVENT_WORD if size >= EVENT_SIZE else ring,
            )

    producers = [threading.Thread(target=produce, args=(ring,)) for ring in range(RINGS)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()


def measure(
    filler: Filler, size: int, path: Callable[[RecordBatch], int], seconds: float, peer: float
) -> Result:
    """Fill and empty until ``seconds`` of emptying are measured; the best run counts."""
    count = min(200_000, RING_BYTES * 9 // 10 // (size + 8))
    total = best = 0.0
    with RingBuffer(filler.rings) as ring:
        while total < seconds:
            fill(filler, count, size)
            started = time.thread_time()
            done = 0
            while (batch := ring.read(0)).count:
                done += path(batch)
            took = time.thread_time() - started
            if done != count * RINGS:
                raise SystemExit(f"{done} of {count * RINGS} records came")
            total += took
            best = max(best, done / took)
    return Result(path.__name__, size, best, best * size, best * size / peer)


def memcpy_speed(size: int = 32 << 20) -> float:
    """Bytes a second of a plain copy between two blocks too large for the caches."""
    source, target = memoryview(bytearray(b"\1" * size)), memoryview(bytearray(b"\2" * size))
    best = 0.0
    for _ in range(5):
        started = time.thread_time()
        target[:] = source
        best = max(best, size / (time.thread_time() - started))
    return best


def table(results: Iterable[Result]) -> str:
    """Return the results as text."""
    lines = [f"{'record':>8} {'path':<12} {'records/s':>12} {'MB/s':>8} {'of memcpy':>10}"]
    lines += [
        f"{each.record_bytes:>6} B {each.path:<12} {each.records_per_second / 1e6:>10.1f} M"
        f" {each.bytes_per_second / 1e6:>8.0f} {each.ratio_to_memcpy:>10.0%}"
        for each in results
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure all, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="to measure each line for")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with Filler(RINGS, RING_BYTES) as filler:
        peer = memcpy_speed()
        results = [
            measure(filler, size, path, arguments.seconds, peer) for size in SIZES for path in paths(size)
        ]
    print(json.dumps([asdict(each) for each in results]) if arguments.json else table(results))
    for path, claimed in CLAIMS.items():
        best = max(each.records_per_second for each in results if each.path == path)
        if best < claimed:
            sys.exit(f"{path}: only {best / 1e6:.1f} M records/s, {claimed / 1e6:.0f} M are claimed")


if __name__ == "__main__":
    main()
