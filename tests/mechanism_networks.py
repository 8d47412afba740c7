"""The networks in which a kernel does one thing after another to packets: see :mod:`tests.mechanisms`.

Each is a context manager: it adds to the lab what it takes, yields from where to where packets are to go, and
takes it away again. NotSupportedError is raised where this kernel lacks it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from packet_tracer.bpf.enums import ProgramType
from packet_tracer.bpf.idle import small_program
from packet_tracer.bpf.link import attach_tcx
from packet_tracer.bpf.program import Program
from packet_tracer.errors import NotSupportedError, PtraceError
from packet_tracer.lab import DROPPED_PORT, Lab, Node
from packet_tracer.lab.commands import ip, run, set_offloads
from packet_tracer.lab.topology import Version, mac
from packet_tracer.netns import entered
from tests.features import NoFeatureError, switched
from tests.matrix import cards

_SO_RCVBUFFORCE = 33
PORT = 7000


@dataclass(slots=True)
class Flow:
    """From where to where: ``target`` is what the client sends to, ``listen`` where the server takes it.

    ``connected`` is called between the connections' beginnings and their data.
    """

    network: Lab
    version: Version
    target: str
    listen: str
    port: int = PORT
    listen_port: int = 0
    connected: Callable[[], None] = lambda: None


def _route(network: Lab, version: Version) -> Flow:
    address = network.route.server_addresses[version]
    return Flow(network, version, address, address)


@contextmanager
def routed(network: Lab, *, version: Version) -> Iterator[Flow]:
    """From client to server by way of the router."""
    yield _route(network, version)


@contextmanager
def wired(network: Lab, *, version: Version, driver: str) -> Iterator[Flow]:
    """From client to server over two network cards and what is between them: see ``matrix/cards.py``.

    The card that receives merges nothing, which would be no business of GRO.
    """
    try:
        network.server.ifindex(driver)
    except PtraceError as error:
        raise NoFeatureError(f"there are no cards that {driver} drives") from error
    address = cards.addresses(driver, 2)[version == 6]
    with switched(network.server, driver, {"rx-lro": False}):
        yield Flow(network, version, address, address)


@contextmanager
def dropped(network: Lab, *, version: Version) -> Iterator[Flow]:
    """To the port that the router drops."""
    flow = _route(network, version)
    flow.port = DROPPED_PORT
    yield flow


@contextmanager
def tapped(network: Lab, *, version: Version, node: str) -> Iterator[Flow]:
    """With a packet socket that nobody reads: it keeps a clone of each packet."""
    with entered(getattr(network, node).netns):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    with tap:
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        yield _route(network, version)


@contextmanager
def _rules(network: Lab, rules: str, family: str) -> Iterator[None]:
    try:
        run(["nft", "-f", "-"], f"table {family} identity {{\n{rules}\n}}", network.router.netns)
    except PtraceError as error:
        raise NotSupportedError(f"nftables: {error}") from error
    try:
        yield
    finally:
        run(["nft", "delete", "table", family, "identity"], "", network.router.netns)


def _nft(version: Version) -> tuple[str, str]:
    return ("ip", "ip") if version == 4 else ("ip6", "ip6")


@contextmanager
def duplicated(network: Lab, *, version: Version) -> Iterator[Flow]:
    """The router sends a copy (nft dup) beside the packet itself."""
    flow = _route(network, version)
    family, _ = _nft(version)
    hook = "type filter hook prerouting priority raw;"
    rule = f"chain c {{ {hook} udp dport {PORT} iif r0 dup to {flow.target}; }}"
    with _rules(network, rule, family):
        yield flow


@contextmanager
def translated(network: Lab, *, version: Version, port: bool) -> Iterator[Flow]:
    """The router's own address stands for the server's, and the router's for the client's."""
    flow = _route(network, version)
    family, _ = _nft(version)
    to = f"[{flow.listen}]" if version == 6 and port else flow.listen
    flow.target = {4: "192.0.2.1", 6: "2001:db8:1::1"}[version]
    if port:
        flow.listen_port = PORT + 1
        to = f"{to}:{flow.listen_port}"
    rules = f"""
        chain d {{ type nat hook prerouting priority dstnat; udp dport {PORT} dnat to {to}; }}
        chain s {{ type nat hook postrouting priority srcnat; oif r1 meta l4proto udp masquerade; }}
    """
    with _rules(network, rules, family):
        yield flow


@contextmanager
def tunnelled(network: Lab, *, kind: str, version: Version, inner: Version) -> Iterator[Flow]:
    """Through a tunnel between client and server, which is routed."""
    client, server = network.route.client_addresses[version], network.route.server_addresses[version]
    kinds = {
        ("vxlan", 4): "vxlan id 42 dstport 4789",
        ("vxlan", 6): "vxlan id 42 dstport 4789 udp6zerocsumtx udp6zerocsumrx",
        ("gre", 4): "gre",
        ("gre", 6): "ip6gre encaplimit none",
        ("ipip", 4): "ipip" if inner == 4 else "sit",
        ("ipip", 6): "ip6tnl mode ipip6 encaplimit none",
    }
    prefix, length = ("10.99.0.", 24) if inner == 4 else ("2001:db8:99::", 64)
    ends = ((network.client, client, server, 1), (network.server, server, client, 2))
    with ExitStack() as stack:
        for node, local, remote, host in ends:
            address = f" address 02:00:00:00:99:0{host}" if kind == "vxlan" else ""
            how = kinds[kind, version]
            ip([f"link add tun0{address} type {how} local {local} remote {remote}"], node.netns)
            stack.callback(ip, ["link delete tun0"], node.netns)
            nodad = " nodad" if inner == 6 else ""
            commands = [f"address add {prefix}{host}/{length} dev tun0{nodad}", "link set tun0 up"]
            if kind == "vxlan":
                other = 3 - host
                there = f"lladdr 02:00:00:00:99:0{other} dev tun0 nud permanent"
                commands.append(f"neighbour replace {prefix}{other} {there}")
            ip(commands, node.netns)
        yield Flow(network, inner, f"{prefix}2", f"{prefix}2")


@contextmanager
def narrow(network: Lab, *, version: Version) -> Iterator[Flow]:
    """The router's second link takes less than the first, so the router makes the fragments."""
    ip(["link set r1 mtu 1280"], network.router.netns)
    try:
        yield _route(network, version)
    finally:
        ip(["link set r1 mtu 1500"], network.router.netns)


