"""The Tracer as programs use it: all ways to read, to end it, to choose what it sees, and to get it wrong."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from packet_tracer import lab
from packet_tracer.capture import Tracer
from packet_tracer.errors import NotSupportedError, UsageError
from packet_tracer.events import FIELD_NAMES, Event
from packet_tracer.lab import Lab
from packet_tracer.netns import entered
from tests.kernel.capturing import flood, trace, udp_socket

#: What a time-out may be late by on this machine, which others use too; an emulated one is slower still.
PATIENCE = 5.0


@pytest.fixture
def tracer(network: Lab) -> Iterator[Tracer]:
    """A capture of what the router receives: six packets for three pings."""
    with Tracer(netns=network.router.name, probes="netif_receive_skb") as tracer:
        yield tracer


def sequences(events: list[Event]) -> list[tuple[int | None, int | None]]:
    return [(event.packet.icmp_type, event.packet.icmp_sequence) for event in events]


def expected(count: int) -> list[tuple[int | None, int | None]]:
    """What the router receives for so many pings: each request, and the reply to it."""
    return [(kind, number) for number in range(1, count + 1) for kind in (8, 0)]


# Reading


def test_for(network: Lab, tracer: Tracer) -> None:
    lab.ping(network.route, count=3)
    seen = []
    for event in tracer:
        seen.append(event)
        if len(seen) == 6:
            break
    assert sequences(seen) == expected(3)


def test_limit_is_exact_and_the_rest_is_not_lost(network: Lab, tracer: Tracer) -> None:
    """They all come in one batch; who asks again gets those that the limit left."""
    lab.ping(network.route, count=5)
    time.sleep(0.05)
    assert sequences(list(tracer.events(limit=3))) == expected(5)[:3]
    assert list(tracer.events(limit=0)) == []
    for event in tracer.events(limit=4):
        assert (event.packet.icmp_type, event.packet.icmp_sequence) == expected(5)[3]
        break
    tracer.stop()
    assert sequences(list(tracer)) == expected(5)[4:]
    assert list(tracer) == []
    assert tracer.stats()["netif_receive_skb"].kept == 10


@pytest.mark.parametrize("timeout", [0.0, 0.01, 0.1, 0.35])
def test_timeout_when_nothing_happens(tracer: Tracer, timeout: float) -> None:
    for read in (tracer.events, tracer.batches):
        started = time.monotonic()
        assert list(read(timeout=timeout)) == []
        assert timeout <= time.monotonic() - started < timeout + PATIENCE


def test_timeout_of_nothing_gives_what_is_there(network: Lab, tracer: Tracer) -> None:
    lab.ping(network.route, count=3)
    time.sleep(0.05)
    assert sequences(list(tracer.events(timeout=0))) == expected(3)
    lab.ping(network.route, count=2)
    time.sleep(0.05)
    assert sum(batch.count for batch in tracer.batches(timeout=0)) == 4


def test_timeout_while_packets_pour_in(network: Lab) -> None:
    """Neither an unending stream nor a slow reader of a large batch puts it off."""
    done = threading.Event()
    sink = udp_socket(network.server)
    sink.bind((network.route.server_addresses[4], 4000))
    sender = udp_socket(network.client, sink.getsockname())

    def pour() -> None:
        while not done.is_set():
            flood([sender], 50, b"x")

    thread = threading.Thread(target=pour)
    with sink, sender, Tracer(netns=network.router.name, probes="netif_receive_skb") as tracer:
        thread.start()
        try:
            time.sleep(0.2)
            for pause in (0.0, 0.002):
                started, pauses = time.monotonic(), []
                for _ in tracer.events(timeout=0.3):
                    began = time.monotonic()
                    time.sleep(pause)  # on a busy machine much longer
                    pauses.append(time.monotonic() - began)
                assert pauses
                # It looks at the time after each 64 events.
                assert 0.3 <= time.monotonic() - started < 0.3 + PATIENCE + sum(pauses[-64:])
        finally:
            done.set()
            thread.join()


def test_batches_and_columns(network: Lab, tracer: Tracer) -> None:
    numpy = pytest.importorskip("numpy")
    lab.ping(network.route, count=3)
    time.sleep(0.05)
    batches = list(tracer.batches(timeout=0))
    assert sum(len(batch) for batch in batches) == 6
    rows = numpy.concatenate([batch.to_numpy() for batch in batches])
    assert rows["icmp_sequence"].tolist() == [1, 1, 2, 2, 3, 3]
    assert set(rows["netns_inode"]) == {network.router.netns.inode}
    assert (rows["size"] == 240 + rows["captured_length"]).all()
    heads = [row for batch in batches for row in batch.to_tuples()]
    at = FIELD_NAMES.index("timestamp_ns")
    assert [head[at] for head in heads] == rows["timestamp_ns"].tolist()
    events = [event for batch in batches for event in batch]
    assert [event.monotonic_ns for event in events] == rows["timestamp_ns"].tolist()


def test_events_outlive_their_batch_and_the_tracer(network: Lab) -> None:
    """What is kept is the event's own: rings are read into the same memory again and again."""
    with Tracer(netns=network.router.name, probes="netif_receive_skb") as tracer:
        kept: list[Event] = []
        for number in range(1, 6):
            lab.ping(network.route, identifier=number)
            kept += tracer.events(limit=2, timeout=2)
        before = [(event.data, event.raw()) for event in kept]
    assert [(event.data, event.raw()) for event in kept] == before
    assert [event.packet.icmp_id for event in kept] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert {event.interface for event in kept} == {"r0", "r1"}


