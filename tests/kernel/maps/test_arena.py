"""ARENA: what a program writes into a page it allocated is there in user space."""

from __future__ import annotations

import errno
import mmap
from typing import Any

import pytest

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import Arena
from tests.kernel.loading import open_object
from tests.kernel.maps.support import covers, load_maps, raises_errno


@covers(MapType.ARENA)
def test_a_page_that_a_program_wrote() -> None:
    with open_object("maps_arena") as opened:
        if "arena" not in opened.maps:
            pytest.skip("the test program was not compiled: there is no clang 19 or newer (package clang-19)")
    with load_maps("arena") as loaded:
        arena: Any = loaded.maps["arena"]
        assert isinstance(arena, Arena)
        assert loaded.programs["write_page"].test_run().return_value == 0
        where: Any = loaded.maps[".bss"]
        with arena.memory() as memory:
            assert len(memory.view) == arena.size_bytes == 16 * mmap.PAGESIZE
            start = bytes(memory.view).index(b"cdab")
            # The program's pointer and ours differ in the upper half only.
            assert start == (where[0].offset - arena_base(arena)) & 0xFFFFFFFF
            memory.view[start + 1000] = 5
        with arena.memory() as again:
            assert again.view[start + 1000] == 5


def arena_base(arena: Arena) -> int:
    from packet_tracer.bpf._libbpf import ffi, lib

    return int(ffi.cast("uintptr_t", lib.bpf_map__initial_value(arena._libbpf, ffi.new("size_t *"))))


@covers(MapType.ARENA)
def test_it_is_mapped_once_and_has_no_elements() -> None:
    with Arena.create(pages=2) as arena:
        with arena.memory() as memory:
            memory.view[4096] = 7
            raises_errno(MapError, errno.EINVAL, lambda: arena.raw.lookup(b""))
            assert raises_errno(MapError, errno.EINVAL, arena.memory).operation == "mapping"
        assert not hasattr(arena, "__getitem__")
