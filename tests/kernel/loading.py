"""What the loader's tests share: test objects, and what the kernel has of programs and links."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from packet_tracer.bpf._libbpf import lib
from packet_tracer.bpf.object import BpfObject, LoadedObject, OpenedObject

OBJECTS = Path(__file__).parents[2] / "build" / "tests"
SLOTS = ("tp_btf", "raw_tp", "xdp", "tc", "netfilter", "cgroup", "tracepoint")


def open_object(name: str) -> OpenedObject:
    """Open build/tests/NAME.bpf.o, which `build.py test` makes."""
    return BpfObject.open(OBJECTS / f"{name}.bpf.o")


def load(name: str, programs: Iterable[str], **constants: int | bytes) -> LoadedObject:
    """Load only the named programs of a test object."""
    wanted = set(programs)
    with open_object(name) as opened:
        for spec in opened.programs.values():
            spec.autoload = spec.name in wanted
        opened.set_rodata(**constants)
        with opened.prepare() as prepared:
            return prepared.load()


def counts(loaded: LoadedObject) -> dict[str, int]:
    """Return what the programs of loader.bpf.c counted."""
    table = loaded.maps["counts"].raw
    found = {}
    for index, name in enumerate(SLOTS):
        value = table.lookup(index.to_bytes(4, "little"))
        assert value is not None
        found[name] = int.from_bytes(value, "little")
    return found


def program_exists(program_id: int) -> bool:
    """Whether the kernel still has a program."""
    return _exists(lib.bpf_prog_get_fd_by_id(program_id))


def link_exists(link_id: int) -> bool:
    """Whether the kernel still has a link."""
    return _exists(lib.bpf_link_get_fd_by_id(link_id))


def map_exists(map_id: int) -> bool:
    """Whether the kernel still has a map."""
    return _exists(lib.bpf_map_get_fd_by_id(map_id))


def gone(exists: Callable[[int], bool], ids: Iterable[int]) -> bool:
    """Whether none exists any more, within two seconds: the kernel frees after a grace period."""
    wanted = list(ids)
    deadline = time.monotonic() + 2
    while any(map(exists, wanted)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _exists(fd: int) -> bool:

    if fd < 0:
        return False
    os.close(fd)
    return True
