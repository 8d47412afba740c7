"""What a record says of a packet is what was sent: headers of every kind, and the bytes, at every probe."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from ipaddress import ip_address
from typing import Any

import pytest

from packet_tracer import lab
from packet_tracer.capture import Tracer
from packet_tracer.errors import PtraceError
from packet_tracer.events import Event
from packet_tracer.events import flags as bits
from packet_tracer.lab import Lab
from packet_tracer.netns import entered
from packet_tracer.probes.catalogue import PROBES
from packet_tracer.probes.objects import CaptureObjects
from tests.kernel.capturing import (
    ethernet,
    ipv4,
    ipv6,
    on_one_cpu,
    skip_without_netfilter_links,
    trace,
    udp,
    witness,
)

IPV4, IPV6, ARP, VLAN, QINQ = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, OPTIONS, NOTHING = 0, 43, 44, 51, 60, 59
TCP, UDP, SCTP, UDP_LITE, DCCP, GRE = 6, 17, 132, 136, 33, 47

#: On the way from the client's interface to the router's a frame passes these, unchanged.
OUT = ("net_dev_queue", "tc:egress", "net_dev_start_xmit")
IN = ("xdp", "tc:ingress", "netif_receive_skb")


def at_both_ends(network: Lab, **settings: Any) -> Tracer:
    """A capture of what leaves the client and of what comes to the router, at all probes on that way."""
    return Tracer(
        netns=[network.client.name, network.router.name],
        interface=["c0", "r0"],
        probes=[*OUT, *IN],
        **settings,
    )


def sightings(network: Lab, frames: list[bytes], **settings: Any) -> dict[str, list[Event]]:
    """Send frames from the client to the router; return what each probe saw of them."""

    def send() -> None:
        with on_one_cpu():
            for frame in frames:
                lab.frame(network.client, "c0", frame)
        lab.ping(network.route, identifier=0x7E57)  # everything before it is through by now

    found: dict[str, list[Event]] = {probe: [] for probe in (*OUT, *IN)}
    client, router = network.client.netns.inode, network.router.netns.inode
    for event in trace(at_both_ends(network, **settings), send):
        here = event.netns_inode == (client if event.probe in OUT else router)
        if here and event.packet.icmp_id != 0x7E57:
            found[event.probe].append(event)
    return found


SEGMENT = struct.pack("!HHIIBBHHH", 1234, 80, 0x01020304, 0x05060708, 0x50, 0x12, 1000, 0, 0) + b"data"
DATAGRAM = udp(b"datagram", source=40000, destination=4000)
PORTS = {"source_port": 40000, "destination_port": 4000, "l4_protocol": UDP}


def option(following: int, length: int = 8) -> bytes:
    """Return an IPv6 extension header of options, padding alone."""
    return bytes([following, length // 8 - 1, 1, length - 4]) + bytes(length - 4)


def tagged(*tags: tuple[int, int], payload: bytes, protocol: int) -> bytes:
    first, *rest = tags
    inner = struct.pack("!H", first[1])
    for kind, tci in rest:
        inner += struct.pack("!HH", kind, tci)
    return ethernet(inner + struct.pack("!H", protocol) + payload, first[0])


def arp(operation: int, sender: str, target: str) -> bytes:
    hardware = bytes.fromhex("020000000102")
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return body + hardware + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)


#: Name -> a frame, and what its events must say of it. None is: not known.
PACKETS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "udp4": (
        ethernet(ipv4(DATAGRAM, UDP, identification=0x1234, ttl=33), IPV4),
        PORTS
        | {
            "source": ip_address("192.0.2.2"),
            "destination": ip_address("198.51.100.2"),
            "ttl": 33,
            "ip_id": 0x1234,
            "fragment": False,
            "protocol": IPV4,
        },
    ),
    "udp6": (
        ethernet(ipv6(DATAGRAM, UDP, hop_limit=33), IPV6),
        PORTS
        | {
            "source": ip_address("2001:db8:1::2"),
            "destination": ip_address("2001:db8:2::2"),
            "ttl": 33,
            "ip_id": None,
            "protocol": IPV6,
        },
    ),
    "ipv4 options": (ethernet(ipv4(DATAGRAM, UDP, options=b"\x01" * 40), IPV4), PORTS),
    "tcp4": (
        ethernet(ipv4(SEGMENT, TCP), IPV4),
        {
            "source_port": 1234,
            "destination_port": 80,
            "tcp_sequence": 0x01020304,
            "tcp_acknowledgement": 0x05060708,
            "tcp_flags": 0x12,
        },
    ),
    "sctp4": (
        ethernet(ipv4(struct.pack("!HHII", 36412, 2905, 1, 0), SCTP), IPV4),
        {"source_port": 36412, "destination_port": 2905, "l4_protocol": SCTP},
    ),
    "udp-lite6": (
        ethernet(ipv6(DATAGRAM, UDP_LITE), IPV6),
        PORTS | {"l4_protocol": UDP_LITE},
    ),
    "dccp4": (
        ethernet(ipv4(struct.pack("!HHI8x", 40000, 4000, 0), DCCP), IPV4),
        PORTS | {"l4_protocol": DCCP},
    ),
    "no ports in gre": (
        ethernet(ipv4(bytes(8), GRE), IPV4),
        {"l4_protocol": GRE, "source_port": None, "destination_port": None},
    ),
    "icmp4 echo": (
        ethernet(ipv4(struct.pack("!BBHHH", 8, 0, 0, 77, 5), 1), IPV4),
        {"icmp_type": 8, "icmp_code": 0, "icmp_id": 77, "icmp_sequence": 5},
    ),
    "icmp4 unreachable": (
        ethernet(ipv4(struct.pack("!BBHI", 3, 13, 0, 0), 1), IPV4),
        {"icmp_type": 3, "icmp_code": 13, "icmp_id": None},
    ),
    "icmp6 echo": (
        ethernet(ipv6(struct.pack("!BBHHH", 129, 0, 0, 77, 5), 58), IPV6),
        {"icmp_type": 129, "icmp_id": 77, "icmp_sequence": 5},
    ),
    "hop-by-hop": (ethernet(ipv6(option(UDP) + DATAGRAM, HOP_BY_HOP), IPV6), PORTS),
    "destination options": (ethernet(ipv6(option(UDP, 24) + DATAGRAM, OPTIONS), IPV6), PORTS),
    "routing": (
        ethernet(ipv6(bytes([UDP, 2, 4, 0, 0, 0, 0, 0]) + bytes(16) + DATAGRAM, ROUTING), IPV6),
        PORTS,
    ),
    "authentication": (
        ethernet(ipv6(bytes([UDP, 4, 0, 0]) + bytes(20) + DATAGRAM, AUTHENTICATION), IPV6),
        PORTS,
    ),
    "all of them": (
        ethernet(
            ipv6(
                option(OPTIONS)
                + option(ROUTING)
                + bytes([AUTHENTICATION, 0, 4, 0, 0, 0, 0, 0])
                + bytes([TCP, 4, 0, 0])
                + bytes(20)
                + SEGMENT[:14],
                HOP_BY_HOP,
            ),
            IPV6,
        ),
        # the last bytes of the TCP header are not there
        {"l4_protocol": TCP, "source_port": 1234, "destination_port": 80, "tcp_flags": None},
    ),
    "first fragment 6": (
        ethernet(ipv6(struct.pack("!BBHI", UDP, 0, 1, 0xABCD1234) + DATAGRAM, FRAGMENT), IPV6),
        PORTS | {"fragment": True, "fragment_offset": 0, "ip_id": 0xABCD1234},
    ),
    "later fragment 6": (
        ethernet(ipv6(struct.pack("!BBHI", UDP, 0, 1480, 0xABCD1234) + DATAGRAM, FRAGMENT), IPV6),
        {
            "l4_protocol": UDP,
            "fragment": True,
            "fragment_offset": 1480,
            "source_port": None,
            "destination_port": None,
        },
    ),
    "first fragment 4": (
        ethernet(ipv4(DATAGRAM, UDP, fragment=0x2000), IPV4),
        PORTS | {"fragment": True, "fragment_offset": 0},
    ),
    "later fragment 4": (
        ethernet(ipv4(DATAGRAM, UDP, fragment=0x2000 | 185), IPV4),
        {"fragment": True, "fragment_offset": 1480, "source_port": None},
    ),
    "no next header": (ethernet(ipv6(b"", NOTHING), IPV6), {"l4_protocol": NOTHING, "source_port": None}),
    "arp request": (
        ethernet(arp(1, "192.0.2.2", "192.0.2.1"), ARP),
        {
            "arp_operation": 1,
            "source": ip_address("192.0.2.2"),
            "destination": ip_address("192.0.2.1"),
            "l4_protocol": None,
            "protocol": ARP,
        },
    ),
    "multicast 4": (
        bytes.fromhex("01005e0000fb020000000102")
        + ethernet(ipv4(DATAGRAM, UDP, destination="224.0.0.251"), IPV4)[12:],
        PORTS | {"destination": ip_address("224.0.0.251")},
    ),
    "multicast 6": (
        bytes.fromhex("3333000000fb020000000102")
        + ethernet(ipv6(DATAGRAM, UDP, destination="ff02::fb"), IPV6)[12:],
        PORTS | {"destination": ip_address("ff02::fb")},
    ),
    "broadcast": (
        b"\xff" * 6 + ethernet(ipv4(DATAGRAM, UDP, destination="255.255.255.255"), IPV4)[6:],
        PORTS | {"destination": ip_address("255.255.255.255")},
    ),
    "unknown protocol": (
        ethernet(b"experiment", 0x88B5),
        {"protocol": 0x88B5, "source": None, "l4_protocol": None, "source_port": None},
    ),
    "half an IP header": (
        ethernet(ipv4(DATAGRAM, UDP)[:12], IPV4),
        {"protocol": IPV4, "source": None, "l4_protocol": None},
    ),
    "half a UDP header": (
        ethernet(ipv4(DATAGRAM[:2], UDP), IPV4),
        {"l4_protocol": UDP, "source_port": None, "destination_port": None},
    ),
    "not IPv4 inside": (
        ethernet(ipv6(DATAGRAM, UDP), IPV4),
        {"protocol": IPV4, "source": None, "l4_protocol": None},
    ),
}


@pytest.fixture(scope="module")
def seen(network: Lab) -> dict[str, list[Event]]:
    """What each probe saw of all of them, in their order above: one capture, to save time."""
    return sightings(network, [frame for frame, _ in PACKETS.values()], snaplen=256)


@pytest.mark.parametrize("name", PACKETS)
def test_headers(seen: dict[str, list[Event]], name: str) -> None:
    frame, expected = PACKETS[name]
    for probe, events in seen.items():
        assert len(events) == len(PACKETS), probe
        event = events[list(PACKETS).index(name)]
        packet = event.packet
        found = {field: getattr(packet, field) for field in expected}
        assert found == expected, probe
        assert event.data == frame, probe
        assert packet.length == len(frame), probe
        assert event.flags & bits.LINK_HEADER


def test_extension_headers_beyond_what_is_parsed(network: Lab) -> None:
    """More than the parser looks at: ports are then not known, rather than guessed."""
    chain = option(OPTIONS) + option(OPTIONS, 104) + option(UDP)
    frame = ethernet(ipv6(chain + DATAGRAM, HOP_BY_HOP), IPV6)
    for probe, events in sightings(network, [frame], snaplen=256).items():
        assert [event.data for event in events] == [frame], probe
        assert [event.packet.source_port for event in events] == [None], probe


@pytest.mark.parametrize(
    ("tags", "identifier"),
    [([(VLAN, 77 | 3 << 13)], 77), ([(QINQ, 100), (VLAN, 200)], 100)],
    ids=["802.1Q", "802.1ad"],
)
def test_tags(network: Lab, tags: list[tuple[int, int]], identifier: int) -> None:
    """The receiver moves the outer tag from the bytes to the skb, before tracepoints and TC see it."""
    frame = tagged(*tags, payload=ipv4(DATAGRAM, UDP), protocol=IPV4)
    for probe, events in sightings(network, [frame], snaplen=256).items():
        assert len(events) == 1, probe
        vlan = events[0].packet.vlan
        assert vlan is not None
        assert vlan.id == identifier, probe
        if vlan.in_metadata:
            assert probe in IN
            assert events[0].data == frame[:12] + frame[16:]
        else:
            assert events[0].data == frame
        assert events[0].packet.destination_port == 4000, probe


def test_tag_beside_the_packet(network: Lab) -> None:
    """A VLAN device puts its tag into the skb; the driver below it need not write it into the bytes."""
    try:
        route = network.add_vlan(33)
    except PtraceError as error:
        pytest.skip(f"this kernel has no VLAN devices (8021q): {error}")
    tracer = Tracer(netns=network.router.name, probes=["netif_receive_skb", "netif_rx"], snaplen=256)
    events = trace(tracer, lambda: lab.ping(route, count=3))
    requests = [event for event in events if event.packet.icmp_type == 8]
    assert Counter(event.probe for event in requests) == {"netif_receive_skb": 3, "netif_rx": 3}
    for event in requests:
        vlan = event.packet.vlan
        assert vlan is not None
        assert vlan.id == 33
        assert vlan.in_metadata == (event.data[12:14] == b"\x08\x00")
    assert any(event.packet.vlan and event.packet.vlan.in_metadata for event in requests)


@pytest.mark.parametrize("snaplen", [0, 1, 14, 64, 96, 128, 512, 2048, 9216])
def test_bytes_are_what_was_sent(network: Lab, snaplen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small, large, and larger than a page: the first ``snaplen`` bytes of each, at each probe.

    Where tracepoints can't use the kernel's own walk over a packet (before 6.11), a small snaplen leaves out
    what lies in pages, which costs the verifier seconds, and says so.
    """
    left_out: set[str] = set()
    prepare = CaptureObjects.prepare

    def watched(self: CaptureObjects, name: str, *arguments: Any, **settings: Any) -> Any:
        if settings.get("linear_only"):
            left_out.update(probe.name for probe in PROBES if probe.object == name)
        return prepare(self, name, *arguments, **settings)

    monkeypatch.setattr(CaptureObjects, "prepare", watched)
    network.set_mtu(9000)
    try:
        frames = [
            ethernet(ipv4(udp(bytes(index % 251 for index in range(size)), destination=4000), UDP), IPV4)
            for size in (0, 60, 470, 1400, 4000, 8900)
        ]
        for probe, events in sightings(network, frames, snaplen=snaplen, ring_bytes=8 << 20).items():
            assert [event.length for event in events] == [len(frame) for frame in frames], probe
            for event, frame in zip(events, frames, strict=True):
                if event.flags & bits.BYTES_MISSING:
                    assert probe in left_out
                    linear = event.length - event.raw()["data_length"]
                    assert event.data == frame[: min(snaplen, linear)]
                else:
                    assert event.data == frame[:snaplen], probe
                    # However few bytes are kept, the headers were read.
                    assert event.packet.destination_port == 4000, probe
    finally:
        network.set_mtu(1500)


