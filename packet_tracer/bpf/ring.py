"""Ring buffers read by the batch: several of them, one a CPU, merged by time.

The copying is C (``shim.c``), with the interpreter lock released; no Python runs for a record. See
Documentation/bpf/ringbuf.rst for what the kernel does.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import MapFlags, MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.library import CData
from packet_tracer.bpf.maps import Map
from packet_tracer.errors import ENOTSUPP, RecordError

#: How often to look at rings whose producers do not announce records, in milliseconds.
_LOOK_MS = 100
#: How long to wait in one call: a signal that comes right before it is not seen before its end.
_WAIT_MS = 1000
_NO_LIMIT = (1 << 64) - 1
#: A batch has room for so many records as if each were this small.
_SMALLEST_RECORD = 32
_BLOCKS_KEPT = 4
_FINISH_MS = 20


class RingStatistics(NamedTuple):
    """What a reader did so far. ``out_of_order`` records came after newer ones, too late for the window."""

    records: int
    bytes: int
    discarded: int
    out_of_order: int
    wakeups: int


class RecordBatch:
    """Records in the order of their time, as bytes in one piece.

    ``data`` holds them one after the other, each 8-byte aligned; ``offsets`` and ``sizes`` (unsigned 32-bit)
    say where each starts and how long it is. A batch stays valid for as long as anything refers to it.
    """

    __slots__ = ("count", "data", "offsets", "sizes")

    def __init__(self, data: memoryview, offsets: memoryview, sizes: memoryview) -> None:
        self.data = data
        self.offsets = offsets
        self.sizes = sizes
        self.count = len(offsets)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[memoryview]:
        """Yield each record, without copying it."""
        data = self.data
        for offset, size in zip(self.offsets, self.sizes, strict=True):
            yield data[offset : offset + size]


class _Buffers:
    """Memory for batches, used again once no batch refers to it: fresh memory costs more than the copying."""

    def __init__(self, batch_bytes: int, max_record: int) -> None:
        # At least one record must fit, or a read would never end; what follows the data is aligned.
        self.data_size = (max(batch_bytes, max_record) + 7) // 8 * 8
        self.capacity = self.data_size // _SMALLEST_RECORD + 1
        self._blocks = [self._new()]
        self.current = 0
        # References to a block that no memoryview or array is left on: how many depends on the interpreter.
        self._no_views = self._references()[0]

    def _new(self) -> mmap.mmap:
        # Not a bytearray, all of which is written with zeros: pages come into being as batches need them.
        size = self.data_size + 8 * self.capacity
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _references(self) -> list[int]:
        return [sys.getrefcount(block) for block in self._blocks]

    def next(self) -> mmap.mmap:
        """Make a block current that nobody refers to: a new one where there is none."""
        unused = [index for index, count in enumerate(self._references()) if count == self._no_views]
        for surplus in reversed(unused[_BLOCKS_KEPT:]):
            del self._blocks[surplus]
        if not unused:
            self._blocks.append(self._new())
        self.current = unused[0] if unused else len(self._blocks) - 1
        return self._blocks[self.current]

    def batch(self, count: int, used: int) -> RecordBatch:
        """Return a batch over the current block, with ``count`` records in ``used`` bytes."""
        view = memoryview(self._blocks[self.current])
        offsets, sizes = self.data_size, self.data_size + 4 * self.capacity
        return RecordBatch(
            view[:used],
            view[offsets : offsets + 4 * count].cast("I"),
            view[sizes : sizes + 4 * count].cast("I"),
        )


class RingBuffer:
    """One reader over RINGBUF maps, whose records it merges by the u64 at ``timestamp_offset`` of each.

    The time is CLOCK_MONOTONIC in nanoseconds (``bpf_ktime_get_ns``). Records younger than ``window_ns``
    stay in their rings, so that one that another CPU is still writing can come before them; a window of 0
    takes all at once. ``batch_bytes`` bounds a batch; a record longer than ``max_record`` is skipped and
    raises RecordError. ``backlog_bytes`` is how much may be kept of what nobody comes to read before the
    rings are full: memory that is taken when it is needed, and given back when that was read.

    A context manager. One thread may read at a time; the maps may be closed as soon as it is made.
    """

    def __init__(
        self,
        maps: Sequence[Map],
        *,
        timestamp_offset: int = 8,
        window_ns: int = 2_000_000,
        batch_bytes: int = 8 << 20,
        max_record: int = 65536,
        backlog_bytes: int = 0,
    ) -> None:
        """Map the rings' memory. Raises MapError where a map is not a ring buffer or can't be mapped, and
        where no backlog can be had that was asked for.
        """
        for each in maps:
            if each.type != MapType.RINGBUF:
                raise each.error("reading", errno.EINVAL, "it is not a ring buffer")
            if each.flags & MapFlags.RB_OVERWRITE:
                reason = "a ring that overwrites its oldest records is read another way"
                raise each.error("reading", ENOTSUPP, reason)
        if not maps:
            raise ValueError("at least one ring buffer")
        fds = ffi.new("int[]", [each.fd for each in maps])
        sizes = ffi.new("__u32[]", [each.max_entries for each in maps])
        self._names = [each.name for each in maps]
        what = ", ".join(sorted(set(self._names)))
        self._rings: CData = lib.ptrace_rings_new(fds, sizes, len(maps), timestamp_offset, max_record)
        if not self._rings:
            raise MapError("mapping", what, "ringbuf", errno=ffi.errno)
        self._buffers = buffers = _Buffers(batch_bytes, max_record)
        if backlog_bytes:
            number = -lib.ptrace_rings_keep(
                self._rings, fds, backlog_bytes, window_ns, buffers.data_size, buffers.capacity
            )
            if number:
                lib.ptrace_rings_free(self._rings)
                reason = "no backlog can be had; do without (--backlog 0)"
                raise MapError("keeping records", what, "ringbuf", errno=number, reason=reason)
        self._window_ns = window_ns
        self._announces = False
        self._bad_seen = 0
        self._delivered = 0
        self._wakeups = 0
        self._woken = False
        self._closing = threading.RLock()  # a signal handler may come upon close() in its own thread

    def __enter__(self) -> RingBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the rings. Batches already read stay valid."""
        with self._closing:
            rings, self._rings = self._rings, None
            if rings is not None:
                lib.ptrace_rings_free(rings)

    def _open(self) -> CData:
        if self._rings is None:
            raise ValueError("RingBuffer is closed")
        return self._rings

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there may be records, for select or asyncio.

        Then call ``read(0)`` until it is empty. From the first call on a timer wakes it ten times a second,
        for records whose producers did not announce them.
        """
        rings = self._open()
        if not self._announces:
            self._announce(_LOOK_MS * 1_000_000)
            self._announces = True
        return lib.ptrace_rings_fileno(rings)

    def _announce(self, delay_ns: int) -> None:
        result = lib.ptrace_rings_announce(self._open(), delay_ns)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def read(self, timeout: float | None = None) -> RecordBatch:
        """Return the records there are, waiting for some ``timeout`` seconds at most (None: for ever).

        Empty on time-out, which is kept to 10 ms, and after :meth:`wake`. Signal handlers run while it
        waits, so Ctrl-C raises KeyboardInterrupt. Raises RecordError once for records skipped since, after
        what came before them.
        """
        rings = self._open()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._announces:
                lib.ptrace_rings_wait(
                    rings, 0
                )  # edge-triggered: take note, so that the descriptor can fall quiet
            batch = self._collect(self._before())
            if batch.count:
                return batch
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                if self._announces and rings.held_timestamp:
                    self._announce(max(self._until(rings.held_timestamp), 100_000))
                return batch
            if self._woken:
                self._woken = False
                return batch
            self._wait(rings, remaining)

    def wake(self) -> None:
        """Let a :meth:`read` that waits, or else the next one that would, return.

        May be called from any thread, and by a signal handler.
        """
        with self._closing:
            self._woken = True
            if self._rings is not None:
                self._announce(1)

    def flush(self) -> RecordBatch:
        """Return records however young: for after detaching. Call it until it returns an empty batch.

        A program that still runs on another CPU is given some milliseconds to finish its record.
        """
        rings = self._open()
        for _ in range(_FINISH_MS):
            batch = self._collect(_NO_LIMIT)
            if batch.count or not lib.ptrace_rings_pending(rings):
                break
            time.sleep(0.001)
        return batch

    def _before(self) -> int:
        return time.monotonic_ns() - self._window_ns if self._window_ns else _NO_LIMIT

    def _until(self, timestamp: int) -> int:
        return timestamp + self._window_ns - time.monotonic_ns()

    def _wait(self, rings: CData, remaining: float | None) -> None:
        wait_ms = _WAIT_MS
        if remaining is not None:
            wait_ms = min(wait_ms, int(remaining * 1000) + 1)
        if rings.held_timestamp:
            # Only time can release what is held back; a wake-up for something younger would be for nothing.
            held_ns = self._until(rings.held_timestamp)
            if held_ns > 0:
                time.sleep(min(held_ns / 1e9, wait_ms / 1000))
            return
        result = lib.ptrace_rings_watch(rings, _LOOK_MS, wait_ms)
        self._wakeups += 1
        if result < 0 and -result != errno.EINTR:
            raise OSError(-result, os.strerror(-result))

    def _collect(self, before_ns: int) -> RecordBatch:
        rings = self._open()
        if rings.bad_records != self._bad_seen:
            number, self._bad_seen = rings.bad_records - self._bad_seen, rings.bad_records
            name = self._names[rings.bad_ring]
            raise RecordError(
                f"{number} record{'s' if number > 1 else ''} of ring {name} skipped: {rings.bad_size} bytes,"
                " longer than the reader takes or too short for a timestamp"
            )
        buffers = self._buffers
        if rings.records == self._delivered:
            if not lib.ptrace_rings_pending(rings):
                rings.held_timestamp = 0
                return _EMPTY
            # from_buffer's hold on the block ends here, a batch's when the last view of it is gone.
            with ffi.from_buffer("__u8[]", buffers.next(), require_writable=True) as memory:
                offsets = ffi.cast("__u32 *", memory + buffers.data_size)
                sizes, capacity = offsets + buffers.capacity, buffers.capacity
                lib.ptrace_rings_read(rings, before_ns, memory, buffers.data_size, offsets, sizes, capacity)
        # Otherwise a signal's exception came between reading and returning: here is the batch again.
        count = rings.records - self._delivered
        if not count:
            return self._collect(before_ns) if rings.bad_records != self._bad_seen else _EMPTY
        batch = buffers.batch(count, rings.used)
        self._delivered = rings.records
        return batch

    @property
    def statistics(self) -> RingStatistics:
        """Return the counts so far."""
        rings = self._open()
        return RingStatistics(rings.records, rings.bytes, rings.discarded, rings.out_of_order, self._wakeups)


_EMPTY = RecordBatch(memoryview(b""), memoryview(b"").cast("I"), memoryview(b"").cast("I"))
