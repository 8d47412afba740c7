"""What offloads and copies leave of a packet: its segments, its parts in a list, the same packet elsewhere.

All mechanisms of the corpus are judged alike in ``test_identity.py``. Here is what the judgement doesn't look
at: that a packet is what is said of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from packet_tracer import lab
from packet_tracer.capture import Tracer
from packet_tracer.events import Event
from packet_tracer.events import flags as bits
from packet_tracer.lab import Lab
from packet_tracer.lab.commands import ip
from tests.kernel.capturing import lacking, play, running
from tests.labelled import number_in
from tests.mechanisms import MECHANISMS, Mechanism, all_batches, called

pytestmark = pytest.mark.requires("fentry")

COUNT = 8
#: How many fragments of one packet are looked at where each of these functions has a trampoline.
FRAGMENTS_BY_TRAMPOLINES = 64
#: The Ethernet, IPv4 and UDP headers of each datagram.
HEADERS = 14 + 20 + 8
_BY_NAME = {each.name: each for each in MECHANISMS}
SEGMENTED = _BY_NAME["UDP GSO, cut by a device, IPv4"]
FOR_THE_SOCKET = _BY_NAME["UDP GSO, cut for the socket, IPv4"]
LISTED = _BY_NAME["UDP GRO by list, cut by a device, IPv4"]
LISTED_FOR_THE_SOCKET = _BY_NAME["UDP GRO by list, cut for the socket, IPv4"]
FORWARDED = _BY_NAME["UDP GRO to forward, of segments, IPv4"]
COPIED = _BY_NAME["skb_copy (MACsec of clones), IPv4"]
COPIED_LARGER = _BY_NAME["skb_copy_expand (MACsec), IPv4"]
ALL = (SEGMENTED, FOR_THE_SOCKET, LISTED, LISTED_FOR_THE_SOCKET, FORWARDED, COPIED, COPIED_LARGER)


@dataclass(slots=True)
class Capturing:
    """The network, and the one capture of it."""

    network: Lab
    tracer: Tracer

    def play(self, mechanism: Mechanism) -> list[Event]:
        """Return what was seen of packets of the corpus; skip, or expect to fail, where there are none."""
        for _ in all_batches(self.tracer):  # what came late of the one before
            pass
        sent = play(mechanism, self.network, COUNT)
        assert mechanism.stream or len(sent.read) == 2 * COUNT
        events = [event for batch in all_batches(self.tracer) for event in batch]
        if not {event.probe for event in events}.issuperset(called([mechanism])):
            assert not mechanism.possible
            lacking(mechanism)
        return events

    def numbers(self, events: list[Event]) -> dict[int, tuple[int, int] | None]:
        """Return the label of each packet that left the client, by its id: one for each that was sent."""
        sent = {
            event.packet_id: number_in(event.data) for event in self.at(events, "client", "net_dev_queue")
        }
        assert len(sent) == 2 * COUNT
        return sent

    def at(self, events: list[Event], node: str, probe: str) -> list[Event]:
        """Return the labelled events of a probe in a namespace."""
        inode = getattr(self.network, node).netns.inode
        return [
            event
            for event in events
            if event.probe == probe and event.netns_inode == inode and number_in(event.data)
        ]


@pytest.fixture(scope="module")
def capturing() -> Iterator[Capturing]:
    with Lab() as network:
        tracer = Tracer(
            netns=[node.name for node in network.nodes],
            probes=("net_dev_queue", "netif_receive_skb", "net_dev_start_xmit"),
            functions=["ip_output", "skb_consume_udp", *called(ALL)],
            snaplen=144,  # with what lies in pages
            ring_bytes=64 << 20,
        )
        with running(tracer):
            assert tracer.exact_identity
            yield Capturing(network, tracer)


@pytest.mark.parametrize("mechanism", [SEGMENTED, FOR_THE_SOCKET], ids=lambda each: each.name)
def test_datagrams_that_were_sent_as_one_are_its_children(capturing: Capturing, mechanism: Mechanism) -> None:
    events = capturing.play(mechanism)
    wholes = capturing.numbers(events)
    read = capturing.at(events, "server", "skb_consume_udp")
    assert len(read) == len({event.packet_id for event in read}) == 2 * COUNT * mechanism.datagrams
    places = defaultdict(set)
    for event in read:
        assert event.parent_id in wholes
        found, whole = number_in(event.data), wholes[event.parent_id]
        assert found
        assert whole
        assert found[0] == whole[0]
        places[event.parent_id].add(found[1])
    starts = set(range(0, mechanism.size, mechanism.segment))
    assert all(found == starts for found in places.values())
    assert places.keys() == wholes.keys()


@pytest.mark.parametrize("mechanism", [LISTED, LISTED_FOR_THE_SOCKET], ids=lambda each: each.name)
def test_datagrams_that_lay_in_a_list_go_on_as_themselves(capturing: Capturing, mechanism: Mechanism) -> None:
    """They are a part of the first of the list only for as long as it is one."""
    events = capturing.play(mechanism)
    sent = capturing.numbers(events)
    lists = [
        event
        for event in capturing.at(events, "router", "netif_receive_skb")
        if event.length > HEADERS + mechanism.size
    ]
    assert lists
    read = capturing.at(events, "server", "skb_consume_udp")
    assert {event.packet_id: number_in(event.data) for event in read} == sent
    parents = {event.packet_id for event in lists}
    parts = [event for event in read if event.parent_id]
    assert parts
    assert {event.parent_id for event in parts} <= parents
    assert not [event for event in read if event.flags & bits.MERGED]


def test_datagrams_put_together_to_be_forwarded_are_cut_again(capturing: Capturing) -> None:
    events = capturing.play(FORWARDED)
    sent = {event.packet_id for event in capturing.at(events, "client", "net_dev_start_xmit")}
    together = {
        event.packet_id
        for event in capturing.at(events, "router", "net_dev_queue")
        if event.length > HEADERS + FORWARDED.segment
    }
    assert together
    assert together <= sent  # the first of them is the whole
    read = capturing.at(events, "server", "skb_consume_udp")
    assert len(read) == len({event.packet_id for event in read}) == 2 * COUNT * FORWARDED.datagrams
    cut = {event.packet_id for event in read} - sent
    assert cut
    assert {event.parent_id for event in read if event.packet_id in cut} <= together


def test_a_copy_is_the_same_packet(capturing: Capturing) -> None:
    """A packet socket has a clone of what MACsec is to write to, so it takes a copy (skb_copy)."""
    events = capturing.play(COPIED)
    ids, heads = defaultdict(set), defaultdict(set)
    for event in events:
        if found := number_in(event.data):
            ids[found[0]].add(event.packet_id)
            heads[event.packet_id].add(event.raw()["head_address"])
    assert len(ids) == 2 * COUNT
    assert all(len(found) == 1 for found in ids.values())
    copied = {event.packet_id for event in capturing.at(events, "client", "skb_copy")}
    assert copied == set().union(*ids.values())
    assert all(len(heads[packet]) > 1 for packet in copied)


def test_a_larger_copy_is_the_same_packet(capturing: Capturing) -> None:
    """MACsec writes a check value behind the payload, for which there is no room where that lies in pages."""
    events = capturing.play(COPIED_LARGER)
    copied = {
        event.packet_id: event.raw()["head_address"] for event in events if event.probe == "skb_copy_expand"
    }
    assert copied
    router = capturing.network.router.netns.inode
    arrived = defaultdict(set)
    for event in events:
        if event.netns_inode == router and event.packet_id in copied:
            arrived[event.packet_id].add(event.raw()["head_address"])
    assert arrived
    assert all(copied[packet] not in heads for packet, heads in arrived.items())


def test_the_fragments_of_a_large_datagram_are_its_children(capturing: Capturing) -> None:
    """More than a hundred of them. The first has the datagram's buffer, so it has its id."""
    network, size = capturing.network, 60_000
    ip(["link set c0 mtu 576"], network.client.netns)
    try:
        assert lab.fragments(network.route, size=size) == size
    finally:
        ip(["link set c0 mtu 1500"], network.client.netns)
    inode = network.client.netns.inode
    sent = [
        event
        for batch in all_batches(capturing.tracer)
        for event in batch
        if event.probe == "net_dev_start_xmit" and event.netns_inode == inode and event.packet.fragment
    ]
    assert len({event.packet_id for event in sent}) == len(sent) > FRAGMENTS_BY_TRAMPOLINES
    (whole,) = (event.packet_id for event in sent if event.packet.fragment_offset == 0)
    children = [event for event in sent if event.parent_id == whole]
    by_session = "identity: a kprobe session" in capturing.tracer.notes
    assert len(children) == (len(sent) - 1 if by_session else FRAGMENTS_BY_TRAMPOLINES)
