"""What a kernel does to a packet's bytes, each on its own: a network for it, and traffic through it.

The corpus of ``benchmarks/identity.py`` and of ``tests/kernel/test_identity.py``. Two processes, each bound
to a CPU of its own, send at once; what they send is read at once, so that its buffers are used again.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial

from packet_tracer.capture import Tracer
from packet_tracer.errors import PtraceError
from packet_tracer.events import EventBatch
from packet_tracer.lab import Lab, Node
from packet_tracer.lab.topology import Version
from packet_tracer.netns import entered
from packet_tracer.probes.functions import FunctionTable
from packet_tracer.probes.kallsyms import KALLSYMS
from tests import mechanism_networks as networks
from tests.labelled import Judge, Score, number_in, payload, payload_template
from tests.matrix import cards
from tests.mechanism_networks import Flow

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_SO_RCVBUFFORCE = 33
_UDP_SEGMENT = 103
_MTU_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
#: How long nothing may arrive until what is missing is taken for lost, in seconds.
_SILENCE = 2.0
#: Larger datagrams are sent in fragments. Others have no identification, for they say so (DF).
_LARGEST_WHOLE = 1200


@dataclass(slots=True)
class Sent:
    """What was sent: the numbers of datagrams and those that were read, or the ports of connections."""

    numbers: set[int] = field(default_factory=set)
    read: set[int] = field(default_factory=set)
    ports: frozenset[int] = frozenset()


Prepare = Callable[[Lab], AbstractContextManager[Flow]]


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One thing that the kernel does, and how to have it done.

    ``size`` is of each datagram, or of each piece written to a connection if ``stream``; ``segment`` of the
    datagrams that the kernel is to make of one that is sent. ``calls`` are kernel functions that packets have
    to go through, where they are traced, and ``happened`` tells from a score whether it was done at all;
    kernels that lack one of the symbols that it ``needs`` don't do it. ``copied``: one packet
    comes by at one place more than once. ``xdp``: for a capture with XDP programs. ``dropped``: nobody reads
    it. ``held``: it is read when all is sent. ``wire``: what is sent leaves this machine, and comes back as
    other packets.
    """

    name: str
    prepare: Prepare
    size: int = 40
    segment: int = 0
    calls: tuple[str, ...] = ()
    stream: bool = False
    copied: bool = False
    xdp: bool = False
    dropped: bool = False
    held: bool = False
    wire: bool = False
    needs: tuple[str, ...] = ()
    happened: Callable[[Score], bool] = lambda score: score.packets > 0

    @property
    def datagrams(self) -> int:
        """How many arrive for each that is sent."""
        return -(-self.size // self.segment) if self.segment else 1

    @property
    def possible(self) -> bool:
        """Whether this kernel, with the modules it has loaded, can do it."""
        symbols = {line.split(maxsplit=3)[2] for line in KALLSYMS.read_text().splitlines()}
        return symbols.issuperset(self.needs)

    def uncalled(self, score: Score) -> list[str]:
        """Return which of ``calls`` no packet went through, of those that this kernel has."""
        return [name for name in called([self]) if name not in score.probes]

    def play(self, network: Lab, index: int, count: int) -> Sent:
        """Send ``count`` packets from each of two processes, and return what was sent."""
        with self.prepare(network) as flow:
            if self.stream:
                return _streams(flow, count, self.size)
            return _datagrams(flow, index << 24, count, self)


def _datagrams(flow: Flow, base: int, count: int, mechanism: Mechanism) -> Sent:
    template = payload_template(mechanism.size)
    numbers = [range(base | sender << 20, (base | sender << 20) + count) for sender in range(2)]
    sent = Sent({number for each in numbers for number in each})
    with ExitStack() as stack:
        receiver = stack.enter_context(_socket(flow.network.server, flow.version, socket.SOCK_DGRAM))
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        receiver.bind((flow.listen, flow.listen_port or flow.port))
        receiver.settimeout(0.1 if mechanism.dropped else _SILENCE)
        senders = [
            stack.enter_context(_socket(flow.network.client, flow.version, socket.SOCK_DGRAM))
            for _ in range(2)
        ]
        for sender in senders:
            if mechanism.segment:
                sender.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, mechanism.segment)
            elif mechanism.size > _LARGEST_WHOLE:
                sender.setsockopt(*_MTU_DISCOVER[flow.version], 0)  # IP_PMTUDISC_DONT: fragments are allowed

        def send(number: int) -> None:
            for each in numbers[number]:
                senders[number].sendto(payload(template, each), (flow.target, flow.port))

        with ExitStack() as sending:
            sending.enter_context(_pinned(send))
            if mechanism.held:
                sending.close()
            for _ in range(len(sent.numbers) * mechanism.datagrams):
                try:
                    found = number_in(receiver.recv(1 << 16))
                except TimeoutError:
                    break
                if found:
                    sent.read.add(found[0])
    return sent


