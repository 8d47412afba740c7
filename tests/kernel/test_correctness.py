"""Where other tracers of packets are known to be wrong, this one is right: a test for each such place.

What is written down about them has more tests elsewhere: headers of every kind are in
test_capture_packets.py (``test_headers``, ``test_extension_headers_beyond_what_is_parsed``), the registers of
arguments by their types in tests/unit/test_functions.py, names of namespaces in test_lab.py.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from packet_tracer import lab
from packet_tracer.bpf.enums import AttachType, ProgramType
from packet_tracer.bpf.idle import idle_program
from packet_tracer.capture import Tracer
from packet_tracer.errors import BpfError, NotSupportedError, UsageError
from packet_tracer.formats.jsonl import JsonLines
from packet_tracer.formats.text import Text
from packet_tracer.lab import DROPPED_PORT, Lab
from packet_tracer.lab.commands import run, wait_for_carrier
from packet_tracer.netns import Netns, entered, resolve
from packet_tracer.probes.function_probes import BACKENDS, Backend
from tests.kernel.capturing import ethernet, ipv4, ipv6, on_one_cpu, udp, udp_socket

_SO_MARK = 36
_IPPROTO_UDP = 17
_MARK = 0x5EED
SERVER = "198.51.100.2"


def as_json(tracer: Tracer, traffic: Callable[[], object], *, unread: float = 0.05) -> list[dict[str, Any]]:
    """Return traffic's events as JSON has them, all of them read only when it is ``unread`` seconds past."""
    try:
        with tracer:
            traffic()
            time.sleep(unread)
            tracer.stop()
            formatter = JsonLines()
            lines = "".join(formatter.format(batch) for batch in tracer.batches())
    except NotSupportedError as error:
        pytest.skip(str(error))
    return [json.loads(line) for line in lines.splitlines()]


# Zero is a number


def test_cpu_0_port_0_and_mark_0_are_there(network: Lab) -> None:
    if 0 not in os.sched_getaffinity(0):
        pytest.skip("CPU 0 is not for us")
    datagram = ethernet(ipv4(udp(b"zero", source=0, destination=0), _IPPROTO_UDP), 0x0800)

    def send() -> None:
        with on_one_cpu():
            lab.topology.run_in(network.client.netns, lambda: lab.frame(network.client, "c0", datagram))

    tracer = Tracer(netns=network.client.name, probes="net_dev_start_xmit")
    (event,) = (one for one in as_json(tracer, send) if one["l4_protocol"] == _IPPROTO_UDP)
    keys = ("cpu", "source_port", "destination_port", "mark", "queue", "tos", "gso_size")
    assert [event[key] for key in keys] == [0] * len(keys)


# Time


def test_the_wall_clock_is_the_events_not_the_readers(network: Lab) -> None:
    before = time.time_ns()
    after = before

    def send() -> None:
        nonlocal after
        lab.closed_udp(network.route)
        after = time.time_ns()

    unread = 0.7
    events = as_json(Tracer(netns=network.client.name, probes="net_dev_queue"), send, unread=unread)
    assert time.time_ns() - after > unread * 1e9
    assert events
    for event in events:
        assert before - 1_000_000 <= event["timestamp_ns"] <= after + 1_000_000
        seconds, nanoseconds = divmod(event["timestamp_ns"], 1_000_000_000)
        written = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        assert event["timestamp"] == f"{written}.{nanoseconds:09d}Z"


# Headers


@pytest.mark.parametrize("where", ["netif_receive_skb", "xdp", "tc:ingress", "ipv6_rcv()"])
def test_behind_ipv6_extension_headers_there_are_protocol_and_ports(network: Lab, where: str) -> None:
    """Hop-by-hop (8 bytes), routing (24 bytes) and destination options (16 bytes) before UDP."""
    padding = b"\1\4" + bytes(4)
    chain = struct.pack("!BB", 43, 0) + padding  # next: routing
    chain += struct.pack("!BBBB", 60, 2, 253, 0) + bytes(20)  # next: destination options; no segments left
    chain += struct.pack("!BB", _IPPROTO_UDP, 1) + b"\1\14" + bytes(12)
    frame = ethernet(ipv6(chain + udp(b"x", source=1234, destination=5353), 0), 0x86DD)
    function = where.removesuffix("()")
    chosen: dict[str, Any] = {"functions": function} if where != function else {"probes": where}
    tracer = Tracer(netns=network.router.name, interface="r0", **chosen)
    (event,) = as_json(tracer, lambda: lab.frame(network.client, "c0", frame))
    assert (event["l4_protocol"], event["l4_protocol_name"]) == (_IPPROTO_UDP, "udp")
    assert (event["source_port"], event["destination_port"]) == (1234, 5353)
    assert (event["source"], event["destination"]) == ("2001:db8:1::2", "2001:db8:2::2")


