"""What a filter costs, against the kernel's own: ns a packet, and ms from an expression to a loaded program.

The peer is classic BPF as a socket filter has it: the kernel converts the same program that libpcap made
(bpf_convert_filter, net/core/filter.c) and compiles it. Both are measured in one place, the TC classifier
`bpf`, which takes either: copies of one filter, each rejecting, on devices whose other end is down, and
packets sent through them. (The way of an accepted packet is measured too: its last value is changed to 0, so
that the next copy runs as well.) The time of sending is taken off. What is left with a filter that only
returns 0 is in the first row: the classifier's share, and for ours the call from the program that it is in.
The ratio is of what remains without it: the filter alone. The best of many runs, taken in turns.

    sudo python benchmarks/filter.py
"""

from __future__ import annotations

import argparse
import ctypes
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from packet_tracer.bpf.constants import patch_constants
from packet_tracer.bpf.object import BpfObject, PreparedObject
from packet_tracer.bpf.program import Program
from packet_tracer.filter import Access, Filter, LinkType, Stub, cbpf, ebpf
from packet_tracer.filter.expression import compile_filter
from packet_tracer.filter.patch import Patched, patch, replace_functions
from packet_tracer.filter.typed import TypedMemory, typed_memory

OBJECTS = Path(__file__).parents[1] / "build" / "tests"
EXPRESSIONS = [
    "tcp",
    "udp port 53",
    "tcp port 443",
    "host 10.0.0.1",
    "net 10.0.0.0/8",
    "tcp port 443 and host 10.0.0.1",
    "tcp[tcpflags] & tcp-syn != 0",
    "not port 22",
    "ip6 and udp",
    "(tcp port 80 or tcp port 443) and (host 10.0.0.1 or host 10.0.0.2 or host 10.0.0.3)",
]
#: Devices with no filter, with the kernel's and with ours.
DEVICES = ("plain", "kernel", "ours")
_CLONE_NEWNET = 0x40000000
_RTM_NEWTFILTER = 44
_EGRESS = 0xFFFFFFF3


def packets() -> dict[str, bytes]:
    """Return a TCP packet that most expressions accept, and a UDP one over IPv6."""
    addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2])
    tcp = struct.pack("!HHIIBBHHH", 40000, 443, 1, 2, 0x50, 2, 1000, 0, 0)
    ipv4 = struct.pack("!BBHHHBBH", 0x45, 0, 540, 1, 0x4000, 64, 6, 0) + addresses
    udp = struct.pack("!HHHH", 40000, 53, 508, 0)
    ipv6 = struct.pack("!IHBB", 6 << 28, 508, 17, 64) + bytes(15) + b"\1" + bytes(15) + b"\2"
    macs = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01"
    return {
        "tcp": macs + b"\x08\x00" + ipv4 + tcp + bytes(500),
        "udp6": macs + b"\x86\xdd" + ipv6 + udp + bytes(500),
    }


# The TC classifier, by netlink: only the kernel's own filter needs this, so it is not in the library.


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


class Classifier:
    """What the egress of a device goes through."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._netlink.bind((0, 0))
        self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._out.bind((device, 0))

    def put(self, filters: Sequence[bytes]) -> None:
        """Put filters there, in place of what was there."""
        command = ["tc", "filter", "del", "dev", self._device, "egress"]
        subprocess.run(command, check=False, capture_output=True)
        ifindex = socket.if_nametoindex(self._device)
        for handle, options in enumerate(filters, 1):
            message = struct.pack("=BxxxiIII", 0, ifindex, handle, _EGRESS, 1 << 16 | socket.htons(3))
            message += _attribute(1, b"bpf\0") + _attribute(2, options)
            header = struct.pack("=IHHII", 16 + len(message), _RTM_NEWTFILTER, 0x605, handle, 0)
            self._netlink.send(header + message)
            error = struct.unpack_from("=i", self._netlink.recv(65536), 16)[0]
            if error:
                raise OSError(-error, f"the classifier refused a filter: {os.strerror(-error)}")

    def send(self, packet: bytes, count: int) -> float:
        """Send a packet `count` times; return ns for each."""
        send = self._out.send
        begin = time.perf_counter_ns()
        for _ in range(count):
            send(packet)
        return (time.perf_counter_ns() - begin) / count


def classic_options(program: Sequence[cbpf.Instruction]) -> bytes:
    """The kernel's own: TCA_BPF_CLASSID, TCA_BPF_OPS_LEN, TCA_BPF_OPS."""
    rows = b"".join(struct.pack("=HBBI", *row) for row in program)
    return (
        _attribute(3, struct.pack("=I", 1))
        + _attribute(4, struct.pack("=H", len(program)))
        + _attribute(5, rows)
    )


