"""A batch of records: events when iterated, columns or tuples for those who want speed."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packet_tracer.errors import RecordError
from packet_tracer.events._layout import EVENT_DTYPE, EVENT_SIZE, RECORD_VERSION
from packet_tracer.events.context import Context
from packet_tracer.events.event import HOT, Event
from packet_tracer.events.records import FIELD_NAMES, Buffer, Records, Selection, check

if TYPE_CHECKING:
    import numpy.typing as npt

_ALL = Selection(*FIELD_NAMES)


@dataclass(slots=True)
class RecordBlock:
    """Records held in memory: see :class:`packet_tracer.events.records.Records`."""

    count: int
    data: Buffer
    offsets: memoryview
    sizes: memoryview

    @staticmethod
    def from_bytes(data: Buffer) -> RecordBlock:
        """Walk records that lie behind one another, each padded to eight bytes, by the size each declares.

        Raises RecordError at the first that is damaged.
        """
        offsets, sizes = array("I"), array("I")
        at = 0
        while at < len(data):
            size = check(data, at, len(data) - at, len(offsets))
            offsets.append(at)
            sizes.append(size)
            at += (size + 7) & ~7
        return RecordBlock(len(offsets), data, memoryview(offsets), memoryview(sizes))


class EventBatch:
    """Events of one read, in the order of time.

    Iterating makes an :class:`Event` each (about 1.5 million a second); :meth:`to_numpy` and
    :meth:`to_tuples` make none. A batch may be iterated any number of times. All raise RecordError at a
    damaged record.
    """

    __slots__ = ("_bytes", "context", "records")

    def __init__(self, records: Records, context: Context) -> None:
        self.records = records
        self.context = context
        self._bytes: bytes | None = None

    @staticmethod
    def from_bytes(data: Buffer, context: Context) -> EventBatch:
        """Return the batch of records that lie behind one another, as a file holds them."""
        return EventBatch(RecordBlock.from_bytes(data), context)

    @property
    def count(self) -> int:
        """How many events."""
        return self.records.count

    def __len__(self) -> int:
        return self.records.count

    @property
    def data(self) -> bytes:
        """The records' bytes, copied once: the reader may use its buffer again, and bytes decode faster."""
        if self._bytes is None:
            self._bytes = bytes(self.records.data)
        return self._bytes

    def __iter__(self) -> Iterator[Event]:
        context, data = self.context, self.data
        offset_ns, probes, unpack = context.wall_clock_offset_ns, context.probes, HOT.unpack_from
        end, sizes = len(data), self.records.sizes
        for index, at in enumerate(self.records.offsets):
            if at + EVENT_SIZE > end:
                check(data, at, sizes[index], index)
            (
                size,
                version,
                hook,
                probe_id,
                monotonic_ns,
                packet_id,
                skb_address,
                cpu,
                pid,
                netns_inode,
                ifindex,
                length,
                flags,
                captured,
            ) = unpack(data, at)
            if version != RECORD_VERSION or size != EVENT_SIZE + captured or size > sizes[index]:
                check(data, at, sizes[index], index)  # raises, and says why
            yield Event(
                monotonic_ns + offset_ns,
                monotonic_ns,
                probes.get(probe_id) or context.probe_name(probe_id),
                probe_id,
                packet_id,
                skb_address,
                cpu,
                pid,
                netns_inode,
                ifindex,
                length,
                flags,
                data[at : at + size],
                context,
                hook,
            )

    def check(self) -> None:
        """Raise RecordError if any record is damaged."""
        data, end, sizes = self.data, len(self.data), self.records.sizes
        unpack = _DECLARED.unpack_from
        for index, at in enumerate(self.records.offsets):
            room = sizes[index]
            if room >= EVENT_SIZE and at + room <= end:
                size, version, captured = unpack(data, at)
                if version == RECORD_VERSION and size == EVENT_SIZE + captured and size <= room:
                    continue
            check(data, at, room, index)

    def to_tuples(self) -> list[tuple[Any, ...]]:
        """Return each record's head as a tuple, its members in the order of ``FIELD_NAMES``."""
        self.check()
        unpack, data = _ALL.unpack_from, self.data
        return [unpack(data, at) for at in self.records.offsets]

    def to_numpy(self) -> npt.NDArray[Any]:
        """Return the records' heads as a structured array of shape (count,), named like records.h.

        Records of one size are not copied: the array is a view of the batch's memory, valid as long as that
        is. Others are gathered into an array of its own. Needs NumPy.
        """
        import numpy as np

        dtype = np.dtype(EVENT_DTYPE)
        offsets = np.frombuffer(self.records.offsets, np.uint32).astype(np.int64)
        if not len(offsets):
            return np.empty(0, dtype)
        data = np.frombuffer(self.records.data, np.uint8)
        if int(offsets.max()) + dtype.itemsize > len(data):
            self.check()
            raise RecordError("a record lies beyond the end of its batch")
        steps = np.diff(offsets)
        stride = int(steps[0]) if len(steps) else dtype.itemsize
        heads: npt.NDArray[Any]
        if (steps == stride).all():
            heads = np.ndarray((len(offsets),), dtype, buffer=data, offset=int(offsets[0]), strides=(stride,))
        else:
            heads = data[offsets[:, None] + np.arange(dtype.itemsize)].view(dtype)[:, 0]
        self._check_columns(heads)
        return heads

    def _check_columns(self, heads: npt.NDArray[Any]) -> None:
        import numpy as np

        room = np.frombuffer(self.records.sizes, np.uint32)
        damaged = (
            (heads["version"] != RECORD_VERSION)
            | (heads["size"] != EVENT_SIZE + heads["captured_length"].astype(np.uint32))
            | (heads["size"] > room)
        )
        if damaged.any():
            index = int(damaged.argmax())
            check(self.data, int(self.records.offsets[index]), int(room[index]), index)


_DECLARED = Selection("size", "version", "captured_length")
