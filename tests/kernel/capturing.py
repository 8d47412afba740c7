"""What the tests of captures share: traffic under a tracer, a witness, floods, made-up frames."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NoReturn

import pytest

from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.capture import Tracer
from packet_tracer.errors import EXIT_NOT_SUPPORTED, NotSupportedError, PtraceError
from packet_tracer.events import Event
from packet_tracer.lab import Lab, Node
from packet_tracer.lab.topology import mac
from packet_tracer.lab.traffic import internet_checksum
from packet_tracer.netns import entered
from tests.features import NoFeatureError
from tests.matrix.cards import GUEST, plugged
from tests.mechanisms import MECHANISMS, Mechanism, Sent, flush

_SOL_PACKET = 263
_PACKET_VNET_HDR = 15  # linux/if_packet.h
#: struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VNET_HEADER = struct.Struct("=BBHHHH")
NEEDS_CHECKSUM = 1
GSO_TCPV4, GSO_TCPV6 = 1, 4


def trace(tracer: Tracer, traffic: Callable[[], object]) -> list[Event]:
    """Run the traffic under the tracer and return all that it saw. Skips where this kernel lacks what it
    takes.
    """
    try:
        tracer.start()
    except PtraceError as error:
        if error.exit_code == EXIT_NOT_SUPPORTED:
            pytest.skip(str(error))
        raise
    with closing(tracer):
        traffic()
        time.sleep(0.05)  # the last skb may still be on its way to its end, on the other CPU
        tracer.stop()
        return list(tracer.events())


@contextmanager
def running(tracer: Tracer) -> Iterator[Tracer]:
    """Start a tracer of functions or programs, of which none may be left out. Skips where none can be had."""
    try:
        tracer.start()
    except NotSupportedError as error:
        pytest.skip(str(error))
    with closing(tracer):
        assert not tracer.skipped
        yield tracer


def play(mechanism: Mechanism, network: Lab, count: int) -> Sent:
    """Have a mechanism's packets sent, and all that is held back of them. Skips, or expects to fail, where it
    can't be had.
    """
    try:
        sent = mechanism.play(network, MECHANISMS.index(mechanism) + 1, count)
    except NoFeatureError as error:
        pytest.xfail(str(error))  # as lacking() says
    except NotSupportedError as error:
        pytest.skip(str(error))
    time.sleep(0.05)
    flush(network)
    return sent


def lacking(mechanism: Mechanism) -> NoReturn:
    """Expect to fail where a kernel lacks what a mechanism takes. Not a skip: functions can be traced here,
    and it is no fault of theirs.
    """
    pytest.xfail(f"this kernel lacks what came with {', '.join(mechanism.needs)}")


@contextmanager
def network_cards(network: Lab) -> Iterator[list[str]]:
    """Plug in the cards that a guest has for tests, and yield their drivers. Skips where there are none."""
    with plugged(network) as drivers:
        if not drivers:
            assert not os.environ.get(GUEST), "a guest without the cards that it was given"
            pytest.skip("no network cards that are for tests")
        yield drivers


@contextmanager
def witness(
    node: Node, interface: str, *, metadata: bool = False, protocol: int = 0x0003
) -> Iterator[list[bytes]]:
    """What AF_PACKET, which knows nothing of us, sees coming in or going out at an interface.

    With ``metadata`` each frame has a virtio_net_hdr before it: checksum left to do, segmentation left to do.
    """
    with entered(node.netns):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
        opened.bind((interface, protocol))
    if metadata:
        opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    opened.settimeout(0.1)
    frames: list[bytes] = []
    done = threading.Event()

    def receive() -> None:
        while True:
            try:
                frames.append(opened.recv(1 << 17))
            except TimeoutError:
                if done.is_set():
                    return

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        yield frames
    finally:
        done.set()
        thread.join()
        opened.close()


def send_with_metadata(node: Node, interface: str, frame: bytes, header: tuple[int, ...]) -> None:
    """Send a frame as a virtual machine would: checksum or segmentation left to whom it may concern."""
    with entered(node.netns):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with opened:
        with entered(node.netns):
            opened.bind((interface, 0))
        opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        opened.send(VNET_HEADER.pack(*header) + frame)


def netfilter_links_lacking(node: Node) -> str:
    """Return why netfilter has no programs here (84601d6ee68a, v6.4), or nothing if it has."""
    try:
        with Tracer(netns=node.name, probes="netfilter:ipv4:input"):
            return ""
    except PtraceError as error:
        if error.exit_code != EXIT_NOT_SUPPORTED:
            raise
        return f"this kernel has no netfilter links: {error}"


def skip_without_netfilter_links(node: Node) -> None:
    """Skip where netfilter has no programs."""
    if lacking := netfilter_links_lacking(node):
        pytest.skip(lacking)


def has_drop_reasons() -> bool:
    """Whether this kernel says why it drops (c504e5c2f964, v5.17); before, there is the place alone."""
    return Btf.vmlinux().get("skb_drop_reason", Kind.ENUM) is not None


def answered_echo_is_consumed() -> bool:
    """Whether icmpv6_rcv() frees what it has answered as consumed (ac03694bc009, v6.3), not as dropped.

    This reason came with the same series.
    """
    if not has_drop_reasons():
        return False
    return "SKB_DROP_REASON_IPV6_NDISC_NS_OTHERHOST" in Btf.vmlinux().enum("skb_drop_reason")


def netfilter_drop() -> str:
    """Return what is written of a packet that a rule dropped: the reason, or on older kernels the place."""
    return "NETFILTER_DROP" if has_drop_reasons() else "nf_hook_slow"


def ethernet(payload: bytes, protocol: int, *, source: str = "c0", destination: str = "r0") -> bytes:
    """Return a frame between two of the lab's interfaces."""
    macs = bytes.fromhex((mac(destination) + mac(source)).replace(":", ""))
    return macs + struct.pack("!H", protocol) + payload


