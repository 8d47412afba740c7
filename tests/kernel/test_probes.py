"""Every probe sees exactly the packets that were sent: as many, of both families, with the bytes they had."""

from __future__ import annotations

import socket
import time
from collections import Counter

import pytest

from packet_tracer import lab
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.capture import Tracer
from packet_tracer.events import Event
from packet_tracer.lab import Lab, Node

from .capturing import trace, witness

COUNT = 7


def echoes(events: list[Event], probe: str, version: int, kind: str) -> list[Event]:
    """Return the events of a probe that are echo requests or replies of one family."""
    types = {(4, "request"): 8, (4, "reply"): 0, (6, "request"): 128, (6, "reply"): 129}
    return [
        event
        for event in events
        if event.probe == probe
        and event.packet.icmp_type == types[version, kind]
        and event.packet.source is not None
        and event.packet.source.version == version
    ]


#: Probe -> where it is asked (role, interface), and how many requests and replies it sees for each ping
#: there.
SEEN = {
    "netif_receive_skb": ("router", None, 1, 1),
    "netif_rx": ("router", None, 1, 1),
    "net_dev_queue": ("router", None, 1, 1),
    "net_dev_start_xmit": ("router", None, 1, 1),
    "net_dev_xmit": ("router", None, 1, 1),
    "tc:ingress": ("router", "r0", 1, 0),
    "tc:egress": ("router", "r0", 0, 1),
    "xdp": ("router", "r0", 1, 0),
    "netfilter:*:prerouting": ("router", None, 1, 1),
    "netfilter:*:forward": ("router", None, 1, 1),
    "netfilter:*:postrouting": ("router", None, 1, 1),
    "netfilter:*:input": ("server", None, 1, 0),
    "netfilter:*:output": ("server", None, 0, 1),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "probe",
    [
        pytest.param(name, marks=pytest.mark.requires("netfilter-link")) if "netfilter" in name else name
        for name in SEEN
    ],
)
def test_counts(network: Lab, probe: str, version: int) -> None:
    role, interface, requests, replies = SEEN[probe]
    node: Node = getattr(network, role)
    tracer = Tracer(netns=node.name, interface=interface, probes=probe)
    events = trace(tracer, lambda: lab.ping(network.route, version=version, count=COUNT))
    name = probe.replace("*", f"ipv{version}")
    assert len(echoes(events, name, version, "request")) == COUNT * requests
    assert len(echoes(events, name, version, "reply")) == COUNT * replies
    assert {event.netns_inode for event in events} == {node.netns.inode}
    for counters in tracer.stats().values():
        assert (counters.kept, counters.lost_ring) == (counters.seen, 0)


def test_sequence_numbers_and_order(network: Lab) -> None:
    tracer = Tracer(netns=network.server.name, probes="netif_receive_skb")
    events = trace(tracer, lambda: lab.ping(network.route, count=COUNT, identifier=4711))
    requests = echoes(events, "netif_receive_skb", 4, "request")
    assert [event.packet.icmp_sequence for event in requests] == list(range(1, COUNT + 1))
    assert {event.packet.icmp_id for event in requests} == {4711}
    assert [event.monotonic_ns for event in events] == sorted(event.monotonic_ns for event in events)
    assert abs(events[0].timestamp.timestamp() - time.time()) < 5


@pytest.mark.parametrize("version", [4, 6])
def test_a_drop_is_named(network: Lab, version: int) -> None:
    tracer = Tracer(netns=network.router.name, profile="drops")
    events = trace(tracer, lambda: lab.dropped(network.route, version=version, count=COUNT))
    drops = [event for event in events if event.packet.destination_port == lab.DROPPED_PORT]
    assert len(drops) == COUNT
    if Btf.vmlinux().get("skb_drop_reason", Kind.ENUM) is None:  # before v5.17 there is the place alone
        assert {event.drop_reason for event in drops} == {None}
        assert all("nf_hook_slow" in (event.drop_location or "") for event in drops)
    else:
        assert {event.drop_reason for event in drops} == {"NETFILTER_DROP"}


@pytest.mark.parametrize("version", [4, 6])
def test_one_packet_one_id(network: Lab, version: int) -> None:
    """Across three namespaces, from the device queue of the client to the end at the server."""
    tracer = Tracer(
        netns=[node.name for node in network.nodes],
        probes=["net_dev_queue", "netif_receive_skb", "net_dev_start_xmit"],
    )
    events = trace(tracer, lambda: lab.ping(network.route, version=version, count=COUNT))
    ids: dict[tuple[int | None, str], set[int]] = {}
    for kind in ("request", "reply"):
        for probe in ("net_dev_queue", "net_dev_start_xmit", "netif_receive_skb"):
            for event in echoes(events, probe, version, kind):
                ids.setdefault((event.packet.icmp_sequence, kind), set()).add(event.packet_id)
    assert len(ids) == 2 * COUNT
    assert all(len(found) == 1 and 0 not in found for found in ids.values())
    assert len(set.union(*ids.values())) == 2 * COUNT


