"""Reading chosen members of many records: the ground that events, formats and columns stand on.

The layout comes from the generated :mod:`packet_tracer.events._layout`. A :class:`Selection` is a
``struct.Struct`` over a record's head that skips the members not asked for, which makes decoding a few
members several times cheaper than decoding all 65.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Protocol

from packet_tracer.errors import RecordError
from packet_tracer.events._layout import EVENT_FIELDS, EVENT_SIZE, RECORD_VERSION

Buffer = bytes | bytearray | memoryview

_FIELDS = {field.name: field for field in EVENT_FIELDS}
#: All members of a record's head, in the order of :func:`EventBatch.to_tuples`.
FIELD_NAMES: tuple[str, ...] = tuple(_FIELDS)


class Records(Protocol):
    """What the ring's reader hands over: records in ``data``, each 8-byte aligned, in the order of time.

    Record ``i`` starts at byte ``offsets[i]`` and may take ``sizes[i]`` bytes.
    """

    @property
    def count(self) -> int: ...
    @property
    def data(self) -> Buffer: ...
    @property
    def offsets(self) -> memoryview: ...
    @property
    def sizes(self) -> memoryview: ...


class Selection:
    """Some members of a record's head. ``unpack_from(buffer, offset)`` returns them in the order asked for.

    The order asked for must be the record's own (ValueError otherwise, at import): struct has no
    other, and putting a tuple into another order costs as much as unpacking it.
    """

    __slots__ = ("names", "unpack_from")

    unpack_from: Callable[[Buffer, int], tuple[Any, ...]]

    def __init__(self, *names: str) -> None:
        layout, end = "=", 0
        for name in names:
            field = _FIELDS[name]
            if field.offset < end:
                raise ValueError(f"{name} lies before the member named before it in records.h")
            gap = f"{field.offset - end}x" if field.offset > end else ""
            layout += gap + (f"{field.count}{field.format}" if field.count > 1 else field.format)
            end = field.offset + field.size
        self.names = names
        self.unpack_from = struct.Struct(layout).unpack_from


def unpacker(name: str) -> Callable[[Buffer], Any]:
    """Return a function that reads one member of a record given as a buffer of its own."""
    unpack_from, offset = struct.Struct("=" + _layout_of(name)).unpack_from, _FIELDS[name].offset
    return lambda record: unpack_from(record, offset)[0]


def _layout_of(name: str) -> str:
    field = _FIELDS[name]
    return f"{field.count}{field.format}" if field.count > 1 else field.format


_DECLARED = Selection("size", "version", "captured_length")


def check(record: Buffer, offset: int, room: int, index: int = 0) -> int:
    """Return the size that a record of ``room`` bytes at ``offset`` declares.

    Raises RecordError, naming record ``index``, when it does not fit, has another version than this
    reader, or its captured bytes disagree with its size.
    """
    if offset < 0 or room < EVENT_SIZE or offset + room > len(record):
        there = max(0, min(room, len(record) - offset))
        raise RecordError(f"record {index}: {there} bytes, a record's head has {EVENT_SIZE}")
    size, version, captured = _DECLARED.unpack_from(record, offset)
    if version != RECORD_VERSION:
        raise RecordError(f"record {index} has version {version}, this reader reads {RECORD_VERSION}")
    if size != EVENT_SIZE + captured:
        raise RecordError(
            f"record {index} declares {size} bytes, but {captured} captured bytes after {EVENT_SIZE} of head"
        )
    if size > room:
        raise RecordError(f"record {index} declares {size} bytes and has room for {room}")
    return int(size)


def encode(data: bytes = b"", **members: int | bytes) -> bytes:
    """Return a record made of members by name and the captured bytes, padded to eight bytes.

    ``size``, ``version`` and ``captured_length`` are set to what is right unless given; members left out
    are zero. It is how records are made that no kernel wrote: for tests, and for files of other tools.
    """
    head = bytearray(EVENT_SIZE)
    right = {"size": EVENT_SIZE + len(data), "version": RECORD_VERSION, "captured_length": len(data)}
    for name, value in {**right, **members}.items():
        struct.pack_into("=" + _layout_of(name), head, _FIELDS[name].offset, value)
    return bytes(head) + data + bytes(-len(data) % 8)
