"""The build: objects of both architectures, layout, pin, freshness, and what it says when it can't go on."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from packet_tracer.events import _layout as layout

ROOT = Path(__file__).parents[2]

# The programs of each object: section -> names. A new one is added here, so one that vanishes is noticed.
PROGRAMS = {
    "count": {
        "tp_btf/netif_receive_skb": {"count_received"},
        "tp_btf/net_dev_start_xmit": {"count_sent"},
        "tp_btf/kfree_skb": {"count_dropped"},
    },
    "fentry": {
        "fentry": {"function_entry", "function_remember"},
        "fexit": {"function_return", "function_made"},
    },
    "fentry_read": {
        "fentry": {"pointer_entry", "pointer_remember", "buffer_entry", "buffer_remember"},
        "fexit": {"pointer_return", "buffer_return"},
    },
    "identity_session": {"kprobe.session": {"watch_identity"}},
    "identity": {
        "fentry/skb_free_head": {"skb_free_head"},
        "fentry/skb_release_data": {"skb_release_data"},
        "fexit/__alloc_skb": {"alloc_skb"},
        "fexit/__netdev_alloc_skb": {"netdev_alloc_skb"},
        "fexit/__napi_alloc_skb": {"napi_alloc_skb"},
        "fentry/kfree_skb_partial": {"kfree_skb_partial"},
        "fentry/napi_skb_free_stolen_head": {"napi_skb_free_stolen_head"},
        "tp_btf/napi_gro_receive_entry": {"napi_gro_receive_entry"},
        "fentry/pskb_expand_head": {"pskb_expand_head_before"},
        "fexit/pskb_expand_head": {"pskb_expand_head_after"},
        "fentry/skb_copy_header": {"skb_copy_header"},
        "fexit/skb_copy": {"skb_copy"},
        "fexit/__pskb_copy_fclone": {"pskb_copy"},
        "fexit/skb_copy_expand": {"skb_copy_expand"},
        "fexit/skb_segment": {"skb_segment"},
        "fexit/ip_frag_next": {"ip_frag_next"},
        "fexit/ip6_frag_next": {"ip6_frag_next"},
        "fentry/ip_fraglist_init": {"ip_fraglist_init"},
        "fentry/ip6_fraglist_init": {"ip6_fraglist_init"},
        "fentry/skb_segment_list": {"skb_segment_list"},
        "fexit/skb_gro_receive": {"skb_gro_receive"},
        "fexit/skb_gro_receive_list": {"skb_gro_receive_list"},
        "fexit/skb_try_coalesce": {"skb_try_coalesce"},
        "fexit/inet_frag_reasm_finish": {"inet_frag_reasm_finish"},
        "fentry/__xdp_build_skb_from_frame": {"build_skb_from_frame"},
        "fentry/build_skb": {"build_skb"},
        "fentry/__tcp_retransmit_skb": {"tcp_retransmit_skb"},
        "fexit/__tcp_retransmit_skb": {"tcp_retransmit_skb_after"},
        "fentry/tcp_retransmit_skb": {"tcp_retransmit_skb_caller"},
        "fexit/tcp_retransmit_skb": {"tcp_retransmit_skb_caller_after"},
        "fentry/__tcp_transmit_skb": {"tcp_transmit_skb"},
        "fexit/tcp_fragment": {"tcp_fragment"},
    },
    "fentry_multi": {"fentry": {"multi_entry"}, "fexit": {"multi_call", "multi_made"}},
    "kprobe": {
        "kprobe": {"kprobe_entry", "kprobe_buffer", "kprobe_remember", "kprobe_buffer_remember"},
        "kprobe.multi": {"kprobe_multi_entry", "kprobe_multi_buffer", "kprobe_multi_either"},
        "kprobe.session": {"kprobe_session"},
        "kretprobe": {"kretprobe_skb", "kretprobe_return"},
        "kretprobe.multi": {"kretprobe_multi_skb"},
    },
    "memory": {"raw_tp": {"read_word"}},
    "netfilter": {"netfilter": {"netfilter_hook"}},
    "programs": {
        "fentry": {"xdp_program_entry", "tc_program_entry"},
        "fexit": {"xdp_program_exit", "tc_program_exit"},
    },
    "tc": {"tc": {"tc_ingress", "tc_egress"}},
    "tracepoints": {
        "tp_btf/netif_receive_skb": {"netif_receive_skb"},
        "tp_btf/netif_rx": {"netif_rx"},
        "tp_btf/napi_gro_receive_entry": {"napi_gro_receive_entry"},
        "tp_btf/net_dev_queue": {"net_dev_queue"},
        "tp_btf/net_dev_start_xmit": {"net_dev_start_xmit", "net_dev_start_xmit_remember"},
        "tp_btf/net_dev_xmit": {"net_dev_xmit"},
        "tp_btf/kfree_skb": {"kfree_skb", "kfree_skb_without_reason"},
        "tp_btf/consume_skb": {"consume_skb"},
    },
    "xdp": {"xdp.frags": {"xdp"}},
}


def load_build() -> ModuleType:
    # By path: the folder build/ and PyPI's `build` have the same name.
    spec = importlib.util.spec_from_file_location("ptrace_build", ROOT / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


def run_build(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(tree / "build.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of its own with one small program, so that building in it disturbs nobody."""
    (tmp_path / "vendor/libbpf").mkdir(parents=True)
    (tmp_path / "bpf_src").mkdir()
    shutil.copy(ROOT / "build.py", tmp_path)
    shutil.copy(ROOT / "vendor/libbpf/pin.json", tmp_path / "vendor/libbpf")
    shutil.copy(build.libbpf_archive(), tmp_path / "vendor/libbpf")
    for name in ("vmlinux.h", "records.h"):
        shutil.copy(ROOT / "bpf_src" / name, tmp_path / "bpf_src")
    text = '#include "vmlinux.h"\n#include <bpf/bpf_helpers.h>\n'
    text += 'SEC("xdp") int nothing(void *ctx)\n{\n\treturn 2;\n}\n'
    for name in ("one", "two"):
        (tmp_path / f"bpf_src/{name}.bpf.c").write_text(text)
    return tmp_path


