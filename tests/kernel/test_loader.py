"""Objects on their way into the kernel, and what the kernel says to those it does not want."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.constants import patch_constants
from packet_tracer.bpf.enums import MapType, ProgramFlags, ProgramType
from packet_tracer.bpf.errors import BtfError, MapError, ObjectOpenError, ObjectPrepareError, ProgramLoadError
from packet_tracer.bpf.features import RunStatistics, probe_helper, probe_map_type, probe_program_type
from packet_tracer.bpf.maps import RawMap
from packet_tracer.bpf.object import BpfObject
from packet_tracer.bpf.parallel import load_together
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.errors import EXIT_NOT_PERMITTED, BpfError, UsageError
from tests.kernel.loading import OBJECTS, gone, load, map_exists, open_object, program_exists

FRAME = bytes(64)
ANSWER = struct.Struct("=QQqQ8s")


def descriptors_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_states_hand_over_and_close_everything() -> None:
    opened = open_object("loader")
    assert opened.programs["on_receive"].section == "tp_btf/netif_receive_skb"
    assert opened.programs["on_receive"].target == "netif_receive_skb"
    assert opened.maps["counts"].type == MapType.ARRAY
    for spec in opened.programs.values():
        spec.autoload = spec.name == "answer"
    prepared = opened.prepare()
    with pytest.raises(ValueError, match="prepared already"):
        opened.prepare()
    assert set(prepared.programs) == {"answer"}
    loaded = prepared.load()
    with pytest.raises(ValueError, match="loaded already"):
        prepared.load()
    programs = [program.id for program in loaded.programs.values()]
    maps = [each.id for each in loaded.maps.values()]
    assert all(map(program_exists, programs))
    assert all(map(map_exists, maps))
    opened.close()
    prepared.close()
    assert all(map(program_exists, programs))
    loaded.close()
    loaded.close()
    assert gone(program_exists, programs)
    with pytest.raises(ValueError, match="closed"):
        _ = loaded.maps["counts"].fd


def test_an_object_not_loaded_leaves_nothing() -> None:
    before = descriptors_open()
    with open_object("loader") as opened, opened.prepare() as prepared:
        maps = [each.id for each in prepared.maps.values()]
        assert all(map(map_exists, maps))
    assert gone(map_exists, maps)
    assert descriptors_open() == before


def test_descriptors_are_not_inherited() -> None:
    with load("loader", ["answer"]) as loaded:
        descriptors = [each.fd for each in [*loaded.programs.values(), *loaded.maps.values()]]
        assert not any(os.get_inheritable(fd) for fd in descriptors)


def test_variables_are_set_by_name() -> None:
    with open_object("loader") as opened:
        for spec in opened.programs.values():
            spec.autoload = spec.name == "answer"
        opened.set_rodata(offset=-3, name=b"abc")
        opened.set_data(tally=40)
        with pytest.raises(UsageError, match=r"no constant nonsense; it has [a-z, ]*netns_inode"):
            opened.set_rodata(nonsense=1)
        with pytest.raises(
            UsageError, match=r"65536 does not fit offset of loader\.bpf\.o, which has 2 bytes"
        ):
            opened.set_rodata(offset=1 << 16)
        with pytest.raises(UsageError, match="9 bytes do not fit name"):
            opened.set_rodata(name=bytes(9))
        with opened.prepare() as prepared, prepared.load() as loaded:
            program = loaded.programs["answer"]
            assert program.test_run(FRAME).return_value == 3
            program.test_run(FRAME)
            answer = loaded.maps["answers"].raw.lookup(bytes(4))
            assert answer is not None
            assert ANSWER.unpack(answer) == (0, 0x1122334455667788, -3, 41, b"abc" + bytes(5))


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (1, 2),
        (0xFFFFFFFF, 0x80000000),
        (-1, (1 << 64) - 1),
        (-(1 << 31), -(1 << 63)),
        (0, 0xFFFF888000001234),
    ],
)
def test_constants_are_patched_into_clones(small: int, large: int) -> None:
    with open_object("loader") as opened:
        for spec in opened.programs.values():
            spec.autoload = spec.name == "answer"
        with opened.prepare() as prepared:
            template = prepared.programs["answer"]
            assert dict(template.functions).keys() == {"answer", "small_constant", "large_constant"}
            code = patch_constants(template, {"small_constant": small, "large_constant": large})
            assert len(code) == len(template.instructions)
            with template.load(instructions=code, name="clone") as clone, template.load() as original:
                assert (clone.name, original.name) == ("clone", "answer")
                clone.test_run(FRAME)
                answer = prepared.maps["answers"].raw.lookup(bytes(4))
                assert answer is not None
                assert ANSWER.unpack(answer)[:2] == (small % (1 << 64), large % (1 << 64))


def test_constants_that_can_not_be_patched() -> None:
    with open_object("loader") as opened, opened.prepare() as prepared:
        template = prepared.programs["answer"]
        with pytest.raises(UsageError, match="program answer has no function nothing"):
            patch_constants(template, {"nothing": 1})
        with pytest.raises(UsageError, match="no room for a 64-bit number"):
            patch_constants(template, {"small_constant": 1 << 40})
        with pytest.raises(UsageError, match="does not fit 64 bits"):
            patch_constants(template, {"large_constant": 1 << 64})


def test_program_info_and_run_statistics() -> None:
    with RunStatistics(), load("loader", ["answer"]) as loaded:
        program = loaded.programs["answer"]
        assert program.type == ProgramType.XDP
        assert not program.flags & ProgramFlags.XDP_HAS_FRAGS
        run = program.test_run(FRAME, repeat=1000)
        assert run.data == FRAME
        info = program.info()
        assert (info.name, info.run_count) == ("answer", 1000)
        assert 0 < info.run_time_ns < 10**9
        assert info.recursion_misses == 0
        assert set(info.map_ids) <= {each.id for each in loaded.maps.values()}
        assert loaded.maps["answers"].id in info.map_ids
        assert program.test_run(FRAME, output_size=0).data == b""
        with Program.from_id(program.id) as again:
            assert again.fd != program.fd
            assert again.info().id == program.id
    with pytest.raises(BpfError, match="can't be opened: ENOENT"):
        Program.from_id(program.id)


def test_a_map_can_be_shared_between_objects() -> None:
    with load("loader", ["answer"]) as first, open_object("loader") as opened:
        opened.maps["answers"].reuse(first.maps["answers"])
        with pytest.raises(MapError, match="sharing of map counts"):
            opened.maps["counts"].reuse(first.maps["answers"])
        with opened.prepare() as prepared:
            assert prepared.maps["answers"].id == first.maps["answers"].id
            assert prepared.maps["counts"].id != first.maps["counts"].id


def refusal(name: str) -> ProgramLoadError:
    with pytest.raises(ProgramLoadError) as caught:
        load("refused", [name])
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    return caught.value


def test_the_verifier_refuses(capfd: pytest.CaptureFixture[str]) -> None:
    error = refusal("no_null_check")
    assert (error.program, error.section, error.errno) == ("no_null_check", "xdp", errno.EACCES)
    assert "R0 invalid mem access 'map_value_or_null'" in str(error)
    assert "bpf_map_lookup_elem" in error.log
    assert capfd.readouterr() == ("", "")


def test_a_log_of_any_length_is_complete(capfd: pytest.CaptureFixture[str]) -> None:
    error = refusal("long_log")
    assert len(error.log) > 1 << 16
    assert "processed" in error.log.splitlines()[-1]
    assert "R0 invalid mem access 'map_value_or_null'" in str(error)
    assert capfd.readouterr() == ("", "")


def test_the_log_is_not_asked_for_where_not_wanted() -> None:
    with open_object("refused") as opened:
        opened.programs["no_null_check"].autoload = True
        with opened.prepare() as prepared, pytest.raises(ProgramLoadError) as caught:
            prepared.programs["no_null_check"].load(log=False)
        assert caught.value.log == ""


def test_a_field_that_no_kernel_has() -> None:
    error = refusal("missing_field")
    assert "a field or type that this kernel does not have" in str(error)


def test_a_tracepoint_that_no_kernel_has() -> None:
    error = refusal("missing_target")
    assert error.target == "no_such_tracepoint"
    assert error.errno == errno.ENOENT
    assert "this kernel has no tracepoint no_such_tracepoint" in str(error)


def test_all_at_once_by_libbpf(capfd: pytest.CaptureFixture[str]) -> None:
    with open_object("loader") as opened:
        for spec in opened.programs.values():
            spec.autoload = spec.name in ("answer", "on_receive")
        with opened.load_all() as loaded:
            assert loaded.programs["answer"].test_run(FRAME).return_value == 3
            assert bytes(loaded.memory(".data")[:8]) == (6).to_bytes(8, sys.byteorder)
            maps = [each.id for each in loaded.maps.values()]
    assert gone(map_exists, maps)
    with open_object("refused") as opened:
        opened.programs["no_null_check"].autoload = True
        with pytest.raises(ProgramLoadError, match="R0 invalid mem access") as caught:
            opened.load_all()
        assert caught.value.program == "no_null_check"
    assert capfd.readouterr() == ("", "")


def elf() -> bytes:
    return (OBJECTS / "loader.bpf.o").read_bytes()


def without_btf() -> bytes:
    data = elf()
    assert data.count(b".BTF\0") == 1
    return data.replace(b".BTF\0", b".BTX\0")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (bytes, "it is empty"),
        (lambda: b"#!/bin/sh\n" * 100, "it is not an ELF file"),
        (lambda: elf()[:40], "it is truncated"),
        (lambda: elf()[:-100], "it is truncated"),
        (lambda: elf()[:2000], "it is truncated"),
        (Path(sys.executable).resolve().read_bytes, "it is built for machine"),
        (without_btf, "it has no BTF; compile it with clang -g"),
    ],
    ids=["empty", "script", "header", "tail", "half", "program", "no-btf"],
)
def test_files_that_are_no_objects(
    source: Callable[[], bytes], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ObjectOpenError) as caught:
        BpfObject.open(source(), name="some.o")
    assert str(caught.value).startswith(f"some.o can't be opened as a BPF object: {reason}")
    assert capfd.readouterr() == ("", "")


def test_damage_anywhere_is_an_error_or_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    whole = elf()
    for position in range(0, len(whole), max(1, len(whole) // 200)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        try:
            BpfObject.open(bytes(damaged)).close()
        except (ObjectOpenError, BtfError) as error:
            assert "\n" not in str(error)  # noqa: PT017
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ObjectOpenError, match="No such file") as caught:
        BpfObject.open(tmp_path / "missing.o")
    assert caught.value.errno == errno.ENOENT


def test_a_map_too_large(capfd: pytest.CaptureFixture[str]) -> None:
    with open_object("loader") as opened:
        opened.maps["counts"].max_entries = 0xFFFFFFFF
        with pytest.raises(ObjectPrepareError) as caught:
            opened.prepare()
    assert caught.value.map == "counts"
    assert caught.value.errno in (errno.E2BIG, errno.ENOMEM)
    assert str(caught.value).startswith("map counts of loader.bpf.o can't be created: E")
    assert capfd.readouterr() == ("", "")
    with pytest.raises(MapError, match="creation of map thing"):
        RawMap.create(MapType.ARRAY, 3, 8, 1, name="thing")


UNPRIVILEGED = """
import os, sys
from packet_tracer.bpf.errors import ObjectPrepareError
from packet_tracer.bpf.features import probe_map_type
from packet_tracer.errors import BpfError
from tests.kernel.loading import load
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    load("loader", ["answer"])
except BpfError as error:
    print(type(error).__name__, error.exit_code, error)
