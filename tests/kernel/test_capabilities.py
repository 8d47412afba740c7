"""What the running kernel can do: one test for each capability that tests/matrix/requirements.py names.

On a kernel of the matrix a capability that is required and missing fails here, and docs/kernels.md is made of
what passed and what was skipped why.
"""

from __future__ import annotations

import pytest

from packet_tracer.bpf.enums import AttachType, ProgramType
from packet_tracer.bpf.idle import idle_program
from packet_tracer.bpf.link import attach_tracing
from packet_tracer.doctor import Report, examine
from packet_tracer.errors import BpfError
from tests.matrix.requirements import CAPABILITIES

#: Capabilities that `ptrace doctor` has a finding for, under its name.
FINDINGS = {
    "btf": "kernel BTF",
    "ring-buffer": "ring buffer",
    "tracepoint": "tracepoint",
    "fentry": "fentry",
    "kprobe": "kprobe",
    "fentry-multi": "fentry-multi",
    "kprobe-multi": "kprobe-multi",
    "kprobe-session": "kprobe-session",
    "xdp": "xdp",
    "tc": "tc",
    "cgroup-skb": "cgroup_skb",
    "netfilter-link": "netfilter ipv4",
    "drop-reasons": "drop reasons",
}


@pytest.fixture(scope="module")
def report() -> Report:
    return examine()


@pytest.mark.parametrize(
    "capability", [pytest.param(name, marks=pytest.mark.requires(name)) for name in CAPABILITIES]
)
def test_capability(report: Report, capability: str) -> None:
    missing = _why_not(report, capability)
    if missing:
        pytest.skip(missing)


def _why_not(report: Report, capability: str) -> str:
    if capability == "tcx":
        tc = report.find("tc")
        assert tc is not None
        return "" if tc.works and tc.detail == "TCX" else tc.detail
    if capability == "module-btf":
        kernel = report.find("kernel BTF")
        assert kernel is not None
        return "" if kernel.fields.get("modules") else "no loaded module has BTF"
    if capability == "cookie":
        return _cookie()
    finding = report.find(FINDINGS[capability])
    assert finding is not None
    return "" if finding.works else finding.detail


def _cookie() -> str:
    target = "bpf_fentry_test1"
    try:
        program = idle_program(
            ProgramType.TRACING, AttachType.TRACE_FENTRY, section=f"fentry/{target}", target=target
        )
        with program, attach_tracing(program, cookie=1):
            return ""
    except BpfError as error:
        return str(error)