def test_async_for(network: Lab, tracer: Tracer) -> None:
    """The event loop goes on meanwhile, and a stop ends it with all that was seen."""

    async def run() -> tuple[list[Event], int]:
        ticks, seen = 0, []

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        async def send() -> None:
            await asyncio.to_thread(lab.ping, network.route, count=3)
            await asyncio.sleep(0.3)
            tracer.stop()

        background = [asyncio.create_task(tick()), asyncio.create_task(send())]
        async for event in tracer:
            seen.append(event)
        for task in background:
            task.cancel()
        return seen, ticks

    seen, ticks = asyncio.run(run())
    assert sequences(seen) == expected(3)
    assert ticks > 5


def test_async_for_that_is_cancelled(network: Lab) -> None:
    """The rings' memory goes away with the tracer: nothing may be reading it still."""

    async def read(tracer: Tracer) -> list[Event]:
        return [event async for event in tracer]

    async def run() -> None:
        for _ in range(3):
            with Tracer(netns=network.router.name, probes="netif_receive_skb") as tracer:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(read(tracer), 0.05)
                # Whoever comes next gets the rest.
                await asyncio.to_thread(lab.ping, network.route, count=2)
                async for event in tracer:
                    assert event.packet.icmp_type == 8
                    break
                await asyncio.sleep(0.02)
                assert sequences(list(tracer.events(limit=3, timeout=2))) == expected(2)[1:]

    asyncio.run(run())


def test_descriptor_for_an_event_loop(network: Lab, tracer: Tracer) -> None:
    """Readable within a tenth of a second, quiet again when all is read."""
    descriptor = tracer.fileno()
    seen: list[Event] = []
    lab.ping(network.route, count=2)
    deadline = time.monotonic() + 5
    while len(seen) < 4:
        assert time.monotonic() < deadline
        if select.select([descriptor], [], [], 1)[0]:
            seen += tracer.events(timeout=0)
    assert sequences(seen) == expected(2)


# The end


def test_stop_from_another_thread(tracer: Tracer) -> None:
    timer = threading.Timer(0.15, tracer.stop)
    timer.start()
    started = time.monotonic()
    assert list(tracer) == []
    assert 0.1 < time.monotonic() - started < 0.3 + PATIENCE
    timer.join()


def test_stop_from_a_signal_handler(network: Lab, tracer: Tracer) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: tracer.stop())
    try:
        lab.ping(network.route, count=2)
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        started = time.monotonic()
        assert sequences(list(tracer)) == expected(2)
        assert time.monotonic() - started < 0.3 + PATIENCE
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_exception_of_a_signal_handler_ends_the_wait(tracer: Tracer) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            list(tracer)
        assert time.monotonic() - started < 0.3 + PATIENCE
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_stop_before_reading_loses_nothing(network: Lab, tracer: Tracer) -> None:
    lab.ping(network.route, count=3)
    tracer.stop()
    lab.ping(network.route, count=2)  # still attached: detaching is left to who reads
    assert sequences(list(tracer)) == expected(3) + expected(2)
    lab.ping(network.route)
    assert list(tracer) == []
    assert tracer.stats()["netif_receive_skb"].seen == 10


