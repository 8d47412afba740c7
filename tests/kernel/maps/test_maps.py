"""What all maps share: ids, pins, freezing, information, errors; and types from BTF."""

from __future__ import annotations

import ctypes
import errno
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any

import pytest

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import (
    Array,
    HashMap,
    Map,
    MapFull,
    MapTypeError,
    PerCpuHashMap,
    Queue,
    RawMap,
    Unsupported,
)
from packet_tracer.bpf.maps.codecs import StructFormat, u16, u32, u64
from packet_tracer.errors import ENOTSUPP, EXIT_NOT_SUPPORTED
from tests.kernel.loading import gone, map_exists
from tests.kernel.maps.support import covers, load_maps, raises_errno, run


@pytest.fixture(scope="module")
def pins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A BPF file system of our own."""
    path = tmp_path_factory.mktemp("bpf")
    subprocess.run(["mount", "-t", "bpf", "bpf", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_map_is_opened_as_the_class_of_its_type() -> None:
    with Queue.create(value=u32, max_entries=2, name="line") as queue:
        queue.push(5)
        with Map.from_id(queue.id) as same, Map.from_id(queue.id, value=u32) as typed:
            assert type(same) is type(typed) is Queue
            assert same.peek() == (5).to_bytes(4, "little")
            assert typed.peek() == 5
        with pytest.raises(MapTypeError, match="map line is a queue, not a hash"):
            HashMap.from_id(queue.id)
        with pytest.raises(TypeError, match="key"):
            Queue.from_id(queue.id, key=u32)
    with pytest.raises(ValueError, match="closed"):
        queue.pop()


def test_descriptors_do_not_leak() -> None:
    with Queue.create(value=u32, max_entries=2) as queue:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for kind, codecs in ((HashMap, {}), (Queue, {"key": u32}), (Queue, {"value": u64}), (Map, {"x": 1})):
            with pytest.raises((TypeError, ValueError)):
                kind.from_id(queue.id, **codecs)
        Map.from_map(queue).close()
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_ids_that_are_not_there() -> None:
    with HashMap.create(key=u32, value=u32, max_entries=1) as table:
        number = table.id
    assert gone(map_exists, [number])
    raises_errno(MapError, errno.ENOENT, lambda: Map.from_id(number))


def test_pins_keep_a_map_and_tell_its_type(pins: Path) -> None:
    with HashMap.create(key=u32, value=u64, max_entries=8, name="kept") as table:
        table[1] = 2
        number = table.id
        table.pin(pins / "kept")
        raises_errno(MapError, errno.EEXIST, lambda: table.pin(pins / "kept"))
    with HashMap.from_pin(pins / "kept", key=u32, value=u64) as same:
        assert same.id == number
        assert same[1] == 2
    with Map.from_pin(pins / "kept") as untyped:
        assert isinstance(untyped, HashMap)
    Map.unpin(pins / "kept")
    assert gone(map_exists, [number])
    raises_errno(MapError, errno.ENOENT, lambda: Map.from_pin(pins / "kept"))


def test_pinning_needs_a_bpf_file_system(tmp_path: Path) -> None:
    with Array.create(value=u32, max_entries=1) as numbers:
        raises_errno(MapError, errno.EPERM, lambda: numbers.pin(tmp_path / "pin"))


def test_frozen_maps_are_written_by_programs_only() -> None:
    with load_maps("values", "add_table") as loaded:
        table: Any = loaded.maps["table"]
        table[1] = 1
        assert not table.info().frozen
        table.freeze()
        assert table.info().frozen
        raises_errno(MapError, errno.EPERM, lambda: table.__setitem__(1, 2))
        raises_errno(MapError, errno.EPERM, lambda: table.__delitem__(1))
        with pytest.raises(MapError) as twice:  # newer kernels check the right to write first
            table.freeze()
        assert twice.value.errno in (errno.EBUSY, errno.EPERM)
        assert run(loaded.programs["add_table"], 1, 5) == 6
        assert table[1] == 6


def test_information() -> None:
    with PerCpuHashMap.create(key=u32, value=u64, max_entries=64, name="told", preallocate=False) as table:
        info = table.info()
        assert (info.id, info.name, info.type) == (table.id, "told", "percpu_hash")
        assert (info.key_size, info.value_size, info.max_entries, info.flags) == (4, 8, 64, 1)
        assert info.memory_bytes is not None
        assert info.memory_bytes > 0
    with Array.create(value=u64, max_entries=1000) as numbers:
        assert (numbers.info().memory_bytes or 0) >= 8000


def test_errors_say_operation_map_and_type() -> None:
    with Array.create(value=u32, max_entries=1, name="fixed") as numbers:
        error = raises_errno(Unsupported, ENOTSUPP, lambda: numbers.raw.lookup_and_delete(bytes(4)))
        assert str(error) == (
            "lookup and delete of map fixed (array) failed: ENOTSUPP: operation not supported by this kernel:"
            " array maps do not have it on this kernel"
        )
        assert error.exit_code == EXIT_NOT_SUPPORTED
        raises_errno(MapError, errno.EINVAL, lambda: numbers.raw.delete(bytes(4)))
        raises_errno(MapError, errno.E2BIG, lambda: numbers.raw.update((1).to_bytes(4, "little"), bytes(4)))
    assert issubclass(MapFull, MapError)


def test_raw_views_borrow_the_descriptor() -> None:
    table = HashMap.create(key=u32, value=u32, max_entries=4)
    view = table.raw
    assert type(view).__mro__[1] is RawMap
    assert view.fd == table.fd
    view.close()
    view.update(bytes(4), b"abcd")
    assert list(view.items()) == [(bytes(4), b"abcd")]
    table.close()
    with pytest.raises(ValueError, match="closed"):
        view.lookup(bytes(4))


class CPair(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint32), ("high", ctypes.c_uint16))


@dataclass(unsafe_hash=True)
class Pair:
    address: IPv4Address
    port: Annotated[int, u16]


@covers(MapType.HASH)
@pytest.mark.parametrize(
    ("codec", "key", "raw"),
    [
        (StructFormat("=IH2x"), (0x04030201, 5), b"\1\2\3\4\5\0\0\0"),
        (Pair, Pair(IPv4Address("1.2.3.4"), 5), b"\1\2\3\4\5\0\0\0"),
        (u64, 0x0504030201, b"\1\2\3\4\5\0\0\0"),
    ],
)
def test_the_same_key_by_any_codec(codec: Any, key: Any, raw: bytes) -> None:
    with HashMap.create(key=codec, value=CPair, max_entries=4) as table:
        table[key] = CPair(7, 8)
        assert table.raw.lookup(raw) == b"\7\0\0\0\x08\0\0\0"
        assert table[key].high == 8
        assert list(table) == [key]


@covers(MapType.HASH)
def test_keys_and_values_as_the_program_declares_them() -> None:
    """`struct flow_key` has all that C has: nested, anonymous, array, text, bit-fields, enum, union."""
    with load_maps("values", "add_flow", "find_flow") as loaded:
        flows: Any = loaded.maps["flows"]
        assert run(loaded.programs["add_flow"], 0x0A000001, 1500) == 0
        ((key, value),) = flows.items()
        assert type(key).__name__ == "flow_key"
        assert (key.ends[0].address, key.ends[0].port, key.ends[1].port) == (0x0A000001, 80, 443)
        assert key.device == b"eth0"
        assert (key.version, key.direction, key.urgent) == (6, 1, 5)
        assert key.verdict.name == "VERDICT_DROP"
        assert (key.anonymous.v4, key.anonymous.bytes) == (0x04030201, (1, 2, 3, 4))
        assert (key.priority, key.local) == (-3, True)
        assert (value.packets, value.bytes, value.balance, value.owner) == (1, 1500, -5, 0x1234)
        assert flows[key] == value
        assert key in {key: 1}
        # And the reverse: a key made here is the one that the program makes.
        kind, union = type(key), type(key.anonymous)
        endpoint = type(key.ends[0])
        made = kind(
            ends=(endpoint(), endpoint(address=0x0A000002)),
            direction=1,
            verdict=type(key.verdict).VERDICT_LATER,
            anonymous=union(v4=7),
            priority=-1,
        )
        flows[made] = type(value)(packets=99)
        assert run(loaded.programs["find_flow"], 0x0A000002) == 99


def test_data_sections_have_their_variables() -> None:
    with load_maps("devices", "pass", slot=3) as loaded:
        rodata: Any = loaded.maps[".rodata"]
        assert rodata[0].slot == 3
