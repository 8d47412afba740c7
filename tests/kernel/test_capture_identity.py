"""One packet, one id: never one id for two packets, and one packet's events all under the same."""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from packet_tracer import lab
from packet_tracer.capture import Tracer
from packet_tracer.errors import NotSupportedError
from packet_tracer.events import Event
from packet_tracer.lab import Lab
from packet_tracer.netns import entered
from packet_tracer.probes.objects import CaptureObjects
from tests.kernel.capturing import flood, network_cards, on_one_cpu, trace, udp_socket
from tests.labelled import Judge, number_in
from tests.mechanisms import MECHANISMS, Mechanism

PORT = 4000
#: A datagram through the router passes these, each once.
WAY = [
    ("client", "net_dev_queue"),
    ("router", "netif_receive_skb"),
    ("router", "net_dev_queue"),
    ("server", "netif_receive_skb"),
]


def through(network: Lab, **settings: Any) -> Tracer:
    return Tracer(
        netns=[node.name for node in network.nodes],
        probes=["net_dev_queue", "netif_receive_skb"],
        ring_bytes=64 << 20,
        **settings,
    )


def ways(network: Lab, events: list[Event]) -> dict[int, list[tuple[str, str]]]:
    """Return where each id was seen, in the order of time."""
    found: dict[int, list[tuple[str, str]]] = defaultdict(list)
    roles = network.labels
    for event in events:
        found[event.packet_id].append((roles[event.netns_inode], event.probe))
    return found


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_same_datagram_again_and_again(network: Lab, version: int, connected: bool) -> None:
    """Same bytes, in buffers that the slab hands out anew at once, on both CPUs: thousands of ids.

    Sockets without a peer set no identification, IPv6 has none.
    """
    count = 1250
    address = network.route.server_addresses[version]  # type: ignore[index]

    def traffic() -> None:
        with ExitStack() as stack:
            sink = stack.enter_context(udp_socket(network.server, version=version))
            sink.bind((address, PORT))
            senders = []
            for _ in range(2):
                sender = stack.enter_context(udp_socket(network.client, version=version))
                if connected:
                    sender.connect((address, PORT))
                else:
                    sender = Towards(sender, (address, PORT))  # type: ignore[assignment]
                senders.append(sender)
            flood(senders, count, b"always the same")

    tracer = through(network)
    events = [event for event in trace(tracer, traffic) if event.packet.destination_port == PORT]
    assert sum(counters.lost_ring for counters in tracer.stats().values()) == 0
    assert len(events) == 2 * count * len(WAY)
    found = ways(network, events)
    assert 0 not in found
    wrong = {way for identifier in found if (way := tuple(found[identifier])) != tuple(WAY)}
    assert not wrong, Counter(tuple(way) for way in found.values()).most_common(5)
    assert len(found) == 2 * count


class Towards:
    """A socket that has no peer: it names one with each datagram."""

    def __init__(self, opened: socket.socket, peer: tuple[str, int]) -> None:
        self._opened = opened
        self._peer = peer

    def send(self, payload: bytes) -> int:
        """Send it there."""
        return self._opened.sendto(payload, self._peer)


@pytest.mark.parametrize("offloads", [True, False], ids=["offloads", "no offloads"])
@pytest.mark.parametrize("version", [4, 6])
def test_each_segment_of_a_connection(network: Lab, version: Any, offloads: bool) -> None:
    """Handshake, data, end: no id stands for two sequence numbers, or for both directions."""
    network.set_offloads(offloads)
    try:
        tracer = through(network)
        events = trace(tracer, lambda: lab.http(network.route, version=version, body=60_000))
    finally:
        network.set_offloads(True)
    segments = [event for event in events if event.packet.tcp_flags is not None]
    named = defaultdict(set)
    for event in segments:
        packet = event.packet
        named[event.packet_id].add(
            (packet.source, packet.tcp_sequence, packet.tcp_acknowledgement, packet.tcp_flags)
        )
    assert 0 not in named
    assert {len(names) for names in named.values()} == {1}
    # What one end queued comes to the other under the same id, unless it was cut up on the way.
    roles = network.labels
    queued = {event.packet_id for event in segments if event.probe == "net_dev_queue"}
    received = [event for event in segments if event.probe == "netif_receive_skb"]
    whole = [event for event in received if event.length <= 1514]
    if offloads:
        assert {event.packet_id for event in received} <= queued
    else:
        assert len({event.packet_id for event in whole if roles[event.netns_inode] == "router"}) == sum(
            roles[event.netns_inode] == "router" for event in whole
        )


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_are_packets_of_their_own(network: Lab, version: Any) -> None:
    tracer = through(network)
    events = trace(tracer, lambda: lab.fragments(network.route, version=version, size=6000))
    fragments = [event for event in events if event.packet.fragment]
    offsets = defaultdict(set)
    for event in fragments:
        offsets[event.packet_id].add(event.packet.fragment_offset)
    assert 0 not in offsets
    assert all(len(found) == 1 for found in offsets.values())
    at_server = [event for event in fragments if network.labels[event.netns_inode] == "server"]
    assert len({event.packet_id for event in at_server}) == len(at_server) == 5