def test_before_the_start_and_after_the_end(network: Lab) -> None:
    tracer = Tracer(netns=network.router.name, probes="netif_receive_skb")
    for use in (lambda: next(tracer.events()), lambda: next(tracer.batches()), tracer.fileno):
        with pytest.raises(ValueError, match="the tracer is not started"):
            use()
    with pytest.raises(ValueError, match="the tracer is not started"):
        _ = tracer.context
    assert tracer.stats()["netif_receive_skb"].seen == 0
    assert tracer.notes == ()
    tracer.close()
    with tracer:
        lab.ping(network.route, count=2)
        with pytest.raises(ValueError, match="the tracer is started already"):
            tracer.start()
    tracer.close()
    for use in (lambda: next(tracer.events()), lambda: next(tracer.batches()), tracer.fileno):
        with pytest.raises(ValueError, match="the tracer is closed"):
            use()
    with pytest.raises(ValueError, match="the tracer is closed"):
        asyncio.run(tracer.__aiter__().__anext__())
    assert tracer.stats()["netif_receive_skb"].seen == 4
    assert tracer.context.probes


def test_a_stopped_tracer_that_is_closed_unread(network: Lab) -> None:
    tracer = Tracer(netns=network.router.name, probes="netif_receive_skb")
    with tracer:
        lab.ping(network.route)
        tracer.stop()
    with pytest.raises(ValueError, match="the tracer is closed"):
        next(tracer.events())


def test_a_tracer_can_be_started_again(network: Lab) -> None:
    tracer = Tracer(netns=network.router.name, probes="netif_receive_skb")
    for count in (1, 3):
        events = trace(tracer, lambda count=count: lab.ping(network.route, count=count))  # type: ignore[misc]
        assert sequences(events) == expected(count)
        assert tracer.stats()["netif_receive_skb"].kept == 2 * count


def test_readme_example(network: Lab) -> None:
    """As the documentation has it, in a process of its own."""
    script = (
        "import sys\n"
        "from packet_tracer import Tracer\n"
        f"with Tracer(netns='{network.router.name}', interface='r0', profile='drops') as tracer:\n"
        "    print('attached', flush=True)\n"
        "    for event in tracer.events(limit=2, timeout=10.0):\n"
        "        print(event.timestamp.year, event.probe, event.packet.source, event.drop_reason)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "attached\n"
    lab.dropped(network.route, count=2)
    said = process.communicate(timeout=30)[0].splitlines()
    year = time.gmtime().tm_year
    reason = "NETFILTER_DROP" if "NETFILTER_DROP" in said[0] else "None"
    assert said == [f"{year} kfree_skb 192.0.2.2 {reason}"] * 2


# What to see


def of(network: Lab, **settings: Any) -> set[int]:
    """Return the namespaces in which a capture saw something of a ping through all three."""
    events = trace(
        Tracer(probes="netif_receive_skb", **settings), lambda: lab.ping(network.route, identifier=0x7E57)
    )
    return {event.netns_inode for event in events if event.packet.icmp_id == 0x7E57}


def test_namespaces(network: Lab) -> None:
    client, router, server = (node.netns.inode for node in network.nodes)
    names = [node.name for node in network.nodes]
    assert of(network, netns=names[1]) == {router}
    assert of(network, netns=names) == {client, router, server}
    assert of(network, netns=[names[0], names[2]]) == {client, server}
    assert of(network, netns=f"/run/netns/{names[0]}") == {client}
    assert of(network, netns="all") == {client, router, server}
    assert of(network, netns=[names[0], "all"]) == {client, router, server}
    assert of(network) == {client, router, server}


def test_namespace_of_a_process(network: Lab) -> None:
    with entered(network.server.netns):
        process = subprocess.Popen(["sleep", "30"])
    try:
        assert of(network, netns=f"pid:{process.pid}") == {network.server.netns.inode}
    finally:
        process.kill()
        process.wait()


def test_interfaces(network: Lab) -> None:
    router = network.router.name
    for interface in ("r0", ["r0", "r1"], ("r1",)):
        tracer = Tracer(netns=router, interface=interface, probes=["tc:ingress", "netif_receive_skb"])
        events = trace(tracer, lambda: lab.ping(network.route, count=2))
        at_tc = {event.interface for event in events if event.probe == "tc:ingress"}
        assert at_tc == {interface} if isinstance(interface, str) else set(interface)
    # "any" is tcpdump's word for all.
    assert of(network, netns=router, interface="any") == {network.router.netns.inode}


def test_an_interface_that_several_namespaces_have(network: Lab) -> None:
    names = [node.name for node in network.nodes]
    tracer = Tracer(netns=names, interface="lo", probes="netif_receive_skb")

    def traffic() -> None:
        for node in network.nodes:
            with udp_socket(node, ("127.0.0.1", 9)) as sender:
                sender.send(b"to nobody")

    events = trace(tracer, traffic)
    asked = [event for event in events if event.packet.destination_port == 9]
    assert sorted(event.netns_inode for event in asked) == sorted(node.netns.inode for node in network.nodes)


@pytest.mark.parametrize(("mark", "seen"), [(5, 2), (4, 0), ((1, 1), 2), ((4, 5), 0), ((0, 0), 2), (0, 0)])
def test_marks(network: Lab, mark: int | tuple[int, int], seen: int) -> None:
    """A value, or the bits of it that a mask chooses."""
    tracer = Tracer(netns=network.client.name, interface="c0", probes="net_dev_queue", mark=mark)

    def traffic() -> None:
        with udp_socket(network.client, (network.route.server_addresses[4], 9)) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 5)
            for _ in range(2):
                try:
                    sender.send(b"marked")
                except ConnectionRefusedError:
                    sender.send(b"marked")

    events = trace(tracer, traffic)
    assert sum(event.packet.destination_port == 9 for event in events) == seen
    assert {event.mark for event in events if event.packet.destination_port == 9} <= {5}


