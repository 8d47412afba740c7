"""ptrace and pwru side by side, in one virtual machine: what they cost, and what they lose.

    python -m benchmarks.pwru [KERNEL] [--alone]    KERNEL as of tests.matrix: trixie (default), sid, ...

``--alone`` takes the second CPU away while a tool attaches and detaches: on 7.3 the kernel patches itself
meanwhile, and the emulator has the other CPU meet a breakpoint of it that is gone ("Oops: int3").

Needs iperf3. What a tool does to traffic is measured with a filter that matches nothing, a hundredth of the
packets, and all.

Both trace every kernel function that handles packets, with the same filter and the same traffic, run from
memory and write to memory. Debian's package of pwru is used. Timings are of an emulated machine: only the
ratios mean something. What a tool costs that matches nothing is the median of rounds in which the tools take
turns. Events produced are counted by the kernel: the runs of the tools' BPF programs.

How long a round trip takes is measured once more on a machine whose clock counts instructions, where it is
always the same; by time, on two emulated CPUs, it never is.
"""

from __future__ import annotations

import importlib
import json
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packet_tracer.lab import Lab

PINGS = 3000
PORT = 5001
#: How often the tools take turns.
ROUNDS = 7
NOTHING = "host 203.0.113.99"
EVERYTHING = "icmp"
#: What a filter lets through of pings and of TCP, by how much that is: sequence numbers are as good as dice.
SHARES = {
    "nothing": NOTHING,
    "1 %": "icmp[6:2] % 100 = 0 or tcp[4:4] % 100 = 0",
    "all": "icmp or tcp",
}
OUTPUT = Path("/dev/shm/ptrace-benchmark")
#: What takes the second CPU away while the kernel patches itself, if that is wanted.
_SECOND_CPU: list[Path] = []
#: Longest wait for a tool to attach, and to write down what it holds, in seconds.
PATIENCE = 300.0


def main(words: list[str]) -> int:
    """Fetch pwru, boot the machine, run the comparison there, print the table."""
    if words[:1] == ["--guest"]:
        return guest(words[1], alone="--alone" in words)
    if words[:1] == ["--guest-instructions"]:
        return guest_instructions(words[1])
    from benchmarks.start import compile_modules
    from tests.matrix.kernels import _Apt, default_cache  # the project's own way to other suites

    compile_modules()
    kernel = next((word for word in words if word != "--alone"), "trixie")
    state = default_cache() / "apt" / "trixie"
    with tempfile.TemporaryDirectory(dir=default_cache()) as directory:
        apt = _Apt("trixie", state)
        apt.update()
        (package,) = apt.download(["pwru"], Path(directory))
        subprocess.run(["dpkg-deb", "-x", package, directory], check=True)
        program = f"{directory}/usr/bin/pwru"
        command = [sys.executable, "-m", "tests.matrix", "--memory", "3G", "--cpus", "2", "--timeout", "5400"]
        status = 0
        for counting, mode in (([], "--guest"), (["--count-instructions"], "--guest-instructions")):
            alone = "--alone" if "--alone" in words else ""
            inside = f"{sys.executable} -m benchmarks.pwru {mode} {program} {alone}"
            status |= subprocess.run([*command, *counting, kernel, "--", inside], check=False).returncode
        return status


def tools(pwru: str) -> dict[str, list[str]]:
    """Return each command, without its filter."""
    return {
        "pwru": [pwru, "--output-tuple"],
        "ptrace": ["ptrace", "capture", "--all-functions", "--no-follow", "-s", "0"],
        "ptrace, default profile": ["ptrace", "capture"],
        "ptrace, tracepoints": ["ptrace", "capture", "--profile", "tracepoints"],
    }


def guest(pwru: str, *, alone: bool) -> int:
    """Run in the virtual machine: the comparison itself. ``alone``: with one CPU while tools attach."""
    from packet_tracer import lab

    if alone:
        _SECOND_CPU.append(Path("/sys/devices/system/cpu/cpu1/online"))
    move_to_memory(pwru)
    with lab.Lab() as network:
        client = network.client.name
        target = network.route.server_addresses[4]
        for name, result in in_turns(tools(pwru), client, target).items():
            print_results(name, result)
        for name, command in tools(pwru).items():
            print_results(name, on_traffic(command, network))
            print_results(name, in_a_flood([*command, EVERYTHING], client, target))
    return 0