# --- objects --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def objects(request: pytest.FixtureRequest) -> Path:
    """The folder of an architecture's objects, built from any host."""
    done = run_build(ROOT, "--arch", request.param)
    assert done.returncode == 0, done.stderr
    return ROOT / "packet_tracer/_objects" / request.param


def test_every_source_has_its_object(objects: Path) -> None:
    sources = {path.name.removesuffix(".bpf.c") for path in (ROOT / "bpf_src").glob("*.bpf.c")}
    assert {path.name.removesuffix(".bpf.o") for path in objects.glob("*")} == sources == set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_object_is_complete(objects: Path, name: str) -> None:
    with (objects / f"{name}.bpf.o").open("rb") as stream:
        elf = ELFFile(stream)
        assert elf["e_machine"] == "EM_BPF"
        assert elf["e_type"] == "ET_REL"
        assert elf.little_endian
        sections = {section.name: section for section in elf.iter_sections()}
        assert {".BTF", ".BTF.ext"} <= set(sections)
        assert sections["license"].data() == b"GPL\0"
        # The one helper program shares no map with anything.
        assert (".maps" in sections) == (name != "memory")
        assert not [section for section in sections if section.startswith(".debug")]
        programs: dict[str, set[str]] = {}
        symbols = elf.get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        for symbol in symbols.iter_symbols():
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_info"]["bind"] == "STB_GLOBAL":
                section = elf.get_section(symbol["st_shndx"]).name
                if section != ".text":  # subprograms, not programs
                    programs.setdefault(section, set()).add(symbol.name)
        assert programs == PROGRAMS[name]


def test_objects_do_not_name_the_machine(objects: Path) -> None:
    for path in objects.glob("*.bpf.o"):
        assert str(ROOT).encode() not in path.read_bytes()