@pytest.mark.parametrize("version", [4, 6])
def test_later_fragments_have_no_ports(network: Lab, version: Any) -> None:
    """What stands in the ports' place there is data: here bytes that would make good ports."""
    tracer = Tracer(netns=network.server.name, probes="netif_receive_skb")
    text = Text()
    shown = ""
    with tracer:
        lab.fragments(network.route, version=version, size=4000)
        time.sleep(0.05)
        tracer.stop()
        batches = list(tracer.batches())
    objects = [json.loads(line) for batch in batches for line in JsonLines().format(batch).splitlines()]
    shown = "".join(text.format(batch) for batch in batches)
    found = [one for one in objects if one["fragment"]]
    assert [one["fragment_offset"] > 0 for one in found] == [False, True, True]
    assert [one["destination_port"] for one in found] == [5002, None, None]
    assert [one["source_port"] is None for one in found] == [False, True, True]
    first, *later = (line for line in shown.splitlines() if "fragment at" in line)
    ports = re.compile(r"[.:0-9a-f]+\.\d+ > [.:0-9a-f]+\.\d+: udp" if version == 6 else r"(\d+\.){4}\d+ > ")
    assert ports.search(first)
    assert len(later) == 2
    assert not any(ports.search(line) for line in later)


# Who


def test_the_name_of_a_process_that_has_gone(network: Lab) -> None:
    """Taken in the kernel: when the event is read there is nobody left to ask."""
    script = f"""
import socket
with open("/proc/self/comm", "w") as file:
    file.write("gone by then")
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("{SERVER}", 4321))
"""
    sender = 0

    def send() -> None:
        nonlocal sender
        with entered(network.client.netns):
            process = subprocess.Popen([sys.executable, "-S", "-c", script])
        sender = process.pid
        assert process.wait(60) == 0
        assert not Path(f"/proc/{sender}").exists()

    events = as_json(Tracer(netns=network.client.name, probes="net_dev_queue"), send)
    (event,) = (one for one in events if one["destination_port"] == 4321)
    assert (event["comm"], event["pid"], event["tgid"]) == ("gone by then", sender, sender)


# Where


@contextmanager
def bare_namespace(name: str) -> Iterator[Netns]:
    """A namespace of no process, with a veth ``born0``; its name is taken away as soon as it is made."""
    run(["ip", "netns", "add", name], "", None)
    try:
        made = resolve(name)
        assert made is not None
        run(["ip", "link", "add", "born0", "type", "veth", "peer", "name", "born1"], "", made)
        for words in ("addr add 203.0.113.1/24 dev born0", "link set born0 up", "link set born1 up"):
            run(["ip", *words.split()], "", made)
        wait_for_carrier(made, "born0")
        run(["ip", *"neigh add 203.0.113.2 lladdr 02:00:00:00:00:01 dev born0".split()], "", made)
        yield made
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def marked(netns: Netns) -> socket.socket:
    """A socket in a namespace whose packets the filter finds among those of the whole host."""
    with entered(netns):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, _SO_MARK, _MARK)
    return opened


def everywhere() -> Tracer:
    return Tracer(netns="all", mark=_MARK, probes="net_dev_start_xmit")


def named(tracer: Tracer, traffic: Callable[[], object]) -> dict[str, Any]:
    """Return the event of traffic once its namespace has a name: it is searched for beside the reading."""
    with tracer:
        traffic()
        time.sleep(0.05)
        tracer.stop()
        batches = list(tracer.batches())
        deadline = time.monotonic() + 60
        while True:
            (line,) = (line for batch in batches for line in JsonLines().format(batch).splitlines())
            found: dict[str, Any] = json.loads(line)
            if None not in (found["netns_name"], found["interface"]) or time.monotonic() > deadline:
                return found
            time.sleep(0.1)


def test_names_in_a_namespace_without_a_process() -> None:
    name = f"ptrace-bare-{os.getpid()}"
    with bare_namespace(name) as netns, marked(netns) as sender:
        (event,) = as_json(everywhere(), lambda: sender.sendto(b"x", ("203.0.113.2", 9)))
    assert (event["netns"], event["netns_name"], event["interface"]) == (netns.inode, name, "born0")


