"""A capture changes nothing: the same frames arrive, byte for byte, in the same order, with and without it.

What is compared is made by hand, so that nothing in it is random, and seen by AF_PACKET: bytes, checksum and
segmentation left to do.
"""

from __future__ import annotations

import hashlib
import random
import select
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import cache
from typing import TypeVar

import pytest

from packet_tracer import lab
from packet_tracer.bpf.errors import AttachError, ProgramLoadError
from packet_tracer.capture import Tracer
from packet_tracer.lab import Lab
from packet_tracer.lab.topology import mac
from packet_tracer.netns import entered
from packet_tracer.probes.catalogue import PROBES
from tests.kernel.capturing import (
    GSO_TCPV4,
    GSO_TCPV6,
    NEEDS_CHECKSUM,
    ethernet,
    ipv4,
    ipv6,
    on_one_cpu,
    send_with_metadata,
    udp,
    udp_socket,
    witness,
)

T = TypeVar("T")
CHECKSUM_SEEN = 2  # VIRTIO_NET_HDR_F_DATA_VALID
PORT = 4000
IPV4, IPV6, VLAN = 0x0800, 0x86DD, 0x8100
MORE, SCTP, UDP_LITE = 0x2000, 132, 136


@cache
def usable(netns: str) -> tuple[str, ...]:
    """Return all probes; where this kernel lacks netfilter links, all others."""
    try:
        with Tracer(netns=netns, probes="netfilter:ipv4:input"):
            return tuple(probe.name for probe in PROBES)
    except (AttachError, ProgramLoadError):
        return tuple(probe.name for probe in PROBES if not probe.name.startswith("netfilter"))


def traced(network: Lab, run: Callable[[], T], *, without: str = "") -> T:
    """Return what a run comes to with all probes, but one, at router and server."""
    probes = [probe for probe in usable(network.router.name) if probe != without]
    nodes = (network.router, network.server)
    interfaces = [name for node in nodes for name in node.interfaces]
    with Tracer(netns=[node.name for node in nodes], interface=interfaces, probes=probes) as tracer:
        result = run()
        assert len({point.name for point in tracer._setup.points}) == len(interfaces)
        assert sum(counters.seen for counters in tracer.stats().values()) > 0
    return result


def compare(network: Lab, run: Callable[[], T], *, without: str = "") -> T:
    """Return what a run comes to, which must be the same with a capture and without."""
    alone = run()
    assert traced(network, run, without=without) == alone
    return alone


def tagged(payload: bytes, protocol: int) -> bytes:
    return ethernet(struct.pack("!HH", 3 << 13 | 77, protocol) + payload, VLAN)


