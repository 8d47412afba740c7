"""Ring buffers filled on request by ring_fill.bpf.c, for the reader's tests and benchmarks."""

from __future__ import annotations

import struct
from contextlib import ExitStack
from typing import NamedTuple

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps import Map, RawMap
from packet_tracer.bpf.ring import RecordBatch, RingBuffer
from tests.kernel.loading import load

#: BPF_RB_NO_WAKEUP, BPF_RB_FORCE_WAKEUP.
NO_WAKEUP, FORCE_WAKEUP = 1, 2
SECOND = 1_000_000_000

_REQUEST = struct.Struct("=IIIIQQIIQII")
_HEAD = struct.Struct("=IIQQ")


class Record(NamedTuple):
    """The head of a record of ring_fill.bpf.c."""

    size: int
    producer: int
    timestamp_ns: int
    number: int


class Filler:
    """A context manager with ``count`` ring buffers of ``ring_bytes`` each."""

    def __init__(self, count: int = 2, ring_bytes: int = 1 << 20) -> None:
        self._stack = ExitStack()
        self._count = count
        self._ring_bytes = ring_bytes
        self.rings: list[Map] = []

    def __enter__(self) -> Filler:
        self._loaded = self._stack.enter_context(load("ring_fill", ["fill"]))
        for index in range(self._count):
            ring = RawMap.create(MapType.RINGBUF, 0, 0, self._ring_bytes, name=f"ring_{index}")
            self.rings.append(self._stack.enter_context(ring))
            outer = self._loaded.maps["rings"].raw
            outer.update(struct.pack("=I", index), struct.pack("=I", ring.fd))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def fill(
        self,
        ring: int = 0,
        count: int = 1,
        *,
        size: int = 104,
        age_ns: int = SECOND,
        flags: int = 0,
        discard: int = 0,
        swap: int = 0,
        first: int = 0,
        producer: int | None = None,
    ) -> None:
        """Write ``count`` records into a ring, with times ``age_ns`` ago; what does not fit is lost.

        ``producer`` is the second word of each record: the ring's number unless given.
        """
        request = _REQUEST.pack(
            ring,
            size,
            count,
            ring if producer is None else producer,
            age_ns,
            flags,
            discard,
            swap,
            first,
            0,
            0,
        )
        result = self._loaded.programs["fill"].test_run(context=request)
        assert result.return_value == 0


def records(batch: RecordBatch) -> list[Record]:
    """Return the heads of a batch's records."""
    return [Record._make(_HEAD.unpack_from(record)) for record in batch]


def drain(ring: RingBuffer) -> list[Record]:
    """Return the heads of all records that are left."""
    found: list[Record] = []
    while (batch := ring.flush()).count:
        found += records(batch)
    return found
