"""HASH, LRU_HASH and their per-CPU forms: both ways, batches, snapshots, and a dict as the model."""

from __future__ import annotations

import errno
import threading
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from packet_tracer.bpf._libbpf import lib
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.library import possible_cpus
from packet_tracer.bpf.maps import (
    CodecError,
    HashMap,
    IterationAborted,
    LruHashMap,
    LruPerCpuHashMap,
    MapFull,
    PerCpuHashMap,
    PerCpuValues,
    batch,
)
from packet_tracer.bpf.maps.codecs import Bytes, u16, u32, u64
from packet_tracer.errors import ENOTSUPP
from tests.kernel.maps.support import covers, load_maps, on_cpu, raises_errno, run, two_cpus


@covers(MapType.HASH, MapType.LRU_HASH)
@pytest.mark.parametrize(("name", "kind"), [("table", HashMap), ("recent", LruHashMap)])
def test_hash_both_ways(name: str, kind: type[Any]) -> None:
    with load_maps("values", f"add_{name}") as loaded:
        table, add = loaded.maps[name], loaded.programs[f"add_{name}"]
        assert isinstance(table, kind)
        table[80] = 40
        assert run(add, 80, 2) == 42
        assert run(add, 443, 5) == 5
        assert dict(table.items()) == {80: 42, 443: 5}
        del table[80]
        assert run(add, 80, 1) == 1


@covers(MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH)
@pytest.mark.parametrize(("name", "kind"), [("cpu_table", PerCpuHashMap), ("cpu_recent", LruPerCpuHashMap)])
def test_percpu_hash_both_ways_and_cpus_differ(name: str, kind: type[Any]) -> None:
    with load_maps("values", f"add_{name}") as loaded:
        table, add = loaded.maps[name], loaded.programs[f"add_{name}"]
        assert isinstance(table, kind)
        table[80] = PerCpuValues.same(100)
        first, second = two_cpus()
        for cpu, amount in ((first, 7), (second, 20)):
            with on_cpu(cpu):
                assert run(add, 80, amount) == 100 + amount
        assert (table[80][first], table[80][second]) == (107, 120)
        assert table.totals() == {80: 100 * possible_cpus() + 27}


@covers(MapType.HASH)
def test_missing_keys_and_a_full_map() -> None:
    with HashMap.create(key=u32, value=u64, max_entries=4, name="small") as table:
        for action in (lambda: table[1], lambda: table.pop(1), lambda: table.__delitem__(1)):
            with pytest.raises(KeyError) as missing:
                action()
            assert missing.value.args == (1,)
        assert table.get(1) is None
        assert table.get(1, 5) == 5
        assert table.pop(1, None) is None
        assert 1 not in table
        table.update_many((n, n) for n in range(4))
        error = raises_errno(MapFull, errno.E2BIG, lambda: table.__setitem__(9, 9))
        assert str(error) == (
            "update of map small (hash) failed: E2BIG: Argument list too long: it holds 4 entries at most"
        )
        assert (error.operation, error.map, error.map_type) == ("update", "small", "hash")
        error = raises_errno(MapFull, errno.E2BIG, lambda: table.update_many({1: 10, 9: 9, 2: 20}))
        assert "after 1 of 3 elements" in str(error)
        assert dict(table.items()) == {0: 0, 1: 10, 2: 2, 3: 3}


@covers(MapType.HASH)
def test_insert_replace_setdefault() -> None:
    with HashMap.create(key=u32, value=u64, max_entries=4) as table:
        assert table.insert(1, 10)
        assert not table.insert(1, 11)
        assert table.setdefault(1, 12) == 10
        assert table.setdefault(2, 20) == 20
        table.replace(2, 21)
        with pytest.raises(KeyError):
            table.replace(3, 30)
        assert table == {1: 10, 2: 21}


@covers(MapType.HASH)
def test_sizes_are_checked_when_a_map_is_opened() -> None:
    with HashMap.create(key=u32, value=u64, max_entries=4, name="sized") as table:
        with pytest.raises(CodecError, match="map sized is 4 bytes, an unsigned 16-bit integer is 2"):
            HashMap.from_map(table, key=u16, value=u64)
        with pytest.raises(CodecError, match="a value of map sized is 8 bytes"):
            HashMap.from_map(table, key=u32, value=u16)
        with HashMap.from_map(table, key=Bytes(4), value=u64) as other:
            other[b"\1\0\0\0"] = 5
        assert table[1] == 5
        with pytest.raises(CodecError, match="is not an unsigned 32-bit integer"):
            table[-1]


