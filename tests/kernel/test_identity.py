"""Exact identity: whatever becomes of a packet's buffer, it is the same packet, and another one never is.

All traffic goes through one capture, made once: attaching takes longer than all of it. The first part looks
at what is special to a mechanism: each has a UDP or TCP port of its own, and each datagram begins with its
number. The second part has all that ``tests/mechanisms.py`` knows judged alike.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from packet_tracer import lab
from packet_tracer.capture import Tracer
from packet_tracer.errors import NotSupportedError, PtraceError
from packet_tracer.events import Event
from packet_tracer.lab import Lab
from packet_tracer.lab.commands import ip, run, set_offloads
from packet_tracer.netns import entered
from packet_tracer.probes.functions import FunctionTable
from tests.kernel.capturing import lacking, play, running, udp_socket
from tests.matrix.cards import plugged
from tests.mechanisms import MECHANISMS, Mechanism, all_batches, called, judged

pytestmark = pytest.mark.requires("fentry")

COUNT = 4
FLOOD = 150
PLAIN, COPIED, TRANSLATED, TRANSLATED_TO, FORWARD_FRAGMENTED, LOADED, RETRANSMITTED, SEGMENTED = range(
    7001, 7009
)
REASSEMBLED = 5002
VXLAN = 4789

#: Where packets are looked at; those that a kernel does not have are left out.
PROBES = ("net_dev_queue", "netif_receive_skb")
FUNCTIONS = (
    "ip_output",
    "ip6_output",
    "ip_rcv",
    "ipv6_rcv",
    "ip_forward",
    "packet_rcv",
    "udp_queue_rcv_skb",
    "__udp_enqueue_schedule_skb",
    "tcp_v4_rcv",
    "dev_hard_start_xmit",
    "vxlan_rcv",
)

RULES = f"""
table ip identity {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        udp dport {TRANSLATED} dnat to 198.51.100.2:{TRANSLATED_TO}
    }}
    chain raw {{
        type filter hook prerouting priority raw;
        udp dport {COPIED} iif r0 dup to 198.51.100.2
    }}
}}
"""
LOSS = f"""
table ip loss {{
    chain forward {{
        type filter hook forward priority filter;
        tcp dport {RETRANSMITTED} ip length > 60 drop
    }}
}}
"""


@dataclass(slots=True)
class Recording:
    """What one capture saw, which kernel features its traffic lacked, and the client's namespace."""

    events: list[Event]
    client: int
    lacks: dict[int, str] = field(default_factory=dict)
    exact: bool = True

    def of(self, port: int, protocol: int = socket.IPPROTO_UDP) -> list[Event]:
        """Return the events of packets to a port, skipping the test where its traffic could not be made."""
        if port in self.lacks:
            pytest.skip(self.lacks[port])
        found = [
            event
            for event in self.events
            if event.packet.destination_port == port and event.packet.l4_protocol == protocol
        ]
        assert found, f"nothing was seen of port {port}"
        return found


def send(network: Lab, port: int, *, address: str = "198.51.100.2", to: int = 0) -> None:
    """Send numbered datagrams from client to server, where someone takes them (at ``to``, if it differs)."""
    with udp_socket(network.server) as receiver, udp_socket(network.client, (address, port)) as sender:
        receiver.bind(("0.0.0.0", to or port))
        receiver.settimeout(2)
        for number in range(COUNT):
            sender.send(payload(number))
            receiver.recv(100)


def payload(number: int, size: int = 40) -> bytes:
    return struct.pack("!4sI", b"id##", number).ljust(size, b".")


def number_of(event: Event) -> int | None:
    """Return the number in a datagram's payload, wherever the headers before it end."""
    at = event.data.find(b"id##")
    return int.from_bytes(event.data[at + 4 : at + 8], "big") if 0 <= at <= len(event.data) - 8 else None


def ids_by_number(events: Iterable[Event]) -> dict[int | None, set[int]]:
    found: dict[int | None, set[int]] = defaultdict(set)
    for event in events:
        found[number_of(event)].add(event.packet_id)
    return found


