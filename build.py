#!/usr/bin/env python3
"""Build packet-tracer: libbpf -> BPF objects -> record layout -> cffi module.

    python3 build.py                  set everything up: system packages, .venv, build, development install
    python3 build.py run [ARGS...]    set up, then `ptrace demo ARGS...`
    python3 build.py test [ARGS...]   set up with the development tools, then pytest
    python3 build.py matrix [KERNEL...]  the same on other kernels, in virtual machines
    python3 build.py --arch aarch64   the BPF objects of another architecture, on any host
    python3 build.py --stage objects  one stage in this interpreter: no system packages, no .venv

Every stage skips itself when nothing it reads has changed, so calling this again costs nothing. The file
is hatchling's build hook too (pyproject.toml): `pip install .` runs the same stages. Only the standard
library is imported at the top; cffi and pyelftools are imported by the stages that need them.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    _BuildHook = BuildHookInterface[Any]
else:
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface as _BuildHook
    except ImportError:  # run as a script: no hook is needed
        _BuildHook = object

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
VENV = ROOT / ".venv"
PACKAGE = ROOT / "packet_tracer"
OBJECTS = PACKAGE / "_objects"
LAYOUT = PACKAGE / "events" / "_layout.py"
MODULE = PACKAGE / "bpf" / "_libbpf.abi3.so"
LIBBPF = BUILD / "libbpf"
VENDOR = ROOT / "vendor" / "libbpf"

# Our name of an architecture -> the one in libbpf's bpf_tracing.h (__TARGET_ARCH_*).
ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
STAGES = ("libbpf", "objects", "layout", "cffi")
CLANG_MINIMUM = 14
# Tells a child process that its parent holds the build's lock.
LOCKED = {"PACKET_TRACER_BUILD_LOCKED": "1"}


class BuildError(Exception):
    """What went wrong and what to do about it, in one line."""


# --- small tools ----------------------------------------------------------------------------------


def say(message: str) -> None:
    print(f"build: {message}", file=sys.stderr, flush=True)


def run(
    *command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None, quiet: bool = False
) -> str:
    """Run a command; its standard output. Raises BuildError; a quiet command's output is shown only then."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if quiet else None,
        )
    except OSError as error:
        raise BuildError(f"cannot run {words[0]}: {error.strerror}") from None
    if done.returncode:
        print(done.stdout, end="", file=sys.stderr)
        raise BuildError(f"failed with status {done.returncode}: {' '.join(words)}")
    return done.stdout


def host_architecture() -> str:
    machine = platform.machine().lower()
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if name not in ARCHITECTURES:
        raise BuildError(f"{machine} is not supported; only {', '.join(ARCHITECTURES)} are")
    return name


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Only one build at a time in this tree: pytest, pip and a person may all start one."""
    if LOCKED.items() <= os.environ.items():
        yield
        return
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build in this tree")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def step(name: str, outputs: Iterable[Path], inputs: Iterable[Path], *parameters: object) -> Iterator[bool]:
    """True if the step must run: what it reads is not what it read last time, or an output is gone.

    Contents are compared, not times: a fresh clone gives every file a new time.
    """
    outputs = list(outputs)
    digest = hashlib.sha256(repr(parameters).encode())
    for path in sorted(inputs):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    stamp = BUILD / "stamps" / name.replace("/", "-")
    if stamp.exists() and stamp.read_text() == digest.hexdigest() and all(path.exists() for path in outputs):
        yield False
        return
    say(name)
    stamp.unlink(missing_ok=True)
    yield True
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest.hexdigest())


# --- libbpf ---------------------------------------------------------------------------------------


def libbpf_pin() -> dict[str, str]:
    pin: dict[str, str] = json.loads((VENDOR / "pin.json").read_text())
    return pin


def verify(archive: Path, pin: dict[str, str]) -> Path:
    """The archive, if it is the pinned one. Raises BuildError."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != pin["sha256"]:
        raise BuildError(
            f"{archive}: sha256 is {found}, but vendor/libbpf/pin.json says {pin['sha256']}: remove the file"
        )
    return archive


