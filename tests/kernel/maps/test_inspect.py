"""``ptrace maps`` beside bpftool, on maps of our own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.library import possible_cpus
from packet_tracer.bpf.maps import (
    ArrayOfMaps,
    DevMap,
    HashMap,
    LpmTrie,
    PerCpuArray,
    PerCpuHashMap,
    PerCpuValues,
    Queue,
    RingBuf,
    SkStorage,
)
from packet_tracer.bpf.maps.codecs import Bytes, u16, u32, u64
from packet_tracer.bpf.object import LoadedObject
from packet_tracer.cli.run import run as cli_run
from packet_tracer.errors import EXIT_NOT_SUPPORTED, EXIT_OK, EXIT_USAGE
from tests.kernel.maps.support import covers, load_maps, run

BPFTOOL = shutil.which("bpftool", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def bpftool(*words: object) -> str:
    """Return what bpftool prints; it exits with an errno for an empty map."""
    if BPFTOOL is None:
        pytest.skip("bpftool is not installed (package bpftool)")
    return subprocess.run([BPFTOOL, *map(str, words)], capture_output=True, text=True).stdout


def ptrace(*words: object, status: int = EXIT_OK) -> str:
    """Return what `ptrace maps` prints, run in this process: to stdout, or one line on stderr if it fails."""
    output, errors = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = cli_run(["maps", *map(str, words)])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return checked(code, output.getvalue(), errors.getvalue(), status)


def other_ptrace(*words: object, status: int = EXIT_OK) -> str:
    """The same in a process of its own, for which this one is another that holds maps open."""
    command = [sys.executable, "-m", "packet_tracer", "maps", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    return checked(done.returncode, done.stdout, done.stderr, status)


def checked(code: int, output: str, errors: str, status: int) -> str:
    assert code == status, errors
    if status == EXIT_OK:
        assert errors == ""
        return output
    assert output == ""
    assert errors.count("\n") == 1
    return errors


def pairs(text: str) -> Any:
    """Parse JSON, keeping names that come twice in an object."""
    return json.loads(text, object_pairs_hook=lambda items: items)


@pytest.fixture(scope="module")
def values() -> Iterator[LoadedObject]:
    with load_maps("values") as loaded:
        for number in range(3):
            assert run(loaded.programs["add_flow"], number, 100 * number) == 0
            run(loaded.programs["add_numbers"], number, 7)
            run(loaded.programs["add_cpu_table"], number, 5)
        maps: Any = loaded.maps
        maps["routes"][IPv4Network("10.0.0.0/8")] = 8
        maps["routes"][IPv4Network("10.64.0.0/10")] = 10
        yield loaded


@covers(MapType.HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LPM_TRIE)
@pytest.mark.parametrize("name", ["flows", "numbers", "cpu_table", "cpu_numbers", "routes", "table"])
def test_typed_dumps_are_bpftools(values: LoadedObject, name: str) -> None:
    number = values.maps[name].id
    assert pairs(ptrace("dump", number, "--format", "json")) == pairs(
        bpftool("-j", "map", "dump", "id", number)
    )
    if name == "table":  # empty: bpftool forgets that it has types
        assert ptrace("dump", number) == "[]\n"
    else:
        assert ptrace("dump", number).strip() == bpftool("map", "dump", "id", number).strip()


def test_data_sections_are_bpftools() -> None:
    with load_maps("devices", "pass", slot=3) as loaded:
        number = loaded.maps[".rodata"].id
        assert ptrace("dump", number).strip() == bpftool("map", "dump", "id", number).strip()
        assert pairs(ptrace("dump", number, "--format=json")) == pairs(
            bpftool("-j", "map", "dump", "id", number)
        )


@covers(MapType.HASH, MapType.PERCPU_ARRAY, MapType.LPM_TRIE, MapType.ARRAY_OF_MAPS)
def test_untyped_dumps_are_bpftools() -> None:
    with (
        HashMap.create(key=u32, value=u16, max_entries=8) as short,
        HashMap.create(key=Bytes(20), value=Bytes(33), max_entries=8) as long,
        HashMap.create(key=Bytes(12), value=Bytes(13), max_entries=8) as middle,
        PerCpuArray.create(value=u16, max_entries=2) as by_cpu,
        PerCpuHashMap.create(key=u32, value=Bytes(17), max_entries=2) as long_by_cpu,
        LpmTrie.create(key=IPv4Network, value=u64, max_entries=4) as trie,
        ArrayOfMaps.create(template=short, max_entries=1) as outer,
    ):
        short.update_many({1: 2, 3: 0x4142})
        long[bytes(range(20))] = bytes(range(33))
        middle[bytes(12)] = bytes(13)
        by_cpu[1] = PerCpuValues.same(258)
        long_by_cpu[9] = PerCpuValues.same(bytes(range(17)))
        trie[IPv4Network("10.0.0.0/8")] = 5
        outer[0] = short
        for each in (short, long, middle, by_cpu, long_by_cpu, trie, outer):
            assert ptrace("dump", each.id) == bpftool("map", "dump", "id", each.id)
            assert pairs(ptrace("dump", each.id, "--format", "json")) == pairs(
                bpftool("-j", "map", "dump", "id", each.id)
            )


@covers(MapType.HASH)
def test_get_is_bpftools_lookup(values: LoadedObject) -> None:
    number = values.maps["numbers"].id
    theirs = bpftool("map", "lookup", "id", number, "key", "1", "0", "0", "0")
    for key in ("1", "0x1", "1 0 0 0", "0x01 0x00 0 0"):
        assert ptrace("get", number, key) == theirs
    assert pairs(ptrace("get", number, "1", "--format", "json")) == pairs(
        bpftool("-j", "map", "lookup", "id", number, "key", "1", "0", "0", "0")
    )


@covers(MapType.HASH)
def test_set_and_delete(values: LoadedObject) -> None:
    maps: Any = values.maps
    flows, name = maps["flows"], maps["table"].id
    ptrace("set", name, "80", "5")
    assert maps["table"][80] == 5
    ptrace("delete", name, "80")
    assert 80 not in maps["table"]
    key = '{"ends": [{"address": 9}, {"port": 53}], "device": "lo", "urgent": 3, "verdict": "VERDICT_LATER"}'
    ptrace("set", flows.id, key, '{"packets": 77, "balance": -9}')
    (made,) = [each for each in flows if each.device == b"lo"]
    assert (made.ends[0].address, made.ends[1].port, made.urgent, made.verdict) == (9, 53, 3, 9)
    assert (flows[made].packets, flows[made].balance) == (77, -9)
    assert '"packets": 77' in ptrace("get", flows.id, key)
    ptrace("delete", flows.id, key)
    assert made not in flows
    ptrace("set", maps["cpu_numbers"].id, "7", "3")
    assert maps["cpu_numbers"][7] == (3,) * possible_cpus()
    ptrace("set", maps["routes"].id, "192.0.2.0/24", "24")
    assert maps["routes"][IPv4Network("192.0.2.0/25")] == 24
    ptrace("delete", maps["routes"].id, "192.0.2.0/24")


@covers(MapType.QUEUE)
def test_queues_are_pushed_and_peeked() -> None:
    with Queue.create(value=u32, max_entries=2) as queue:
        assert "is empty" in ptrace("get", queue.id, status=EXIT_USAGE)
        ptrace("set", queue.id, "5")
        ptrace("set", queue.id, "6")
        assert ptrace("get", queue.id) == bpftool("map", "peek", "id", queue.id)
        assert queue.drain() == [5, 6]
        assert "can't be listed" in ptrace("dump", queue.id, status=EXIT_NOT_SUPPORTED)
        assert "has no keys" in ptrace("set", queue.id, "1", "2", status=EXIT_USAGE)


def test_wrong_keys_are_refused_with_what_they_should_look_like(values: LoadedObject) -> None:
    flows, routes, table = (values.maps[name].id for name in ("flows", "routes", "table"))
    said = ptrace("get", flows, "5", status=EXIT_USAGE)
    assert "wrong key for map flows: 5 is not flow_key(ends, device, version" in said
    assert 'for example \'{"ends": [{"address": 0, "port": 0}' in said
    assert "there is no field ports" in ptrace("get", flows, '{"ports": 1}', status=EXIT_USAGE)
    assert "needs a key, for example" in ptrace("get", flows, status=EXIT_USAGE)
    assert '"0.0.0.0/0"' in ptrace("set", routes, "300.0.0.0/8", "1", status=EXIT_USAGE)
    for key in ("http", "-1", "4294967296", "1.5", "[1]", '{"a": 1}', "1 2 3", "true"):
        assert "is not an unsigned 32-bit integer; for example 0" in ptrace(
            "get", table, key, status=EXIT_USAGE
        )
    assert "wrong value for map table" in ptrace("set", table, "1", "x", status=EXIT_USAGE)
    assert "has no entry 99" in ptrace("get", table, "99", status=EXIT_USAGE)
    assert "has no entry 99" in ptrace("delete", table, "99", status=EXIT_USAGE)
    assert "has the keys 0 to 7, not 8" in ptrace("get", values.maps["numbers"].id, "8", status=EXIT_USAGE)


def test_maps_are_found_by_id_name_and_pin(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "bpf", "bpf", tmp_path], check=True)
    name = f"n{os.getpid()}x{os.urandom(3).hex()}"[:15]
    try:
        with HashMap.create(key=u32, value=u64, max_entries=4, name=name) as one:
            one.pin(tmp_path / "here")
            for which in (one.id, name, tmp_path / "here"):
                described = json.loads(other_ptrace("show", which, "--format", "json"))
                assert described["id"] == one.id
                assert described["pinned"] == [str(tmp_path / "here")]
                assert [each["pid"] for each in described["pids"]] == [os.getpid()]
            with HashMap.create(key=u32, value=u64, max_entries=4, name=name) as other:
                said = ptrace("show", name, status=EXIT_USAGE)
                assert f"2 maps are named {name}: say which, by id: {one.id}, {other.id}" in said
            assert f"pinned at {tmp_path}/here" in ptrace("show", one.id)
        assert "no map is named nonesuch" in ptrace("show", "nonesuch", status=EXIT_USAGE)
        assert "no map has id 4294967" in ptrace("show", "4294967", status=EXIT_USAGE)
        assert "nothing is pinned at" in ptrace("show", tmp_path / "gone", status=EXIT_USAGE)
        (tmp_path / "here").unlink()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_the_list_says_what_bpftool_says(values: LoadedObject) -> None:
    ours = {each["id"]: each for each in json.loads(other_ptrace("list", "--format", "json"))}
    # One by one: bpftool 7.1 carries a BTF id over from one map of its list to the next.
    theirs = {
        each.id: json.loads(bpftool("-j", "map", "show", "id", each.id)) for each in values.maps.values()
    }
    lines = {line.split()[0]: line for line in other_ptrace("list").splitlines()}
    for name, each in values.maps.items():
        mine = ours[each.id]
        assert {key: value for key, value in mine.items() if key in theirs[each.id]} == theirs[each.id], name
        assert {"pid": os.getpid(), "comm": Path("/proc/self/comm").read_text().strip()} in mine["pids"]
        assert name in lines[str(each.id)]
    program = values.programs["move"]
    for name in ("queue", "stack"):
        assert {"id": program.id, "name": "move"} in ours[values.maps[name].id]["programs"]
        assert f"prog {program.id} move" in lines[str(values.maps[name].id)]


@covers(MapType.DEVMAP, MapType.ARRAY_OF_MAPS)
def test_maps_of_kernel_objects() -> None:
    with (
        DevMap.create(max_entries=4) as devices,
        HashMap.create(key=u32, value=u64, max_entries=1) as inner,
        ArrayOfMaps.create(template=inner, max_entries=2) as outer,
    ):
        ptrace("set", devices.id, "2", "1")
        assert devices[2].ifindex == 1
        assert ptrace("dump", devices.id).endswith("value: 01 00 00 00 00 00 00 00\nFound 1 element\n")
        ptrace("delete", devices.id, "2")
        assert 2 not in devices
        outer[1] = inner
        assert inner.id == int.from_bytes(
            bytes.fromhex(ptrace("get", outer.id, "1").split("value:")[1]), "little"
        )
        assert "only a process that has them open" in ptrace("set", outer.id, "1", "3", status=EXIT_USAGE)


def test_what_has_no_entries_is_refused() -> None:
    with RingBuf.create(size_bytes=4096) as ring, SkStorage.create(value=u64) as storage:
        for each in (ring, storage):
            assert "can't be listed" in ptrace("dump", each.id, status=EXIT_NOT_SUPPORTED)
        assert "has no entries" in ptrace("get", ring.id, "1", status=EXIT_NOT_SUPPORTED)
        assert "ringbuf" in ptrace("show", ring.id)