def guest_instructions(pwru: str) -> int:
    """Run where the clock counts instructions: what each tool adds to a round trip when nothing matches."""
    from packet_tracer import lab
    from packet_tracer.bpf.link import tracing_multi_missing

    compared = tools(pwru)
    if not tracing_multi_missing():
        compared["ptrace, fentry-multi"] = [*compared["ptrace"], "--backend", "fentry-multi"]
    with lab.Lab() as network:
        client = network.client.name
        target = network.route.server_addresses[4]
        base = round_trip(client, target)
        for name, command in compared.items():
            with running([*command, NOTHING]):
                added = round_trip(client, target) - base
            print_results(name, {"round trip, added, thousands of instructions": 1000 * added})
    return 0


def move_to_memory(pwru: str) -> None:
    """Have the tools' files lie in the guest's memory, as on a host that has run them before.

    Its root is this machine's, over a socket, and there a file takes milliseconds to open: a program of many
    files would be measured by that. The guest keeps what it changes in memory, and whole files.
    """
    for name in (*python_files(), pwru):
        path = Path(name)
        path.chmod(path.stat().st_mode)


def python_files() -> set[str]:
    """Return the files that ``ptrace capture`` reads: modules, shared objects, BPF objects."""
    from packet_tracer.probes.setup import objects_directory

    for name in (
        "typer.main",
        "packet_tracer.cli.app",
        "packet_tracer.cli.capturing",
        "packet_tracer.capture",
        "packet_tracer.formats.text",
    ):
        importlib.import_module(name)
    modules = [module for module in sys.modules.values() if getattr(module, "__file__", None)]
    names = {name for one in modules for name in (one.__file__, getattr(one, "__cached__", None)) if name}
    names.update(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    names.update(str(path) for path in objects_directory().iterdir())
    return {name for name in names if Path(name).is_file()}


def in_turns(
    commands: dict[str, list[str]], client: str, target: str
) -> dict[str, dict[str, float | int | str]]:
    """Measure the tools in turns, with a filter that nothing matches: how long they take to attach and to
    detach, what they use meanwhile, and what they add to a round trip.
    """
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    without = [round_trip(client, target)]
    for _ in range(ROUNDS):
        for name, command in commands.items():
            with running([*command, NOTHING]) as (process, attached):
                before = cpu_seconds(process.pid)
                time.sleep(3)
                idle = 100 * (cpu_seconds(process.pid) - before) / 3
                delay = round_trip(client, target)
                detached = stop(process)
            without.append(round_trip(client, target))
            rounds[name].append(
                {
                    "attach, s": attached,
                    "idle CPU, %": idle,
                    "detach, s": detached,
                    "round trip, added, ms: nothing": delay - statistics.mean(without[-2:]),
                }
            )
            print_results(f"{name}, a round", dict(rounds[name][-1]))
    results: dict[str, dict[str, float | int | str]] = {
        name: {what: statistics.median(each[what] for each in found) for what in found[0]}
        for name, found in rounds.items()
    }
    for result in results.values():
        result["round trip without, ms"] = statistics.median(without)
    return results


def on_traffic(command: list[str], network: Lab) -> dict[str, float | int | str]:
    """Measure throughput with a tool, by what its filter matches, and round trips where something does.

    Each without it too, before and after, for the machine is not the same all the time.
    """
    client, server, target = network.client.name, network.server.name, network.route.server_addresses[4]

    def effect() -> tuple[float, float]:
        return round_trip(client, target), throughput(client, server, target)

    without = [effect()]
    result: dict[str, float | int | str] = {}
    for share, expression in SHARES.items():
        with running([*command, expression]):
            delay, rate = effect()
        without.append(effect())
        delay -= statistics.mean(each[0] for each in without[-2:])
        rate /= statistics.mean(each[1] for each in without[-2:])
        if expression != NOTHING:  # that was measured in turns
            result[f"round trip, added, ms: {share}"] = delay
        result[f"throughput, % of without: {share}"] = 100 * rate
    result["throughput without, Mbit/s"] = statistics.median(each[1] for each in without)
    return result


def in_a_flood(command: list[str], client: str, target: str) -> dict[str, float | int | str]:
    """Measure what becomes of the events of a flood that all matches."""
    with counted_runs(), running(command) as (process, _):
        runs_before = program_runs(process.pid)
        ping(client, target, PINGS)
        time.sleep(1)
        produced = program_runs(process.pid) - runs_before
        settle()
        stop(process)
    text = OUTPUT.with_suffix(".out").read_bytes()
    said = OUTPUT.with_suffix(".err").read_text(errors="replace")
    return {
        "flood: program runs": produced,
        "flood: lines written": text.count(b"\n"),
        "flood: said of it": "; ".join(said.strip().splitlines()[-2:])[-160:],
    }


@contextmanager
def running(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Start a tool that writes to memory, wait until it says that it is attached, and yield its process and
    how long that took, in seconds.
    """
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    second_cpu(False)
    started = time.monotonic()
    with (
        OUTPUT.with_suffix(".out").open("wb") as output,
        OUTPUT.with_suffix(".err").open("wb") as errors,
        subprocess.Popen([program or command[0], *command[1:]], stdout=output, stderr=errors) as process,
    ):
        said = OUTPUT.with_suffix(".err")
        while not re.search(r"Listening|tracing with", said.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > started + PATIENCE:
                sys.exit(f"{command[0]} did not start: {said.read_text()}")
            time.sleep(0.05)
        attached = time.monotonic() - started
        second_cpu(True)
        try:
            yield process, attached
        finally:
            stop(process)


def second_cpu(there: bool) -> None:
    """Take the second CPU away, or bring it back, where tools are to attach and to detach without it."""
    for switch in _SECOND_CPU:
        switch.write_text(str(int(there)))


@contextmanager
def counted_runs() -> Iterator[None]:
    """Have the kernel count how often programs run. That takes time at each run, so not all the time."""
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    switch.write_text("1")
    try:
        yield
    finally:
        switch.write_text("0")


def stop(process: subprocess.Popen[bytes]) -> float:
    """End a tool as ctrl-C does, wait for it, and return how long that took, in seconds."""
    if process.poll() is not None:
        return 0.0
    second_cpu(False)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    seconds = time.monotonic() - started
    second_cpu(True)
    return seconds


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
    """Send echo requests as fast as they are answered, and return what ping says of it.

    From one CPU, which then does all there is to do for them: how long that takes is otherwise decided by
    where the scheduler puts ping.
    """
    within = ["taskset", "--cpu-list", "0", "ip", "netns", "exec", client]
    command = [*within, "ping", "-f", "-q", "-c", str(count), target]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def round_trip(client: str, target: str) -> float:
    """Return the median of nine average round trips, in milliseconds."""
    averages = []
    for _ in range(9):
        found = re.search(r"= [\d.]+/([\d.]+)/", ping(client, target, 500))
        assert found is not None
        averages.append(float(found[1]))
    return statistics.median(averages)


def throughput(client: str, server: str, target: str) -> float:
    """Return the median of what TCP gets through in three seconds, in Mbit/s: iperf3's word for each."""
    within = ["ip", "netns", "exec"]
    listen = [*within, server, "iperf3", "--server", "--one-off", "--port", str(PORT)]
    send = [*within, client, "iperf3", "--client", target, "--port", str(PORT), "--time", "1", "--json"]
    environment = os.environ | {"TMPDIR": str(OUTPUT.parent)}  # it maps a file there
    rates: list[float] = []
    for _ in range(12):
        with subprocess.Popen(listen, stdout=subprocess.DEVNULL, env=environment) as listener:
            try:
                time.sleep(0.3)  # until it listens
                sent = subprocess.run(send, capture_output=True, text=True, check=False, env=environment)
            finally:
                listener.kill()  # it does not always end by itself
        # Now and then it ends well and has measured nothing.
        if sent.returncode == 0 and (received := json.loads(sent.stdout)["end"].get("sum_received")):
            rates.append(float(received["bits_per_second"]) / 1e6)
            if len(rates) == 3:
                return statistics.median(rates)
    sys.exit(f"iperf3 failed: {sent.stdout}{sent.stderr}")


def print_results(name: str, result: dict[str, float | int | str]) -> None:
    """Print what was measured of one tool, a line each."""
    for what, value in result.items():
        shown = f"{value:.3f}" if isinstance(value, float) else value
        print(f"{name:32} {what:34} {shown}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