@contextmanager
def cut(network: Lab, *, version: Version) -> Iterator[Flow]:
    """The client leaves segmentation to its device; the router's can't."""
    with entered(network.router.netns):
        set_offloads("r1", False)
    try:
        yield _route(network, version)
    finally:
        with entered(network.router.netns):
            set_offloads("r1", True)


@contextmanager
def joined(network: Lab, *, version: Version) -> Iterator[Flow]:
    """The client sends segments, the router's device puts them together (veth: d3256efd8e8b, v5.13)."""
    with entered(network.client.netns):
        set_offloads("c0", False)
    with entered(network.router.netns):
        set_offloads("r0", True)
    try:
        yield _route(network, version)
    finally:
        with entered(network.client.netns):
            set_offloads("c0", True)


@contextmanager
def udp_cut(network: Lab, *, version: Version, device: bool) -> Iterator[Flow]:
    """What the client sends in one is cut in the router, whose ``device`` can't, or else for the socket."""
    with switched(network.router, "r1", {"tx-udp-segmentation": not device}):
        yield _route(network, version)


_SEGMENTATION = dict.fromkeys(
    ("tx-udp-segmentation", "tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-gso-list"), False
)


@contextmanager
def joined_to_forward(
    network: Lab, *, version: Version, feature: str, cut: bool = True, burst: bool = False
) -> Iterator[Flow]:
    """The client's device sends segments, the router's puts them together as a ``feature`` of it says.

    They are taken apart again in the router if ``cut``, or else for the socket. ``burst``: what the client
    sends within 0.3 s goes out together, so that there is something to put together; and by then it sends no
    more, so that the burst interrupts none of the programs that look at what it does.
    """
    with ExitStack() as stack:
        stack.enter_context(switched(network.client, "c0", _SEGMENTATION))
        stack.enter_context(switched(network.router, "r0", {"rx-gro": True, feature: True}))
        if cut:
            stack.enter_context(switched(network.router, "r1", _SEGMENTATION))
        if burst:
            netem(stack, network.client, "c0", "slot 300ms")
        yield _route(network, version)


def netem(stack: ExitStack, node: Node, device: str, how: str) -> None:
    """Give a device a netem qdisc for as long as the stack lasts."""
    try:
        run(["tc", *f"qdisc add dev {device} root netem {how} limit 10000".split()], "", node.netns)
    except PtraceError as error:
        raise NotSupportedError(f"netem: {error}") from error
    stack.callback(run, ["tc", *f"qdisc del dev {device} root".split()], "", node.netns)


