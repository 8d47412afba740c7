"""How fast maps are read and written, against bcc's Python and bpftool in the same run.

    sudo .venv/bin/python -m benchmarks.maps [--entries 100000] [--json]

The same kernel map is given to each: a hash of 100,000 entries (u32 -> u64, and u32 -> a struct of three
numbers, all of whose fields are read), and a per-CPU array. bcc's Python (Debian's package python3-bpfcc,
for /usr/bin/python3) is measured as its programs read tables (``table.items()``), and by its batch methods
where it has them; bpftool reads to JSON and writes from a batch file. "kernel" is a batch look-up's system
calls alone, into memory that is there: nobody can be faster.

The best of some runs counts. Fails where a goal is missed: reads 5x as fast as bcc's ``items()``; writes no
slower than bpftool's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.library import options
from packet_tracer.bpf.maps import HashMap, Map, PerCpuArray
from packet_tracer.bpf.maps.codecs import u32, u64

RUNS = 5
READ_GOAL, WRITE_GOAL = 5.0, 1.0
PEERS = ("kernel", "bcc", "bcc_batch", "bpftool")


@dataclass(slots=True)
class Counts:
    """A value of three numbers."""

    packets: Annotated[int, u64]
    bytes: Annotated[int, u64]
    last: Annotated[int, u64]


@dataclass(slots=True)
class Result:
    """One line: seconds of each; None where it was not measured."""

    what: str
    ours: float
    kernel: float | None = None
    bcc: float | None = None
    bcc_batch: float | None = None
    bpftool: float | None = None

    @property
    def missed(self) -> bool:
        """Whether its goal is."""
        reads = self.what.startswith("read")
        peer, goal = (self.bcc, READ_GOAL) if reads else (self.bpftool, WRITE_GOAL)
        return peer is not None and peer < goal * self.ours


def best(action: Callable[[], object]) -> float:
    """Return the shortest of some runs, in seconds."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


def system_calls(map: Map) -> float:  # noqa: A002
    """Return the time of a batch look-up of a whole hash, and of nothing else."""
    keys = bytearray(map.max_entries * map.key_size)
    values, cursor = bytearray(map.max_entries * map.value_size), bytearray(4)
    count, opts = ffi.new("__u32 *"), options("bpf_map_batch_opts")
    out, raw_keys, raw_values = (ffi.from_buffer(each) for each in (cursor, keys, values))

    def look_up() -> None:
        count[0] = map.max_entries
        lib.bpf_map_lookup_batch(map.fd, ffi.NULL, out, raw_keys, raw_values, count, opts)

    return best(look_up)


def bcc(maps: dict[str, Map], entries: int, slots: int, cpus: int) -> list[dict[str, float]]:
    """Return bcc's times, plain and by batch; empty where it is not installed."""
    fds = {name: each.fd for name, each in maps.items()}
    given = json.dumps({**fds, "entries": entries, "slots": slots, "cpus": cpus})
    command = ["/usr/bin/python3", str(Path(__file__).with_name("maps_bcc.py")), given]
    done = subprocess.run(command, pass_fds=list(fds.values()), capture_output=True, text=True)
    if "No module named 'bcc'" in done.stderr:
        print("bcc is not installed (package python3-bpfcc): its columns are empty", file=sys.stderr)
        return [{}, {}]
    if done.returncode:
        raise SystemExit(done.stderr)
    found: list[dict[str, float]] = json.loads(done.stdout)
    return found


def bpftool(*words: object) -> float | None:
    """Return bpftool's time, its output thrown away; None where it is not installed."""
    tool = shutil.which("bpftool") or shutil.which("/usr/sbin/bpftool")
    if tool is None:
        return None
    command = [tool, *map(str, words)]
    quiet = subprocess.DEVNULL
    return best(lambda: subprocess.run(command, check=True, stdout=quiet, stderr=quiet))


def bpftool_lines(map_id: int, entries: int) -> str:
    """Return the batch file that writes the same entries."""
    lines = []
    for number in range(entries):
        key, value = number.to_bytes(4, "little").hex(" "), number.to_bytes(8, "little").hex(" ")
        lines.append(f"map update id {map_id} key hex {key} value hex {value}\n")
    return "".join(lines)


def measure(entries: int, slots: int) -> list[Result]:
    """Measure all, on maps of our own."""
    with (
        HashMap.create(key=u32, value=u64, max_entries=entries, name="numbers") as numbers,
        HashMap.create(key=u32, value=Counts, max_entries=entries, name="structs") as structs,
        PerCpuArray.create(value=u64, max_entries=slots, name="per_cpu") as per_cpu,
        tempfile.NamedTemporaryFile("w") as file,
    ):
        cpus = len(per_cpu[0])
        per_cpu.update_many((index, (index,) * cpus) for index in range(slots))
        structs.update_many((number, Counts(number, 2, 3)) for number in range(entries))
        wanted = {number: number for number in range(entries)}
        file.write(bpftool_lines(numbers.id, entries))
        file.flush()
        results = [
            Result("write numbers", best(lambda: numbers.update_many(wanted))),
            Result("read numbers", best(lambda: dict(numbers.items())), system_calls(numbers)),
            Result("read structs", best(lambda: dict(structs.items())), system_calls(structs)),
            Result("read per CPU", best(lambda: list(per_cpu))),
        ]
        if dict(numbers.items()) != wanted:
            raise SystemExit("what was read is not what was written")
        plain, batched = bcc(
            {"numbers": numbers, "structs": structs, "per_cpu": per_cpu}, entries, slots, cpus
        )
        tools = {
            "write numbers": bpftool("batch", "file", file.name),
            "read numbers": bpftool("-j", "map", "dump", "id", numbers.id),
            "read structs": bpftool("-j", "map", "dump", "id", structs.id),
            "read per CPU": bpftool("-j", "map", "dump", "id", per_cpu.id),
        }
        for each in results:
            each.bcc, each.bcc_batch = plain.get(each.what), batched.get(each.what)
            each.bpftool = tools[each.what]
        return results


def table(results: list[Result]) -> str:
    """Return the results as text: milliseconds, and how many times as fast we are."""
    lines = [f"{'what':<14} {'ours':>10}" + "".join(f"{peer:>20}" for peer in PEERS)]
    for each in results:
        line = f"{each.what:<14} {each.ours * 1000:>7.1f} ms"
        for peer in PEERS:
            took = getattr(each, peer)
            cell = "-" if took is None else f"{took * 1000:.1f} ms ({took / each.ours:.1f}x)"
            line += f"{cell:>20}"
        lines.append(line + ("  goal missed" if each.missed else ""))
    return "\n".join(lines)


def main() -> None:
    """Measure all, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--slots", type=int, default=10_000, help="of the per-CPU array")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments.entries, arguments.slots)
    print(json.dumps([asdict(each) for each in results]) if arguments.json else table(results))
    missed = [each.what for each in results if each.missed]
    if missed:
        sys.exit(f"goals missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