@pytest.mark.parametrize("version", [4, 6])
def test_segments_that_are_put_together(network: Lab, version: Any) -> None:
    """TCP goes through the router in packets far larger than the MTU, as the witness sees too."""
    tracer = Tracer(
        netns=network.router.name, interface="r1", probes=["net_dev_start_xmit", "tc:egress"], snaplen=9216
    )
    with witness(network.router, "r1") as frames:
        events = trace(tracer, lambda: lab.bulk(network.route, version=version, size=300_000))
    expected = Counter(frame[:9216] for frame in frames)
    for probe in ("net_dev_start_xmit", "tc:egress"):
        seen = [event for event in events if event.probe == probe and event.packet.destination_port == 5001]
        large = [event for event in seen if event.length > 9216]
        assert large, probe
        assert all(len(event.data) == 9216 for event in large)
        assert not Counter(event.data for event in seen) - expected
        raw = [event.raw() for event in large]
        # What is left to do is told: segments of a size, and as many as make the packet.
        for event in raw:
            header = event["packet_length"] - event["gso_size"] * (event["gso_segments"] - 1)
            assert 0 < header <= event["gso_size"] + 100
            assert event["gso_type"] & 0b10011  # SKB_GSO_TCPV4, TCPV6 or of untrusted source


def test_loopback(network: Lab) -> None:
    """No hardware and no address, but Ethernet headers all the same; both ends are the same interface."""
    node = network.client
    tracer = Tracer(
        netns=node.name, interface="lo", probes=["net_dev_queue", "netif_receive_skb", "netif_rx"]
    )

    def traffic() -> None:
        with entered(node.netns):
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sink, source:
            sink.bind(("127.0.0.1", 0))
            source.connect(sink.getsockname())
            for number in range(5):
                source.send(b"number %d" % number)
                assert sink.recv(100) == b"number %d" % number

    events = trace(tracer, traffic)
    assert Counter(event.probe for event in events) == {
        "net_dev_queue": 5,
        "netif_rx": 5,
        "netif_receive_skb": 5,
    }
    assert {event.interface for event in events} == {"lo"}
    assert {event.data[42:] for event in events} == {b"number %d" % number for number in range(5)}
    assert {str(event.packet.source) for event in events} == {"127.0.0.1"}
    # One id for each datagram, at all three probes.
    assert len({event.packet_id for event in events}) == 5