def debian_sources(suite: str, codename: str, directory: Path = Path("/etc/apt")) -> str:
    """The machine's own Debian archive as a deb822 sources list for the source packages of another suite.

    Whatever mirror and key the machine uses for its own suite are used for this one too. Raises BuildError.
    """
    stanzas = []
    for path in sorted(directory.glob("sources.list.d/*.sources")):
        for text in re.split(r"\n\s*\n", path.read_text()):
            lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
            fields = dict(re.findall(r"^([\w-]+):[ \t]*((?:.*)(?:\n[ \t].*)*)", lines, re.MULTILINE))
            if fields.get("Enabled", "yes").strip().lower() not in ("no", "false"):
                stanzas.append({key.title(): value for key, value in fields.items()})
    for path in [directory / "sources.list", *sorted(directory.glob("sources.list.d/*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else []:
            if entry := re.match(r"deb\s+(?:\[(.*?)\]\s*)?(\S+)\s+(\S+)\s+(\S.*)", line):
                options, uri, suites, components = entry.groups()
                signed = re.search(r"signed-by=(\S+)", options or "", re.IGNORECASE)
                stanza = {"Types": "deb", "Uris": uri, "Suites": suites, "Components": components}
                stanzas.append({**stanza, **({"Signed-By": signed[1]} if signed else {})})
    for stanza in stanzas:
        if (
            "deb" in stanza.get("Types", "").split()
            and codename in stanza.get("Suites", "").split()
            and "main" in stanza.get("Components", "").split()
        ):
            chosen = {"Types": "deb-src", "URIs": stanza["Uris"], "Suites": suite, "Components": "main"}
            if "Signed-By" in stanza:
                chosen["Signed-By"] = stanza["Signed-By"]
            return "".join(f"{key}: {value}\n" for key, value in chosen.items())
    raise BuildError(f"apt has no source for {codename}")


def fetch_from_debian(pin: dict[str, str], target: Path) -> None:
    """Take the archive out of Debian's source package. The system's apt lists stay as they are."""
    release = Path("/etc/os-release")
    facts = (
        dict(re.findall(r'^(\w+)="?([^"\n]*)', release.read_text(), re.MULTILINE)) if release.exists() else {}
    )
    if facts.get("ID") != "debian" or not shutil.which("apt-get"):
        raise BuildError("this is not Debian")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for folder in ("parts", "lists/partial", "cache/archives/partial", "source"):
            (work / folder).mkdir(parents=True)
        sources = debian_sources(pin["debian_suite"], facts.get("VERSION_CODENAME", ""))
        (work / "parts" / "suite.sources").write_text(sources)
        settings = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": work / "parts",
            "Dir::State::Lists": work / "lists",
            "Dir::Cache": work / "cache",
            # The directory is ours alone; apt's own user could not enter it.
            "APT::Sandbox::User": "root",
            # A mirror that lags behind is good enough: the pinned sha256 decides.
            "Acquire::Check-Valid-Until": "false",
        }
        apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in settings.items())]
        run(*apt, "update", quiet=True)
        run(*apt, "source", "--download-only", "libbpf", cwd=work / "source", quiet=True)
        found = work / "source" / pin["archive"]
        if not found.exists():
            raise BuildError(f"{pin['debian_suite']} no longer has {pin['archive']}")
        shutil.copyfile(found, target)


def fetch_from_upstream(pin: dict[str, str], target: Path) -> None:
    """Download upstream's release archive. Raises BuildError."""
    try:
        with urllib.request.urlopen(pin["url"], timeout=60) as response:
            target.write_bytes(response.read())
    except OSError as error:
        raise BuildError(f"{pin['url']}: {error}") from None


def libbpf_archive() -> Path:
    """The verified libbpf archive, fetched if it is not lying in vendor/libbpf yet. Raises BuildError."""
    pin = libbpf_pin()
    archive = VENDOR / pin["archive"]
    if archive.exists():
        return verify(archive, pin)
    refusals = []
    for place, fetch in (("Debian's archive", fetch_from_debian), ("upstream", fetch_from_upstream)):
        say(f"fetching libbpf {pin['version']} from {place}")
        partial = archive.with_name(f".partial.tar.{os.getpid()}")
        try:
            fetch(pin, partial)
            verify(partial, pin)
            return partial.replace(archive)
        except BuildError as error:
            refusals.append(f"{place}: {error}")
        finally:
            partial.unlink(missing_ok=True)
    reasons = "; ".join(refusals)
    raise BuildError(f"cannot fetch libbpf ({reasons}): put {pin['archive']} into vendor/libbpf/ by hand")


