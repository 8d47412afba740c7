"""Journeys of real packets in the lab, seen by tracepoints only: every kernel has those."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from packet_tracer import lab
from packet_tracer.capture import Tracer
from packet_tracer.errors import PtraceError
from packet_tracer.formats.journeys import JourneyText
from packet_tracer.journey import EndKind, Journey, Journeys, follow
from packet_tracer.lab import DROPPED_PORT, Lab
from packet_tracer.lab.commands import run
from packet_tracer.netns import entered
from tests.kernel.capturing import answered_echo_is_consumed, network_cards, on_one_cpu, udp_socket
from tests.kernel.cli import capturing, ptrace, until
from tests.matrix.cards import addresses

NAT_PORT = 8080
_NAT = f"""
table ip journeys {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr 192.0.2.1 udp dport 53 dnat to 198.51.100.2
        ip daddr 192.0.2.1 tcp dport {NAT_PORT} dnat to 198.51.100.2:80
    }}
}}
"""


def journeys(network: Lab, traffic: Callable[[], object], expression: str | None = None) -> list[Journey]:
    """Return the journeys of traffic, in the order of their first events."""
    tracer = Tracer(
        netns=[node.name for node in network.nodes],
        profile="tracepoints",
        filter=expression,
        follow=True,
        snaplen=0,
    )
    with tracer:
        tracer.context.netns_labels = network.labels
        traffic()
        time.sleep(0.05)  # the last skb may still be on its way to its end, on the other CPU
        tracer.stop()
        return sorted(follow(tracer), key=lambda journey: journey.number)


def test_what_a_network_card_sent_was_not_dropped(network: Lab) -> None:
    """However its driver frees it; vmxnet3 does as if it were dropped. The matrix's guests have cards."""
    with network_cards(network) as drivers:
        for driver in drivers:
            target = addresses(driver, 2)[0]

            def send(target: str = target) -> None:
                with udp_socket(network.server) as receiver, udp_socket(network.client) as sender:
                    receiver.bind((target, 7000))
                    receiver.settimeout(2)
                    sender.sendto(b"by wire", (target, 7000))
                    receiver.recv(100)

            sent, received = journeys(network, send, f"dst host {target} and udp")
            assert (sent.end.kind, sent.end.event.interface) == (EndKind.SENT, driver)
            assert received.end.kind is not EndKind.DROPPED
            assert sent.end.location is None or driver in sent.end.location


def to_port(found: list[Journey], port: int) -> Journey:
    """Return the one journey that began towards a port."""
    (journey,) = (one for one in found if one.events[0].packet.destination_port == port)
    return journey


def places(journey: Journey) -> list[str]:
    """The namespaces that a packet was in, in order, each stay once."""
    names = [event.netns.name or "?" for event in journey.events if event.netns is not None]
    return [name for index, name in enumerate(names) if not index or name != names[index - 1]]


def changes(journey: Journey, what: str) -> list[tuple[str, str, str]]:
    """What changed of one kind: the stage, before, after."""
    return [
        (hop.stage or "", change.before, change.after)
        for hop in journey.hops
        for change in hop.changes
        if change.what == what
    ]


def test_a_ping_crosses_three_namespaces_and_is_consumed(network: Lab) -> None:
    request, reply = journeys(network, lambda: lab.ping(network.route), "icmp")
    assert places(request) == ["client", "router", "server"]
    assert places(reply) == ["server", "router", "client"]
    assert changes(request, "interface") == [
        ("device in", "c0", "r0"),
        ("qdisc", "r0", "r1"),
        ("device in", "r1", "s0"),
    ]
    assert changes(request, "ttl") == [("qdisc", "64", "63")]
    assert changes(request, "length") == []
    assert {request.end.kind, reply.end.kind} == {EndKind.CONSUMED}
    assert request.complete
    assert reply.complete
    stages = [hop.stage for hop in request.hops]
    assert stages[:6] == ["qdisc", "driver out", "device in"] * 2
    assert stages[-1] == "freed"


def test_ipv6_is_no_different(network: Lab) -> None:
    request, reply = journeys(
        network, lambda: lab.ping(network.route, version=6), "icmp6[0] >= 128 and icmp6[0] <= 129"
    )
    assert places(request) == ["client", "router", "server"]
    assert changes(request, "ttl") == [("qdisc", "64", "63")]
    assert reply.end.kind is EndKind.CONSUMED
    if answered_echo_is_consumed():
        assert request.end.kind is EndKind.CONSUMED
    else:
        assert request.end.kind is EndKind.DROPPED
        assert (request.end.location or "").startswith("icmpv6_rcv+"), request.end


