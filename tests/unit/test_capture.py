"""The Tracer without a kernel: what it makes of its arguments, and how it hands out what a reader gives."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packet_tracer import netns as namespaces
from packet_tracer.bpf.ring import RecordBatch
from packet_tracer.capture import Tracer
from packet_tracer.errors import UsageError
from packet_tracer.events import Context, Event, FixedNames
from packet_tracer.events._layout import EVENT_FIELDS, EVENT_SIZE, RECORD_VERSION
from packet_tracer.netns import Netns
from packet_tracer.probes.setup import Counters, ring_size

AT = {field.name: field.offset for field in EVENT_FIELDS}
ONE, TWO = Netns(101, "/run/netns/one", "one"), Netns(102, "/run/netns/two", "two")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with two namespaces beside the caller's, each with interfaces of its own."""
    here = Netns(100, "/proc/self/ns/net")
    there = {
        100: {1: "lo", 2: "eth0"},
        101: {1: "lo", 2: "eth0", 3: "eth1"},
        102: {1: "lo", 2: "eth1"},
    }
    monkeypatch.setattr(namespaces, "current", lambda: here)
    monkeypatch.setattr(
        namespaces, "resolve", {"one": ONE, "two": TWO, "all": None, "also-one": ONE}.__getitem__
    )
    monkeypatch.setattr(namespaces, "interfaces", lambda netns=None: there[(netns or here).inode])


def predicates(**arguments: Any) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    found = Tracer(**arguments)._predicates
    return found.netns, found.interfaces


@pytest.mark.parametrize(
    ("arguments", "netns", "interfaces"),
    [
        ({}, (), ()),
        ({"interface": "any"}, (), ()),
        ({"interface": "eth0"}, (100,), ((100, 2),)),
        ({"interface": ["eth0", "lo"]}, (100,), ((100, 2), (100, 1))),
        ({"netns": "one"}, (101,), ()),
        ({"netns": ["two", "one", "also-one"]}, (101, 102), ()),
        ({"netns": "all"}, (), ()),
        ({"netns": ["one", "all"]}, (), ()),
        ({"netns": "one", "interface": "eth1"}, (101,), ((101, 3),)),
        ({"netns": ["one", "two"], "interface": "eth1"}, (101, 102), ((101, 3), (102, 2))),
        ({"netns": ["one", "two"], "interface": "eth0"}, (101, 102), ((101, 2),)),
    ],
    ids=str,
)
def test_which_packets(
    arguments: dict[str, Any], netns: tuple[int, ...], interfaces: tuple[tuple[int, int], ...]
) -> None:
    assert predicates(**arguments) == (netns, interfaces)


@pytest.mark.parametrize(
    ("mark", "expected"),
    [(None, (0, 0)), (0, (0, 0xFFFFFFFF)), (7, (7, 0xFFFFFFFF)), ((7, 3), (3, 3)), ((8, 7), (0, 7))],
)
def test_marks(mark: int | tuple[int, int] | None, expected: tuple[int, int]) -> None:
    rodata = Tracer(mark=mark)._predicates.rodata()
    assert (rodata["filter_mark"], rodata["filter_mark_mask"]) == expected


def test_probes_of_interfaces_need_one() -> None:
    with pytest.raises(UsageError, match="probe xdp is attached to an interface: name one with -i"):
        Tracer(probes="xdp")
    tracer = Tracer(probes=["xdp", "tc:*"], netns=["one", "two"], interface="eth1")
    assert [(point.netns.name, point.ifindex, point.name) for point in tracer._setup.points] == [
        ("one", 3, "eth1"),
        ("two", 2, "eth1"),
    ]


def test_no_such_interface_lists_those_there_are() -> None:
    with pytest.raises(UsageError, match="no interface 'eth2' in network namespace one; there are: eth0, "):
        Tracer(netns="one", interface="eth2")


def test_too_many_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {index: f"eth{index}" for index in range(1, 40)}
    monkeypatch.setattr(namespaces, "interfaces", lambda netns=None: many)
    Tracer(interface=list(many.values())[:32])
    with pytest.raises(UsageError, match="33 interfaces given, at most 32"):
        Tracer(interface=list(many.values())[:33])


def test_too_many_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "resolve", lambda name: Netns(int(name), f"/{name}", name))
    Tracer(netns=[str(number) for number in range(16)])
    with pytest.raises(UsageError, match="17 network namespaces given, at most 16"):
        Tracer(netns=[str(number) for number in range(17)])


@given(total=st.integers(0, 1 << 34), rings=st.integers(0, 512))
def test_rings_are_powers_of_two_that_share_what_was_asked_for(total: int, rings: int) -> None:
    size = ring_size(total, rings)
    assert size >= 1 << 16
    assert size & (size - 1) == 0
    share = total // max(rings, 1)
    assert size <= max(share, 1 << 16) < 2 * size


# Handing out


CONTEXT = Context(interface_names=FixedNames())


class Session:
    """In the place of a ProbeSession."""

    detached = False

    def detach(self) -> None:
        self.detached = True

    def counters(self) -> dict[int, Counters]:
        return {}

    def missed_by_functions(self) -> int:
        return 7

    def close(self) -> None:
        self.detached = True