@pytest.mark.parametrize("version", [4, 6])
def test_fragments_have_no_ports_but_the_first(network: Lab, version: int) -> None:
    tracer = Tracer(netns=network.server.name, probes="netif_receive_skb")
    events = trace(tracer, lambda: lab.fragments(network.route, version=version, size=4000))
    found = [event.packet for event in events if event.packet.fragment_offset is not None]
    assert len(found) == 3
    assert found[0].fragment_offset == 0
    assert [packet.destination_port for packet in found] == [5002, None, None]
    assert {packet.l4_protocol for packet in found} == {socket.IPPROTO_UDP}
    assert len({packet.ip_id for packet in found}) == 1


def vlan_of(event: Event) -> int | None:
    return event.packet.vlan.id if event.packet.vlan else None


@pytest.mark.parametrize("version", [4, 6])
def test_vlan_tag(network: Lab, version: int) -> None:
    tracer = Tracer(
        netns=network.router.name, interface="r0", probes=["netif_receive_skb", "xdp", "tc:ingress"]
    )
    events = trace(
        tracer, lambda: lab.vlan_tagged(network, vlan=77, priority=3, version=version, count=COUNT)
    )
    tagged = Counter(event.probe for event in events if vlan_of(event) == 77)
    assert tagged == {"netif_receive_skb": COUNT, "xdp": COUNT, "tc:ingress": COUNT}
    assert {event.packet.destination_port for event in events if vlan_of(event) == 77} == {7}


@pytest.mark.parametrize("probe", ["net_dev_start_xmit", "tc:egress"])
@pytest.mark.parametrize("version", [4, 6])
def test_bytes_of_non_linear_packets(network: Lab, version: int, probe: str) -> None:
    """TCP's payload lies in pages; a GSO packet is far larger than the linear part. Bytes are what a
    witness sees.
    """
    snaplen = 2048
    tracer = Tracer(netns=network.client.name, interface="c0", probes=probe, snaplen=snaplen)
    with witness(network.client, "c0") as frames:
        events = trace(tracer, lambda: lab.bulk(network.route, version=version, size=200_000))
    sent = [event for event in events if event.packet.destination_port == 5001]
    assert max(event.packet.length for event in sent) > 2 * snaplen
    expected = Counter(frame[:snaplen] for frame in frames)
    got = Counter(event.data for event in sent)
    assert not got - expected
    assert sum(1 for event in sent if len(event.data) == snaplen) >= 3


def test_jumbo_frames(network: Lab) -> None:
    network.set_mtu(9000)
    network.set_offloads(False)
    try:
        tracer = Tracer(
            netns=network.router.name,
            interface="r0",
            probes=["netif_receive_skb", "tc:ingress"],
            snaplen=9216,
        )
        with witness(network.router, "r0") as frames:
            events = trace(tracer, lambda: lab.ping(network.route, count=2, size=8000))
        for probe in ("netif_receive_skb", "tc:ingress"):
            requests = echoes(events, probe, 4, "request")
            assert [len(event.data) for event in requests] == [8042, 8042]
            assert {event.data for event in requests} <= set(frames)
    finally:
        network.set_offloads(True)
        network.set_mtu(1500)


def test_filters_keep_and_reject(network: Lab) -> None:
    """Two namespaces, one asked for; an interface that carries nothing; a mark nobody sets."""

    def traffic() -> None:
        lab.ping(network.route, count=COUNT)

    rejected = Tracer(netns=network.client.name, probes="netif_receive_skb", mark=77, count_rejected=True)
    assert trace(rejected, traffic) == []
    assert rejected.stats()["netif_receive_skb"].rejected >= COUNT
    other = Tracer(netns=network.router.name, interface="r1", probes="net_dev_queue")
    events = trace(other, traffic)
    assert len(echoes(events, "net_dev_queue", 4, "request")) == COUNT
    # A packet that came in by the interface counts too, wherever it is now.
    index = network.router.ifindex("r1")
    assert all(index in (event.ifindex, event.rx_ifindex) for event in events)


def test_loss_is_counted_exactly(network: Lab) -> None:
    """A tiny ring, no backlog, nobody reading: kept + lost = seen = what the program says it ran, minus what
    it rejected.
    """
    tracer = Tracer(
        netns=network.server.name,
        interface="s0",
        probes="tc:ingress",
        ring_bytes=1 << 16,
        backlog_bytes=0,
        snaplen=2048,
        count_rejected=True,
    )
    with tracer:
        lab.udp_exchange(network.route, count=1000, request=1200)
        counters = tracer.stats()["tc:ingress"]
        tracer.stop()
        events = list(tracer.events())
        counters = tracer.stats()["tc:ingress"]
    assert counters.lost_ring > 0
    assert counters.seen == counters.kept + counters.lost_ring
    assert counters.kept == len(events)
    assert counters.seen >= 1000
