"""ptrace and pwru side by side, in one virtual machine: what they cost, and what they lose.

    python -m benchmarks.pwru [KERNEL]        KERNEL as of tests.matrix: trixie (default), sid, ...

Both trace every kernel function that handles packets, with the same filter and the same traffic, and write
to memory. Debian's package of pwru is used. Timings are of an emulated machine: only the ratios mean
something. Events produced are counted by the kernel: the runs of the tools' BPF programs.

How long a round trip takes is measured twice: by time, which on an emulated machine with two CPUs is never
the same, and once more on one whose clock counts instructions, where it always is.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PINGS = 3000
NOTHING = "host 203.0.113.99"
EVERYTHING = "icmp"
OUTPUT = Path("/dev/shm/ptrace-benchmark")
#: Longest wait for a tool to attach, and to write down what it holds, in seconds.
PATIENCE = 300.0


def main(words: list[str]) -> int:
    """Fetch pwru, boot the machine, run the comparison there, print the table."""
    if words[:1] == ["--guest"]:
        return guest(words[1])
    if words[:1] == ["--guest-instructions"]:
        return guest_instructions(words[1])
    from benchmarks.start import compile_modules
    from tests.matrix.kernels import _Apt, default_cache  # the project's own way to other suites

    compile_modules()
    kernel = words[0] if words else "trixie"
    state = default_cache() / "apt" / "trixie"
    with tempfile.TemporaryDirectory(dir=default_cache()) as directory:
        apt = _Apt("trixie", state)
        apt.update()
        (package,) = apt.download(["pwru"], Path(directory))
        subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
        program = f"{directory}/usr/bin/pwru"
        command = [sys.executable, "-m", "tests.matrix", "--memory", "3G", "--cpus", "2", "--timeout", "1500"]
        status = 0
        for counting, mode in (([], "--guest"), (["--count-instructions"], "--guest-instructions")):
            inside = f"{sys.executable} -m benchmarks.pwru {mode} {program}"
            status |= subprocess.run([*command, *counting, kernel, "--", inside], check=False).returncode
        return status


def tools(pwru: str) -> dict[str, tuple[list[str], list[str]]]:
    """Return each command, and what it is given more for the flood."""
    all_functions = ["ptrace", "capture", "--all-functions", "--no-follow", "-s", "0"]
    return {
        "pwru": ([pwru, "--output-tuple"], []),
        "ptrace": (all_functions, ["--ring-size", "512M"]),
        "ptrace, default profile": (["ptrace", "capture"], []),
        "ptrace, tracepoints": (["ptrace", "capture", "--profile", "tracepoints"], []),
    }


def guest(pwru: str) -> int:
    """Run in the virtual machine: the comparison itself."""
    from packet_tracer import lab

    results = {}
    with lab.Lab() as network:
        client = network.client.name
        target = network.route.server_addresses[4]
        for name, (command, room) in tools(pwru).items():
            nothing, everything = NOTHING.split(), [*room, *EVERYTHING.split()]
            results[name] = one_tool([*command, *nothing], [*command, *everything], client, target)
    print_table(results)
    return 0


def guest_instructions(pwru: str) -> int:
    """Run where the clock counts instructions: what each tool adds to a round trip when nothing matches."""
    from packet_tracer import lab

    results: dict[str, dict[str, float | int | str]] = {}
    with lab.Lab() as network:
        client = network.client.name
        target = network.route.server_addresses[4]
        base = round_trip(client, target)
        for name, (command, _) in tools(pwru).items():
            with running([*command, *NOTHING.split()]):
                added = round_trip(client, target) - base
            results[name] = {"round trip, added, thousands of instructions": 1000 * added}
    print_table(results)
    return 0


def one_tool(
    nothing: list[str], everything: list[str], client: str, target: str
) -> dict[str, float | int | str]:
    """Measure a tool: attach, idle, round trip with nothing matching, detach; then a flood that all
    matches. Round trips without it are taken before and after, for the machine is not the same all the time.
    """
    result: dict[str, float | int | str] = {}
    without = [round_trip(client, target)]
    started = time.monotonic()
    with running(nothing) as process:
        result["attach, s"] = time.monotonic() - started
        before = cpu_seconds(process.pid)
        time.sleep(5)
        result["idle CPU, %"] = 100 * (cpu_seconds(process.pid) - before) / 5
        slowed = round_trip(client, target)
        started = time.monotonic()
        stop(process)
        result["detach, s"] = time.monotonic() - started
    without.append(round_trip(client, target))
    result["round trip without it, ms"] = sum(without) / 2
    result["round trip, nothing matches, ms"] = slowed
    result["round trip, added, ms"] = slowed - sum(without) / 2
    with counted_runs(), running(everything) as process:
        runs_before = program_runs(process.pid)
        flood(client, target)
        time.sleep(1)
        produced = program_runs(process.pid) - runs_before
        settle()
        stop(process)
    text = OUTPUT.with_suffix(".out").read_bytes()
    said = OUTPUT.with_suffix(".err").read_text(errors="replace")
    result["flood: program runs"] = produced
    result["flood: lines written"] = text.count(b"\n")
    result["flood: said of it"] = "; ".join(said.strip().splitlines()[-2:])[-160:]
    return result


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a tool that writes to memory, and wait until it says that it is attached."""
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    with (
        OUTPUT.with_suffix(".out").open("wb") as output,
        OUTPUT.with_suffix(".err").open("wb") as errors,
        subprocess.Popen([program or command[0], *command[1:]], stdout=output, stderr=errors) as process,
    ):
        deadline = time.monotonic() + PATIENCE
        said = OUTPUT.with_suffix(".err")
        while not re.search(r"Listening|tracing with", said.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{command[0]} did not start: {said.read_text()}")
            time.sleep(0.1)
        try:
            yield process
        finally:
            stop(process)


@contextmanager
def counted_runs() -> Iterator[None]:
    """Have the kernel count how often programs run. That takes time at each run, so not all the time."""
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    switch.write_text("1")
    try:
        yield
    finally:
        switch.write_text("0")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a tool as ctrl-C does, and wait for it."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def settle() -> None:
    """Wait until the tool has written what it holds: its output stays as it is for three seconds."""
    deadline, size = time.monotonic() + PATIENCE, -1
    while time.monotonic() < deadline and (now := OUTPUT.with_suffix(".out").stat().st_size) != size:
        size = now
        time.sleep(3)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def program_runs(pid: int) -> int:
    """Return how often a process' BPF programs ran, from what the kernel tells of its descriptors."""
    runs: dict[int, int] = {}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        fields = dict(line.split(":", 1) for line in entry.read_text().splitlines() if ":" in line)
        if "prog_id" in fields and "run_cnt" in fields:
            runs[int(fields["prog_id"])] = int(fields["run_cnt"])
    return sum(runs.values())


def ping(client: str, target: str, count: int) -> str:
    """Send echo requests as fast as they are answered, and return what ping says of it."""
    command = ["ip", "netns", "exec", client, "ping", "-f", "-q", "-c", str(count), target]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def round_trip(client: str, target: str) -> float:
    """Return the median of nine average round trips, in milliseconds."""
    averages = []
    for _ in range(9):
        found = re.search(r"= [\d.]+/([\d.]+)/", ping(client, target, 500))
        assert found is not None
        averages.append(float(found[1]))
    return statistics.median(averages)


def flood(client: str, target: str) -> None:
    """Send the flood."""
    ping(client, target, PINGS)


def print_table(results: dict[str, dict[str, float | int | str]]) -> None:
    """Print all results, a line each."""
    for name, result in results.items():
        for what, value in result.items():
            shown = f"{value:.3f}" if isinstance(value, float) else value
            print(f"{name:24} {what:34} {shown}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
