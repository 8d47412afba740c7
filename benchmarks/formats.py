"""How many events a second become text, JSON, objects and columns: ``python -m benchmarks.formats``.

The events are those of :mod:`benchmarks.corpus`. "flows" is how many flows are mixed; in a flood every packet
is of another. Each run starts with empty caches. Seconds are this process's own CPU time, so other processes
count only for the caches and cores they share with it. The bars are 100,000 lines of text and 150,000 of JSON
a second on one core, with any number of flows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from benchmarks.corpus import block, context
from packet_tracer.events import EventBatch
from packet_tracer.events.names import address_text
from packet_tracer.formats.jsonl import JsonLines
from packet_tracer.formats.text import Text

BATCH = 4000  # events a batch: what a reader hands over at some 40,000 events a second
FLOWS = (400, 8_000, 100_000, None)

Way = Callable[[], Callable[[EventBatch], object]]
WAYS: dict[str, Way] = {
    "text": lambda: Text().format,
    "text color": lambda: Text(color=True).format,
    "json": lambda: JsonLines().format,
    "json + data": lambda: JsonLines(data=True).format,
    "objects": lambda: lambda batch: [None for _ in batch],
    "columns": lambda: EventBatch.to_numpy,
}


def rate(way: Way, batches: list[EventBatch], repeat: int) -> float:
    """Return events a second, the best of a few runs over all batches."""
    best = float("inf")
    for _ in range(repeat):
        work = way()
        address_text.cache_clear()
        started = time.process_time()
        for batch in batches:
            work(batch)
        best = min(best, time.process_time() - started)
    return sum(batch.count for batch in batches) / best


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=100_000)
    arguments.add_argument("--repeat", type=int, default=3)
    chosen = arguments.parse_args()
    print(f"{'flows':>7} {'what':<12} {'events/s':>12}")
    for flows in FLOWS:
        names = context()
        batches = [
            EventBatch(block(BATCH, flows=flows, seed=seed), names)
            for seed in range(max(1, chosen.events // BATCH))
        ]
        for name, way in WAYS.items():
            print(f"{flows or 'flood':>7} {name:<12} {rate(way, batches, chosen.repeat):>12,.0f}")


if __name__ == "__main__":
    main()
