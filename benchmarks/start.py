"""What a running capture costs: time to begin and to end, memory, CPU while nothing happens.

    sudo .venv/bin/python -m benchmarks.start [--runs 9] [--idle 5] [--json]

`ptrace capture` and, as the peer in the same run, tcpdump, each on the client of a lab of its own where
nothing moves, in turn, medians. "start" is from the process's beginning until it says that it captures;
"exit" from SIGINT until it is gone; "memory" is the peak of its resident set (ru_maxrss, where ring buffers
count twice because they are mapped twice); "idle" is the CPU time while nothing happens. Needs root.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import packet_tracer
from packet_tracer.lab import Lab
from packet_tracer.netns import entered

#: What each of them says when it has begun.
SAYS = {"ptrace": b"tracing with", "tcpdump": b"listening on"}


@dataclass(slots=True)
class Result:
    """Medians of one command."""

    command: str
    start_ms: float
    exit_ms: float
    memory_mb: float
    idle_cpu_percent: float


def measure(name: str, command: list[str], idle: float) -> tuple[float, float, float, float]:
    """Run it once: milliseconds to begin and to end, megabytes, percent of a CPU."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = b""
    while SAYS[name] not in said:
        part = os.read(process.stderr.fileno(), 4096)
        if not part:
            raise SystemExit(f"{name} did not begin: {said.decode(errors='replace')}")
        said += part
    started = time.monotonic()
    time.sleep(0.3)  # what is put off until after the start is no idling
    before = cpu_seconds(process.pid)
    time.sleep(idle)
    used = cpu_seconds(process.pid) - before
    process.send_signal(signal.SIGINT)
    stopped = time.monotonic()
    _, _, usage = os.wait4(process.pid, 0)
    ended = time.monotonic()
    process.returncode = 0  # it has been waited for
    process.stderr.close()
    return (started - began) * 1e3, (ended - stopped) * 1e3, usage.ru_maxrss / 1024, used / idle * 100


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process, to the nanosecond (sched_info, proc(5) schedstat)."""
    total = 0
    for task in os.scandir(f"/proc/{pid}/task"):
        with open(f"{task.path}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total / 1e9


def commands(netns: str) -> dict[str, list[str]]:
    """Return the commands to compare."""
    found = {"ptrace": [sys.executable, "-m", "packet_tracer", "capture", "--netns", netns]}
    tcpdump = shutil.which("tcpdump")
    if tcpdump:
        found["tcpdump"] = [tcpdump, "-n", "-l", "-i", "c0"]
    return found


def compile_modules() -> None:
    """Do as pip does when it installs: without it each start may compile 10,000 lines first."""
    compileall.compile_dir(Path(packet_tracer.__file__).parent, quiet=1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--idle", type=float, default=5.0, help="seconds; the first run of each is measured")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    compile_modules()
    results = []
    with Lab() as network, entered(network.client.netns):
        rows: dict[str, list[tuple[float, float, float, float]]] = {}
        for run in range(chosen.runs):
            for name, command in commands(network.client.name).items():
                rows.setdefault(name, []).append(measure(name, command, chosen.idle if run == 0 else 0.3))
    for name, measured in rows.items():
        start, end, memory, _ = (statistics.median(column) for column in zip(*measured, strict=True))
        results.append(Result(name, start, end, memory, measured[0][3]))
    if chosen.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
        return
    print(f"{'command':<10} {'start ms':>9} {'exit ms':>9} {'memory MB':>10} {'idle CPU %':>11}")
    for result in results:
        print(
            f"{result.command:<10} {result.start_ms:>9.0f} {result.exit_ms:>9.0f} {result.memory_mb:>10.1f}"
            f" {result.idle_cpu_percent:>11.2f}"
        )


if __name__ == "__main__":
    main()