@pytest.mark.requires("netfilter-link")
@pytest.mark.parametrize("version", [4, 6])
def test_the_same_packet_at_every_netfilter_hook(network: Lab, version: Any) -> None:
    """What netfilter shows has no link header: the IP packet alone, hop limit counted down on the way."""
    tracer = Tracer(netns=network.router.name, probes=f"netfilter:ipv{version}:*", snaplen=256)
    skip_without_netfilter_links(network.router)
    events = trace(tracer, lambda: lab.udp_exchange(network.route, version=version, count=4))
    asked = [event for event in events if event.packet.destination_port == 53]
    by_hook = {
        hook: [event for event in asked if event.probe.endswith(hook)]
        for hook in ("prerouting", "forward", "postrouting")
    }
    assert {hook: len(found) for hook, found in by_hook.items()} == dict.fromkeys(by_hook, 4)
    assert [event.packet.ttl for event in by_hook["prerouting"]] == [64] * 4
    assert [event.packet.ttl for event in by_hook["postrouting"]] == [63] * 4
    for before, after in zip(by_hook["prerouting"], by_hook["postrouting"], strict=True):
        header = 20 if version == 4 else 40
        assert len({before.packet_id, after.packet_id}) == 1
        assert before.data[-48:] == after.data[-48:]
        assert before.headers.payload == after.headers.payload
        assert len(before.data) in (header + 48, header + 48 + 14)