class Rings:
    """In the place of a RingBuffer: batches of so many events, one at each read, and a rest when flushed."""

    def __init__(self, batches: list[int], rest: list[int] | None = None) -> None:
        self.number = 0
        self._batches = iter(batches)
        self._rest = iter(rest or [])
        self.closed = False

    def _batch(self, count: int) -> RecordBatch:
        head, records = bytearray(EVENT_SIZE), []
        struct.pack_into("=IB", head, AT["size"], EVENT_SIZE, RECORD_VERSION)
        for _ in range(count):
            self.number += 1
            struct.pack_into("=Q", head, AT["timestamp_ns"], self.number)
            records.append(bytes(head))
        offsets = memoryview(b"".join((EVENT_SIZE * at).to_bytes(4, "little") for at in range(count)))
        sizes = memoryview(EVENT_SIZE.to_bytes(4, "little") * count)
        return RecordBatch(memoryview(b"".join(records)), offsets.cast("I"), sizes.cast("I"))

    def read(self, timeout: float | None = None) -> RecordBatch:
        count = next(self._batches, 0)
        if not count and timeout:
            time.sleep(timeout)
        return self._batch(count)

    def flush(self) -> RecordBatch:
        return self._batch(next(self._batches, 0) or next(self._rest, 0))

    def fileno(self) -> int:
        return 0

    def wake(self) -> None:
        """Nobody waits longer than a test."""

    def close(self) -> None:
        self.closed = True


def tracing(batches: list[int], rest: list[int] | None = None) -> Tracer:
    """Return a tracer that has been started with such a reader."""
    tracer = Tracer()
    tracer._session = Session()  # type: ignore[assignment]
    tracer._ring = Rings(batches, rest)  # type: ignore[assignment]
    tracer._context = CONTEXT
    return tracer


def numbers(events: Iterator[Event]) -> list[int]:
    return [event.monotonic_ns for event in events]


@settings(max_examples=50)
@given(
    batches=st.lists(st.integers(1, 200), max_size=5),
    rest=st.lists(st.integers(1, 50), max_size=3),
    limits=st.lists(st.integers(0, 150), max_size=8),
)
def test_however_they_are_taken_each_comes_once_and_in_order(
    batches: list[int], rest: list[int], limits: list[int]
) -> None:
    tracer = tracing(batches, rest)
    taken: list[int] = []
    for limit in limits:
        some = numbers(tracer.events(limit=limit, timeout=0))
        assert len(some) <= limit
        taken += some
    tracer.stop()
    taken += numbers(tracer.events())
    assert taken == list(range(1, sum(batches) + sum(rest) + 1))
    assert tracer._session.detached  # type: ignore[union-attr]
    assert numbers(tracer.events()) == []


def test_a_loop_that_is_left_leaves_the_rest() -> None:
    tracer = tracing([5, 3])
    for event in tracer:
        if event.monotonic_ns == 2:
            break
    assert numbers(tracer.events(limit=4)) == [3, 4, 5, 6]
    assert numbers(tracer.events(timeout=0)) == [7, 8]


@pytest.mark.parametrize("timeout", [0.0, 0.05, 0.2])
def test_timeout(timeout: float) -> None:
    tracer = tracing([])
    started = time.monotonic()
    assert numbers(tracer.events(timeout=timeout)) == []
    assert list(tracer.batches(timeout=timeout)) == []
    assert 2 * timeout <= time.monotonic() - started < 2 * timeout + 0.5


def test_timeout_within_a_batch() -> None:
    """A reader that takes its time does not have to take all of the batch."""
    tracer = tracing([10_000])
    started = time.monotonic()
    taken = []
    for event in tracer.events(timeout=0.1):
        taken.append(event.monotonic_ns)
        time.sleep(0.001)
    assert 0.1 <= time.monotonic() - started < 1
    assert 0 < len(taken) < 2000
    assert numbers(tracer.events(limit=1)) == [len(taken) + 1]


def test_stop_ends_a_wait() -> None:
    tracer = tracing([], [2])
    threading.Timer(0.05, tracer.stop).start()
    started = time.monotonic()
    assert numbers(tracer.events()) == [1, 2]
    assert time.monotonic() - started < 1


def test_closing() -> None:
    tracer = tracing([4])
    ring = tracer._ring
    assert numbers(tracer.events(limit=1)) == [1]
    tracer.close()
    tracer.close()
    assert ring.closed  # type: ignore[union-attr]
    for use in (tracer.events, tracer.batches):
        with pytest.raises(ValueError, match="the tracer is closed"):
            next(use())
    assert tracer.stats()["kfree_skb"] == Counters()
    assert tracer.missed() == 7


def test_a_failure_while_detaching_still_gives_back_the_memory() -> None:
    tracer = tracing([])
    ring = tracer._ring

    def fail() -> None:
        raise OSError("on purpose")

    tracer._session.detach = fail  # type: ignore[union-attr, method-assign]
    with pytest.raises(OSError, match="on purpose"):
        tracer.close()
    assert ring.closed  # type: ignore[union-attr]


def test_a_stop_wakes_who_waits() -> None:
    tracer = tracing([])
    woken: list[bool] = []
    tracer._ring.wake = lambda: woken.append(tracer.stopped)  # type: ignore[union-attr, method-assign]
    tracer.stop()
    assert woken == [True]