def test_names_in_a_namespace_that_is_only_held_open() -> None:
    """No name, no mount, no process in it: somebody has its file open."""
    name = f"ptrace-held-{os.getpid()}"
    with bare_namespace(name) as netns, marked(netns) as sender:
        held = os.open(netns.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            run(["ip", "netns", "delete", name], "", None)
            tracer = everywhere()
            event = named(tracer, lambda: sender.sendto(b"x", ("203.0.113.2", 9)))
            found = resolve(event["netns_name"])  # what it is called is what --netns takes
        finally:
            os.close(held)
    assert found is not None
    assert found.inode == event["netns"] == netns.inode
    assert event["interface"] == "born0"


def test_names_in_a_namespace_of_a_single_thread() -> None:
    """A thread that has gone its own way, as container engines have them; its process lives elsewhere."""
    made, ready, sent, done = (threading.Event() for _ in range(4))
    found: list[int] = []

    def live() -> None:
        assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0
        with open("/proc/thread-self/ns/net", "rb") as file:
            found.append(os.fstat(file.fileno()).st_ino)
        run(["ip", "link", "set", "lo", "up"], "", None)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, _SO_MARK, _MARK)
            made.set()
            ready.wait(60)
            sender.sendto(b"x", ("127.0.0.1", 9))
            sent.set()
            done.wait(60)

    thread = threading.Thread(target=live)
    thread.start()
    assert made.wait(60)

    def send() -> None:
        ready.set()
        assert sent.wait(60)

    try:
        event = named(everywhere(), send)
    finally:
        ready.set()
        done.set()
        thread.join()
    assert (event["netns"], event["interface"]) == (found[0], "lo")
    assert event["netns_name"] is not None
    assert f"/task/{thread.native_id}/" in event["netns_name"]


def test_names_of_what_is_born_after_the_start(network: Lab) -> None:
    """An interface of a namespace that was looked into before, and a namespace: named at the first packet."""
    name = f"ptrace-late-{os.getpid()}"
    formatter = JsonLines()
    with everywhere() as tracer:

        def events() -> list[dict[str, Any]]:
            batch = next(tracer.batches(timeout=30))
            return [json.loads(line) for line in formatter.format(batch).splitlines()]

        with marked(network.client.netns) as sender:
            sender.sendto(b"x", (SERVER, 4322))
            assert [one["interface"] for one in events()] == ["c0"]
            commands = ("link add late0 type veth peer late1", "link set late0 up", "link set late1 up")
            for words in commands:
                run(["ip", *words.split()], "", network.client.netns)
            wait_for_carrier(network.client.netns, "late0")
            try:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"late0")
                run(
                    ["ip", *"neigh add 203.0.113.9 lladdr 02:00:00:00:00:02 dev late0".split()],
                    "",
                    network.client.netns,
                )
                sender.sendto(b"x", ("203.0.113.9", 9))
                assert [one["interface"] for one in events()] == ["late0"]
            finally:
                run(["ip", "link", "delete", "late0"], "", network.client.netns)
        with bare_namespace(name) as netns, marked(netns) as sender:
            sender.sendto(b"x", ("203.0.113.2", 9))
            (event,) = events()
            assert (event["netns_name"], event["interface"]) == (name, "born0")


# Which packet


def test_events_at_xdp_have_an_identity(network: Lab) -> None:
    """A packet id and a time; the id is that of the skb that the buffer becomes."""
    tracer = Tracer(
        netns=[network.client.name, network.router.name],
        interface=["c0", "r0"],
        probes=["net_dev_start_xmit", "xdp", "netif_receive_skb"],
        filter="udp",
    )
    count = 5

    def send() -> None:
        with on_one_cpu(), udp_socket(network.client, (SERVER, DROPPED_PORT)) as sender:
            for number in range(count):
                sender.send(b"%d" % number)

    before = time.monotonic_ns()
    events = as_json(tracer, send)
    at: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["destination_port"] == DROPPED_PORT:
            at.setdefault(event["probe"], []).append(event)
    assert {probe: len(found) for probe, found in at.items()} == dict.fromkeys(at, count)
    assert set(at) == {"net_dev_start_xmit", "xdp", "netif_receive_skb"}
    ids = [event["packet_id"] for event in at["xdp"]]
    assert None not in ids
    assert len(set(ids)) == count
    assert ids == [event["packet_id"] for event in at["netif_receive_skb"]]
    for sent, met, received in zip(*(at[probe] for probe in at), strict=True):
        assert before < sent["monotonic_ns"] < met["monotonic_ns"] < received["monotonic_ns"]
        assert int(met["skb"], 16)
        assert int(met["head"], 16)


# Kernel functions


