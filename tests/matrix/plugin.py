"""A pytest plugin that tells the runner outside what happened inside: JSON into ``$MATRIX_REPORT``.

Beside the counts it says which capabilities were seen: a capability was, when a test that is marked
``@pytest.mark.requires(NAME)`` for it passed, and was not, with the reason, when such a test was skipped.
What tests record with ``record_property`` are facts about the kernel.
"""

from __future__ import annotations

import json
import os
import platform
import time

import pytest


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


def pytest_configure(config: pytest.Config) -> None:
    if "MATRIX_REPORT" in os.environ:
        config.pluginmanager.register(Report(), "matrix-report")