print(probe_map_type(1))
"""


def test_without_privileges() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED],
        capture_output=True,
        text=True,
        cwd=OBJECTS.parents[1],
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith(f"ObjectPrepareError {EXIT_NOT_PERMITTED} ")
    assert "run as root or grant CAP_BPF" in first
    assert "supported=None" in second


def test_two_loaders_at_once() -> None:
    with load("loader", ["answer"]) as first, load("loader", ["answer"]) as second:
        assert {each.id for each in first.maps.values()}.isdisjoint(each.id for each in second.maps.values())
        first.programs["answer"].test_run(FRAME)
        assert second.maps["answers"].raw.lookup(bytes(4)) == bytes(ANSWER.size)


def test_programs_loaded_together() -> None:
    with open_object("loader") as opened:
        for spec in opened.programs.values():
            spec.autoload = spec.name in ("answer", "on_xdp", "on_tc", "on_receive_raw")
        with opened.prepare() as prepared:
            loaded = load_together({name: each.load for name, each in prepared.programs.items()})
            assert list(loaded) == list(prepared.programs)
            assert {name: each.name for name, each in loaded.items()} == {name: name for name in loaded}
            ids = []

            def load_again(program: PreparedProgram) -> Program:
                again = program.load()
                ids.append(again.id)
                return again

            def refuse() -> Program:
                raise ValueError("not this one")

            loads = {name: partial(load_again, each) for name, each in prepared.programs.items()}
            with pytest.raises(ValueError, match="not this one"):
                load_together({**loads, "bad": refuse, "worse": refuse})
            assert ids
            assert gone(program_exists, ids)
            for each in loaded.values():
                each.close()
    assert load_together({}) == {}


def test_features_have_three_answers() -> None:
    assert probe_map_type(MapType.RINGBUF).supported is True
    assert probe_program_type(ProgramType.XDP)
    unknown = probe_map_type(1000)
    assert unknown.supported is not True
    assert unknown.reason
    assert probe_helper(ProgramType.XDP, 1)  # bpf_map_lookup_elem
    assert not probe_helper(ProgramType.SOCKET_FILTER, 2000)


def test_kernel_types() -> None:
    types = Btf.vmlinux()
    assert types is Btf.vmlinux()
    skb = types.struct("sk_buff")
    dev = next(member for member in types.struct("napi_struct").members if member.name == "dev")
    assert types.resolve(dev.type_id).kind is Kind.POINTER
    assert types.size_of(skb.id) == skb.size > 100
    assert types.enum("xdp_action")["XDP_PASS"] == 2
    assert types.enum("bpf_map_type")["BPF_MAP_TYPE_RINGBUF"] == MapType.RINGBUF
    assert "btf_trace_kfree_skb" in types.index(Kind.TYPEDEF)
    functions = {each.name: each for each in types.functions("sk_buff")}
    assert functions["ip_rcv"].argument == 0
    assert functions["ip_rcv"].traceable
    assert functions["ip_rcv"].parameters == 4
    assert functions["ip_output"].argument == 2
    assert not functions["printk" if "printk" in functions else "_printk"].traceable  # varargs
    with pytest.raises(BtfError, match="vmlinux has no struct nothing_like_it in its BTF"):
        types.struct("nothing_like_it")
    with pytest.raises(BtfError, match="module nothing_like_it has no BTF"):
        Btf.module("nothing_like_it")
