"""ARRAY_OF_MAPS, HASH_OF_MAPS and PROG_ARRAY: maps and programs that programs find by index or key."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import Array, ArrayOfMaps, HashMap, HashOfMaps, MapFull, ProgramArray
from packet_tracer.bpf.maps.codecs import u16, u32, u64
from tests.kernel.maps.support import PACKET, covers, load_maps, raises_errno, run

XDP_DROP, XDP_PASS = 1, 2


@covers(MapType.ARRAY_OF_MAPS)
def test_a_program_reads_inner_arrays() -> None:
    with load_maps("objects", "read_by_index") as loaded, Array.create(value=u64, max_entries=2) as inner:
        outer: Any = loaded.maps["by_index"]
        assert isinstance(outer, ArrayOfMaps)
        read = loaded.programs["read_by_index"]
        inner[1] = 41
        assert run(read, 3, 1) == -1
        outer[3] = inner
        assert run(read, 3, 1) == 41
        assert inner[1] == 42  # the program counted its visit
        with outer[3] as same:
            assert isinstance(same, Array)
            assert same.id == inner.id
            assert same[1] == (42).to_bytes(8, "little")  # no BTF says that it is a number
        assert (list(outer), outer.filled(), 3 in outer, 2 in outer) == ([3], {3: inner.id}, True, False)
        del outer[3]
        assert run(read, 3, 1) == -1
        with pytest.raises(KeyError):
            outer[3]
        with pytest.raises(IndexError):
            outer[4] = inner


@covers(MapType.ARRAY_OF_MAPS)
def test_inner_arrays_must_be_like_the_template() -> None:
    with (
        Array.create(value=u64, max_entries=2) as template,
        Array.create(value=u64, max_entries=3) as longer,
        HashMap.create(key=u32, value=u64, max_entries=2) as other,
        ArrayOfMaps.create(template=template, max_entries=2) as outer,
    ):
        for unlike in (longer, other):
            raises_errno(MapError, errno.EINVAL, lambda unlike=unlike: outer.__setitem__(0, unlike))


@covers(MapType.HASH_OF_MAPS)
def test_a_program_reads_inner_hashes() -> None:
    with (
        load_maps("objects", "read_by_key") as loaded,
        HashMap.create(key=u32, value=u64, max_entries=8) as inner,
    ):
        outer: Any = loaded.maps["by_key"]
        assert isinstance(outer, HashOfMaps)
        read = loaded.programs["read_by_key"]
        inner[5] = 41
        assert run(read, 443, 5) == -1
        outer[443] = inner
        assert run(read, 443, 5) == 41
        assert inner[5] == 42
        assert outer.ids() == {443: inner.id}
        assert (list(outer), len(outer), 443 in outer, 80 in outer) == ([443], 1, True, False)
        del outer[443]
        assert run(read, 443, 5) == -1
        with pytest.raises(KeyError):
            outer[443]


@covers(MapType.HASH_OF_MAPS)
def test_inner_maps_are_opened_with_codecs_of_one_s_own() -> None:
    with HashMap.create(key=u32, value=u16, max_entries=8) as inner:
        opener = lambda fd: HashMap(fd, u32, u16)  # noqa: E731
        with HashOfMaps.create(key=u16, template=inner, max_entries=2, inner=opener) as outer:
            inner[1] = 9
            outer[7] = inner
            with outer[7] as same:
                assert dict(same.items()) == {1: 9}
            outer[8] = inner
            raises_errno(MapFull, errno.E2BIG, lambda: outer.__setitem__(9, inner))


@covers(MapType.PROG_ARRAY)
def test_a_tail_call_goes_where_the_slot_says() -> None:
    with load_maps("objects", "jump", "landing", "emit") as loaded:
        targets: Any = loaded.maps["targets"]
        assert isinstance(targets, ProgramArray)
        jump, landing = loaded.programs["jump"], loaded.programs["landing"]
        assert jump.test_run(PACKET).return_value == XDP_PASS
        targets[3] = landing
        assert jump.test_run(PACKET).return_value == XDP_DROP
        assert targets[3] == landing.id
        assert targets.filled() == {3: landing.id}
        with targets.program(3) as same:
            assert same.name == "landing"
        raises_errno(MapError, errno.EINVAL, lambda: targets.__setitem__(0, loaded.programs["emit"]))
        del targets[3]
        assert jump.test_run(PACKET).return_value == XDP_PASS
        with pytest.raises(KeyError):
            targets[3]
        with pytest.raises(KeyError):
            del targets[3]