@pytest.mark.parametrize("name", PROGRAMS)
def test_sources_read_no_header_of_the_host(name: str) -> None:
    """So they build on any host: another architecture, another kernel's headers, macOS."""
    command = [build.clang(), *build.bpf_flags("aarch64"), "-M", f"bpf_src/{name}.bpf.c"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    read = {Path(word) for word in done.stdout.partition(":")[2].replace("\\\n", " ").split()}
    assert Path("bpf_src/vmlinux.h") in read
    own = ("bpf_src", "build/libbpf/include")
    assert [path for path in read if not any(path.is_relative_to(folder) for folder in own)] == []


# --- layout ---------------------------------------------------------------------------------------

RECORDS = {
    "ptrace_event": "EVENT",
    "ptrace_counters": "COUNTERS",
    "ptrace_count": "COUNT",
    "ptrace_count_key": "COUNT_KEY",
    "ptrace_count_totals": "COUNT_TOTALS",
}
ENUMS = {
    "PTRACE_HOOK_": layout.Hook,
    "PTRACE_PROBE_": layout.ProbeId,
    "PTRACE_DIRECTION_": layout.Direction,
    "PTRACE_EVENT_": layout.EventFlags,
    "PTRACE_COUNT_BY_": layout.CountBy,
    "PTRACE_COUNT_": layout.CountFlags,
}


def ask_c_compiler(tmp_path: Path, expressions: list[str]) -> list[int]:
    """What the host's C compiler, which has no part in building the layout, says each expression is."""
    lines = "\n".join(f'\tprintf("%lld\\n", (long long)({expression}));' for expression in expressions)
    source = tmp_path / "ask.c"
    head = '#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n#include "records.h"\n'
    source.write_text(f"{head}int main(void)\n{{\n{lines}\n}}\n")
    subprocess.run(["cc", "-I", ROOT / "bpf_src", source, "-o", tmp_path / "ask"], check=True)
    answer = subprocess.run([tmp_path / "ask"], check=True, capture_output=True, text=True)
    return [int(line) for line in answer.stdout.split()]


@pytest.mark.parametrize("record", RECORDS)
def test_layout_is_what_another_compiler_makes_of_it(tmp_path: Path, record: str) -> None:
    fields: tuple[layout.EventField, ...] = getattr(layout, f"{RECORDS[record]}_FIELDS")
    size: int = getattr(layout, f"{RECORDS[record]}_SIZE")
    expressions = [f"sizeof(struct {record})"]
    for field in fields:
        member = f"((struct {record} *)0)->{field.name}"
        element = f"{member}[0]" if field.count > 1 else member
        expressions += [f"offsetof(struct {record}, {field.name})", f"sizeof({member})", f"sizeof({element})"]
        expressions += [f"(__typeof__({element}))-1 < 0"]
    total, *answers = ask_c_compiler(tmp_path, expressions)
    assert total == size == sum(field.size for field in fields)  # so no member is left out
    for field, *found in zip(fields, answers[::4], answers[1::4], answers[2::4], answers[3::4], strict=True):
        signed = field.format.islower() and field.format != "s"
        assert found == [field.offset, field.size, field.size // field.count, signed], field


@pytest.mark.parametrize("record", RECORDS)
def test_formats_agree_with_fields(record: str) -> None:
    fields, size, text, types = (
        getattr(layout, f"{RECORDS[record]}_{name}") for name in ("FIELDS", "SIZE", "FORMAT", "DTYPE")
    )
    assert struct.calcsize(text) == size
    values = struct.unpack(text, bytes(range(size % 256)) + bytes(size - size % 256))
    assert len(values) == len(fields)
    dtype = numpy.dtype(types)
    assert dtype.itemsize == size
    assert dtype.names == tuple(field.name for field in fields)
    assert [dtype.fields[field.name][1] for field in fields] == [field.offset for field in fields]


def test_enums_and_constants_are_the_header_s(tmp_path: Path) -> None:
    named = {f"{prefix}{member.name}": member.value for prefix, enum in ENUMS.items() for member in enum}
    named["PTRACE_RECORD_VERSION"] = layout.RECORD_VERSION
    named["PTRACE_COMM_LENGTH"] = layout.COMM_LENGTH
    named["PTRACE_SNAPLEN_MAX"] = layout.SNAPLEN_MAX
    assert ask_c_compiler(tmp_path, list(named)) == list(named.values())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("__u8 a; __u32 b;", "hidden padding before b"),
        ("__u32 a; __u8 b;", "hidden padding at its end"),
        ("__u32 a : 4; __u32 b : 28;", "a is neither an integer"),
        ("void *a;", "a is neither an integer"),
        ("struct { __u32 x; } a;", "a is neither an integer"),
    ],
)
def test_a_record_that_cannot_be_decoded_is_refused(tmp_path: Path, members: str, message: str) -> None:
    source = tmp_path / "bad.c"
    source.write_text(f"#include <linux/types.h>\nstruct ptrace_bad {{ {members} }} bad;\n")
    flags = ["-I", str(build.LIBBPF / "include/uapi"), *system_includes()]
    subprocess.run(
        [build.clang(), "-target", "bpf", "-g", *flags, "-c", source, "-o", tmp_path / "bad.o"], check=True
    )
    with pytest.raises(build.BuildError, match=f"struct ptrace_bad: {message}"):
        build.read_layout(tmp_path / "bad.o")