def build_libbpf_headers() -> None:
    """Unpack libbpf and lay out its headers: all that BPF objects need, and nothing is compiled for it."""
    with step(
        "libbpf headers", [LIBBPF / "include" / "bpf" / "bpf_helpers.h"], [VENDOR / "pin.json"]
    ) as stale:
        if not stale:
            return
        archive = libbpf_archive()
        shutil.rmtree(LIBBPF, ignore_errors=True)
        source = LIBBPF / "source"
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=BUILD) as work:
            if hasattr(tarfile, "data_filter"):  # 3.12, and the security releases of those before
                tar.extractall(work, filter="data")
            else:
                tar.extractall(work)
            LIBBPF.mkdir(parents=True)
            (top,) = Path(work).iterdir()
            top.replace(source)
        shutil.copytree(source / "include" / "uapi", LIBBPF / "include" / "uapi")
        (LIBBPF / "include" / "bpf").mkdir()
        for header in (source / "src").glob("*.h"):
            shutil.copy2(header, LIBBPF / "include" / "bpf")


def build_libbpf() -> None:
    """build/libbpf/libbpf.a, position independent, to be linked into the cffi module."""
    build_libbpf_headers()
    with step("libbpf", [LIBBPF / "libbpf.a"], [VENDOR / "pin.json"]) as stale:
        if stale:
            variables = [
                f"OBJDIR={LIBBPF / 'obj'}",
                "BUILD_STATIC_ONLY=1",
                "NO_PKG_CONFIG=1",
                "CFLAGS=-O2 -fPIC",
            ]
            make: list[str | Path] = ["make", f"-j{os.cpu_count()}", "-C", LIBBPF / "source" / "src"]
            run(*make, *variables, LIBBPF / "obj" / "libbpf.a", quiet=True)
            (LIBBPF / "obj" / "libbpf.a").replace(LIBBPF / "libbpf.a")


# --- BPF objects ----------------------------------------------------------------------------------


@functools.cache
def clang() -> str:
    """A clang that is new enough and has a BPF back end (Apple's has none). Raises BuildError."""
    named = os.environ.get("CLANG")
    versions = [f"clang-{version}" for version in range(30, CLANG_MINIMUM - 1, -1)]
    homebrew = [f"{prefix}/opt/llvm/bin/clang" for prefix in ("/opt/homebrew", "/usr/local")]
    for name in [named] if named else ["clang", *versions, *homebrew]:
        path = shutil.which(name)
        if path and usable_clang(path):
            return path
    raise BuildError(f"clang {CLANG_MINIMUM} or newer with the BPF target is needed (CLANG=... may name it)")


def usable_clang(path: str) -> bool:
    version = re.search(r"version (\d+)", run(path, "--version"))
    new_enough = version is not None and int(version[1]) >= CLANG_MINIMUM
    return new_enough and re.search(r"^\s*bpf\s", run(path, "--print-targets"), re.MULTILINE) is not None


def llvm_strip() -> str:
    """The llvm-strip that belongs to clang(). Raises BuildError."""
    beside = run(clang(), "--print-prog-name=llvm-strip").strip()
    if path := shutil.which(beside) or shutil.which("llvm-strip"):
        return path
    raise BuildError("llvm-strip is needed; it comes with the llvm package")


def bpf_flags(architecture: str) -> list[str]:
    """clang's flags. Paths are relative, so an object says nothing of the machine it was made on."""
    flags = "-target bpf -mcpu=v3 -g -O2 -Wall -Werror -fdebug-compilation-dir=."
    includes = "-I bpf_src -I build/libbpf/include"
    return [*flags.split(), f"-D__TARGET_ARCH_{ARCHITECTURES[architecture]}", *includes.split()]


def clang_for(source: Path) -> str:
    """The compiler of a test program: a newer one where it says `Needs clang N` and there is one.

    Where there is none, the source has to be empty for older ones, and its test says why it is skipped.
    """
    needed = re.search(r"Needs clang (\d+)", source.read_text())
    minimum = int(needed[1]) if needed else CLANG_MINIMUM
    default = clang()
    version = re.search(r"version (\d+)", run(default, "--version"))
    if version and int(version[1]) >= minimum:
        return default
    newer = (shutil.which(f"clang-{number}") for number in range(30, minimum - 1, -1))
    return next((path for path in newer if path and usable_clang(path)), default)