def assert_one_id_each(events: list[Event], count: int = COUNT) -> None:
    ids = ids_by_number(events)
    assert sorted(ids, key=str) == sorted(range(count), key=str)
    assert {number: len(found) for number, found in ids.items()} == dict.fromkeys(range(count), 1)
    assert len(set().union(*ids.values())) == count


def traffic(network: Lab, lacks: dict[int, str]) -> None:
    with entered(network.client.netns):
        holder = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    with holder:  # it is never read, so each packet leaves a clone of itself in it
        send(network, PLAIN)
    if COPIED not in lacks:
        send(network, COPIED)
        send(network, TRANSLATED, to=TRANSLATED_TO)
    fragmented_on_the_way(network)
    lab.fragments(network.route, port=REASSEMBLED)
    if VXLAN not in lacks:
        send(network, VXLAN + 1, address="10.99.0.2")
    segmented(network)
    retransmitted(network)
    under_load(network)


def fragmented_on_the_way(network: Lab) -> None:
    """The router's second link takes less than the first."""
    ip(["link set r1 mtu 1280"], network.router.netns)  # with less it has no IPv6
    with udp_socket(network.client) as sender:
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: fragments are allowed
        for number in range(COUNT):
            sender.sendto(payload(number, 1400), (network.route.server_addresses[4], FORWARD_FRAGMENTED))
    time.sleep(0.05)
    ip(["link set r1 mtu 1500"], network.router.netns)


def segmented(network: Lab) -> None:
    """The client leaves segmentation to its device, the router does it."""
    with entered(network.router.netns):
        set_offloads("r1", on=False)
    lab.bulk(network.route, port=SEGMENTED, size=40000)
    with entered(network.router.netns):
        set_offloads("r1", on=True)


def retransmitted(network: Lab) -> None:
    with entered(network.server.netns):
        listener = socket.create_server((network.route.server_addresses[4], RETRANSMITTED))
    with entered(network.client.netns):
        client = socket.create_connection(listener.getsockname(), timeout=2)
    accepted, _ = listener.accept()
    with listener, client, accepted:
        accepted.settimeout(5)
        run(["nft", "-f", "-"], LOSS, network.router.netns)
        client.send(payload(1, 100))
        time.sleep(0.01)
        run(["nft", "delete", "table", "ip", "loss"], "", network.router.netns)
        assert len(accepted.recv(1000)) == 100


def under_load(network: Lab) -> None:
    """Buffers are freed and handed out again as fast as can be."""
    server = network.route.server_addresses[4]
    with udp_socket(network.server) as receiver, udp_socket(network.client, (server, LOADED)) as sender:
        receiver.bind((server, LOADED))
        for number in range(FLOOD):
            sender.send(payload(number))
            if number % 3 == 2:
                receiver.recv(100)


def undo(network: Lab, lacks: dict[int, str]) -> None:
    """Take away what :func:`prepare` made."""
    if COPIED not in lacks:
        run(["nft", "delete", "table", "ip", "identity"], "", network.router.netns)
    if VXLAN not in lacks:
        for node in (network.client, network.server):
            ip(["link delete vx0"], node.netns)


def prepare(network: Lab) -> dict[int, str]:
    """Set up what the traffic needs; return what this kernel lacks for some of it, by port."""
    lacks: dict[int, str] = {}
    try:
        run(["nft", "-f", "-"], RULES, network.router.netns)
    except PtraceError as error:
        lacks |= {COPIED: str(error), TRANSLATED: str(error)}
    try:
        for node, host, remote in (
            (network.client, 1, "198.51.100.2"),
            (network.server, 2, "192.0.2.2"),
        ):
            local = network.route.client_addresses[4] if host == 1 else network.route.server_addresses[4]
            ip(
                [
                    f"link add vx0 address 02:00:00:00:99:0{host} type vxlan id 42 local {local}"
                    f" remote {remote} dstport {VXLAN}",
                    f"address add 10.99.0.{host}/24 dev vx0",
                    "link set vx0 up",
                    f"neighbour replace 10.99.0.{3 - host} lladdr 02:00:00:00:99:0{3 - host} dev vx0"
                    " nud permanent",
                ],
                node.netns,
            )
    except NotSupportedError as error:
        lacks[VXLAN] = str(error)
    return lacks


