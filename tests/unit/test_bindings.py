"""The compiled module, its stub file and the enums say the same."""

from __future__ import annotations

import ast
import re
from enum import IntEnum
from pathlib import Path

import pytest

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import AttachType, LinkType, MapType, ProgramType, name_of
from packet_tracer.bpf.errors import describe, libbpf_reason, verifier_reason
from packet_tracer.bpf.library import object_name, options, version

FOLDER = Path(__file__).parents[2] / "packet_tracer" / "bpf"
STUB = FOLDER / "_libbpf.pyi"
CDEF = FOLDER / "libbpf.cdef.h"


def test_the_stub_declares_exactly_what_is_bound() -> None:
    classes = {each.name: each for each in ast.parse(STUB.read_text()).body if isinstance(each, ast.ClassDef)}
    declared = {each.name for each in classes["Lib"].body if isinstance(each, ast.FunctionDef)}
    bound = {name for name in dir(lib) if callable(getattr(lib, name))}
    assert declared == bound
    for each in classes["Lib"].body:
        assert isinstance(each, ast.FunctionDef)
        signature = ffi.typeof(getattr(lib, each.name))
        assert len(each.args.args) - 1 == len(signature.args), each.name


def test_every_struct_can_be_laid_out() -> None:
    """cffi checks a struct against the C compiler's layout only when it is first used."""
    declared = re.findall(r"^((?:struct|union) \w+) \{", CDEF.read_text(), re.MULTILINE)
    assert len(declared) > 30
    for name in declared:
        assert ffi.typeof(name).fields is not None, name
        assert ffi.sizeof(name) > 0, name


#: What the pinned libbpf has no name for yet; tests/kernel/test_links_functions.py asks the kernel.
NEWER_THAN_LIBBPF = {"TRACE_FENTRY_MULTI", "TRACE_FEXIT_MULTI", "TRACE_FSESSION_MULTI", "TRACING_MULTI"}


@pytest.mark.parametrize(
    ("kind", "spell"),
    [
        (MapType, lib.libbpf_bpf_map_type_str),
        (ProgramType, lib.libbpf_bpf_prog_type_str),
        (AttachType, lib.libbpf_bpf_attach_type_str),
        (LinkType, lib.libbpf_bpf_link_type_str),
    ],
)
def test_enums_are_the_kernels(kind: type[IntEnum], spell: object) -> None:
    assert callable(spell)
    for member in kind:
        spelled = spell(member)
        assert bool(spelled) != (member.name in NEWER_THAN_LIBBPF), member
        if not spelled:
            continue
        ours = member.name.lower()
        assert ffi.string(spelled).decode() == ours, member
    assert not spell(len(kind) + 5)


def test_names_of_values() -> None:
    assert name_of(MapType, 27) == "ringbuf"
    assert name_of(MapType, 4711) == "4711"
    assert object_name("a very-long name, indeed") == b"a_very_long_nam"


def test_libbpf_is_the_pinned_one() -> None:
    assert version() == "1.7"
    opts = options("bpf_prog_load_opts", log_level=1)
    assert (opts.sz, opts.log_level, opts.flags if hasattr(opts, "flags") else 0) == (
        ffi.sizeof(opts[0]),
        1,
        0,
    )


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", ""),
        ("processed 0 insns (limit 1000000) max_states_per_insn 0\n", ""),
        (
            "0: R1=ctx() R10=fp0\n; x\n0: (79) r1 = *(u64 *)(r1 +0)\n"
            "R1 invalid mem access 'scalar'\nprocessed 1 insns\n",
            "R1 invalid mem access 'scalar' (3 more lines in the log)",
        ),
        ("unreachable insn 5\n", "unreachable insn 5"),
        (
            "7: (79) r0 = *(u64 *)(r0 +0)\nR0 invalid mem access 'map_value_or_null'\n\nVerification failed: "
            "Register Type Safety\n\nReason:\n  R0 may be NULL here\n\nSuggestion:\n  Add a NULL check.\n\n"
            "processed 7 insns\n",
            "R0 invalid mem access 'map_value_or_null' (6 more lines in the log)",
        ),
        ("Verification failed: and nothing before it\n", "Verification failed: and nothing before it"),
        (
            "invalid func unknown#195896080\n",
            "it needs a field or type that this kernel does not have (CO-RE)",
        ),
    ],
)
def test_the_verifiers_reason_in_one_line(log: str, reason: str) -> None:
    assert verifier_reason(log) == reason


def test_words_for_errors() -> None:
    assert describe(524).startswith("ENOTSUPP")
    assert describe(1) == "EPERM: Operation not permitted"
    assert describe(4003) == "Endian mismatch"
    assert (
        libbpf_reason("libbpf: permission error; try raising 'ulimit -l'?\nlibbpf: elf: broken\n")
        == "elf: broken"
    )
