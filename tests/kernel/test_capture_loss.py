"""Nothing is lost in silence: what the probes say they saw is what the kernel says they ran.

The kernel counts the runs of each program (``run_cnt``) and the runs that it left out because the program was
running on that CPU already (``recursion_misses``); neither knows anything of our own counters.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from packet_tracer import lab
from packet_tracer.bpf.features import RunStatistics
from packet_tracer.bpf.program import ProgramInfo
from packet_tracer.capture import Tracer
from packet_tracer.lab import Lab
from packet_tracer.probes.setup import Counters, ring_size
from tests.kernel.capturing import flood, skip_without_netfilter_links, udp_socket

PORT = 4000


@pytest.fixture(autouse=True)
def statistics() -> Iterator[None]:
    """Held by a file descriptor: what the machine is set to is not touched."""
    with RunStatistics():
        yield


class Outcome:
    """What a capture counted, read and ran."""

    def __init__(
        self, events: Counter[str], stats: dict[str, Counters], runs: dict[str, ProgramInfo]
    ) -> None:
        self.events = events
        self.stats = stats
        self.runs = runs


def capture(tracer: Tracer, traffic: Callable[[], object]) -> Outcome:
    """Run the traffic, detach, and only then compare: nothing runs any more."""
    with tracer:
        traffic()
        tracer.stop()
        events = Counter(event.probe for event in tracer.events())
        session = tracer._session
        assert session is not None
        assert not session.links
        runs = {name: program.info() for name, program in session.programs.items()}
    return Outcome(events, tracer.stats(), runs)


def send(network: Lab, count: int, size: int) -> None:
    """Flood a socket of the server that nobody reads, from both CPUs."""
    with ExitStack() as stack:
        sink = stack.enter_context(closing(udp_socket(network.server)))
        sink.bind((network.route.server_addresses[4], PORT))
        senders = [
            stack.enter_context(closing(udp_socket(network.client, sink.getsockname()))) for _ in range(2)
        ]
        flood(senders, count, b"x" * size)


def whole(counters: Counters) -> bool:
    return counters.seen == counters.kept + counters.lost_ring


@pytest.mark.parametrize("probe", ["tc:ingress", "tc:egress", "xdp"])
def test_interface_probes_run_as_often_as_they_say(network: Lab, probe: str) -> None:
    """A mark that no packet has there turns everything away at XDP, nothing without it."""
    for mark, wanted in ((None, "seen"), (77, "rejected")):
        outcome = capture(
            Tracer(netns=network.router.name, interface="r0", probes=probe, mark=mark, count_rejected=True),
            lambda: lab.ping(network.route, count=20),
        )
        counters, run = outcome.stats[probe], outcome.runs[probe.replace(":", "_")]
        assert getattr(counters, wanted) == run.run_count >= 20
        assert counters.seen + counters.rejected == run.run_count
        assert counters.kept == outcome.events[probe] == counters.seen


@pytest.mark.requires("netfilter-link")
def test_netfilter_probes_run_as_often_as_they_say(network: Lab) -> None:
    skip_without_netfilter_links(network.router)
    tracer = Tracer(netns=network.router.name, probes="netfilter:*", count_rejected=True)
    outcome = capture(
        tracer, lambda: (lab.ping(network.route, count=20), lab.ping(network.route, version=6, count=20))
    )
    # One program serves all ten hooks.
    run = outcome.runs["netfilter_hook"]
    assert sum(counters.seen + counters.rejected for counters in outcome.stats.values()) == run.run_count
    assert run.run_count >= 20 * 2 * 3 * 2
    assert all(counters.kept == outcome.events[name] for name, counters in outcome.stats.items())


TRACEPOINTS = {
    "netif_receive_skb": "netif_receive_skb",
    "netif_rx": "netif_rx",
    "napi_gro_receive_entry": "napi_gro_receive_entry",
    "net_dev_queue": "net_dev_queue",
    "net_dev_start_xmit": "net_dev_start_xmit",
    "consume_skb": "consume_skb",
    "kfree_skb": "kfree_skb",
}


def test_tracepoints_run_as_often_as_they_say(network: Lab) -> None:
    """They fire for the whole host: what is of no concern is rejected, and counted."""
    tracer = Tracer(netns=network.router.name, probes=[*TRACEPOINTS, "net_dev_xmit"], count_rejected=True)
    outcome = capture(tracer, lambda: send(network, 500, 200))
    for probe, name in TRACEPOINTS.items():
        run = outcome.runs.get(name) or outcome.runs[f"{name}_without_reason"]
        counters = outcome.stats[probe]
        assert counters.seen + counters.rejected == run.run_count, probe
        assert whole(counters)
        assert counters.kept == outcome.events[probe]
        assert counters.missed == run.recursion_misses
    assert outcome.stats["net_dev_start_xmit"].seen >= 1000


def test_net_dev_xmit_tells_of_each_transmission_it_chose(network: Lab) -> None:
    """Two programs: one looks at the packet while it is there and rejects, the other tells how it went."""
    tracer = Tracer(netns=network.router.name, probes="net_dev_xmit", count_rejected=True)
    outcome = capture(tracer, lambda: send(network, 500, 200))
    counters = outcome.stats["net_dev_xmit"]
    chosen = outcome.runs["net_dev_start_xmit_remember"]
    assert counters.rejected + counters.seen == chosen.run_count
    assert counters.seen == counters.kept == outcome.events["net_dev_xmit"] >= 1000
    # It runs for the whole host, and finds nothing remembered for what was rejected.
    assert outcome.runs["net_dev_xmit"].run_count >= counters.seen


@pytest.mark.parametrize("probe", ["tc:ingress", "xdp", "net_dev_queue", "net_dev_xmit"])
def test_loss_is_exact_when_nobody_reads(network: Lab, probe: str) -> None:
    """The smallest rings, a flood on both CPUs, and a reader that comes too late."""
    tracer = Tracer(
        netns=network.router.name,
        interface="r1" if probe.startswith("net_dev") else "r0",
        probes=probe,
        ring_bytes=1,
        backlog_bytes=0,
        snaplen=1024,
        count_rejected=True,
    )
    outcome = capture(tracer, lambda: send(network, 1000, 1000))
    counters = outcome.stats[probe]
    assert counters.lost_ring > 0
    assert counters.seen == counters.kept + counters.lost_ring >= 2000
    assert counters.kept == outcome.events[probe] > 0
    program = {"net_dev_xmit": "net_dev_start_xmit_remember"}.get(probe, probe.replace(":", "_"))
    assert counters.seen + counters.rejected == outcome.runs[program].run_count


@pytest.mark.parametrize("backlog_bytes", [0, 1 << 20, None], ids=["no backlog", "a little", "the default"])
def test_loss_is_exact_while_the_reader_runs(network: Lab, backlog_bytes: int | None) -> None:
    """Reader and flood at once: the rings fill and empty all the time."""
    tracer = Tracer(
        netns=network.router.name,
        interface="r0",
        probes=["tc:ingress", "netif_receive_skb", "net_dev_queue"],
        ring_bytes=1,
        backlog_bytes=backlog_bytes,
        snaplen=512,
        count_rejected=True,
    )
    with tracer:
        sender = threading.Thread(target=send, args=(network, 2000, 1000))
        sender.start()
        read: Counter[str] = Counter()
        while not tracer.stopped:
            # The sender's last packet may be read before the sender has gone: then nothing more comes.
            gone = not sender.is_alive()
            for batch in tracer.batches(timeout=0.1):
                read.update(event.probe for event in batch)
            if gone:
                tracer.stop()
        for batch in tracer.batches():
            read.update(event.probe for event in batch)
        sender.join()
    stats = tracer.stats()
    assert stats["tc:ingress"].seen >= 4000
    for probe, counters in stats.items():
        assert whole(counters), probe
        assert counters.kept == read[probe], probe


def test_nothing_is_lost_that_the_backlog_has_room_for(network: Lab) -> None:
    """Some three times what the rings hold, and a reader that comes too late."""
    probes = ("netif_receive_skb", "net_dev_queue", "net_dev_start_xmit")
    tracer = Tracer(netns=network.router.name, probes=probes, ring_bytes=8 << 20)
    outcome = capture(tracer, lambda: send(network, 10_000, 100))
    for probe in probes:
        counters = outcome.stats[probe]
        assert counters.lost_ring == 0
        assert counters.seen == counters.kept == outcome.events[probe] >= 20_000


def test_without_a_backlog_that_is_lost(network: Lab) -> None:
    tracer = Tracer(netns=network.router.name, probes="net_dev_queue", ring_bytes=2 << 20, backlog_bytes=0)
    outcome = capture(tracer, lambda: send(network, 10_000, 100))
    counters = outcome.stats["net_dev_queue"]
    assert counters.lost_ring > 0
    assert counters.seen == counters.kept + counters.lost_ring >= 20_000


def test_rings_share_the_memory_asked_for() -> None:
    """64 KiB is the least of a ring, and what is asked for the most of all together."""
    assert ring_size(1, 2) == 1 << 16
    assert ring_size(64 << 20, 2) == 32 << 20
    assert ring_size(64 << 20, 3) == 16 << 20
    assert ring_size(1 << 20, 1) == 1 << 20


def test_nothing_is_lost_that_a_large_ring_holds(network: Lab) -> None:
    tracer = Tracer(netns=network.server.name, probes="netif_receive_skb", snaplen=256)
    outcome = capture(tracer, lambda: send(network, 2000, 500))
    counters = outcome.stats["netif_receive_skb"]
    assert counters.lost_ring == 0
    assert counters.seen == counters.kept == outcome.events["netif_receive_skb"]
    assert counters.seen + counters.missed == 4000
