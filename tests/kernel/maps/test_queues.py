"""QUEUE, STACK and BLOOM_FILTER: values without keys."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import BloomFilter, MapFull, Queue, Stack
from packet_tracer.bpf.maps.codecs import u32, u64
from tests.kernel.maps.support import covers, load_maps, raises_errno, run


@covers(MapType.QUEUE, MapType.STACK)
def test_a_program_moves_from_queue_to_stack() -> None:
    with load_maps("values", "move") as loaded:
        queue, stack = loaded.maps["queue"], loaded.maps["stack"]
        assert isinstance(queue, Queue)
        assert isinstance(stack, Stack)
        queue.push_many([1, 2, 3])
        assert [run(loaded.programs["move"]) for _ in range(4)] == [1, 2, 3, -1]
        assert stack.peek() == 6
        assert stack.drain() == [6, 4, 2]
        assert stack.pop() is None
        assert queue.pop() is None


@covers(MapType.QUEUE, MapType.STACK)
@pytest.mark.parametrize("kind", [Queue, Stack])
def test_a_full_one_says_so_or_drops_the_oldest(kind: type[Any]) -> None:
    with kind.create(value=u64, max_entries=2, name="few") as few:
        few.push_many([1, 2])
        error = raises_errno(MapFull, errno.E2BIG, lambda: few.push(3))
        assert "push of map few" in str(error)
        assert "2 entries at most" in str(error)
        few.push(3, replace_oldest=True)
        assert sorted(few.drain()) == [2, 3]
        assert not hasattr(few, "__iter__")
        assert not hasattr(few, "__delitem__")


@covers(MapType.QUEUE, MapType.STACK)
@pytest.mark.parametrize("kind", [Queue, Stack])
@given(steps=st.lists(st.one_of(st.none(), st.integers(0, 2**32 - 1)), max_size=40))
def test_they_are_what_a_deque_would_be(kind: type[Any], steps: list[int | None]) -> None:
    model: deque[int] = deque()
    take = model.popleft if kind is Queue else model.pop
    with kind.create(value=u32, max_entries=8) as held:
        for step in steps:
            if step is None:
                assert held.pop() == (take() if model else None)
            elif len(model) < 8:
                held.push(step)
                model.append(step)
            else:
                with pytest.raises(MapFull):
                    held.push(step)
            assert held.peek() == ((model[0] if kind is Queue else model[-1]) if model else None)


@covers(MapType.BLOOM_FILTER)
def test_a_filter_never_says_no_wrongly() -> None:
    with load_maps("bloom") as loaded:
        seen = loaded.maps["seen"]
        assert isinstance(seen, BloomFilter)
        assert seen.hashes == 3
        for value in range(0, 60, 2):
            seen.add(value)
            assert run(loaded.programs["add"], 1000 + value) == 0
        assert all(value in seen for value in [*range(0, 60, 2), *range(1000, 1060, 2)])
        assert all(run(loaded.programs["has"], value) for value in range(0, 60, 2))
        # As full as it was made for, it is wrong about one in eight (3 hashes); half would be broken.
        assert sum(value in seen for value in range(10**6, 10**6 + 1000)) < 500


@covers(MapType.BLOOM_FILTER)
def test_filters_take_1_to_15_hashes() -> None:
    with BloomFilter.create(value=u32, max_entries=10, hashes=15) as seen:
        assert seen.hashes == 15
        assert not hasattr(seen, "__iter__")
    raises_errno(MapError, errno.EINVAL, lambda: BloomFilter.create(value=u32, max_entries=10, hashes=16))