def fragments_of(datagram: bytes) -> list[bytes]:
    """IPv4 and IPv6 fragments of one datagram, in three pieces."""
    found = []
    for start in range(0, len(datagram), 1200):
        more = start + 1200 < len(datagram)
        piece = datagram[start : start + 1200]
        found.append(ethernet(ipv4(piece, 17, identification=7, fragment=MORE * more | start // 8), IPV4))
        header = struct.pack("!BBHI", 17, 0, start | more, 7)
        found.append(ethernet(ipv6(header + piece, 44), IPV6))
    return found


def frames() -> list[bytes]:
    """Every kind of frame that needs nothing of a driver."""
    datagram = udp(random.Random(1).randbytes(600), destination=PORT)
    found = [
        ethernet(ipv4(datagram, 17), IPV4),
        ethernet(ipv6(datagram, 17), IPV6),
        ethernet(ipv4(datagram, 17, options=b"\x01\x01\x01\x01"), IPV4),
        ethernet(ipv4(struct.pack("!HHII", PORT, PORT, 1, 2) + b"chunk", SCTP), IPV4),
        ethernet(ipv4(udp(b"lite", destination=PORT), UDP_LITE), IPV4),
        # hop-by-hop, destination options, routing, then UDP
        ethernet(
            ipv6(
                bytes([60, 0, 1, 4, 0, 0, 0, 0])
                + bytes([43, 0, 1, 4, 0, 0, 0, 0])
                + bytes([17, 0, 4, 0, 0, 0, 0, 0])
                + datagram,
                0,
            ),
            IPV6,
        ),
        tagged(ipv4(datagram, 17), IPV4),
        tagged(ipv6(datagram, 17), IPV6),
        ethernet(ipv4(udp(b"for the rule", destination=lab.DROPPED_PORT), 17), IPV4),
        ethernet(ipv4(datagram, 17, ttl=1), IPV4),
        ethernet(b"an experimental protocol", 0x88B5),
        ethernet(ipv4(b"", 17), IPV4),
        ethernet(b"\x45", IPV4),
    ]
    return found + fragments_of(udp(random.Random(2).randbytes(3000), destination=PORT))


def to_server(seen: list[bytes], interface: str) -> list[bytes]:
    """Leave out what others sent: answers that the kernel limits in time (ICMP) or fills at random.

    And whether somebody looked at the checksum already: GRO does, which veth has with XDP only.
    """
    address = bytes.fromhex(mac(interface).replace(":", ""))
    return [bytes([frame[0] & ~CHECKSUM_SEEN]) + frame[1:] for frame in seen if frame[10:16] == address]


def test_frames_of_every_kind(network: Lab) -> None:
    def run() -> tuple[list[bytes], list[bytes], list[bytes]]:
        with (
            closing(udp_socket(network.server)) as sink,
            witness(network.router, "r0", metadata=True) as arrived,
            witness(network.server, "s0", metadata=True) as forwarded,
        ):
            sink.bind((network.route.server_addresses[4], PORT))
            with on_one_cpu():
                for frame in frames():
                    lab.frame(network.client, "c0", frame)
            received = drain(sink)
        return to_server(arrived, "r0"), to_server(forwarded, "s0"), received

    arrived, forwarded, received = compare(network, run)
    assert len(arrived) == len(frames())
    # All but two tagged ones, one for the rule, one too old, one unknown and one damaged.
    assert len(forwarded) == len(frames()) - 6
    assert sorted(map(len, received)) == [600, 600, 3000]


def drain(sink: socket.socket) -> list[bytes]:
    """Return the datagrams that a socket has got."""
    found = []
    while select.select([sink], [], [], 0.2)[0]:
        found.append(sink.recv(65536))
    return found


def partial_sum(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """Return the pseudo header's sum, what a stack leaves in the field for the driver to add to."""
    words = source + destination + struct.pack("!II", length, protocol)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def addresses(version: int) -> tuple[bytes, bytes]:
    if version == 4:
        return socket.inet_aton("192.0.2.2"), socket.inet_aton("198.51.100.2")
    return (
        socket.inet_pton(socket.AF_INET6, "2001:db8:1::2"),
        socket.inet_pton(socket.AF_INET6, "2001:db8:2::2"),
    )


@pytest.mark.parametrize("version", [4, 6])
def test_checksum_left_to_the_driver(network: Lab, version: int) -> None:
    payload = random.Random(3).randbytes(999)
    check = partial_sum(*addresses(version), 17, 8 + len(payload))
    datagram = struct.pack("!HHHH", 40000, PORT, 8 + len(payload), check) + payload
    frame = ethernet(ipv4(datagram, 17), IPV4) if version == 4 else ethernet(ipv6(datagram, 17), IPV6)
    start = len(frame) - len(datagram)

    def run() -> tuple[list[bytes], list[bytes]]:
        with (
            closing(udp_socket(network.server, version=version)) as sink,
            witness(network.server, "s0", metadata=True) as seen,
        ):
            sink.bind((network.route.server_addresses[version], PORT))  # type: ignore[index]
            send_with_metadata(network.client, "c0", frame, (NEEDS_CHECKSUM, 0, 0, 0, start, 6))
            received = drain(sink)
        return to_server(seen, "s0"), received

    seen, received = compare(network, run)
    assert received == [payload]
    assert len(seen) == 1


@pytest.mark.parametrize("version", [4, 6])
def test_segmentation_left_to_the_driver(network: Lab, version: int) -> None:
    """A packet of 20,000 bytes goes through whole, with the size of its segments beside it.

    Not so with XDP in veth's driver, which has packets segmented for any XDP program
    (veth_xdp_set()). It is the same content then, in more packets.
    """
    payload = random.Random(4).randbytes(20_000)
    check = partial_sum(*addresses(version), 6, 20 + len(payload))
    segment = struct.pack("!HHIIBBHHH", 40000, PORT, 1, 1, 0x50, 0x10, 1000, check, 0) + payload
    frame = ethernet(ipv4(segment, 6), IPV4) if version == 4 else ethernet(ipv6(segment, 6), IPV6)
    start = len(frame) - len(segment)
    kind = GSO_TCPV4 if version == 4 else GSO_TCPV6

    def run() -> list[bytes]:
        with witness(network.server, "s0", metadata=True) as seen:
            header = (NEEDS_CHECKSUM, kind, start + 20, 1400, start, 16)
            send_with_metadata(network.client, "c0", frame, header)
            lab.ping(network.route)  # by now it is through
        return [frame for frame in to_server(seen, "s0") if len(frame) > 200]

    def content(seen: list[bytes]) -> bytes:
        return b"".join(frame[10 + start + 20 :] for frame in seen)

    seen = compare(network, run, without="xdp")
    assert len(seen) == 1
    assert content(seen) == payload
    assert content(traced(network, run)) == payload


@pytest.mark.parametrize("version", [4, 6])
def test_what_sockets_say_to_each_other(network: Lab, version: int) -> None:
    """TCP both ways, UDP larger than the MTU, ping: the same payload arrives, all of it."""
    address = network.route.server_addresses[version]  # type: ignore[index]
    content = random.Random(5).randbytes(400_000)

    def stream() -> tuple[str, str]:
        with ExitStack() as stack:
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            with entered(network.server.netns):
                listener = stack.enter_context(socket.socket(family))
            with entered(network.client.netns):
                client = stack.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, PORT))
            listener.listen()
            client.connect((address, PORT))
            server = stack.enter_context(listener.accept()[0])
            return exchange(client, server, content)

    def run() -> object:
        return (
            stream(),
            lab.fragments(network.route, version=version, size=9000),  # type: ignore[arg-type]
            lab.ping(network.route, version=version, count=3),  # type: ignore[arg-type]
            lab.udp_exchange(network.route, version=version, count=20),  # type: ignore[arg-type]
            lab.refused(network.route, version=version),  # type: ignore[arg-type]
        )

    digest = hashlib.sha256(content).hexdigest()
    assert compare(network, run) == ((digest, digest), 9000, 3, 20, True)


def exchange(client: socket.socket, server: socket.socket, content: bytes) -> tuple[str, str]:
    """Send the content both ways at once; return the digests of what arrived."""
    left = {client: content, server: content}
    digests = {client: hashlib.sha256(), server: hashlib.sha256()}
    arrived = {client: 0, server: 0}
    for end in left:
        end.setblocking(False)
    while min(arrived.values()) < len(content):
        readable, writable, _ = select.select(list(left), [end for end in left if left[end]], [], 5)
        assert readable or writable, "it stalled"
        for end in writable:
            left[end] = left[end][end.send(left[end][:65536]) :]
        for end in readable:
            part = end.recv(65536)
            digests[end].update(part)
            arrived[end] += len(part)
    return digests[client].hexdigest(), digests[server].hexdigest()
