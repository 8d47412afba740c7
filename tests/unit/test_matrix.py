"""The kernel runner's parts that need neither QEMU nor a mirror."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.matrix import guest, kernels, run
from tests.matrix.docs import render
from tests.matrix.errors import GuestDied, GuestStumbled, UnknownKernel
from tests.matrix.requirements import CAPABILITIES, REQUIREMENTS, required
from tests.matrix.suite import PROJECT, Result


def test_names() -> None:
    assert kernels.parse_name("trixie") == ("trixie", "cloud")
    assert kernels.parse_name("trixie-backports:full") == ("trixie-backports", "full")
    with pytest.raises(UnknownKernel, match="no such suite; there are bullseye, bookworm"):
        kernels.parse_name("buster")
    with pytest.raises(UnknownKernel, match="no such flavour"):
        kernels.parse_name("sid:rt")


def _apt_says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    answer = subprocess.CompletedProcess([], 0, text, "")
    monkeypatch.setattr(kernels, "_call", lambda *_, **__: answer)


def test_sources_use_the_machines_own_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    _apt_says(
        monkeypatch,
        "http://other.test/ stable Elsewhere\n"
        "http://one.test/debian/ bookworm Debian\n"
        "http://two.test/security/ bookworm-security Debian\n"
        "http://three.test/debian/ bookworm-updates Debian\n",
    )
    lines = kernels._sources("trixie").splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "http://one.test/debian/ trixie main",
        "http://two.test/security/ trixie-security main",
    ]
    assert len(kernels._sources("sid").splitlines()) == 1


def test_no_debian_mirror_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _apt_says(monkeypatch, "http://other.test/ stable Elsewhere\n")
    with pytest.raises(UnknownKernel, match="no Debian mirror"):
        kernels._sources("sid")


def test_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    if not shutil.which("cpio"):
        pytest.skip("needs the cpio program")
    entries = [("bin", 0o040755, b""), ("bin/odd", 0o100755, b"abc"), ("bin/even", 0o100644, b"abcd")]
    archive = b"".join(guest._entry(*entry) for entry in entries) + guest._entry("TRAILER!!!", 0)
    subprocess.run(["cpio", "-i", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/odd").read_bytes() == b"abc"
    assert (tmp_path / "bin/even").read_bytes() == b"abcd"
    assert (tmp_path / "bin/odd").stat().st_mode == 0o100755


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.setattr(run, "_VIRTIOFSD", ("/nowhere",))
    expected = ["busybox-static", "kmod", "qemu-system-common or virtiofsd", "qemu-system-x86", "util-linux"]
    assert run.missing_packages() == expected


def test_last_words_begin_at_the_failure(tmp_path: Path) -> None:
    console = tmp_path / "console"
    console.write_text("fine\n" * 50 + "Kernel panic - not syncing\n" + "trace\n" * 50)
    words = run._last_words(console)
    assert words[0].startswith("Kernel panic")
    assert len(words) == run._CONSOLE_LINES
    console.write_text("fine\n" * 50)
    assert len(run._last_words(console)) == run._CONSOLE_LINES


def test_port_passes_on_and_keeps() -> None:

    sink = io.BytesIO()
    for port, read in ((run._Port(sink), sink.getvalue), (run._Port(), None)):
        writer = os.dup(port.write_fd)
        port.start()
        os.write(writer, b"hello")
        os.close(writer)
        port.join()
        assert (read() if read else port.content) == b"hello"


def test_requirements_name_known_capabilities() -> None:
    assert set(REQUIREMENTS) == set(kernels.SUITES)
    assert all(names <= set(CAPABILITIES) for names in REQUIREMENTS.values())
    assert "kprobe-multi" not in required("bookworm").split(",")
    assert {"fentry", "kprobe", "drop-reasons", "tcx"} <= set(required("trixie").split(","))


def test_a_run_without_tests_is_not_a_success() -> None:
    assert not Result("sid", "7.2").ok
    assert not Result("sid", "7.2", passed=1, failed=1).ok
    assert not Result("sid", "7.2", passed=1, problem="timed out").ok
    assert Result("sid", "7.2", passed=1, skipped=1).ok


def test_page_of_kernels() -> None:
    old = Result("bullseye", "5.10.0", capabilities={"btf": "", "tcx": "too old"}, facts={"functions": 7})
    new = Result("sid", "7.2", capabilities={"btf": "", "tcx": ""})
    page = render([old, new])
    assert "|  | bullseye | sid |\n" in page
    assert "| functions | 7 |  |\n" in page
    assert "types | **yes** | **yes** |\n" in page
    assert "| `tcx`: traffic control links | no | **yes** |\n" in page
    assert (
        "| `kprobe`: function entry and return by breakpoint or ftrace | **not tried** | **not tried** |"
        in page
    )
    assert page.endswith("- `tcx`: too old (bullseye)\n")


def test_a_test_that_hangs_fails_and_the_others_run(tmp_path: Path) -> None:
    tests = tmp_path / "test_two.py"
    tests.write_text(
        "import threading\n"
        "def test_hangs(): threading.Event().wait()\n"
        "def test_runs(record_property): record_property('ran', 'yes')\n"
    )
    report = tmp_path / "report"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.matrix.plugin"]
    result = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tests)],
        env=os.environ
        | {"MATRIX_REPORT": str(report), "MATRIX_TEST_LIMIT": "0.3", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = json.loads(report.read_text())
    assert (result.returncode, found["passed"], found["failed"]) == (1, 1, 1), result.stdout
    assert found["facts"] == {"ran": "yes"}
    assert "FAILED test_two.py::test_hangs (call)" in result.stderr
    assert "it took longer than 0.3 s" in result.stderr


def test_only_an_emulation_s_fault_is_tried_again() -> None:
    """While it boots, or at a breakpoint that the kernel put there itself: no test of ours does that."""
    panic, breakpoint_ = ["Kernel panic - not syncing"], ["Oops: int3: 0000 [#1]", "Kernel panic"]
    kinds = [
        type(run.death("trixie", evidence, began=began))
        for evidence, began in ((panic, True), (panic, False), (breakpoint_, True), (breakpoint_, False))
    ]
    assert kinds == [GuestDied, GuestStumbled, GuestStumbled, GuestStumbled]
    assert str(run.death("trixie", panic, began=False)).startswith(
        "trixie: the guest died before its command began"
    )
    assert run.death("trixie", panic, began=True).details == tuple(panic)


def test_a_guest_that_dies_of_its_emulation_is_booted_once_more() -> None:
    outcome, said = run.Outcome(0, 1.0, 2.0, b""), io.BytesIO()
    boots: list[Exception | run.Outcome] = [
        GuestStumbled("trixie: the guest died:", "Oops: int3"),
        outcome,
    ]

    def boot(*_: object, **__: object) -> run.Outcome:
        came_to = boots.pop(0)
        if isinstance(came_to, Exception):
            raise came_to
        return came_to

    start = partial(run._once_more(boot), stderr=said)
    assert start() is outcome
    assert b"booting it once more" in said.getvalue()
    boots = [GuestStumbled("once"), GuestStumbled("twice")]
    with pytest.raises(GuestDied, match="twice"):
        start()
    boots = [GuestDied("while it ran")]
    with pytest.raises(GuestDied, match="while it ran"):
        start()
