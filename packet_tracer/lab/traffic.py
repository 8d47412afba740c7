"""Small bounded traffic makers: each opens its sockets in the route's namespaces, talks, closes.

A socket belongs to the namespace it was opened in, so both ends are served by the one calling thread
and nothing is left to wait for. Every function bounds count and time, raises OSError (TimeoutError) when the
network does not answer, and returns what was observed, so that a test can count.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from packet_tracer.lab.topology import DROPPED_PORT, Lab, Node, Route, Version, mac
from packet_tracer.netns import Netns, entered

TIMEOUT = 2.0  # seconds an answer may take
LARGEST_COUNT = 100_000

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@contextmanager
def _socket(netns: Netns, version: Version, kind: int, protocol: int = 0) -> Iterator[socket.socket]:
    with entered(netns):
        opened = socket.socket(_FAMILY[version], kind, protocol)
    with opened:
        opened.settimeout(TIMEOUT)
        yield opened


@contextmanager
def _connection(route: Route, version: Version, port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a TCP connection, the client's first."""
    with (
        _socket(route.server, version, socket.SOCK_STREAM) as listener,
        _socket(route.client, version, socket.SOCK_STREAM) as client,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((route.server_addresses[version], port))
        listener.listen(1)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.settimeout(TIMEOUT)
            yield client, server


def _bounded(count: int) -> int:
    if not 0 <= count <= LARGEST_COUNT:
        raise ValueError(f"count {count}: 0 to {LARGEST_COUNT}")
    return count


def _receive_all(end: socket.socket) -> bytes:
    parts = []
    while part := end.recv(65536):
        parts.append(part)
    return b"".join(parts)


def http(route: Route, *, version: Version = 4, port: int = 80, body: int = 2000) -> int:
    """Fetch ``body`` bytes (at most 65,536) over HTTP/1.1; return the length of the whole response."""
    if not 0 <= body <= 65536:
        raise ValueError(f"body {body}: 0 to 65536 bytes, what a socket buffer holds")
    with _connection(route, version, port) as (client, server):
        client.sendall(b"GET / HTTP/1.1\r\nHost: server.lab\r\nConnection: close\r\n\r\n")
        if not server.recv(4096).startswith(b"GET / "):
            raise ConnectionError("the request did not arrive in one piece")
        server.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % body + b"x" * body
        )
        server.shutdown(socket.SHUT_WR)
        return len(_receive_all(client))


def bulk(route: Route, *, version: Version = 4, port: int = 5001, size: int = 1 << 20) -> int:
    """Send ``size`` bytes (at most 1 GiB) through TCP in large writes; return how many arrived.

    With offloads on, the stack makes GSO packets of it, far larger than the MTU.
    """
    if not 0 <= size <= 1 << 30:
        raise ValueError(f"size {size}: 0 to 1 GiB")
    piece = memoryview(bytes(65536))
    arrived = 0
    with _connection(route, version, port) as (client, server):
        server.settimeout(0)
        left = size
        deadline = time.monotonic() + TIMEOUT + size / 10e6
        while arrived < size:
            if left:
                client.settimeout(0)
                with suppress(BlockingIOError):
                    left -= client.send(piece[: min(left, len(piece))])
            try:
                arrived += len(server.recv(1 << 20))
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{arrived} of {size} bytes arrived") from None
    return arrived


def ping(
    route: Route, *, version: Version = 4, count: int = 1, size: int = 56, identifier: int | None = None
) -> int:
    """Send ``count`` echo requests with ``size`` bytes of data, one after the other; return the replies."""
    identifier = os.getpid() & 0xFFFF if identifier is None else identifier
    protocol, request, reply = (
        (socket.IPPROTO_ICMP, 8, 0) if version == 4 else (socket.IPPROTO_ICMPV6, 128, 129)
    )
    replies = 0
    with _socket(route.client, version, socket.SOCK_RAW, protocol) as end:
        end.connect((route.server_addresses[version], 0))
        for sequence in range(1, _bounded(count) + 1):
            message = struct.pack("!BBHHH", request, 0, 0, identifier, sequence) + bytes(
                index & 0xFF for index in range(size)
            )
            if version == 4:  # the kernel fills in ICMPv6's
                message = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
            end.send(message)
            deadline = time.monotonic() + TIMEOUT
            while True:
                answer = end.recv(65535)
                if version == 4:  # a raw IPv4 socket gives the header too
                    answer = answer[(answer[0] & 15) * 4 :]
                if (answer[0], *struct.unpack_from("!HH", answer, 4)) == (reply, identifier, sequence):
                    replies += 1
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no reply to echo request {sequence}")
    return replies


