"""What counting costs a packet in the kernel, against capturing the same traffic with the same two probes.

    sudo .venv/bin/python -m benchmarks.count [--packets 20000] [--rounds 5] [--flows 64] [--json]

In a lab of its own UDP datagrams go from client to router, spread over flows, from one CPU. The kernel
itself times the programs (BPF statistics: ``run_time_ns`` / ``run_cnt``), without what it takes to call them.
All ways take turns; the medians are told. "user" is what the tool's process spends on a packet: reading the
records of a capture as columns, of a counter reading all rows once. Needs root.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable

from packet_tracer.bpf.features import RunStatistics
from packet_tracer.bpf.program import Program
from packet_tracer.capture import Tracer
from packet_tracer.count import BY, Counter
from packet_tracer.lab import Lab
from tests.kernel.capturing import on_one_cpu, udp_socket

PROBES = ("netif_receive_skb", "net_dev_start_xmit")
_PORT = 4000


def spent(programs: Iterable[Program]) -> tuple[int, int]:
    """Return nanoseconds and runs of these programs."""
    infos = [program.info() for program in programs]
    return sum(info.run_time_ns for info in infos), sum(info.run_count for info in infos)


def count(by: str, netns: str, traffic: Callable[[], None]) -> tuple[float, float]:
    """Return nanoseconds a run in the kernel, and a packet in user space."""
    with Counter(by, netns=netns) as counter:  # type: ignore[arg-type]
        assert counter._session is not None
        programs = counter._session.programs.values()
        traffic()
        taken, runs = spent(programs)
        before = time.process_time_ns()
        packets = counter.snapshot().totals.packets
        return taken / runs, (time.process_time_ns() - before) / packets


def capture(snaplen: int, netns: str, traffic: Callable[[], None]) -> tuple[float, float]:
    """Return nanoseconds a run in the kernel, and a packet in user space."""
    with Tracer(probes=PROBES, netns=netns, snaplen=snaplen, ring_bytes=256 << 20) as tracer:
        assert tracer._session is not None
        programs = [tracer._session.programs[name] for name in PROBES]
        traffic()
        taken, runs = spent(programs)
        tracer.stop()
        before = time.process_time_ns()
        packets = sum(len(batch.to_numpy()) for batch in tracer.batches())
        used = time.process_time_ns() - before
        if any(counters.lost_ring for counters in tracer.stats().values()):
            raise SystemExit("the rings were too small")
        return taken / runs, used / packets


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--packets", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flows", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with Lab() as network, RunStatistics(), on_one_cpu():
        senders = [
            udp_socket(network.client, ("192.0.2.1", _PORT + flow % 8)) for flow in range(options.flows)
        ]
        sink = [udp_socket(network.router) for _ in range(8)]
        for index, receiver in enumerate(sink):
            receiver.bind(("192.0.2.1", _PORT + index))

        def traffic() -> None:
            for number in range(options.packets):
                senders[number % len(senders)].send(b"x" * 100)

        netns = network.client.name
        for _ in range(options.rounds):
            for by in BY:
                if by != "drop-reason":
                    found.setdefault(f"count by {by}", []).append(count(by, netns, traffic))
            for snaplen in (0, 96):
                result = capture(snaplen, netns, traffic)
                found.setdefault(f"capture, snaplen {snaplen}", []).append(result)
        for opened in [*senders, *sink]:
            opened.close()
    medians = {
        name: [round(statistics.median(column), 1) for column in zip(*values, strict=True)]
        for name, values in found.items()
    }
    if options.json:
        print(json.dumps(medians))
        return
    print("| way | kernel ns | user ns |\n| --- | --- | --- |")
    for name, (kernel, user) in medians.items():
        print(f"| {name} | {kernel:.0f} | {user:.1f} |")


if __name__ == "__main__":
    main()
