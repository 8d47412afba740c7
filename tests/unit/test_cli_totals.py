"""Totals of a capture, and what is said of loss."""

from __future__ import annotations

import struct
from functools import partial

import pytest

from packet_tracer.cli import totals
from packet_tracer.cli.capturing import first
from packet_tracer.events import Context, EventBatch, FixedNames
from packet_tracer.events._layout import EVENT_FIELDS, EVENT_SIZE, RECORD_VERSION
from packet_tracer.probes.function_probes import BACKENDS
from packet_tracer.probes.session import Counters


def batch(*packet_ids: int) -> EventBatch:
    offset = {field.name: field.offset for field in EVENT_FIELDS}
    data = bytearray()
    for packet_id in packet_ids:
        record = bytearray(EVENT_SIZE)
        struct.pack_into("=IB", record, 0, EVENT_SIZE, RECORD_VERSION)
        struct.pack_into("=Q", record, offset["packet_id"], packet_id)
        data += record
    return EventBatch.from_bytes(bytes(data), Context(interface_names=FixedNames()))


def test_packets_are_told_apart_and_those_without_an_id_left_out() -> None:
    found = totals.Totals()
    found.add(batch(1, 2, 1, 0))
    found.add(batch(2, 3))
    assert (found.events, found.packets) == (6, 3)


def test_memory_for_packets_is_bounded_and_the_count_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "_REMEMBERED", 10)
    found = totals.Totals()
    for start in range(1, 1000, 5):
        found.add(batch(*range(start, start + 5)))
        assert len(found._packets) <= 15
    assert (found.events, found.packets) == (1000, 1000)


def test_the_first_events_of_a_batch() -> None:
    whole = batch(1, 2, 3)
    assert [event.packet_id for event in first(whole, 2)] == [1, 2]
    assert first(whole, 3) is whole


def test_loss_is_told_by_probe() -> None:
    stats = {
        "a": Counters(seen=1500, kept=300, lost_ring=1200),
        "b": Counters(seen=2, kept=1, lost_ring=1),
        "c": Counters(),
    }
    loss_text = partial(totals.loss_text, ring_bytes=16 << 20, backlog_bytes=256 << 20)
    text = loss_text(stats)
    assert text.startswith("LOST 1,201 events, the rings were full: a 1,200 of 1,500, b 1 of 2; ")
    assert text.endswith("use --backlog 1024M --ring-size 64M")
    small = totals.loss_text(stats, ring_bytes=1 << 16, backlog_bytes=0)
    assert small.endswith("use --backlog 256M --ring-size 256K")
    missed = loss_text({"a": Counters(missed=1)}, missed=3)
    assert missed == "MISSED 3 packets of the host, met while a probe was running on that CPU"
    for backend, advised in [(name, name != "fentry") for name in BACKENDS]:
        assert ("--backend fentry" in loss_text({}, missed=3, backend=backend)) == advised
    assert "LOST 1 kernel stack" in loss_text({"a": Counters(lost_stack=1)})
    assert loss_text({"a": Counters(seen=5, kept=5)}) == ""
    calls = {
        "a": Counters(seen=5, kept=5),
        "a returns": Counters(seen=3, kept=3),
        "b": Counters(seen=1, kept=1),
    }
    assert loss_text(calls) == "NO RETURN of 2 calls: under way at the end, or the kernel missed it"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 m 00 s"), (3599.9, "59 m 59 s"), (7500, "2 h 05 m")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert totals.duration_text(seconds) == text


@pytest.mark.parametrize(("bytes_", "text"), [(16 << 20, "64M"), (1 << 16, "256K"), (1 << 18, "1M")])
def test_larger_rings(bytes_: int, text: str) -> None:
    assert totals.larger(bytes_) == text