def compile_bpf(source: Path, target: Path, architecture: str, compiler: str | None = None) -> None:
    """Compile one BPF program and strip it of DWARF; its BTF, which the kernel wants, stays."""
    compiler = compiler or clang()
    flags = bpf_flags(architecture)
    headers = [VENDOR / "pin.json", *(ROOT / "bpf_src").glob("*.h"), *source.parent.glob("*.h")]
    with step(str(target.relative_to(ROOT)), [target], {source, *headers}, flags, compiler) as stale:
        if stale:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".partial")
            run(compiler, *flags, "-c", source.relative_to(ROOT), "-o", partial)
            run(llvm_strip(), "-g", partial)
            partial.replace(target)


def build_objects(architecture: str) -> None:
    """bpf_src/*.bpf.c -> packet_tracer/_objects/ARCHITECTURE/*.bpf.o"""
    build_libbpf_headers()
    folder = OBJECTS / architecture
    targets = {
        folder / source.with_suffix(".o").name: source for source in (ROOT / "bpf_src").glob("*.bpf.c")
    }
    for target, source in sorted(targets.items()):
        compile_bpf(source, target, architecture)
    for leftover in set(folder.glob("*.bpf.o")) - set(targets):  # its source is gone
        leftover.unlink()


def build_test_objects() -> None:
    """tests/bpf/*.bpf.c -> build/tests/*.bpf.o, for this machine."""
    for source in sorted((ROOT / "tests" / "bpf").glob("*.bpf.c")):
        target = BUILD / "tests" / source.with_suffix(".o").name
        compile_bpf(source, target, host_architecture(), clang_for(source))


# --- record layout --------------------------------------------------------------------------------

LAYOUT_HEAD = '''"""The layout of bpf_src/records.h as compiled, generated by build.py. Do not edit.

A field's `format` is a struct character: `s` with `count` bytes for an array of bytes, else `count` numbers.
*_FORMAT is for struct (the host's byte order, nothing padded), *_DTYPE for numpy.dtype().
"""

from enum import IntEnum, IntFlag
from typing import NamedTuple


class EventField(NamedTuple):
    """One member of a record: where it lies in the record and how to read it."""

    name: str
    offset: int
    size: int
    format: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks a field for

'''


DW_ATE_SIGNED, DW_ATE_SIGNED_CHAR = 5, 6


class Member(NamedTuple):
    """One member of a C struct: as EventField in the generated module, and its NumPy type."""

    name: str
    offset: int
    size: int
    format: str
    length: int  # of an array; else 1
    dtype: str


def read_layout(object_file: Path) -> tuple[dict[str, list[Member]], dict[str, dict[str, int]]]:
    """The members of each `struct ptrace_*` and `enum ptrace_*` in an object's DWARF. Raises BuildError."""
    from elftools.elf.elffile import ELFFile

    def text(die: Any) -> str:
        return str(die.attributes["DW_AT_name"].value.decode()) if "DW_AT_name" in die.attributes else ""

    def number(die: Any, attribute: str) -> int:
        return int(die.attributes[f"DW_AT_{attribute}"].value)

    def resolve(die: Any) -> Any:
        while die.tag in ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type"):
            die = die.get_DIE_from_attribute("DW_AT_type")
        return die

    def member(struct: str, die: Any) -> Member:
        kind, count, array = resolve(die.get_DIE_from_attribute("DW_AT_type")), 1, False
        if kind.tag == "DW_TAG_array_type":
            (dimension,) = kind.iter_children()
            count, array = number(dimension, "count"), True
            kind = resolve(kind.get_DIE_from_attribute("DW_AT_type"))
        if kind.tag != "DW_TAG_base_type" or {"DW_AT_bit_size", "DW_AT_data_bit_offset"} & set(
            die.attributes
        ):
            raise BuildError(f"struct {struct}: {text(die)} is neither an integer nor an array of integers")
        size = number(kind, "byte_size")
        signed = number(kind, "encoding") in (DW_ATE_SIGNED, DW_ATE_SIGNED_CHAR)
        code = ("bhiq" if signed else "BHIQ")[size.bit_length() - 1]
        code = "s" if array and size == 1 else code
        dtype = f"{'i' if signed else 'u'}{size}"
        return Member(text(die), number(die, "data_member_location"), size * count, code, count, dtype)

    structs: dict[str, list[Member]] = {}
    enums: dict[str, dict[str, int]] = {}
    with object_file.open("rb") as stream:
        dwarf = ELFFile(stream).get_dwarf_info()
        for die in (die for unit in dwarf.iter_CUs() for die in unit.iter_DIEs()):
            name = text(die)
            if not name.startswith("ptrace_") or "DW_AT_byte_size" not in die.attributes:
                continue
            if die.tag == "DW_TAG_enumeration_type":
                enums[name] = {text(child): number(child, "const_value") for child in die.iter_children()}
            elif die.tag == "DW_TAG_structure_type":
                members = [member(name, child) for child in die.iter_children()]
                end = 0
                for one in members:
                    if one.offset != end:
                        raise BuildError(f"struct {name}: hidden padding before {one.name}, at byte {end}")
                    end += one.size
                if end != number(die, "byte_size"):
                    raise BuildError(f"struct {name}: hidden padding at its end, at byte {end}")
                structs[name] = members
    return structs, enums