@dataclass(slots=True)
class Capturing:
    """The network, and the one capture of it."""

    network: Lab
    tracer: Tracer

    def lost(self) -> int:
        """How many events were lost, or have no id."""
        return sum(counters.lost_ring + counters.untracked for counters in self.tracer.stats().values())


@pytest.fixture(scope="module")
def capturing() -> Iterator[Capturing]:
    with Lab() as network, plugged(network):
        known = {function.name for function in FunctionTable.read().functions}
        tracer = Tracer(
            netns=[node.name for node in network.nodes],
            probes=PROBES,
            functions=[*(name for name in FUNCTIONS if name in known), *called(_MORE)],
            snaplen=144,  # with what lies in pages
            ring_bytes=64 << 20,
        )
        with running(tracer):
            yield Capturing(network, tracer)


@pytest.fixture(scope="module")
def recording(capturing: Capturing) -> Recording:
    network, tracer = capturing.network, capturing.tracer
    lacks = prepare(network)
    try:
        traffic(network, lacks)
    finally:
        undo(network, lacks)
    time.sleep(0.1)
    events = [event for batch in all_batches(tracer) for event in batch]
    assert capturing.lost() == 0
    return Recording(events, network.client.netns.inode, lacks, tracer.exact_identity)


def test_exact(recording: Recording) -> None:
    assert recording.exact


@pytest.mark.requires("kprobe-session")
def test_one_session_watches_most_functions(capturing: Capturing) -> None:
    """So that to detach takes a tenth of a second where thirty trampolines took three."""
    if "identity: a kprobe session" not in capturing.tracer.notes:
        pytest.skip("; ".join(capturing.tracer.notes))


def test_clone_and_expanded_head(recording: Recording) -> None:
    """A packet socket holds a clone of each, so the router has to give each a head of its own."""
    events = recording.of(PLAIN)
    assert_one_id_each(events)
    assert {event.probe for event in events} >= {"packet_rcv", "ip_output", "ip_rcv", "ip_forward"}
    assert len({event.netns_inode for event in events}) == 3
    heads = defaultdict(set)
    for event in events:
        heads[event.packet_id].add(event.raw()["head_address"])
    assert all(len(found) > 1 for found in heads.values())


def test_copy(recording: Recording) -> None:
    """nftables' dup sends a copy (pskb_copy) to the server as well: two packets arrive there, of one id."""
    events = recording.of(COPIED)
    assert_one_id_each(events)
    arrived = [event for event in events if event.probe == "ip_rcv" and event.packet.ttl in (63, 64)]
    assert len(arrived) > COUNT


def test_address_translation(recording: Recording) -> None:
    before, after = recording.of(TRANSLATED), recording.of(TRANSLATED_TO)
    assert_one_id_each(before)
    assert ids_by_number(before) == ids_by_number(after)


def test_fragments_made_on_the_way_name_their_parent(recording: Recording) -> None:
    whole = [event for event in recording.of(FORWARD_FRAGMENTED) if event.packet.fragment_offset is None]
    originals = {event.packet_id for event in whole if event.probe == "ip_forward"}
    assert len(originals) == COUNT
    pieces = [event for event in recording.events if event.parent_id in originals]
    assert {event.parent_id for event in pieces} == originals
    assert len({event.packet_id for event in pieces}) == 2 * COUNT
    assert not {event.packet_id for event in pieces} & originals


def test_fragments_made_by_the_sender_name_their_parent(recording: Recording) -> None:
    """Here the pieces were made along with the whole, and hang on it from the start."""
    (whole,) = {event.packet_id for event in recording.of(REASSEMBLED) if event.probe == "ip_output"}
    pieces = [
        event
        for event in recording.events
        if event.packet.fragment_offset and event.netns_inode == recording.client
    ]
    assert {event.parent_id for event in pieces} == {whole}
    assert len({event.packet_id for event in pieces}) == 2