def extended_options(program: Program) -> bytes:
    """Ours: TCA_BPF_CLASSID, TCA_BPF_FD, TCA_BPF_NAME."""
    return (
        _attribute(3, struct.pack("=I", 1))
        + _attribute(6, struct.pack("=I", program.fd))
        + _attribute(7, b"f\0")
    )


def never_accepting(filter_: Filter) -> tuple[tuple[cbpf.Instruction, ...], ebpf.Program]:
    """Return both programs with every result 0: the same way is taken, and the next copy runs too."""
    classic = tuple(i._replace(k=0) if i.code == cbpf.RET else i for i in filter_.ethernet)
    made = filter_.program(Stub(Access.TC, LinkType.ETHERNET))
    accept = ebpf.Instruction(ebpf.ALU | ebpf.ARITHMETIC["mov"], 0, 0, 0, 1)
    functions = tuple(
        function._replace(
            instructions=tuple(
                i._replace(immediate=0) if i == accept and function.instructions[at + 1].opcode == 0x95 else i
                for at, i in enumerate(function.instructions)
            )
        )
        for function in made.functions
    )
    return classic, ebpf.Program(functions)


def best(measurements: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Return the best of each, taken in turns."""
    found = [[measure() for measure in measurements] for _ in range(rounds)]
    return [min(column) for column in zip(*found, strict=True)]


@contextmanager
def prepared(name: str) -> Iterator[PreparedObject]:
    with BpfObject.open(OBJECTS / f"{name}.bpf.o") as opened:
        for unused in ("rings", "counters"):
            opened.maps[unused].autocreate = False
        opened.set_rodata(filter_enabled=1)
        with opened.prepare() as object_:
            yield object_


def in_the_classifier(copies: int, count: int, rounds: int) -> None:
    """Print the table against the kernel's own filter."""
    plain, kernel, ours = (Classifier(device) for device in DEVICES)
    ratios = []
    nothing = dict.fromkeys(packets(), (0.0, 0.0))
    head = f"{'expression':<84} {'packet':<6}"
    print(f"{head} {'kernel':>7} {'ours':>7}   alone: {'kernel':>7} {'ours':>7} {'ratio':>6}")
    with prepared("filter_tc") as object_, ExitStack() as stack:
        program = object_.programs["bare"]
        for text in ["", *EXPRESSIONS]:
            if text:
                classic, made = never_accepting(compile_filter(text))
                code = replace_functions(program, {"pcap_filter_tc_l2": made}).arguments()
            else:
                classic = (cbpf.Instruction(cbpf.RET, 0, 0, 0),)
                code = {"instructions": patch_constants(program, {"pcap_filter_tc_l2": 0})}
            # As many programs as copies: the kernel's lie in as many places.
            loaded = [stack.enter_context(program.load(**code)) for _ in range(copies)]
            kernel.put([classic_options(classic)] * copies)
            ours.put([extended_options(one) for one in loaded])
            time.sleep(0.2)  # what was there before is freed in the background
            for name, packet in packets().items():
                ways = [partial(each.send, packet, count) for each in (plain, kernel, ours)]
                base, *costs = best(ways, rounds)
                one, other = ((each - base) / copies for each in costs)
                line = f"{text or '(returns 0)':<84} {name:<6} {one:7.1f} {other:7.1f}"
                if not text:
                    nothing[name] = one, other
                    print(line)
                    continue
                one, other = one - nothing[name][0], other - nothing[name][1]
                ratios.append(other / one)
                print(f"{line}          {one:7.1f} {other:7.1f} {other / one:6.2f}")
    print(f"mean ratio {statistics.geometric_mean(ratios):.2f}, worst {max(ratios):.2f}\n")


def alone(repeat: int, rounds: int) -> None:
    """Print ns a packet by BPF_PROG_TEST_RUN, less the program with a stub, for each way of reading."""
    print(
        f"{'ns a packet, BPF_PROG_TEST_RUN':<84} {'packet':<6} {'xdp':>7} {'tc':>7} {'copy':>7} {'place':>7}"
    )
    for text in EXPRESSIONS:
        filter_ = compile_filter(text)
        for name, packet in packets().items():
            costs = [_test_run(kind, filter_, packet, repeat, rounds) for kind in ("xdp", "tc")]
            costs += [_probe_run(filter_, packet, rounds, memory) for memory in (None, typed_memory())]
            print(f"{text:<84} {name:<6} " + " ".join(f"{cost:7.1f}" for cost in costs))
    print()


def _test_run(kind: str, filter_: Filter, packet: bytes, repeat: int, rounds: int) -> float:
    with prepared(f"filter_{kind}") as object_:
        program = object_.programs["bare"]
        with program.load() as without, program.load(**patch(program, filter_).arguments()) as with_filter:
            base, cost = best(
                [
                    lambda p=p: float(p.test_run(packet, repeat=repeat).duration_ns)
                    for p in (without, with_filter)
                ],  # type: ignore[misc]
                rounds,
            )
    return cost - base


def _duration(program: Program, packet: bytes, repeat: int) -> float:
    return float(program.test_run(packet, repeat=repeat).duration_ns)


def _probe_run(filter_: Filter, packet: bytes, rounds: int, memory: TypedMemory | None) -> float:
    """256 packets of one run, so that the system call does not count for much; its own cost is taken off.

    Read through a copy by bpf_probe_read_kernel, or in place.
    """
    batch, room = 256, 2048
    with prepared("filter_probe") as object_:
        table = object_.maps["packets"].raw
        for index in range(batch):
            head = struct.pack("=IIQ", len(packet), len(packet), 0)
            table.update(struct.pack("=I", index), (head + packet).ljust(room + 16, b"\0"))
        object_.maps[".bss"].raw.update(bytes(4), struct.pack("=II", 0, batch) + bytes(4 * batch))
        program = object_.programs["probe"]
        code = patch(program, filter_, memory=memory)
        with program.load() as without, program.load(**code.arguments()) as with_filter:

            def run(loaded: Program) -> float:
                begin = time.perf_counter_ns()
                for _ in range(50):
                    loaded.test_run()
                return (time.perf_counter_ns() - begin) / 50 / batch

            base, cost = best([lambda: run(without), lambda: run(with_filter)], rounds)
    return cost - base


def from_text_to_kernel(rounds: int) -> None:
    """Print ms for each step from an expression to a loaded program."""
    print(f"{'ms':<84} {'compile':>8} {'patch':>8} {'load':>8} {'sum':>8}")
    with prepared("filter_xdp") as object_:
        program = object_.programs["filter"]
        for text in EXPRESSIONS:
            steps: list[tuple[float, float, float]] = []
            for number in range(rounds):
                # Another expression each time: translations are remembered.
                begin = time.perf_counter()
                filter_ = compile_filter(f"({text}) and greater {60 + number}")
                compiled = time.perf_counter()
                code: Patched = patch(program, filter_)
                patched = time.perf_counter()
                program.load(**code.arguments()).close()
                steps.append((compiled - begin, patched - compiled, time.perf_counter() - patched))
            columns = [statistics.median(column) * 1000 for column in zip(*steps, strict=True)]
            print(f"{text:<84} " + " ".join(f"{value:8.2f}" for value in [*columns, sum(columns)]))
    print()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copies", type=int, default=48)
    parser.add_argument("--packets", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    # A namespace of its own, which ends with the process.
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        print(f"needs root: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 3
    for device in DEVICES:
        for command in (
            f"ip link add {device} type veth peer name {device}-end",
            f"ip link set {device} up",
            f"tc qdisc add dev {device} clsact",
        ):
            subprocess.run(command.split(), check=True)
    in_the_classifier(options.copies, options.packets, options.rounds)
    alone(200_000, 5)
    from_text_to_kernel(9)
    return 0


if __name__ == "__main__":
    sys.exit(main())