def read_macros(header: Path) -> dict[str, int]:
    """The numbers that a header #defines as PTRACE_*: macros are not in the debug info."""
    text = run(clang(), "-target", "bpf", "-E", "-dM", "-D__u8=char", header)
    pairs = re.findall(r"^#define PTRACE_(\w+) \(?(0x[0-9a-fA-F]+|\d+)[uUlL]*\)?\s*$", text, re.MULTILINE)
    return {name: int(value, 0) for name, value in sorted(pairs)}


def render_layout(
    structs: dict[str, list[Member]], enums: dict[str, dict[str, int]], macros: dict[str, int]
) -> str:
    """The text of _layout.py."""
    lines = [LAYOUT_HEAD]
    lines += [f"{name} = {value}" for name, value in macros.items()]
    for name, members in sorted(enums.items()):
        flags = name.endswith("_flags")
        prefix = f"{name.removesuffix('_flags').upper()}_"
        if not all(member.startswith(prefix) for member in members):
            raise BuildError(f"enum {name}: every member's name must start with {prefix}")
        # `Probe` is what the public API calls the thing that a number of this enum stands for.
        title = {"ptrace_probe": "ProbeId"}.get(name) or name.removeprefix("ptrace_").title().replace("_", "")
        lines += [
            "",
            "",
            f"class {title}({'IntFlag' if flags else 'IntEnum'}):",
            f'    """enum {name}."""',
            "",
        ]
        lines += [f"    {member.removeprefix(prefix)} = {value}" for member, value in members.items()]
    for name, fields in sorted(structs.items()):
        title = name.removeprefix("ptrace_").upper()
        codes = "".join(f"{m.length}{m.format}" if m.length > 1 else m.format for m in fields)
        shapes = [f", ({m.length},)" if m.format == "s" or m.length > 1 else "" for m in fields]
        lines += ["", "", f"# struct {name}", f"{title}_SIZE = {fields[-1].offset + fields[-1].size}"]
        lines += [f"{title}_FIELDS: tuple[EventField, ...] = ("]
        lines += [
            f'    EventField("{m.name}", {m.offset}, {m.size}, "{m.format}", {m.length}),' for m in fields
        ]
        lines += [")", f'{title}_FORMAT = "={codes}"']
        lines += [f"{title}_DTYPE: list[tuple[str, str] | tuple[str, str, tuple[int]]] = ["]
        lines += [f'    ("{m.name}", "{m.dtype}"{shape}),' for m, shape in zip(fields, shapes, strict=True)]
        lines += ["]"]
    return "\n".join(lines) + "\n"