@pytest.mark.parametrize("version", [4, 6])
def test_requests_and_replies(network: Lab, version: Any) -> None:
    """The kernel answers an echo request out of the request's own buffer: still another packet."""
    tracer = through(network)
    events = trace(tracer, lambda: lab.ping(network.route, version=version, count=50))
    named = defaultdict(set)
    for event in events:
        named[event.packet_id].add((event.packet.icmp_type, event.packet.icmp_sequence))
    assert len(named) == 100
    assert {len(names) for names in named.values()} == {1}


def numbered(network: Lab, count: int) -> Callable[[], None]:
    """Return traffic that holds so many packets at once: in a socket that is read only at the end."""

    def traffic() -> None:
        with ExitStack() as stack:
            sink = stack.enter_context(udp_socket(network.server))
            sink.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
            sink.bind((network.route.server_addresses[4], PORT))
            with entered(network.client.netns):
                sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sender.connect(sink.getsockname())
            for number in range(count):
                sender.send(struct.pack("=I", number))
            sink.settimeout(2)
            for number in range(count):
                assert struct.unpack("=I", sink.recv(100)) == (number,)

    return traffic


@pytest.mark.parametrize("entries", [512, 65536], ids=["too few", "enough"])
def test_more_packets_than_can_be_remembered(
    network: Lab, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is forgotten gets a new id when it is seen again; none gets another's. It is counted."""
    configure = CaptureObjects._configure

    def smaller(self: CaptureObjects, opened: Any, *arguments: Any, **settings: Any) -> None:
        configure(self, opened, *arguments, **settings)
        opened.maps["packets"].max_entries = entries

    monkeypatch.setattr(CaptureObjects, "_configure", smaller)
    count = 3000
    tracer = Tracer(
        netns=[node.name for node in network.nodes],
        probes=["net_dev_queue", "netif_receive_skb", "consume_skb"],
        ring_bytes=64 << 20,
    )
    with tracer:
        numbered(network, count)()
        tracking = tracer.tracking()
        tracer.stop()
        events = [event for event in tracer.events() if event.packet.destination_port == PORT]
    named = defaultdict(set)
    for event in events:
        named[event.packet_id].add(event.data[42:46] if len(event.data) > 42 else event.data[28:32])
    assert 0 not in named
    assert {len(names) for names in named.values()} == {1}
    if entries < count:
        assert tracking.forgotten >= count - entries - 64
        assert tracking.present <= entries
    else:
        assert tracking.forgotten == 0
        assert len(named) == count
    assert tracking.births == tracking.deaths + tracking.present + tracking.forgotten


def test_a_netlink_message_is_not_the_packet_whose_buffer_it_got(network: Lab) -> None:
    """TCP frees what was never answered in silence, and the kernel tells of namespaces that come and go."""

    def traffic() -> None:
        for _ in range(4):
            for cpu in os.sched_getaffinity(0):
                with on_one_cpu(cpu):
                    lab.dropped(network.route, version=6, protocol="tcp", count=3, wait=0.02)
            with Lab():
                pass

    events = trace(Tracer(netns=[node.name for node in network.nodes], profile="tracepoints"), traffic)
    protocols = defaultdict(set)
    for event in events:
        protocols[event.packet_id].add(event.packet.protocol)
    assert {len(found) for found in protocols.values()} == {1}


_ALIKE = ("VXLAN, IPv6", "NAT of ports, IPv6", "bridge", "UDP GSO, cut by")


@pytest.mark.parametrize(
    "mechanism",
    [each for each in MECHANISMS if each.name.startswith(_ALIKE)],
    ids=lambda each: each.name,
)
def test_no_two_packets_share_an_id_by_best_effort(network: Lab, mechanism: Mechanism) -> None:
    """Numbered packets, many alike but for their number: one may have two ids, but never two one."""
    tracer = Tracer(
        netns=[node.name for node in network.nodes],
        profile="tracepoints",
        snaplen=144,  # with what lies in pages
        ring_bytes=64 << 20,
    )
    judge = Judge(network.client.netns.inode)
    with tracer:
        try:
            sent = mechanism.play(network, 1, 100)
        except NotSupportedError as error:
            pytest.skip(str(error))
        tracer.stop()
        for batch in tracer.batches():
            judge.add(batch, {1})
    score = judge.finish(sent.numbers, sent.read, read=False)
    assert (score.mixed, score.wrong[:1] if score.mixed else []) == (0, [])
    assert score.packets >= len(sent.numbers)


@pytest.mark.parametrize("version", [4, 6])
def test_what_was_at_xdp_is_the_skb_that_the_driver_makes_of_it(network: Lab, version: int) -> None:
    """virtio_net copied small packets to another buffer before Linux 6.3. The matrix's guests have it."""
    with network_cards(network) as drivers:
        assert "virtio_net" in drivers
        (mechanism,) = (each for each in MECHANISMS if each.name == f"XDP to skb by virtio_net, IPv{version}")
        tracer = Tracer(
            netns=network.server.name,
            interface="virtio_net",
            probes=["xdp", "netif_receive_skb", "consume_skb"],
            snaplen=144,
        )
        with tracer:
            assert "xdp on virtio_net: native" in tracer.notes
            sent = mechanism.play(network, 1, 20)
            tracer.stop()
            events = [event for batch in tracer.batches() for event in batch]
    ids, probes = defaultdict(set), set()
    for event in events:
        if found := number_in(event.data):
            ids[found[0]].add(event.packet_id)
            probes.add(event.probe)
    assert ids.keys() == sent.read == sent.numbers
    assert len(set().union(*ids.values())) == len(ids) == 40
    assert probes > {"xdp"}