def test_a_dropped_packet_ends_in_the_router_with_the_reason(network: Lab) -> None:
    journey = to_port(journeys(network, lambda: lab.dropped(network.route), "udp"), DROPPED_PORT)
    assert journey.end.kind is EndKind.DROPPED
    assert places(journey) == ["client", "router"]
    # Linux 5.17 brought reasons (c504e5c2f964), 5.19 this one; before, the place has to do.
    assert journey.end.reason in ("NETFILTER_DROP", "NOT_SPECIFIED", None)
    assert journey.end.location or journey.end.reason
    assert journey.complete
    if journey.end.reason == "NETFILTER_DROP":
        assert "DROPPED NETFILTER_DROP" in JourneyText().format([journey])


def test_a_packet_that_waits_for_a_neighbour_in_vain_is_dropped(network: Lab) -> None:
    """Three times a clone of it is asked with, and freed; the packet itself is dropped a second later."""

    def ask_for_nobody() -> None:
        with udp_socket(network.client) as sender:
            for payload in (b"first", b"second"):
                sender.sendto(payload, ("192.0.2.77", 7000))
        time.sleep(4)

    found = journeys(network, ask_for_nobody, "dst host 192.0.2.77 and udp")
    assert len(found) == 2
    for journey in found:
        assert [hop.stage for hop in journey.hops][-2:] == ["freed", "dropped"]
        assert journey.end.kind is EndKind.DROPPED
        assert journey.end.reason in ("NEIGH_FAILED", "NOT_SPECIFIED", None)  # since Linux 5.18