def test_of_two_skb_arguments_the_first_is_traced(network: Lab, backend: Backend) -> None:
    """docs/capture.md says so. Of what is reassembled inet_frag_reasm_prepare(queue, skb, parent) gets the
    fragment that came last, and the one before it; ip_rcv_finish_core() has a device between two skbs.
    """
    functions = ["inet_frag_reasm_prepare"]
    try:
        Tracer(netns=network.server.name, functions="ip_rcv_finish_core", backend=backend)
        functions.append("ip_rcv_finish_core")
    except UsageError:
        pass  # the compiler has made it a part of others
    tracer = Tracer(netns=network.server.name, functions=functions, backend=backend)
    events = as_json(tracer, lambda: lab.fragments(network.route, size=4000))
    assert not set(tracer.skipped) - {"ip_rcv_finish_core"}
    (last,) = (one for one in events if one["probe"] == "inet_frag_reasm_prepare")
    assert (last["fragment"], last["fragment_offset"]) == (True, 2960)
    # IP receives each of the three.
    offsets = [one["fragment_offset"] for one in events if one["probe"] == "ip_rcv_finish_core"]
    assert offsets in ([0, 1480, 2960], [])
    assert bool(offsets) == ("ip_rcv_finish_core" in functions and not tracer.skipped)


def test_the_true_reason_is_named_when_functions_cannot_be_traced(network: Lab) -> None:
    """For each backend: the kernel's errno, found here by asking it in another way, and the cause."""
    for backend in BACKENDS:
        try:
            with Tracer(netns=network.server.name, functions="ip_rcv", backend=backend):
                continue
        except NotSupportedError as error:
            said = str(error)
        assert said.startswith(f"no kernel function can be traced here ({backend}: "), said
        assert re.search(r": E[A-Z]+: [A-Z][a-z ]+", said), said
        assert _CAUSES[backend]() in said, said


def _fentry_cause() -> str:
    """What the kernel answers to a program that does nothing at all."""
    with pytest.raises(BpfError) as refused:
        idle_program(
            ProgramType.TRACING, AttachType.TRACE_FENTRY, section="fentry/ip_rcv", target="ip_rcv"
        ).close()
    return f"ip_rcv was refused: {errno.errorcode[refused.value.errno or 0]}: "


def _fentry_multi_cause() -> str:
    return "this kernel has no fentry-multi"


def _kprobe_multi_cause() -> str:
    return "CONFIG_FPROBE"


def _kprobe_cause() -> str:
    assert not Path("/sys/bus/event_source/devices/kprobe/type").exists()
    return "to ip_rcv: ENOENT: No such file or directory: this kernel has no kprobes (CONFIG_KPROBE_EVENTS)"


_CAUSES = {
    "fentry": _fentry_cause,
    "fentry-multi": _fentry_multi_cause,
    "kprobe-multi": _kprobe_multi_cause,
    "kprobe": _kprobe_cause,
}


def test_what_no_function_is_called_is_not_blamed_on_the_kernel(network: Lab) -> None:
    with pytest.raises(UsageError, match="no_such_function"):
        Tracer(netns=network.server.name, functions="no_such_function")


# Stacks


def _check_stack(stack: tuple[str, ...], *inside: str) -> None:
    """From a system call to here, every frame by name and none missing between those that must be there."""
    assert not [frame for frame in stack if frame.startswith("0x")], stack
    functions = [frame.partition("+")[0] for frame in stack]
    assert functions[-1] in ("entry_SYSCALL_64_after_hwframe", "el0t_64_sync"), stack
    places = [functions.index(name) for name in (*inside, "__sys_sendto")]
    assert places == sorted(places), stack


def test_stacks_are_whole(network: Lab, record_property: Callable[[str, object], None]) -> None:
    """By the ORC unwinder, which Debian's kernels have, as by frame pointers."""
    tracer = Tracer(netns=network.client.name, probes="net_dev_queue", stacks=True)
    _stacks_of(tracer, network, "net_dev_queue", "__dev_queue_xmit", "udp_sendmsg")
    config = Path(f"/boot/config-{os.uname().release}")
    if config.exists():
        unwinder = re.search(r"^CONFIG_UNWINDER_(\w+)=y", config.read_text(), re.MULTILINE)
        record_property("stack unwinder", unwinder[1] if unwinder else "unknown")


def test_stacks_of_functions_are_whole(network: Lab, backend: Backend) -> None:
    tracer = Tracer(netns=network.client.name, functions="ip_output", backend=backend, stacks=True)
    _stacks_of(tracer, network, "ip_output", "udp_sendmsg")


def _stacks_of(tracer: Tracer, network: Lab, probe: str, *inside: str) -> None:
    count = 3
    try:
        with tracer, udp_socket(network.client) as sender:
            for number in range(count):
                sender.sendto(b"%d" % number, (SERVER, 4324))
            time.sleep(0.05)
            tracer.stop()
            events = [event for event in tracer.events() if event.packet.destination_port == 4324]
            stacks = [tracer.stack(event.stack_id) for event in events if event.stack_id is not None]
    except NotSupportedError as error:
        pytest.skip(str(error))
    assert len(events) == len(stacks) == count
    assert tracer.stats()[probe].lost_stack == 0
    for stack in stacks:
        _check_stack(stack, *inside)