@covers(MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)
@pytest.mark.parametrize("kind", [LruHashMap, LruPerCpuHashMap])
@pytest.mark.parametrize("common", [True, False])
def test_lru_makes_room(kind: type[Any], common: bool) -> None:
    value = PerCpuValues.same if kind is LruPerCpuHashMap else int
    with kind.create(key=u32, value=u64, max_entries=128, common_lru=common) as recent:
        for number in range(1000):
            recent[number] = value(number)
        assert recent[999] == value(999)
        # Eviction is approximate, and per CPU where the list is; the newest is never its victim.
        assert 0 < len(recent) <= 128


@covers(MapType.HASH, MapType.PERCPU_HASH)
@pytest.mark.parametrize("preallocate", [True, False])
@pytest.mark.parametrize("kind", [HashMap, PerCpuHashMap])
def test_bulk_operations_over_several_batches(
    kind: Any, preallocate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_BUFFER_BYTES", 4096)  # many batches, and buckets that do not fit at first
    monkeypatch.setattr(batch, "_FEWEST", 1)
    value = PerCpuValues.same if kind is PerCpuHashMap else int
    wanted = {n: value(n * n) for n in range(5000)}
    with kind.create(key=u32, value=u64, max_entries=8192, preallocate=preallocate) as table:
        table.update_many(wanted)
        assert dict(table.items()) == wanted
        assert sorted(table) == sorted(wanted)
        assert sorted(table.values()) == sorted(wanted.values())
        assert len(table) == 5000
        # Keys that are not there are passed over, whatever their place.
        assert table.delete_many([9999, 1, 2, 8888, 3, 7777]) == 3
        drained = dict(table.drain())
        assert drained == {n: v for n, v in wanted.items() if n not in (1, 2, 3)}
        assert len(table) == 0
        assert table.drain() == []


@covers(MapType.HASH)
def test_without_batches_it_goes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before 5.6 answer EINVAL to batch commands, types without them ENOTSUPP."""
    calls = []
    for number, name in enumerate(("lookup", "lookup_and_delete", "update", "delete")):
        answer = -errno.EINVAL if number % 2 else -ENOTSUPP
        refuse = _refusing(calls, name, answer)
        monkeypatch.setattr(batch, "lib", _Patched(batch.lib, f"bpf_map_{name}_batch", refuse))
    with HashMap.create(key=u32, value=u64, max_entries=64) as table:
        table.update_many({n: n for n in range(50)})
        assert dict(table.items()) == {n: n for n in range(50)}
        assert table.delete_many([1, 2, 99]) == 2
        assert len(table.drain()) == 48
        assert len(table) == 0
    assert set(calls) == {"lookup", "lookup_and_delete", "update", "delete"}


class _Patched:
    """A module with one function replaced."""

    def __init__(self, inner: Any, name: str, function: Any) -> None:
        self._inner = inner
        self.__dict__[name] = function

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _refusing(calls: list[str], name: str, answer: int) -> Any:
    def refuse(*_: Any) -> int:
        calls.append(name)
        return answer

    return refuse


@covers(MapType.HASH)
def test_iteration_ends_while_the_map_is_changed() -> None:
    """A thread deletes and adds while others walk; every snapshot ends, with only keys that there were."""
    stop = threading.Event()
    with HashMap.create(key=u32, value=u64, max_entries=4096) as table:
        table.update_many((n, n) for n in range(2000))

        def churn() -> None:
            turn = 0
            while not stop.is_set():
                table.delete_many(range(turn % 2000, turn % 2000 + 50))
                table.update_many((n, n) for n in range(turn % 2000, turn % 2000 + 50))
                turn += 50

        worker = threading.Thread(target=churn)
        worker.start()
        try:
            for _ in range(20):
                items = list(table.items())
                assert all(key == value for key, value in items)
                assert 1900 <= len({key for key, _ in items}) <= 2050
                # Element by element a cursor can be lost again and again: then it must say so.
                with suppress(IterationAborted):
                    assert len(table._walk()) <= 2050
        finally:
            stop.set()
            worker.join()


@covers(MapType.HASH)
def test_iteration_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import packet_tracer.bpf.maps.keyed as keyed

    with HashMap.create(key=u32, value=u64, max_entries=4) as table:
        table.update_many({1: 1, 2: 2})
        monkeypatch.setattr(
            keyed, "lib", _Patched(lib, "bpf_map_get_next_key", lambda fd, key, out: _first_key(fd, out))
        )
        monkeypatch.setattr(batch, "lib", _Patched(batch.lib, "bpf_map_lookup_batch", lambda *_: -ENOTSUPP))
        with pytest.raises(IterationAborted, match="changes faster than it can be read") as caught:
            list(table.items())
        assert len(caught.value.partial) == 1


def _first_key(fd: int, out: Any) -> int:
    from packet_tracer.bpf._libbpf import ffi

    return lib.bpf_map_get_next_key(fd, ffi.NULL, out)


@covers(MapType.HASH)
def test_deleting_while_iterating_over_one_s_own_map() -> None:
    with HashMap.create(key=u32, value=u64, max_entries=256) as table:
        table.update_many((n, n) for n in range(200))
        for key, value in table.items():
            if value % 2:
                del table[key]
        assert sorted(table) == list(range(0, 200, 2))
        for key in table:
            del table[key]
        assert len(table) == 0
        table.update_many((n, n) for n in range(200))
        table.clear()
        assert len(table) == 0


class DictModel(RuleBasedStateMachine):
    """Whatever is done to a hash map and to a dict leaves both the same."""

    keys = st.integers(0, 12)
    values = st.integers(0, 2**64 - 1)

    def __init__(self) -> None:
        super().__init__()
        self.table = HashMap.create(key=u32, value=u64, max_entries=13)
        self.model: dict[int, int] = {}

    def teardown(self) -> None:
        self.table.close()

    @rule(key=keys, value=values)
    def put(self, key: int, value: int) -> None:
        self.table[key] = self.model[key] = value

    @rule(key=keys)
    def remove(self, key: int) -> None:
        assert self.table.pop(key, None) == self.model.pop(key, None)

    @rule(key=keys, value=values)
    def insert(self, key: int, value: int) -> None:
        assert self.table.insert(key, value) == (key not in self.model)
        self.model.setdefault(key, value)

    @rule(changes=st.dictionaries(keys, values))
    def put_many(self, changes: dict[int, int]) -> None:
        self.table.update_many(changes)
        self.model |= changes

    @rule(gone=st.lists(keys, unique=True))
    def remove_many(self, gone: list[int]) -> None:
        assert self.table.delete_many(gone) == len(self.model.keys() & set(gone))
        for key in gone:
            self.model.pop(key, None)

    @rule()
    def drain(self) -> None:
        assert dict(self.table.drain()) == self.model
        self.model.clear()

    @rule(odd=st.booleans())
    def delete_while_iterating(self, odd: bool) -> None:
        for key in self.table:
            if key % 2 == odd:
                del self.table[key]
        self.model = {key: value for key, value in self.model.items() if key % 2 != odd}

    @rule(key=keys)
    def look(self, key: int) -> None:
        assert self.table.get(key) == self.model.get(key)
        assert (key in self.table) == (key in self.model)

    @invariant()
    def same(self) -> None:
        assert dict(self.table.items()) == self.model
        assert len(self.table) == len(self.model)


TestDictModel = DictModel.TestCase
TestDictModel.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestDictModel.pytestmark = [covers(MapType.HASH)]


@covers(MapType.PERCPU_HASH)
@given(st.dictionaries(st.integers(0, 99), st.integers(0, 2**30), max_size=20))
def test_totals_are_sums(model: dict[int, int]) -> None:
    with PerCpuHashMap.create(key=u32, value=u64, max_entries=32) as table:
        table.update_many({key: PerCpuValues.same(value) for key, value in model.items()})
        assert table.totals() == {key: value * possible_cpus() for key, value in model.items()}