def internet_checksum(data: bytes) -> int:
    """Return the Internet checksum of ``data`` (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_exchange(
    route: Route,
    *,
    version: Version = 4,
    port: int = 53,
    count: int = 1,
    request: int = 40,
    response: int = 120,
) -> int:
    """Send ``count`` datagrams and answer each, in the sizes of DNS by default; return the answers."""
    answers = 0
    with (
        _socket(route.server, version, socket.SOCK_DGRAM) as server,
        _socket(route.client, version, socket.SOCK_DGRAM) as client,
    ):
        server.bind((route.server_addresses[version], port))
        client.connect(server.getsockname())
        for number in range(_bounded(count)):
            client.send(number.to_bytes(4, "big").ljust(request, b"q")[:request])
            question, peer = server.recvfrom(65535)
            server.sendto(question[:4].ljust(response, b"a")[:response], peer)
            answers += len(client.recv(65535)) == response
    return answers


def fragments(route: Route, *, version: Version = 4, port: int = 5002, size: int = 4000) -> int:
    """Send one datagram larger than the MTU, in fragments; return the bytes that arrived, reassembled."""
    with (
        _socket(route.server, version, socket.SOCK_DGRAM) as server,
        _socket(route.client, version, socket.SOCK_DGRAM) as client,
    ):
        if version == 4:
            # IP_MTU_DISCOVER, IP_PMTUDISC_DONT: the sender fragments instead of refusing
            client.setsockopt(socket.IPPROTO_IP, 10, 0)
        server.bind((route.server_addresses[version], port))
        client.connect(server.getsockname())
        client.send(bytes(index & 0xFF for index in range(size)))
        return len(server.recv(65535))


def refused(route: Route, *, version: Version = 4, port: int = 81) -> bool:
    """Connect to a TCP port nobody listens on; return whether the connection was refused."""
    with _socket(route.client, version, socket.SOCK_STREAM) as client:
        return client.connect_ex((route.server_addresses[version], port)) == errno.ECONNREFUSED


def closed_udp(route: Route, *, version: Version = 4, port: int = 82) -> bool:
    """Send a datagram to a UDP port nobody has; return whether ICMP said so."""
    with _socket(route.client, version, socket.SOCK_DGRAM) as client:
        client.connect((route.server_addresses[version], port))
        client.send(b"is anyone there?")
        try:
            client.recv(1)
        except ConnectionRefusedError:
            return True
        return False


def dropped(
    route: Route, *, version: Version = 4, protocol: str = "udp", count: int = 1, wait: float = 0.2
) -> int:
    """Send packets to the port the router drops; return how many were sent.

    ``udp`` sends ``count`` datagrams; ``tcp`` makes ``count`` connection attempts given up after ``wait``
    seconds each, which is before the kernel repeats the SYN (after one second).
    """
    target = (route.server_addresses[version], DROPPED_PORT)
    if protocol == "udp":
        with _socket(route.client, version, socket.SOCK_DGRAM) as client:
            client.connect(target)
            for number in range(_bounded(count)):
                client.send(b"dropped %d" % number)
        return count
    for _ in range(_bounded(count)):
        with _socket(route.client, version, socket.SOCK_STREAM) as client:
            client.settimeout(min(wait, 0.9))
            if client.connect_ex(target) == 0:
                raise ConnectionError("the router's rule let a connection through")
    return count


def frame(node: Node, interface: str, data: bytes, *, count: int = 1) -> int:
    """Send an Ethernet frame as it is, header included, from a node's interface; return the count."""
    with entered(node.netns):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with opened:
        with entered(node.netns):
            opened.bind((interface, 0))
        for _ in range(_bounded(count)):
            opened.send(data)
    return count


def vlan_tagged(lab: Lab, *, vlan: int = 7, priority: int = 0, version: Version = 4, count: int = 1) -> int:
    """Send 802.1Q-tagged UDP datagrams from client to router, the tag in the bytes; return the count.

    It needs no VLAN device, so it works on kernels without 8021q too: the router drops them unless
    there is one (:meth:`Lab.add_vlan`).
    """
    payload = b"tagged"
    udp = struct.pack("!HHHH", 40000, 7, 8 + len(payload), 0) + payload
    if version == 4:
        addresses = socket.inet_aton("192.0.2.2") + socket.inet_aton("192.0.2.1")
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0) + addresses
        packet = header[:10] + struct.pack("!H", internet_checksum(header)) + header[12:] + udp
    else:
        addresses = b"".join(socket.inet_pton(socket.AF_INET6, f"2001:db8:1::{host}") for host in (2, 1))
        pseudo = addresses + struct.pack("!II", len(udp), socket.IPPROTO_UDP)
        udp = udp[:6] + struct.pack("!H", internet_checksum(pseudo + udp)) + udp[8:]
        packet = struct.pack("!IHBB", 6 << 28, len(udp), socket.IPPROTO_UDP, 64) + addresses + udp
    tag = struct.pack("!HHH", 0x8100, priority << 13 | vlan, 0x0800 if version == 4 else 0x86DD)
    macs = bytes.fromhex((mac("r0") + mac("c0")).replace(":", ""))
    return frame(lab.client, "c0", macs + tag + packet, count=count)
