"""A pytest plugin that tells the runner outside what happened inside: JSON into ``$MATRIX_REPORT``.

Beside the counts it says which capabilities were seen: a capability was, when a test that is marked
``@pytest.mark.requires(NAME)`` for it passed, and was not, with the reason, when such a test was skipped.
What tests record with ``record_property`` are facts about the kernel.

A test that hangs fails, so that it costs the others nothing, and a failure is shown when it happens: a run
takes long, and who waits for its end may lose it.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Generator
from types import FrameType

import pytest

#: More than any test takes on an emulated machine that others keep busy too, in seconds.
_TEST_LIMIT = float(os.environ.get("MATRIX_TEST_LIMIT", 400))


class Report:
    """Collects outcomes while the tests run."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.outcomes: dict[str, str] = {}
        self.failures: list[str] = []
        self.skips: dict[str, str] = {}
        self.capabilities: dict[str, str] = {}
        self.facts: dict[str, object] = {}
        self._requires: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            names = [str(name) for mark in item.iter_markers("requires") for name in mark.args]
            self._requires[item.nodeid] = names

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
            self.failures.append(f"{report.nodeid} ({report.when})")
            print(
                f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext}",
                file=sys.stderr,
                flush=True,
            )
            for name in self._requires.get(report.nodeid, ()):
                self.capabilities.setdefault(name, "its test failed")
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.outcomes[report.nodeid] = "skipped"
            self.skips[report.nodeid] = reason.removeprefix("Skipped: ")
            for name in self._requires.get(report.nodeid, ()):
                self.capabilities.setdefault(name, self.skips[report.nodeid])
        elif report.when == "call":
            self.outcomes[report.nodeid] = "passed"
            self.facts.update(report.user_properties)
            for name in self._requires.get(report.nodeid, ()):
                self.capabilities[name] = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Let a test run for so long. SIGALRM is some tests' own."""
        before = signal.signal(signal.SIGUSR2, _too_long)
        timer = threading.Timer(_TEST_LIMIT, os.kill, (os.getpid(), signal.SIGUSR2))
        timer.start()
        try:
            return (yield)
        finally:
            timer.cancel()
            timer.join()
            signal.signal(signal.SIGUSR2, before)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
            self.failures.append(f"{report.nodeid} (collection)")

    def pytest_sessionfinish(self) -> None:
        outcomes = list(self.outcomes.values())
        content = {
            "release": platform.release(),
            "seconds": round(time.monotonic() - self.started, 1),
            **{outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")},
            "failures": self.failures,
            "skips": self.skips,
            "capabilities": self.capabilities,
            "facts": self.facts,
        }
        with open(os.environ["MATRIX_REPORT"], "w") as port:
            port.write(json.dumps(content))


def _too_long(number: int, frame: FrameType | None) -> None:
    pytest.fail(f"it took longer than {_TEST_LIMIT:g} s")


def pytest_configure(config: pytest.Config) -> None:
    if "MATRIX_REPORT" in os.environ:
        config.pluginmanager.register(Report(), "matrix-report")
