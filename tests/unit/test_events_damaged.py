"""A damaged record is an error that names it; nothing else ever comes out of one."""

from __future__ import annotations

import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.errors import RecordError
from packet_tracer.events import Context, DropReasons, EventBatch, FixedNames, RecordBlock
from packet_tracer.events._layout import EVENT_SIZE, RECORD_VERSION
from packet_tracer.events.event import Event
from packet_tracer.events.records import encode

CONTEXT = Context(interface_names=FixedNames(), drop_reasons=DropReasons())
GOOD = encode(b"12345678", packet_id=1)


def batch(record: bytes, room: int | None = None) -> EventBatch:
    """A good record, the damaged one, and nothing after it."""
    offsets = array("I", [0, len(GOOD)])
    sizes = array("I", [len(GOOD), len(record) if room is None else room])
    block = RecordBlock(2, GOOD + record, memoryview(offsets), memoryview(sizes))
    return EventBatch(block, CONTEXT)


DAMAGED = {
    "cut in the head": (GOOD[: EVENT_SIZE - 1], "head"),
    "cut in the data": (GOOD[:-1], "declares 248 bytes and has room for 247"),
    "empty": (b"", "0 bytes"),
    "another version": (encode(b"", version=RECORD_VERSION + 1), f"version {RECORD_VERSION + 1}"),
    "size too small": (encode(b"12345678", size=EVENT_SIZE), "8 captured bytes"),
    "size zero": (encode(b"", size=0), "declares 0 bytes"),
    "size huge": (encode(b"", size=2**32 - 1), "declares 4294967295"),
    "more captured than there is": (encode(b"", captured_length=9000), "9000 captured bytes"),
    "both huge": (encode(b"", size=EVENT_SIZE + 9000, captured_length=9000), "declares 9240"),
}


@pytest.mark.parametrize(("record", "message"), DAMAGED.values(), ids=DAMAGED)
def test_every_way_of_decoding_refuses_it(record: bytes, message: str) -> None:
    for decode in (list, EventBatch.check, EventBatch.to_tuples, EventBatch.to_numpy):
        with pytest.raises(RecordError, match="record 1") as caught:
            decode(batch(record))
        assert message in str(caught.value)
    with pytest.raises(RecordError):
        EventBatch.from_bytes(GOOD + record + b"" if record else GOOD + b"\0", CONTEXT)
    with pytest.raises(RecordError):
        Event.from_record(record, CONTEXT)


def test_room_beyond_the_batch() -> None:
    for decode in (list, EventBatch.to_tuples, EventBatch.to_numpy):
        with pytest.raises(RecordError, match="record 1"):
            decode(batch(GOOD[:100], room=248))


def test_events_before_the_damage_come_out() -> None:
    events = iter(batch(b""))
    assert next(events).packet_id == 1
    with pytest.raises(RecordError):
        next(events)


@given(st.binary(max_size=600))
def test_random_bytes(data: bytes) -> None:
    try:
        events = list(EventBatch.from_bytes(data, CONTEXT))
    except RecordError:
        return
    assert all(exercise(event) for event in events)


@given(st.binary(min_size=EVENT_SIZE - 8, max_size=EVENT_SIZE - 8), st.binary(max_size=128))
def test_random_members(members: bytes, data: bytes) -> None:
    """Any bits in a record of the right size: everything can be asked of its event."""
    good = encode(data)
    record = good[:5] + members[:3] + members[: EVENT_SIZE - 8] + good[EVENT_SIZE:]
    captured = 72
    record = record[:captured] + len(data).to_bytes(2, sys.byteorder) + record[captured + 2 :]
    (event,) = EventBatch.from_bytes(record, CONTEXT)
    assert exercise(event)


def exercise(event: Event) -> bool:
    """Ask everything of an event."""
    names = [name for name in dir(event) if not name.startswith("_") and name not in ("from_record", "raw")]
    assert [getattr(event, name) for name in names]
    assert event.raw()
    assert str(event)
    return True