def build_layout() -> None:
    """bpf_src/records.h, as the compiler laid it out -> packet_tracer/events/_layout.py"""
    sources = [ROOT / "bpf_src" / "records.h", ROOT / "bpf_src" / "vmlinux.h"]
    with step("layout", [LAYOUT], [*sources, Path(__file__).resolve()], clang()) as stale:
        if stale:
            compiled = BUILD / "records.o"
            # No code uses the structs, so ask to keep what nothing uses. BPF's layout is the same everywhere.
            flags: list[str | Path] = [
                "-target",
                "bpf",
                "-g",
                "-fno-eliminate-unused-debug-types",
                "-include",
                sources[1],
            ]
            run(clang(), *flags, "-x", "c", "-c", sources[0], "-o", compiled)
            LAYOUT.parent.mkdir(exist_ok=True)
            LAYOUT.write_text(render_layout(*read_layout(compiled), read_macros(sources[0])))


# --- cffi module ----------------------------------------------------------------------------------


def build_cffi() -> None:
    """libbpf.cdef.h + shim.c + libbpf.a -> packet_tracer/bpf/_libbpf.abi3.so, for CPython 3.10 and later."""
    import cffi

    build_libbpf()
    folder = PACKAGE / "bpf"
    inputs = [folder / "libbpf.cdef.h", *folder.glob("*.[ch]"), VENDOR / "pin.json"]
    compiler = os.environ.get("CC", "cc")
    includes = [LIBBPF / "include", LIBBPF / "include" / "uapi", folder, Path(sysconfig.get_path("include"))]
    flags = "-shared -fPIC -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror".split()
    flags += ["-DPy_LIMITED_API=0x030a0000", *(f"-I{path}" for path in includes)]
    # libbpf's own symbols stay inside, so that another libbpf in the same process is not mixed up with it.
    libraries: list[str | Path] = [LIBBPF / "libbpf.a", "-lelf", "-lz", "-Wl,--exclude-libs,ALL"]
    with step("cffi", [MODULE], set(inputs), compiler, flags, cffi.__version__) as stale:
        if stale:
            builder = cffi.FFI()
            builder.cdef((folder / "libbpf.cdef.h").read_text())
            shim = f'#line 1 "packet_tracer/bpf/shim.c"\n{(folder / "shim.c").read_text()}'
            builder.set_source("packet_tracer.bpf._libbpf", shim, py_limited_api=True)
            source = BUILD / "_libbpf.c"
            with contextlib.redirect_stdout(None):  # it says "generating"
                builder.emit_c_code(str(source))
            partial = BUILD / MODULE.name
            run(compiler, *flags, source, "-o", partial, *libraries)
            # A running process has the old file mapped: replace it, never write into it.
            partial.replace(MODULE)


def build_stages(stages: Iterable[str] = STAGES) -> None:
    """Run the named stages in this interpreter, in order."""
    actions: dict[str, Callable[[], None]] = {
        "libbpf": build_libbpf,
        "objects": lambda: build_objects(host_architecture()),
        "layout": build_layout,
        "cffi": build_cffi,
        "tests": build_test_objects,
    }
    with exclusive():
        for stage in stages:
            actions[stage]()


# --- setting up: system packages, virtual environment ---------------------------------------------


class Need(NamedTuple):
    """Something the system must have: how to tell, and the package that brings it."""

    what: str
    present: Callable[[], bool]
    apt: str
    dnf: str = ""  # as in apt
    pacman: str = ""  # as in apt


def tool(*names: str) -> Callable[[], bool]:
    # A normal user's PATH may lack the folders of the system tools.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return lambda: all(shutil.which(name, path=path) for name in names)


def header(name: str, *flags: str) -> Callable[[], bool]:
    def present() -> bool:
        command = [os.environ.get("CC", "cc"), *flags, "-E", "-include", name, "-x", "c", "/dev/null"]
        return bool(shutil.which(command[0])) and not subprocess.run(command, capture_output=True).returncode

    return present


def works(action: Callable[[], object], *refusals: type[Exception]) -> Callable[[], bool]:
    def present() -> bool:
        try:
            action()
        except refusals:
            return False
        return True

    return present


def trusted_authorities() -> bool:
    paths = ssl.get_default_verify_paths()
    return bool(paths.cafile) or bool(paths.capath and any(Path(paths.capath).glob("*.0")))


def load_libpcap() -> None:
    try:
        ctypes.CDLL("libpcap.so.1")
    except OSError:
        ctypes.CDLL("libpcap.so.0.8")  # Debian's name of the same