def _streams(flow: Flow, count: int, size: int) -> Sent:
    with ExitStack() as stack:
        with entered(flow.network.server.netns):
            listener = socket.create_server(
                (flow.listen, flow.listen_port or flow.port), family=_FAMILY[flow.version]
            )
        stack.enter_context(listener)
        clients, servers = [], []
        for _ in range(2):
            with entered(flow.network.client.netns):
                client = socket.create_connection((flow.target, flow.port), timeout=5)
            clients.append(stack.enter_context(client))
            servers.append(stack.enter_context(listener.accept()[0]))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ports = frozenset(client.getsockname()[1] for client in clients)
        flow.connected()

        def send(number: int) -> None:
            clients[number].settimeout(30)
            for _ in range(count):
                clients[number].sendall(bytes(size))
                time.sleep(0.001)

        left = dict.fromkeys(servers, count * size)
        with _pinned(send):
            while any(left.values()):
                ready, _, _ = select.select([each for each in left if left[each]], [], [], 10)
                if not ready:
                    raise PtraceError(f"a connection brought nothing for 10 s, {left.values()} bytes left")
                for each in ready:
                    left[each] -= len(each.recv(1 << 20))
        time.sleep(0.05)  # the last acknowledgement
    return Sent(ports=ports)


def judged(
    mechanism: Mechanism, network: Lab, sent: Sent, batches: Iterable[EventBatch], *, read: bool
) -> Score:
    """Judge what was seen of it; ``read``: journeys have to show who read the packet.

    At a wire's two ends a packet is two, and each end has a judge of its own.
    """
    client, server = network.client.netns.inode, network.server.netns.inode
    judges = [(Judge(client, copied=mechanism.copied, ports=sent.ports), sent.numbers)]
    if mechanism.wire:
        judges = [
            (Judge(client, within=client, leaves=True, ports=sent.ports), sent.numbers),
            (Judge(server, within=server, arrives=True, ports=sent.ports), sent.read),
        ]
    upper = {number >> 24 for number in sent.numbers}
    for batch in batches:
        for judge, _ in judges:
            judge.add(batch, upper)
    score = Score()
    for judge, expected in judges:
        score.add(judge.finish(expected, sent.read, read=read))
    return score


def called(mechanisms: Iterable[Mechanism]) -> list[str]:
    """Return the functions that mechanisms are known by, as far as they can be traced here."""
    return sorted({name for each in mechanisms for name in each.calls} & _traceable())


@cache
def _traceable() -> frozenset[str]:
    return frozenset(function.name for function in FunctionTable.read().functions)


def flush(network: Lab) -> None:
    """Have every CPU receive a packet: only then it frees what other CPUs have left to it."""
    cpus = os.sched_getaffinity(0)
    try:
        with _socket(network.client, 4, socket.SOCK_DGRAM) as sender:
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
                sender.sendto(b"", (network.route.server_addresses[4], 9))
    finally:
        os.sched_setaffinity(0, cpus)


def all_batches(tracer: Tracer) -> Iterator[EventBatch]:
    """Yield what is there, however many batches that are."""
    while (batch := next(tracer.batches(timeout=0), None)) is not None:
        yield batch


@contextmanager
def _pinned(send: Callable[[int], None]) -> Iterator[None]:
    """Run ``send`` in two processes, each on a CPU of its own, for as long as the block and they last."""
    cpus = sorted(os.sched_getaffinity(0))
    processes = []
    for number in range(2):
        process = os.fork()
        if not process:
            status = 1
            try:
                os.sched_setaffinity(0, {cpus[number % len(cpus)]})
                send(number)
                status = 0
            finally:
                os._exit(status)
        processes.append(process)
    try:
        yield
    finally:
        failed = [process for process in processes if os.waitpid(process, 0)[1]]
    if failed:
        raise PtraceError("a sender of the corpus failed")


def _socket(node: Node, version: Version, kind: int) -> socket.socket:
    with entered(node.netns):
        return socket.socket(_FAMILY[version], kind)


def _has_relatives(score: Score) -> bool:
    return score.related > 0


def _has_grown(score: Score) -> bool:
    return score.grown > 0


def _has_moved(score: Score) -> bool:
    return score.moved == score.packets > 0


def _both(
    name: str, prepare: Callable[..., AbstractContextManager[Flow]], **settings: object
) -> list[Mechanism]:
    own = {key: settings.pop(key) for key in list(settings) if key in Mechanism.__slots__}
    return [
        Mechanism(f"{name}, IPv{version}", partial(prepare, version=version, **settings), **own)  # type: ignore[arg-type]
        for version in (4, 6)
    ]


def _tunnels(name: str, kind: str) -> list[Mechanism]:
    return [
        Mechanism(
            f"{name}, IPv{inner} in IPv{outer}",
            partial(networks.tunnelled, kind=kind, version=outer, inner=inner),
        )
        for inner, outer in ((4, 4), (6, 4), (4, 6))
    ]