def test_reassembled_packet_is_its_first_fragment(recording: Recording) -> None:
    events = recording.of(REASSEMBLED)
    (first,) = {
        event.packet_id for event in events if event.probe == "ip_rcv" and event.packet.fragment_offset == 0
    }
    (whole,) = [event for event in events if event.probe == "udp_queue_rcv_skb"]
    assert whole.packet_id == first
    assert whole.length > 4000


def test_encapsulation(recording: Recording) -> None:
    """Into a VXLAN tunnel and out of it: inner and outer packet are one."""
    if VXLAN in recording.lacks:
        pytest.skip(recording.lacks[VXLAN])
    inside = recording.of(VXLAN + 1)
    assert_one_id_each(inside)
    outside = [event for event in recording.of(VXLAN) if number_of(event) is not None]
    assert ids_by_number(outside) == ids_by_number(inside)


def test_segments_name_their_parent(recording: Recording) -> None:
    events = recording.of(SEGMENTED, socket.IPPROTO_TCP)
    large = {event.packet_id for event in events if event.probe == "ip_forward" and event.length > 1514}
    assert large
    segments = [event for event in events if event.parent_id in large]
    assert segments
    assert max(event.length for event in segments) <= 1514
    assert not {event.packet_id for event in segments} & large
    arrived = [event for event in events if event.probe == "tcp_v4_rcv" and event.length > 100]
    assert arrived
    # On a slow machine the client may send again what is still on its way: known as its repetition then.
    large |= {event.packet_id for event in events if event.probe == "ip_output" and event.parent_id in large}
    alone = {event.packet_id for event in events if event.probe == "ip_forward"} - large
    strays = [event for event in arrived if event.parent_id not in large and event.packet_id not in alone]
    assert not [(event.packet_id, event.parent_id, event.length) for event in strays]


def test_retransmission_is_linked_to_the_first(recording: Recording) -> None:
    events = [
        event
        for event in recording.of(RETRANSMITTED, socket.IPPROTO_TCP)
        if event.probe == "ip_output" and event.netns_inode == recording.client and event.length > 100
    ]
    first, *again = events
    assert again
    assert again[0].packet_id != first.packet_id
    assert again[0].parent_id == first.packet_id


def test_nothing_is_mixed_up_under_load(recording: Recording) -> None:
    assert_one_id_each(recording.of(LOADED), FLOOD)
    numbers = defaultdict(set)
    for event in recording.events:
        if (number := number_of(event)) is not None:
            numbers[event.packet_id].add(number)
    assert {len(found) for found in numbers.values()} == {1}


#: What of the corpus the tests above have not had already. XDP has tests of its own, and of which datagrams a
#: packet was put together can only be told where their ends are looked at.
_MORE = [
    each
    for each in MECHANISMS
    if not (
        each.xdp
        or each.dropped
        or each.name in ("VXLAN, IPv4 in IPv4", "TCP retransmission, first lost, IPv4")
        or each.name.startswith("UDP GRO to forward, of datagrams")
    )
    and not (
        each.name.endswith(", IPv4") and each.name.startswith(("veth", "clone", "pskb", "copy", "NAT of a"))
    )
]


@pytest.mark.parametrize("mechanism", _MORE, ids=lambda each: each.name)
def test_each_packet_is_itself_whatever_is_done_to_it(capturing: Capturing, mechanism: Mechanism) -> None:
    """Two busy CPUs, numbered packets: see ``tests/labelled.py``."""
    network, tracer = capturing.network, capturing.tracer
    lost = capturing.lost()
    for _ in all_batches(tracer):  # what came late of the one before
        pass
    sent = play(mechanism, network, 3 if mechanism.stream else 8)
    score = judged(mechanism, network, sent, all_batches(tracer), read=False)
    assert capturing.lost() == lost
    assert (score.right, score.mixed, score.wrong) == (score.events, 0, [])
    assert len(sent.numbers) <= score.packets
    if mechanism.uncalled(score) or not mechanism.happened(score):
        assert not mechanism.possible, (mechanism.uncalled(score), score)
        lacking(mechanism)