@contextmanager
def authenticated(network: Lab, *, version: Version, tap: bool) -> Iterator[Flow]:
    """Over MACsec, which signs but does not encrypt, from client to router; ``tap``: see :func:`tapped`."""
    prefix, length = ("10.66.0.", 24) if version == 4 else ("2001:db8:66::", 64)
    nodad = " nodad" if version == 6 else ""
    key = "on key 01 " + "42" * 16
    flow = _route(network, version)
    with ExitStack() as stack:
        for node, device, peer, host in ((network.client, "c0", "r0", 1), (network.router, "r0", "c0", 2)):
            ip([f"link add link {device} ms0 type macsec encrypt off"], node.netns)
            stack.callback(ip, ["link delete ms0"], node.netns)
            commands = [
                f"macsec add ms0 tx sa 0 pn 1 {key}",
                f"macsec add ms0 rx port 1 address {mac(peer)}",
                f"macsec add ms0 rx port 1 address {mac(peer)} sa 0 pn 1 {key}",
                f"address add {prefix}{host}/{length} dev ms0{nodad}",
                "link set ms0 up",
                f"neighbour replace {prefix}{3 - host} lladdr {mac(peer)} dev ms0 nud permanent",
            ]
            ip(commands, node.netns)
        ip([f"route add {flow.target} via {prefix}2 dev ms0"], network.client.netns)
        if tap:
            flow = stack.enter_context(tapped(network, version=version, node="client"))
        yield flow


@contextmanager
def flooded(network: Lab, *, version: Version) -> Iterator[Flow]:
    """A bridge in the router does not know where the server is, so it sends to all its ports."""
    ports = (("b0", network.client, 1), ("b1", network.server, 2), ("b2", network.server, 3))
    with ExitStack() as stack:
        ip(
            ["link add br0 type bridge ageing_time 0 mcast_snooping 0", "link set br0 up"],
            network.router.netns,
        )
        stack.callback(ip, ["link delete br0"], network.router.netns)
        for name, node, host in ports:
            there = f"02:00:00:00:77:0{host}"
            ip(
                [
                    f"link add {name}p type veth peer name {name} address {there} netns {node.name}",
                    f"link set {name}p master br0 up",
                ],
                network.router.netns,
            )
            stack.callback(ip, [f"link delete {name}p"], network.router.netns)
        for name, node, host in ports[:2]:
            other = 3 - host
            ip(
                [
                    f"address add 10.77.0.{host}/24 dev {name}",
                    f"link set {name} up",
                    f"neighbour replace 10.77.0.{other} lladdr 02:00:00:00:77:0{other} dev {name}"
                    " nud permanent",
                ],
                node.netns,
            )
        ip(["link set b2 up"], network.server.netns)
        time.sleep(0.1)  # a port forwards when its carrier is known
        yield Flow(network, version, "10.77.0.2", "10.77.0.2")


@contextmanager
def redirected(network: Lab, *, version: Version) -> Iterator[Flow]:
    """A TC program sends what comes in at one of the router's devices out at the other."""
    with ExitStack() as stack:
        for node, device, host, peer in (
            (network.client, "c0", 1, "s0"),
            (network.server, "s0", 2, "c0"),
        ):
            address = f"10.88.0.{host}/24"
            ip(
                [
                    f"address add {address} dev {device}",
                    f"neighbour replace 10.88.0.{3 - host} lladdr {mac(peer)} dev {device} nud permanent",
                ],
                node.netns,
            )
            stack.callback(ip, [f"address del {address} dev {device}"], node.netns)
        program = stack.enter_context(_redirecting(network.router.ifindex("r1")))
        with entered(network.router.netns):
            stack.enter_context(attach_tcx(program, network.router.ifindex("r0"), "ingress", first=False))
        yield Flow(network, version, "10.88.0.2", "10.88.0.2")


def _redirecting(ifindex: int) -> Program:
    """Return a loaded program: ``return bpf_redirect(ifindex, 0)``."""
    code = ((0xB7, 1, 0, ifindex), (0xB7, 2, 0, 0), (0x85, 0, 0, 23), (0x95, 0, 0, 0))
    return small_program(ProgramType.SCHED_CLS, code, section="tc")


@contextmanager
def lossy(network: Lab, *, version: Version) -> Iterator[Flow]:
    """The router drops some of what the client sends: it is sent again."""
    family, field_ = _nft(version)
    rule = f"""chain f {{ type filter hook forward priority filter;
        tcp dport {PORT} {field_} length > 900 numgen inc mod 4 0 drop; }}"""
    with _rules(network, rule, family):
        yield _route(network, version)


@contextmanager
def delayed(network: Lab, *, version: Version) -> Iterator[Flow]:
    """The router holds packets for so long that the client sends again what is still under way."""
    flow = _route(network, version)
    with ExitStack() as stack:
        flow.connected = lambda: netem(stack, network.router, "r1", "delay 400ms")
        yield flow