def _wires(name: str, **own: object) -> list[Mechanism]:
    return [
        mechanism
        for driver in cards.CARDS
        for mechanism in _both(f"{name} by {driver}", networks.wired, driver=driver, wire=True, **own)
    ]


#: More packets at once than can be remembered, see ``benchmarks/identity.py``.
PRESSURE = Mechanism("more packets than places", partial(networks.routed, version=4), held=True)

#: GRO by veth without an XDP program: d3256efd8e8b (v5.13).
_VETH_GRO = ("veth_set_features",)
#: A datagram of eight segments.
_SEGMENTED: dict[str, object] = {"size": 9600, "segment": 1200, "happened": _has_relatives}
#: Datagrams put together as they are.
_LISTED: dict[str, object] = {
    "feature": "rx-gro-list",
    "burst": True,
    "calls": ("skb_gro_receive_list", "skb_segment_list"),
    "needs": _VETH_GRO,
    "happened": _has_relatives,
}
_FORWARDED: dict[str, object] = {
    "feature": "rx-udp-gro-forwarding",
    "calls": ("skb_gro_receive", "skb_segment"),
    "needs": _VETH_GRO,
}

#: All of them. Their places, from 1 on, are the upper eight bits of their datagrams' numbers.
MECHANISMS: tuple[Mechanism, ...] = (
    *_both("veth, namespaces, routing, socket queue", networks.routed),
    *_both("clone", networks.tapped, node="server"),
    *_both("pskb_expand_head", networks.tapped, node="client", happened=_has_moved),
    *_both("copy (nft dup)", networks.duplicated, copied=True, happened=_has_moved),
    *_both("NAT of addresses", networks.translated, port=False),
    *_both("NAT of ports", networks.translated, port=True),
    *_tunnels("VXLAN", "vxlan"),
    *_tunnels("GRE", "gre"),
    *_tunnels("IPIP", "ipip"),
    Mechanism(
        "fragments by a router", partial(networks.narrow, version=4), size=1400, happened=_has_relatives
    ),
    *_both("fragments by the sender", networks.routed, size=4000, happened=_has_relatives),
    *_both("GSO segmentation", networks.cut, size=20000, stream=True, happened=_has_relatives),
    *_both("GRO merge", networks.joined, size=20000, stream=True, needs=_VETH_GRO, happened=_has_grown),
    *_both("UDP GSO, cut by a device", networks.udp_cut, device=True, **_SEGMENTED, calls=("skb_segment",)),
    *_both(
        "UDP GSO, cut for the socket", networks.udp_cut, device=False, **_SEGMENTED, calls=("skb_segment",)
    ),
    *_both("UDP GRO by list, cut by a device", networks.joined_to_forward, **_LISTED),
    *_both("UDP GRO by list, cut for the socket", networks.joined_to_forward, cut=False, **_LISTED),
    *_both("UDP GRO to forward, of datagrams", networks.joined_to_forward, **{**_LISTED, **_FORWARDED}),
    *_both("UDP GRO to forward, of segments", networks.joined_to_forward, **_SEGMENTED, **_FORWARDED),
    *_both(
        "TCP GRO by list",
        networks.joined_to_forward,
        feature="rx-gro-list",
        size=20000,
        stream=True,
        calls=("skb_gro_receive_list", "skb_segment_list"),
        needs=(*_VETH_GRO, "tcp_gro_pull_header"),  # 7516b27c555c (v6.10)
        happened=_has_relatives,
    ),
    *_both("skb_copy (MACsec of clones)", networks.authenticated, tap=True, calls=("skb_copy",)),
    *_both(
        "skb_copy_expand (MACsec)",
        networks.authenticated,
        tap=False,
        size=20000,
        stream=True,
        calls=("skb_copy_expand",),
    ),
    Mechanism("bridge flooding", partial(networks.flooded, version=4)),
    Mechanism("bpf_redirect", partial(networks.redirected, version=4)),
    *_both("TCP retransmission, first lost", networks.lossy, size=1000, stream=True, happened=_has_relatives),
    *_both(
        "TCP retransmission, first under way",
        networks.delayed,
        size=1000,
        stream=True,
        happened=_has_relatives,
    ),
    *_both("drop", networks.dropped, dropped=True),
    *_wires("UDP"),
    *_wires("GRO merge", size=20000, stream=True, happened=_has_grown),
    *_both("XDP to skb", networks.routed, xdp=True),
    *_wires("XDP to skb", xdp=True),
    *_both(
        "XDP and UDP GRO by list",
        networks.joined_to_forward,
        xdp=True,
        **{**_LISTED, "needs": ()},
    ),
    *_both("XDP and GRO merge", networks.joined, xdp=True, size=20000, stream=True, happened=_has_grown),
)
