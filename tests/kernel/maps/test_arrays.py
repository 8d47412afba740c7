"""ARRAY and PERCPU_ARRAY: what a program writes is read here and the reverse; CPUs differ."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.library import possible_cpus
from packet_tracer.bpf.maps import Array, CodecError, PerCpuArray, PerCpuValues
from packet_tracer.bpf.maps.codecs import u8, u16, u32, u64
from tests.kernel.maps.support import covers, load_maps, on_cpu, raises_errno, run, two_cpus


@covers(MapType.ARRAY)
def test_array_both_ways() -> None:
    with load_maps("values", "add_numbers") as loaded:
        numbers = loaded.maps["numbers"]
        assert isinstance(numbers, Array)
        numbers[3] = 40
        assert run(loaded.programs["add_numbers"], 3, 2) == 42
        assert numbers[3] == 42
        assert list(numbers) == [0, 0, 0, 42, 0, 0, 0, 0]
        assert numbers[-5] == 42
        assert numbers[2:5] == [0, 42, 0]
        assert len(numbers) == 8


@covers(MapType.PERCPU_ARRAY)
def test_percpu_array_both_ways_and_cpus_differ() -> None:
    with load_maps("values", "add_cpu_numbers") as loaded:
        numbers = loaded.maps["cpu_numbers"]
        assert isinstance(numbers, PerCpuArray)
        numbers[1] = PerCpuValues.same(100)
        amounts = dict(zip(two_cpus(), (7, 20), strict=True))
        for cpu, amount in amounts.items():
            with on_cpu(cpu):
                assert run(loaded.programs["add_cpu_numbers"], 1, amount) == 100 + amount
        values = numbers[1]
        assert [values[cpu] for cpu in amounts] == [107, 120]
        assert len(values) == possible_cpus()
        assert values.sum() == 100 * possible_cpus() + 27
        assert numbers.totals() == [0, values.sum(), 0, 0, 0, 0, 0, 0]


@covers(MapType.ARRAY)
def test_array_range_is_an_index_error() -> None:
    with Array.create(value=u64, max_entries=2) as numbers:
        for index in (2, -3):
            with pytest.raises(IndexError, match="which has 2"):
                numbers[index]
            with pytest.raises(IndexError):
                numbers[index] = 1
        assert not hasattr(numbers, "__delitem__")


@covers(MapType.ARRAY)
def test_mapped_array_is_shared_both_ways() -> None:
    with Array.create(value=u16, max_entries=4, mmapable=True) as numbers:
        with numbers.memory() as memory:
            memory.view[8:10] = (513).to_bytes(2, "little")
            assert numbers[1] == 513
            numbers[2] = 7
            assert memory.view[16] == 7
            error = raises_errno(MapError, errno.EBUSY, numbers.freeze)
            assert "freezing of map" in str(error)
        numbers.freeze()
        assert numbers.info().frozen
        raises_errno(MapError, errno.EPERM, lambda: numbers.__setitem__(0, 1))
        raises_errno(MapError, errno.EPERM, numbers.memory)
        with numbers.memory(writable=False) as memory:
            assert memory.view[16] == 7
    with Array.create(value=u16, max_entries=4) as plain:
        raises_errno(MapError, errno.EINVAL, plain.memory)


@covers(MapType.PERCPU_ARRAY)
def test_values_that_are_not_multiples_of_eight() -> None:
    with PerCpuArray.create(value=u8, max_entries=3) as small:
        small.update_many({0: PerCpuValues.same(1), 2: list(range(possible_cpus()))})
        assert list(small) == [
            (1,) * possible_cpus(),
            (0,) * possible_cpus(),
            tuple(range(possible_cpus())),
        ]
        with pytest.raises(CodecError, match="one value for each of"):
            small[0] = [1] * (possible_cpus() + 1)


@covers(MapType.ARRAY)
@given(st.dictionaries(st.integers(0, 15), st.integers(0, 2**32 - 1)))
def test_array_is_what_a_list_would_be(changes: dict[int, int]) -> None:
    model = [0] * 16
    with Array.create(value=u32, max_entries=16) as numbers:
        numbers.update_many(changes)
        for index, value in changes.items():
            model[index] = value
        assert list(numbers) == model
        assert numbers[::-3] == model[::-3]
        assert all((value in numbers) == (value in model) for value in changes.values())
