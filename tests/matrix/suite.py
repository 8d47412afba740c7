"""The project's own kernel tests in a guest, and what came of them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.matrix.kernels import Kernel
from tests.matrix.requirements import required
from tests.matrix.run import run

PROJECT = Path(__file__).parents[2]
RESULTS = PROJECT / "build/matrix"

#: Looking for plugins that others installed takes 5 s in a guest; the tests need none.
_LEAN = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@dataclass(frozen=True, slots=True)
class Result:
    """A test run on one kernel.

    ``capabilities`` maps a name to ``""`` where it worked, else to why it did not; ``facts`` are what the
    tests noted about the kernel.
    """

    kernel: str
    release: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    boot_seconds: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    skips: dict[str, str] = field(default_factory=dict)
    capabilities: dict[str, str] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether tests ran and none failed."""
        return not self.problem and not self.failed and self.passed > 0

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        text = f"{self.kernel} ({self.release}): {counts} in {self.seconds:.0f} s"
        return f"{text}: {self.problem}" if self.problem else text

    def save(self) -> None:
        """Keep the result, for ``--docs``."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{self.kernel.replace(':', '-')}.json").write_text(json.dumps(asdict(self), indent=1))


def load_results() -> dict[str, Result]:
    """Return the kept results by kernel name."""
    loaded = [Result(**json.loads(file.read_text())) for file in RESULTS.glob("*.json")]
    return {result.kernel: result for result in loaded}


def python() -> str:
    """The project's interpreter: its virtual environment's, else this one."""
    own = PROJECT / ".venv/bin/python"
    return str(own) if own.exists() else sys.executable


def warm_up(tests: list[str]) -> None:
    """Collect the tests once natively, so that the guest, 10 to 28 times slower, finds everything compiled.

    The guest's own writes are gone with it: without this each boot would rewrite every assertion anew.
    """
    result = subprocess.run(
        [*_pytest(tests), "--collect-only"], cwd=PROJECT, env=_environment(), capture_output=True, text=True
    )
    if result.returncode not in (0, 5):
        print(result.stdout, file=sys.stderr)
    subprocess.run(
        [python(), "-m", "compileall", "-q", "packet_tracer", "tests"], cwd=PROJECT, stdout=subprocess.DEVNULL
    )


def run_tests(
    kernel: Kernel, tests: list[str], *, timeout: float, memory: str, cpus: int, verbose: bool
) -> Result:
    """Run ``tests`` (files, or further pytest arguments) on ``kernel``. Raises what ``run`` does."""
    outcome = run(
        kernel,
        shlex.join(_pytest(tests)),
        directory=PROJECT,
        stdout=sys.stdout.buffer,
        stderr=sys.stderr.buffer,
        environment={"PTRACE_REQUIRE": required(kernel.suite), "PYTHONDONTWRITEBYTECODE": "1"} | _LEAN,
        timeout=timeout,
        memory=memory,
        cpus=cpus,
        verbose=verbose,
    )
    report = json.loads(outcome.report or b"{}")
    counted = report.get("passed", 0) + report.get("failed", 0)
    problem = "" if counted else f"no tests ran (pytest ended with {outcome.status})"
    if counted and outcome.status and not report["failed"]:
        problem = f"pytest ended with {outcome.status}"
    report = {"release": kernel.release} | report
    timing = {"boot_seconds": outcome.boot_seconds, "seconds": outcome.seconds}
    return Result(kernel=kernel.name, problem=problem, **(report | timing))


def _pytest(tests: list[str]) -> list[str]:
    plugins = ["-p", "no:cacheprovider", "-p", "tests.matrix.plugin"]
    return [python(), "-m", "pytest", "-q", *plugins, *(tests or ["tests/kernel"])]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "MATRIX_REPORT"} | _LEAN