# Mistakes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"interface": "r7"}, r"no interface 'r7' in network namespace .*; there are: lo, r0, r1$"),
        ({"interface": ["r0", "c0"]}, r"no interface 'c0'"),
        ({"interface": ""}, r"no interface ''"),
        ({"probes": "netif_recieve_skb"}, r"no probe .* \(is netif_receive_skb.* meant\?\)"),
        ({"probes": "nothing*"}, r"no probe 'nothing\*'"),
        ({"probes": ""}, r"no probe ''"),
        ({"profile": "fast"}, r"no profile 'fast'; there are: path, "),
        ({"probes": "xdp"}, r"probe xdp is attached to an interface: name one with -i"),
        ({"probes": "tc:*"}, r"probe tc:ingress is attached to an interface"),
        ({"probes": "xdp", "interface": "any"}, r"probe xdp is attached to an interface"),
        ({"snaplen": -1}, r"a snaplen of -1 is out of range: 0 to 9216 bytes"),
        ({"snaplen": 9217}, r"a snaplen of 9217 is out of range"),
        ({"netns": "nothing-like-it"}, r"no network namespace 'nothing-like-it'"),
        ({"netns": "pid:999999999"}, r"no process 999999999"),
        ({"netns": "/dev/null"}, r"/dev/null is not a network namespace"),
        ({"netns": [""]}, r"empty name of a network namespace"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_line(network: Lab, settings: dict[str, Any], said: str) -> None:
    settings = {"netns": network.router.name, **settings}
    with pytest.raises(UsageError, match=said) as mistake:
        Tracer(**settings).start()
    assert "\n" not in str(mistake.value)


def test_a_namespace_named_twice_is_one(network: Lab) -> None:
    """However often, and in whatever way: no more than 16 can be told apart in the kernel."""
    names = [network.router.name, f"/run/netns/{network.router.name}"] * 20
    assert of(network, netns=names) == {network.router.netns.inode}


def test_an_installation_without_objects(network: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(machine="vax"))
    with pytest.raises(NotSupportedError, match="no BPF objects for vax in this installation"):
        Tracer(netns=network.router.name, probes="netif_receive_skb").start()


def test_an_interface_that_goes_away(network: Lab) -> None:
    """Whose device is removed while traced loses its probes there; the capture goes on and ends well."""
    name = f"gone{os.getpid() % 1000}"
    with entered(network.router.netns):
        subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}x"], check=True)
    with Tracer(
        netns=network.router.name, interface=[name, "r0"], probes=["tc:ingress", "xdp", "netif_receive_skb"]
    ) as tracer:
        lab.ping(network.route)
        with entered(network.router.netns):
            subprocess.run(["ip", "link", "delete", name], check=True)
        lab.ping(network.route)
        tracer.stop()
        events = list(tracer)
    assert sum(event.probe == "xdp" and event.packet.icmp_type == 8 for event in events) == 2
    assert tracer.stats()["tc:ingress"].seen == 2