def needs(*groups: str) -> list[Need]:
    """What the system must have for the "build", for set-up and capture ("run"), for "dev" and "matrix"."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    include = f"-I{sysconfig.get_path('include')}"
    ensurepip = works(lambda: importlib.import_module("ensurepip"), ImportError)
    table = {
        "build": [
            Need("clang", works(clang, BuildError), "clang"),
            Need("llvm-strip", works(llvm_strip, BuildError), "llvm"),
            Need("a C compiler", tool(os.environ.get("CC", "cc")), "gcc"),
            Need("make", tool("make"), "make"),
            Need("C headers", header("stdlib.h"), "libc6-dev", "glibc-devel", "glibc"),
            Need("libelf headers", header("gelf.h"), "libelf-dev", "elfutils-libelf-devel", "libelf"),
            Need("zlib headers", header("zlib.h"), "zlib1g-dev", "zlib-devel", "zlib"),
            Need("Python headers", header("Python.h", include), f"{python}-dev", "python3-devel", "python"),
        ],
        "run": [
            # For the archive from upstream, where there is none from Debian.
            Need("CA certificates", trusted_authorities, "ca-certificates"),
            Need("ensurepip", ensurepip, f"{python}-venv", "python3", "python"),
            Need("libpcap", works(load_libpcap, OSError), "libpcap0.8", "libpcap", "libpcap"),
            Need("ip", tool("ip"), "iproute2", "iproute"),
            Need("nft", tool("nft"), "nftables"),
        ],
        "dev": [
            Need("clang-format", tool("clang-format"), "clang-format", "clang-tools-extra", "clang"),
            Need("tcpdump", tool("tcpdump"), "tcpdump"),
            Need("ping", tool("ping"), "iputils-ping", "iputils", "iputils"),
            Need("ethtool", tool("ethtool"), "ethtool"),
            Need("iperf3", tool("iperf3"), "iperf3"),
            Need("cpio", tool("cpio"), "cpio"),
            Need("bpftool", tool("bpftool"), "bpftool", "bpftool", "bpf"),
        ],
        "matrix": [  # what is special about Debian's kernels, tests.matrix says itself
            Need("QEMU", tool("qemu-system-x86_64"), "qemu-system-x86", "qemu-system-x86-core"),
            Need("busybox", tool("busybox"), "busybox-static", "busybox", "busybox"),
            Need("modprobe", tool("modprobe"), "kmod"),
            Need("setpriv", tool("setpriv", "unshare"), "util-linux"),
        ],
    }
    return [need for group in groups for need in table[group]]


def missing(*groups: str) -> list[Need]:
    """Those of needs() that the system does not meet."""
    clang.cache_clear()
    return [need for need in needs(*groups) if not need.present()]


def refuse(lacking: list[Need]) -> None:
    """Raise BuildError, if anything is lacking, with the one line to copy that installs it."""
    if lacking:
        commands = {"apt": "apt install", "dnf": "dnf install", "pacman": "pacman -S"}
        manager = next((name for name in commands if shutil.which(name)), "apt")
        packages = sorted({getattr(need, manager) or need.apt for need in lacking})
        names = ", ".join(need.what for need in lacking)
        raise BuildError(f"missing: {names}. Run: sudo {commands[manager]} {' '.join(packages)}")


def install_system_packages(*groups: str) -> None:
    """Install what is missing, as root and with apt; elsewhere raise BuildError with one line to copy."""
    lacking = missing(*groups)
    if lacking and shutil.which("apt-get") and os.geteuid() == 0:
        packages = sorted({need.apt for need in lacking})
        say(f"installing {' '.join(packages)}")
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "-q", "update", env=quiet, quiet=True)
        run("apt-get", "-q", "install", "-y", "--no-install-recommends", *packages, env=quiet, quiet=True)
        importlib.invalidate_caches()
        lacking = missing(*groups)
    refuse(lacking)


def venv_version(python: Path) -> str:
    """What .venv's interpreter says of itself; nothing if it is not there or of no use."""
    if not python.exists():
        return ""
    done = subprocess.run(
        [python, "-c", "import pip, sys; print(sys.version)"], capture_output=True, text=True
    )
    return done.stdout


