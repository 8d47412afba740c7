"""`ptrace doctor` and `ptrace probes`: what they find is what is so, and they leave nothing behind."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from packet_tracer import doctor
from packet_tracer.bpf.privileges import effective_capabilities
from packet_tracer.doctor import host
from packet_tracer.doctor.finding import Finding, Report, Section
from packet_tracer.netns import interfaces
from packet_tracer.probes.catalogue import PROBES
from packet_tracer.probes.function_probes import BACKENDS
from tests.kernel.cli import PTRACE, ptrace

HOOKS = {"tracepoint", "xdp", "tc", "netfilter ipv4", "netfilter ipv6", "cgroup_skb", "fentry", "fexit"}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    result = ptrace("doctor", "--format", "json")
    report: dict[str, Any] = json.loads(result.stdout)
    assert result.returncode == (0 if report["can_capture"] else 4)
    return report


def test_every_no_has_a_reason(found: dict[str, Any]) -> None:
    hooks = {finding["name"]: finding for finding in found["hooks"]}
    assert set(hooks) == HOOKS | {"fentry-multi", "kprobe", "kprobe-multi", "kprobe-session"}
    for section in ("kernel", "privileges", "hooks", "others"):
        for finding in found[section]:
            assert finding["detail"], finding
            assert "\n" not in finding["detail"]


def test_kprobes_are_there_if_the_kernel_was_built_with_them(found: dict[str, Any]) -> None:
    config = Path("/proc/config.gz")
    if not config.exists():
        pytest.skip("this kernel does not tell its configuration (CONFIG_IKCONFIG_PROC)")
    built = b"\nCONFIG_KPROBES=y\n" in gzip.decompress(config.read_bytes())
    kprobe = next(finding for finding in found["hooks"] if finding["name"] == "kprobe")
    assert kprobe["works"] is built
    if not built:
        assert kprobe["detail"] == "CONFIG_KPROBES is not set in this kernel"


def test_capabilities_are_those_of_the_process(found: dict[str, Any]) -> None:
    capabilities = next(finding for finding in found["privileges"] if finding["name"] == "capabilities")
    assert set(capabilities["effective"]) == effective_capabilities()
    assert capabilities["works"] is (not capabilities["missing"])


def test_it_leaves_nothing_behind() -> None:
    before = interfaces()
    report = doctor.examine()
    assert interfaces() == before
    assert not list(Path("/sys/fs/cgroup").rglob(f"ptrace-doctor-{os.getpid()}"))
    assert report.find("tracepoint") is not None


def test_text_has_a_line_for_each_finding(found: dict[str, Any]) -> None:
    result = ptrace("doctor")
    assert result.stderr == ""
    for section in ("kernel", "privileges", "hooks", "others"):
        assert section.upper() in result.stdout.splitlines()
        for finding in found[section]:
            assert f"\n  {finding['name']}" in result.stdout
    assert result.stdout.endswith("a capture can run here\n" if found["can_capture"] else "can run here\n")


def test_other_tracers_are_counted() -> None:
    """A program that is loaded by somebody else is told."""
    from packet_tracer.bpf.enums import AttachType, ProgramType
    from packet_tracer.bpf.idle import idle_program

    def count() -> int:
        finding = doctor.examine().find("BPF programs")
        assert finding is not None
        counts = finding.fields["counts"]
        assert isinstance(counts, dict)
        return int(counts.get("xdp", 0))

    programs = [idle_program(ProgramType.XDP, AttachType.XDP, returns=2) for _ in range(40)]
    try:
        assert count() >= 40
    finally:
        for program in programs:
            program.close()


def report(**works: bool | None) -> Report:
    findings = [Finding(name.replace("_", " "), "", works=value) for name, value in works.items()]
    return Report((Section("all", tuple(findings)),))


@pytest.mark.parametrize(
    ("expected", "findings"),
    [
        (True, {"kernel_BTF": True, "ring_buffer": True, "tracepoint": True}),
        (True, {"kernel_BTF": True, "ring_buffer": True, "tracepoint": False, "tc": True}),
        (False, {"kernel_BTF": True, "ring_buffer": True, "tracepoint": False, "tc": None}),
        (False, {"kernel_BTF": False, "ring_buffer": True, "tracepoint": True}),
        (False, {"kernel_BTF": True, "ring_buffer": False, "tracepoint": True}),
        (False, {"kernel_BTF": True, "ring_buffer": True, "kprobe": True}),
    ],
)
def test_what_a_capture_takes(expected: bool, findings: dict[str, bool | None]) -> None:
    assert report(**findings).can_capture is expected


def test_options_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "kernel_config", lambda: {"CONFIG_KPROBES": "y"})
    assert host.not_compiled_in("CONFIG_KPROBES") == ""
    assert (
        host.not_compiled_in("CONFIG_KPROBES", "CONFIG_FPROBE") == "CONFIG_FPROBE is not set in this kernel"
    )
    monkeypatch.setattr(host, "kernel_config", lambda: None)
    assert host.not_compiled_in("CONFIG_FPROBE") == ""


def test_probes_are_listed_with_what_is_so_here(found: dict[str, Any]) -> None:
    result = ptrace("probes", "--format", "json")
    assert result.returncode == 0
    listed = [json.loads(line) for line in result.stdout.splitlines()]
    assert [probe["name"] for probe in listed] == [probe.name for probe in PROBES]
    hooks = {finding["name"]: finding["works"] for finding in found["hooks"]}
    by_name = {probe["name"]: probe for probe in listed}
    assert by_name["xdp"]["available"] is hooks["xdp"]
    assert by_name["tc:egress"]["available"] is hooks["tc"]
    assert by_name["netfilter:ipv6:input"]["available"] is hooks["netfilter ipv6"]
    assert by_name["kfree_skb"]["available"] is hooks["tracepoint"]
    assert by_name["kfree_skb"]["profiles"] == ["path", "tracepoints", "drops"]


def test_probes_by_pattern() -> None:
    result = ptrace("probes", "netfilter:ipv6:*")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["PROBE", "HOOK", "HERE"]
    assert [line.split()[0] for line in lines[1:6]] == [
        f"netfilter:ipv6:{hook}" for hook in ("prerouting", "input", "forward", "output", "postrouting")
    ]


def test_functions_are_listed_with_what_reaches_them_here(found: dict[str, Any]) -> None:
    hooks = {finding["name"]: finding["works"] for finding in found["hooks"]}
    result = ptrace("probes", "--functions", "/^ip_rcv$/", "--format", "json")
    assert result.returncode == 0
    (function,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert function["name"] == "ip_rcv"
    assert function["prototype"].startswith("int ip_rcv(struct sk_buff *")
    assert function["backends"] == [backend for backend in BACKENDS if hooks[backend]]
    text = ptrace("probes", "--functions", "ip_rcv").stdout
    assert text.splitlines()[1].split()[:2] == ["ip_rcv", "vmlinux"]
    assert ("No backend works on this kernel" in text) is not any(hooks[backend] for backend in BACKENDS)


def test_a_tracepoint_that_this_kernel_has_not() -> None:
    from packet_tracer.doctor.availability import availability

    invented = PROBES[1]._replace(name="no_such_tracepoint")
    finding = availability([invented])["no_such_tracepoint"]
    assert finding.works is False
    assert finding.detail == "this kernel has no such tracepoint"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = " ".join([*PTRACE, "probes", "|", "head", "-1"])
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.startswith("PROBE")
    assert done.stderr == ""