def ipv4(
    payload: bytes,
    protocol: int,
    *,
    source: str = "192.0.2.2",
    destination: str = "198.51.100.2",
    identification: int = 1,
    fragment: int = 0,
    ttl: int = 64,
    options: bytes = b"",
) -> bytes:
    """Return an IPv4 packet; ``fragment`` is flags and offset as they stand in the header."""
    assert len(options) % 4 == 0
    words = 5 + len(options) // 4
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | words,
        0,
        words * 4 + len(payload),
        identification,
        fragment,
        ttl,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    header += options
    return header[:10] + struct.pack("!H", internet_checksum(header)) + header[12:] + payload


def ipv6(
    payload: bytes,
    protocol: int,
    *,
    source: str = "2001:db8:1::2",
    destination: str = "2001:db8:2::2",
    hop_limit: int = 64,
) -> bytes:
    """Return an IPv6 packet; ``protocol`` is its next header."""
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hop_limit) + addresses + payload


def udp(payload: bytes, *, source: int = 40000, destination: int = 4000) -> bytes:
    """Return a UDP datagram without a checksum, which IPv4 allows."""
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


@contextmanager
def on_one_cpu(cpu: int | None = None) -> Iterator[None]:
    """Keep what is sent in its order: each CPU has a queue of its own."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before) if cpu is None else cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def flood(
    senders: list[socket.socket], count: int, payload: bytes = b"x" * 1000, *, cpus: list[int] | None = None
) -> None:
    """Send ``count`` datagrams through each connected socket, each from a thread bound to its own CPU."""
    chosen = cpus or sorted(os.sched_getaffinity(0))

    def send(sender: socket.socket, cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})
        for _ in range(count):
            try:
                sender.send(payload)
            except ConnectionRefusedError:  # what ICMP said of an earlier one
                continue

    threads = [
        threading.Thread(target=send, args=(sender, chosen[index % len(chosen)]))
        for index, sender in enumerate(senders)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def udp_socket(node: Node, peer: tuple[Any, ...] | None = None, *, version: int = 4) -> socket.socket:
    """Return a UDP socket of a node, connected if there is a peer."""
    with entered(node.netns):
        opened = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    if peer is not None:
        opened.connect(peer)
    return opened
