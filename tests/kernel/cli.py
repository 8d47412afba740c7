"""Running `ptrace` as a user does: in a process of its own, looked at from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PTRACE = [sys.executable, "-m", "packet_tracer"]
#: More than any of it takes, in an emulated machine too; who waits so long has found a bug.
PATIENCE = 150.0


def ptrace(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run([*PTRACE, *arguments], capture_output=True, text=True, timeout=PATIENCE, **options)


class Running:
    """A capture that has attached its probes. ``said`` collects its stderr, ``seen`` its stdout."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.process = process
        self._directory = directory

    @property
    def said(self) -> str:
        """What it wrote on stderr so far."""
        return (self._directory / "stderr").read_text()

    @property
    def seen(self) -> str:
        """What it wrote on stdout so far."""
        return (self._directory / "stdout").read_text()

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Its stdout as JSON lines, as far as they are written to their ends."""
        return [json.loads(line) for line in self.seen.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events among them."""
        return [found for found in self.objects if found["type"] == "event"]

    def end(self, number: int = signal.SIGINT) -> int:
        """Signal it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def wait(self) -> int:
        """Wait until it ends by itself; return its exit code."""
        return self.process.wait(PATIENCE)


def until(condition: Any, what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@contextmanager
def capturing(directory: Path, *arguments: str, **options: Any) -> Iterator[Running]:
    """Start `ptrace capture`, wait until it says that it traces, and see to it that it is gone afterwards."""
    directory.mkdir(exist_ok=True)
    with (directory / "stderr").open("wb") as err, (directory / "stdout").open("wb") as out:
        options.setdefault("stdout", out)
        process = subprocess.Popen([*PTRACE, "capture", *arguments], stderr=err, **options)
    running = Running(process, directory)
    try:
        until(lambda: "tracing" in running.said or process.poll() is not None, "it did not begin")
        assert process.poll() is None, running.said
        yield running
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE)


def namespaces_of(pid: int) -> list[str]:
    """Return the lab namespaces that a process made and that are there still."""
    directory = Path("/run/netns")
    return sorted(path.name for path in directory.glob(f"ptrace-{pid}-*")) if directory.exists() else []


def alone() -> dict[str, str]:
    """Return an environment in which nothing but the program decides how its output looks."""
    return {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "PTRACE_DEBUG")}