def set_up(dev: bool = False, matrix: bool = False) -> None:
    """System packages, .venv, every stage, and the package itself in development mode. Raises BuildError."""
    if sys.platform != "linux":
        raise BuildError("the tracer runs on Linux only; --arch builds its BPF objects here")
    install_system_packages("build", "run", *(["dev"] if dev else []), *(["matrix"] if matrix else []))
    project = ROOT / "pyproject.toml"
    python = VENV / "bin" / "python"
    options = "-qq --disable-pip-version-check --root-user-action=ignore".split()
    pip = [str(python), "-m", "pip", "install", *options]
    with exclusive():
        if not venv_version(python):
            say("creating .venv")
            run(sys.executable, "-m", "venv", "--clear", VENV, quiet=True)
        version = venv_version(python)
        with step("build tools", [VENV / "bin" / "hatchling"], [project], version) as stale:
            if stale:
                requires = re.search(r"^requires = (\[.*\])$", project.read_text(), re.MULTILINE)
                assert requires, "pyproject.toml: the build's requirements must be one line"
                run(*pip, *json.loads(requires[1]))
        # The stages, seen; then pip, whose build needs nothing fetched and whose hook finds the stages done.
        stages = [str(python), __file__, "--stage", *STAGES, *(["tests"] if dev else [])]
        if subprocess.run(stages, env={**os.environ, **LOCKED}).returncode:
            sys.exit(1)  # it has said why
        # Whoever has the development tools keeps them up to date.
        dev_tools = dev or (VENV / "bin" / "pytest").exists()
        extra, tools = ("[dev]", ["ptrace", "pytest"]) if dev_tools else ("", ["ptrace"])
        outputs = [VENV / "bin" / name for name in tools]
        with step(f"python packages{extra}", outputs, [project], version) as stale:
            if stale:
                run(*pip, "--no-build-isolation", "--editable", f"{ROOT}{extra}", env=LOCKED)


# --- hatchling ------------------------------------------------------------------------------------


class BuildHook(_BuildHook):
    """Runs the stages for `pip install .`, `pip wheel .` and `pip install -e .`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and add to the wheel what git ignores and this architecture needs."""
        if self.target_name != "wheel":
            return
        architecture = host_architecture()
        refuse(missing("build"))
        build_stages()
        build_data["pure_python"] = False
        build_data["tag"] = f"cp310-abi3-linux_{architecture}"
        made = [*sorted((OBJECTS / architecture).glob("*.bpf.o")), LAYOUT, MODULE]
        build_data["artifacts"] += [f"/{path.relative_to(ROOT)}" for path in made]
        if version != "editable":
            notice = LIBBPF / "source" / "LICENSE.BSD-2-Clause"
            build_data["force_include"][str(notice)] = "packet_tracer/bpf/LICENSE.libbpf"


# --- command line ---------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    description, _, epilog = (__doc__ or "").partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("build.py", description=description, epilog=epilog, formatter_class=raw)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--arch",
        choices=[*ARCHITECTURES],
        help="build the BPF objects of this architecture, and nothing else",
    )
    what.add_argument(
        "--stage", nargs="+", choices=[*STAGES, "tests"], help="run these stages in this interpreter"
    )
    parser.add_argument("--dev", action="store_true", help="install the development tools too")
    parser.add_argument("command", nargs="?", choices=["setup", "run", "test", "matrix"], default="setup")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="go to the command")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line asks for; a BuildError is one line and exit status 1."""
    options = parse(arguments)
    try:
        if options.arch:
            with exclusive():
                build_objects(options.arch)
            return
        if options.stage:
            build_stages(options.stage)
            return
        dev = options.dev or options.command in ("test", "matrix")
        set_up(dev, matrix=options.command == "matrix")
    except BuildError as error:
        sys.exit(f"build: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"build: {sys.executable} has no {error.name}: use .venv/bin/python, which build.py makes")
    except PermissionError as error:
        sys.exit(f"build: {error.filename}: {error.strerror}; was it made by another user (sudo)?")
    if options.command == "run":
        os.execv(VENV / "bin" / "ptrace", ["ptrace", "demo", *options.arguments])
    modules = {"test": "pytest", "matrix": "tests.matrix"}
    if options.command in modules:
        os.chdir(ROOT)
        python = VENV / "bin" / "python"
        os.execv(python, [str(python), "-m", modules[options.command], *options.arguments])


if __name__ == "__main__":
    main()
