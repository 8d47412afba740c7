"""Every type of map that the vendored header knows has a class and a functional test, none left out."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.features import probe_map_type
from packet_tracer.bpf.maps import Map, RawMap, Unsupported
from packet_tracer.bpf.maps.registry import CLASSES
from tests.kernel.loading import OBJECTS

HEADER = OBJECTS.parent / "libbpf" / "source" / "include" / "uapi" / "linux" / "bpf.h"

#: Of use only together with the program they were made for: bytes will do.
GENERIC = {"INSN_ARRAY", "RHASH"}


def header_types() -> dict[str, int]:
    """Return the values of enum bpf_map_type, old and new names of one value by the shorter."""
    (body,) = re.findall(r"enum bpf_map_type \{(.*?)\};", HEADER.read_text(), re.DOTALL)
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    names: dict[str, int] = {}
    value = -1
    for entry in filter(None, (part.strip() for part in body.split(","))):
        name, _, given = (part.strip() for part in entry.partition("="))
        value = names[given] if given else value + 1
        names[name] = value
    names = {name.removeprefix("BPF_MAP_TYPE_"): value for name, value in names.items()}
    return {
        name: value
        for name, value in names.items()
        if name != "UNSPEC" and not name.startswith("__") and not name.endswith("_DEPRECATED")
    }


def types_with_tests() -> dict[MapType, list[str]]:
    """Return which tests of this folder say that they test a type."""
    found: dict[MapType, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.kernel.maps.{path.stem}")
        for name, test in _tests(module):
            marks = getattr(test, "pytestmark", [])
            for mark in marks if isinstance(marks, list) else [marks]:
                for kind in getattr(mark, "args", ()) if mark.name == "map_types" else ():
                    found.setdefault(kind, []).append(f"{path.name}::{name}")
    return found


def _tests(module: ModuleType) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if name.lower().startswith("test")]


def test_the_header_is_what_the_enum_says() -> None:
    types = header_types()
    assert len(types) >= 34
    assert types == {kind.name: kind.value for kind in MapType if kind.name != "UNSPEC"}


@pytest.mark.parametrize("name", header_types())
def test_every_type_has_a_class_and_a_test(name: str) -> None:
    if name in GENERIC:
        return
    kind = MapType[name]
    assert kind in CLASSES, f"no class for {name}"
    assert kind == CLASSES[kind].TYPE
    assert types_with_tests().get(kind), f"no functional test for {name}"
    assert CLASSES[kind].__doc__
    text = CLASSES[kind].__doc__ or ""
    assert re.match(rf"{name}: ", text), "the docstring begins with the kernel's name"
    assert re.search(r"Linux \d+\.\d+", text), "the docstring says the minimum kernel"
    assert re.search(r"[Nn]eeds (no|an attached) program|[Oo]nly (useful|a program)|load_all", text), (
        "the docstring says whether a program is needed"
    )
    inherited = "".join(base.__doc__ or "" for base in CLASSES[kind].__mro__)
    assert "Thread safety" in inherited


def test_no_class_has_operations_that_its_type_lacks() -> None:
    """The operations that a kernel refuses for a type are not there to be called."""
    lacking = {
        "__delitem__": {"ARRAY", "PERCPU_ARRAY", "QUEUE", "STACK", "BLOOM_FILTER", "CGROUP_STORAGE", "ARENA"},
        "__setitem__": {"STACK_TRACE", "QUEUE", "STACK", "BLOOM_FILTER", "RINGBUF", "USER_RINGBUF", "ARENA"},
        "__getitem__": {"XSKMAP", "CGROUP_ARRAY", "PERF_EVENT_ARRAY", "QUEUE", "BLOOM_FILTER", "RINGBUF"},
        "__iter__": {"TASK_STORAGE", "SK_STORAGE", "INODE_STORAGE", "CGRP_STORAGE", "QUEUE", "BLOOM_FILTER"},
        "drain": {"ARRAY", "LPM_TRIE", "BLOOM_FILTER", "RINGBUF"},
        "lookup": {kind.name for kind in CLASSES},
    }
    for operation, names in lacking.items():
        for name in names:
            assert not hasattr(CLASSES[MapType[name]], operation), f"{name} has {operation}"


@pytest.mark.parametrize("name", sorted(GENERIC & header_types().keys()))
def test_types_without_a_class_are_bytes(name: str) -> None:
    kind = MapType[name]
    assert kind not in CLASSES
    feature = probe_map_type(kind)
    if feature.supported:
        with RawMap.create(kind, 4, 16, 4) as created, Map.from_id(created.id) as same:
            assert type(same) is RawMap
    else:
        with pytest.raises(Unsupported, match=f"this kernel has no {name.lower()} maps") as caught:
            RawMap.create(kind, 4, 16, 4)
        assert caught.value.errno == 524