def test_a_datagram_that_was_read_is_consumed(network: Lab) -> None:
    """By the other CPU: since Linux 6.18 one that is read where it was received is freed in silence."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("there is one CPU only")
    address = (network.route.server_addresses[4], 4053)

    def read_elsewhere() -> None:
        with on_one_cpu(), udp_socket(network.server) as server, udp_socket(network.client) as client:
            server.bind(address)
            client.sendto(b"to be read", address)
            os.sched_setaffinity(0, {cpus[1]})
            assert server.recv(100) == b"to be read"
            os.sched_setaffinity(0, {cpus[0]})
            lab.ping(network.route)  # deferred frees are done when the CPU receives again

    journey = to_port(journeys(network, read_elsewhere, "udp or icmp"), 4053)
    assert places(journey) == ["client", "router", "server"]
    assert journey.end.kind is EndKind.CONSUMED
    assert journey.complete


@pytest.fixture
def translated(network: Lab) -> Iterator[Lab]:
    """The lab, with a router whose own address stands for the server."""
    try:
        run(["nft", "-f", "-"], _NAT, network.router.netns)
    except PtraceError as error:
        pytest.skip(f"this kernel has no NAT by nftables: {error}")
    yield network
    run(["nft", "-f", "-"], "delete table ip journeys", network.router.netns)


def test_nat_of_an_address_shows_where_it_happens(translated: Lab) -> None:
    def ask() -> None:
        with udp_socket(translated.server) as server, udp_socket(translated.client) as client:
            server.bind((translated.route.server_addresses[4], 53))
            client.sendto(b"question", ("192.0.2.1", 53))
            data, peer = server.recvfrom(100)
            server.sendto(b"answer to " + data, peer)
            client.settimeout(5)
            assert client.recvfrom(100) == (b"answer to question", ("192.0.2.1", 53))

    question, answer = journeys(translated, ask, "udp")
    assert changes(question, "destination") == [("qdisc", "192.0.2.1.53", "198.51.100.2.53")]
    assert changes(question, "source") == []
    assert changes(answer, "source") == [("qdisc", "198.51.100.2.53", "192.0.2.1.53")]
    assert places(question) == ["client", "router", "server"]
    text = JourneyText().format([question])
    assert text.count("destination 192.0.2.1.53 -> 198.51.100.2.53; ttl 64 -> 63") == 1


def test_nat_of_a_port_shows_too(translated: Lab) -> None:
    def connect() -> None:
        with entered(translated.server.netns):
            listener = socket.create_server((translated.route.server_addresses[4], 80))
        with listener, entered(translated.client.netns):
            socket.create_connection(("192.0.2.1", NAT_PORT), timeout=5).close()

    syn = to_port(journeys(translated, connect, "tcp[tcpflags] = tcp-syn"), NAT_PORT)
    assert changes(syn, "destination") == [("qdisc", f"192.0.2.1.{NAT_PORT}", "198.51.100.2.80")]
    assert places(syn) == ["client", "router", "server"]


def test_fragments_are_packets_of_their_own(network: Lab) -> None:
    found = journeys(network, lambda: lab.fragments(network.route), "udp or (ip[6:2] & 0x1fff != 0)")
    assert len(found) >= 3  # 4000 bytes at an MTU of 1500
    assert all("client" in places(journey) for journey in found)


def test_events_of_a_flood_are_all_in_some_journey_and_bounds_hold(network: Lab) -> None:
    tracer = Tracer(netns=[network.client.name, network.router.name], profile="tracepoints", snaplen=0)
    grouped = Journeys(max_journeys=16)
    given = []
    with tracer:
        client = udp_socket(network.client, (network.route.server_addresses[4], DROPPED_PORT))
        with client, on_one_cpu():
            for _ in range(300):
                client.send(b"x")
        tracer.stop()
        for batch in tracer.batches():
            given += grouped.add(batch)
            assert grouped.open <= 16
        given += grouped.finish()
    kept = sum(counters.kept for counters in tracer.stats().values())
    assert sum(len(journey.records) for journey in given) == kept
    dropped = [journey for journey in given if journey.end.kind is EndKind.DROPPED]
    assert len(dropped) == 300
    assert all(journey.complete for journey in dropped)


def test_a_quiet_capture_gives_journeys_out_in_time(network: Lab) -> None:
    tracer = Tracer(
        netns=[node.name for node in network.nodes], profile="tracepoints", follow=True, snaplen=0
    )
    with tracer:
        lab.dropped(network.route)
        sent = time.monotonic()
        journey = next(follow(tracer, timeout=5))
        waited = time.monotonic() - sent
    assert journey.end.kind is EndKind.DROPPED
    assert waited < 2


def test_the_command_prints_packets_while_it_runs_and_at_its_end(network: Lab, tmp_path: Path) -> None:
    names = [word for node in network.nodes for word in ("--netns", node.name)]
    with capturing(tmp_path, *names, "--journeys", "udp") as running:
        lab.dropped(network.route)
        until(lambda: "DROPPED" in running.seen, "it was not printed while the capture ran")
        lab.dropped(network.route)
        assert running.end() == 0
    assert running.seen.count("\n  DROPPED ") == 2
    assert running.seen.startswith("packet 1  ")
    assert "\npacket 2  " in running.seen
    assert "\x1b" not in running.seen


def test_the_command_writes_packets_as_json(network: Lab, tmp_path: Path) -> None:
    names = [word for node in network.nodes for word in ("--netns", node.name)]
    names += ["--profile", "tracepoints"]
    with capturing(tmp_path, *names, "--journeys", "--format", "json", "udp") as running:
        lab.dropped(network.route)
        until(lambda: '"journey"' in running.seen, "it was not written while the capture ran")
        lab.dropped(network.route)
        assert running.end() == 0
    start, first, second, end = (json.loads(line) for line in running.seen.splitlines())
    assert (start["type"], end["type"], end["journeys"], end["forgotten"]) == ("start", "end", 2, 0)
    assert [one["number"] for one in (first, second)] == [1, 2]
    assert first["packet_id"] != second["packet_id"]
    for one in (first, second):
        assert (one["type"], one["complete"], one["identity"]) == ("journey", True, "best effort")
        assert (one["destination"], one["destination_port"]) == ("198.51.100.2", DROPPED_PORT)
        assert one["end"]["kind"] == "dropped"
        assert one["end"]["reason"] or one["end"]["location"]
        stages = [hop["stage"] for hop in one["hops"]]
        assert stages[:3] == ["qdisc", "driver out", "device in"]
        assert sum(hop["since_ns"] for hop in one["hops"]) >= one["duration_ns"] > 0
        moved = [change for hop in one["hops"] for change in hop["changes"] if change["what"] == "interface"]
        assert moved == [{"what": "interface", "before": "c0", "after": "r0"}]
    assert end["events"] == sum(len(one["hops"]) for one in (first, second))


@pytest.mark.parametrize("output", [["--format", "text"], ["--format", "json"]])
def test_the_command_shows_the_stack_of_each_hop(network: Lab, tmp_path: Path, output: list[str]) -> None:
    """Also of journeys that are over only when the capture is, and the kernel's own map of stacks is gone."""
    names = [word for node in network.nodes for word in ("--netns", node.name)]
    names += ["--profile", "tracepoints"]
    with capturing(tmp_path, *names, "--journeys", "--stack", *output, "udp") as running:
        lab.dropped(network.route)
        assert running.end() == 0
    if output[-1] == "text":
        lines = running.seen.splitlines()
        (queued,) = (at for at, line in enumerate(lines) if "  net_dev_queue  " in line)
        below = list(itertools.takewhile(lambda line: line.startswith(" " * 8), lines[queued + 1 :]))
        assert any(line.strip().startswith("udp_sendmsg+") for line in below), running.seen
        return
    _, journey, _ = (json.loads(line) for line in running.seen.splitlines())
    stack = next(hop["stack"] for hop in journey["hops"] if hop["probe"] == "net_dev_queue")
    assert any(frame.startswith("udp_sendmsg+") for frame in stack)


@pytest.mark.parametrize("other", [["-w", "-"], ["--format", "json", "-w", "-"]])
def test_the_command_refuses_what_does_not_go_together(other: list[str]) -> None:
    refused = ptrace("capture", "--journeys", *other)
    assert refused.returncode == 2
    assert refused.stderr.startswith("ptrace: ")
