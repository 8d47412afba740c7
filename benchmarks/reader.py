"""How fast records leave the ring buffers: copied, as columns, as tuples.

    sudo .venv/bin/python -m benchmarks.reader [--seconds 1] [--json]

Rings are filled by a BPF program (tests/bpf/ring_fill.bpf.c), one producer thread a ring, both at once, so
that their records interleave in time; then the time to empty them is taken. The peer is a plain copy
(memcpy) of as many bytes: the ratio says how much of what the memory can do is left. Needs root and the test
objects, which `python3 build.py test` makes.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from packet_tracer.bpf.ring import RecordBatch, RingBuffer
from tests.kernel.filling import NO_WAKEUP, Filler

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
    """NumPy: a structured array over the batch, and one column of it summed."""
    import numpy

    size = batch.sizes[0]
    layout = numpy.dtype(
        {
            "names": ["size", "producer", "timestamp", "number"],
            "formats": ["=u4", "=u4", "=u8", "=u8"],
            "offsets": [0, 4, 8, 16],
            "itemsize": size,
        }
    )
    rows = numpy.frombuffer(batch.data, dtype=layout)
    int(rows["timestamp"].max())
    return len(rows)


def tuples(batch: RecordBatch) -> int:
    """One tuple of five members a record, from all of its bytes."""
    size = batch.sizes[0]
    count = 0
    for _ in struct.iter_unpack(f"=IIQQ{size - 24}s", batch.data):
        count += 1
    return count


PATHS: tuple[Callable[[RecordBatch], int], ...] = (copied, columns, tuples)


def fill(filler: Filler, count: int, size: int) -> None:
    """Fill all rings at once."""

    def produce(ring: int) -> None:
        for start in range(0, count, 2000):
            filler.fill(ring, min(2000, count - start), size=size, flags=NO_WAKEUP, first=start)

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
            started = time.perf_counter()
            done = 0
            while (batch := ring.read(0)).count:
                done += path(batch)
            took = time.perf_counter() - started
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
        started = time.perf_counter()
        target[:] = source
        best = max(best, size / (time.perf_counter() - started))
    return best


def table(results: Iterable[Result]) -> str:
    """Return the results as text."""
    lines = [f"{'record':>8} {'path':<10} {'records/s':>12} {'MB/s':>8} {'of memcpy':>10}"]
    lines += [
        f"{each.record_bytes:>6} B {each.path:<10} {each.records_per_second / 1e6:>10.1f} M"
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
        results = [measure(filler, size, path, arguments.seconds, peer) for size in SIZES for path in PATHS]
    print(json.dumps([asdict(each) for each in results]) if arguments.json else table(results))
    copies = min(
        each.records_per_second for each in results if each.path == "copied" and each.record_bytes == 104
    )
    if copies < 20e6:
        sys.exit(f"copied only {copies / 1e6:.1f} M records/s, 20 M are claimed")


if __name__ == "__main__":
    main()