def system_includes() -> list[str]:
    triplet = subprocess.run(
        ["cc", "-print-multiarch"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return [f"-I/usr/include/{triplet}"] if triplet else []


# --- the pin --------------------------------------------------------------------------------------


def test_an_archive_that_is_not_the_pinned_one_is_refused(tree: Path) -> None:
    archive = tree / "vendor/libbpf" / build.libbpf_pin()["archive"]
    with archive.open("ab") as stream:
        stream.write(b"\0")
    done = run_build(tree, "--stage", "libbpf")
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith(f"build: {archive}: sha256 is ")
    assert build.libbpf_pin()["sha256"] in line
    assert not (tree / "build/libbpf").exists()


def test_nothing_to_fetch_from_is_one_line(tree: Path) -> None:
    pin = tree / "vendor/libbpf/pin.json"
    (tree / "vendor/libbpf" / build.libbpf_pin()["archive"]).unlink()
    pin.write_text(
        pin.read_text().replace("https://", "https://invalid.invalid/").replace('"sid"', '"no-such-suite"')
    )
    done = run_build(tree, "--stage", "libbpf")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("build: cannot fetch libbpf (Debian's archive: ")
    assert "Traceback" not in done.stderr


MIRROR = "http://mirror.example/debian"


@pytest.mark.parametrize(
    ("name", "text", "signed"),
    [
        (
            "sources.list.d/debian.sources",
            f"# a comment\nTypes: deb\nURIs: {MIRROR}\nSuites: bookworm bookworm-updates\nComponents: main\n"
            "Signed-By: /k.gpg\n\nTypes: deb\nURIs: http://other.example\nSuites: bookworm-security\n",
            "/k.gpg",
        ),
        ("sources.list", f"deb http://x.example nodistro main\ndeb {MIRROR} bookworm main contrib\n", None),
        ("sources.list.d/a.list", f"deb [arch=amd64 signed-by=/k.gpg] {MIRROR} bookworm main\n", "/k.gpg"),
    ],
)
def test_debian_s_own_mirror_serves_the_other_suite(
    tmp_path: Path, name: str, text: str, signed: str | None
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    expected = f"Types: deb-src\nURIs: {MIRROR}\nSuites: sid\nComponents: main\n"
    expected += f"Signed-By: {signed}\n" if signed else ""
    assert build.debian_sources("sid", "bookworm", tmp_path) == expected


def test_a_disabled_or_foreign_source_does_not_serve(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    entry = f"Types: deb\nURIs: {MIRROR}\nSuites: bookworm\nComponents: main\n"
    (tmp_path / "sources.list.d/debian.sources").write_text(f"Enabled: no\n{entry}")
    (tmp_path / "sources.list").write_text(f"# deb {MIRROR} bookworm main\ndeb {MIRROR} bookworm contrib\n")
    with pytest.raises(build.BuildError, match="apt has no source for bookworm"):
        build.debian_sources("sid", "bookworm", tmp_path)


# --- freshness ------------------------------------------------------------------------------------


def test_a_second_run_does_nothing_and_a_change_does_only_its_part(tree: Path) -> None:
    stages = ("--stage", "objects", "layout")
    first = run_build(tree, *stages)
    assert first.returncode == 0, first.stderr
    made = {path: path.stat().st_mtime_ns for path in tree.rglob("*.o")}
    for path in tree.rglob("*.[ch]"):
        os.utime(path)  # as a fresh clone would
    again = run_build(tree, *stages)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*.o")} == made

    source = tree / "bpf_src/one.bpf.c"
    source.write_text(source.read_text().replace("return 2", "return 1"))
    changed = run_build(tree, *stages)
    folder = f"packet_tracer/_objects/{build.host_architecture()}"
    assert changed.stderr == f"build: {folder}/one.bpf.o\n"

    (tree / folder / "two.bpf.o").unlink()
    assert run_build(tree, *stages).stderr == f"build: {folder}/two.bpf.o\n"
    source.unlink()
    assert run_build(tree, *stages).returncode == 0
    assert [path.name for path in (tree / folder).iterdir()] == ["two.bpf.o"]


def test_a_failed_stage_is_not_fresh(tree: Path) -> None:
    source = tree / "bpf_src/one.bpf.c"
    good = source.read_text()
    source.write_text(good.replace("return 2", "int unused; return 2"))
    for _ in range(2):
        failed = run_build(tree, "--stage", "objects")
        assert failed.returncode == 1
        assert "unused variable" in failed.stderr  # the compiler's own words
        assert failed.stderr.splitlines()[-1].startswith("build: failed with status 1: ")
    source.write_text(good)
    assert run_build(tree, "--stage", "objects").returncode == 0


def test_two_builds_at_once_take_turns(tree: Path) -> None:
    command = [sys.executable, str(tree / "build.py"), "--stage", "objects"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert "".join(errors).count("build: libbpf headers") == 1


# --- system packages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("apt", "sudo apt install libelf-dev nftables"),
        ("dnf", "sudo dnf install elfutils-libelf-devel nftables"),
        ("pacman", "sudo pacman -S libelf nftables"),
    ],
)
def test_missing_packages_are_one_line_to_copy(
    monkeypatch: pytest.MonkeyPatch, manager: str, command: str
) -> None:
    needs = [
        build.Need("libelf headers", lambda: False, "libelf-dev", "elfutils-libelf-devel", "libelf"),
        build.Need("nft", lambda: False, "nftables"),
        build.Need("make", lambda: True, "make"),
    ]
    monkeypatch.setattr(build, "needs", lambda *groups: needs)
    monkeypatch.setattr(build.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(build.shutil, "which", lambda name: name if name.startswith(manager) else None)
    with pytest.raises(build.BuildError) as refusal:
        build.install_system_packages("build")
    assert str(refusal.value) == f"missing: libelf headers, nft. Run: {command}"


def test_every_need_is_met_here() -> None:
    """The checks themselves work: this machine has built everything, so none of them may say no."""
    assert [need.what for need in build.needs("build", "run", "dev") if not need.present()] == []


def test_checks_can_say_no() -> None:
    assert not build.tool("no-such-tool")()
    assert not build.header("no_such_header.h")()
    assert not build.works(lambda: ctypes.CDLL("libno-such.so"), OSError)()


# --- wheel ----------------------------------------------------------------------------------------


def test_wheel_is_complete_and_needs_no_compiler(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, ROOT], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    architecture = build.host_architecture()
    assert wheel.name.endswith(f"-cp310-abi3-linux_{architecture}.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    made = {name for name in names if name.startswith("packet_tracer/_objects/")}
    assert made == {f"packet_tracer/_objects/{architecture}/{name}.bpf.o" for name in PROGRAMS}
    assert {
        "packet_tracer/events/_layout.py",
        "packet_tracer/bpf/_libbpf.abi3.so",
        "packet_tracer/bpf/LICENSE.libbpf",
        "packet_tracer/py.typed",
    } <= names
    assert not [name for name in names if name.endswith((".c", ".h")) or name.startswith("tests")]
    code = "from packet_tracer.bpf import _libbpf as m; print(m.__file__, m.lib.libbpf_major_version())"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.split() == [str(tmp_path / "site/packet_tracer/bpf/_libbpf.abi3.so"), "1"]
