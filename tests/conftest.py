"""What all tests share: markers by folder, skips that hide no broken probe, hypothesis without deadlines."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# Two busy cores make a deadline a coin toss; the number of examples bounds the time.
settings.register_profile("packet-tracer", deadline=None)
settings.load_profile("packet-tracer")

TESTS = Path(__file__).parent
REQUIRED = set(filter(None, os.environ.get("PTRACE_REQUIRE", "").split(",")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """tests/kernel/ and tests/matrix/ carry their markers without saying so in each file."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in ("kernel", "matrix"):
            item.add_marker(folder)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") and os.geteuid() != 0:
        pytest.skip("needs root: loads BPF programs and makes network namespaces")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip of a test marked `requires(NAME)` is a failure where PTRACE_REQUIRE has NAME.

    PTRACE_REQUIRE is names joined by commas; `root` stands for all tests in tests/kernel/. A test needs
    all that it and its file are marked with, so it may be skipped where one of them need not be there.
    """
    report = yield
    wanted = {str(name) for mark in item.iter_markers("requires") for name in mark.args}
    refused = sorted(wanted) if wanted <= REQUIRED else []
    if item.get_closest_marker("kernel") and os.geteuid() and "root" in REQUIRED:
        refused.append("root")
    if report.skipped and refused and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"PTRACE_REQUIRE asks for {', '.join(refused)} here, but: {reason}"
    return report
