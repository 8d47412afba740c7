"""The lab's namespaces: a client, a router and a server, joined by veths.

::

    client                    router                    server
      c0 192.0.2.2   ------   r0 192.0.2.1
                              r1 198.51.100.1  ------   s0 198.51.100.2
      c0 2001:db8:1::2        r0 2001:db8:1::1
                              r1 2001:db8:2::1          s0 2001:db8:2::2

The router forwards, and its nftables drop every TCP and UDP packet to :data:`DROPPED_PORT`. Neighbours
are static and IPv6 says nothing of its own accord (no duplicate address detection, no router
solicitation, multicast reports put off for days), so the packets on the wire are those that were
asked for, no more. Addresses are those reserved for documentation (RFC 5737, RFC 3849); labs don't see
each other, so all have the same. Nothing is created in the caller's own namespace, not even for a moment.
"""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

from packet_tracer.errors import NotSupportedError, PtraceError
from packet_tracer.lab.commands import (
    SEARCH_PATH,
    ip,
    run,
    set_offloads,
    sysctl,
    uninterrupted,
    wait_for_carrier,
)
from packet_tracer.netns import NAMED_DIRECTORY, Netns, entered, interface_index, resolve

#: The router drops what goes to this port, TCP and UDP, by an nftables rule.
DROPPED_PORT = 9999

Version = Literal[4, 6]
T = TypeVar("T")

_PREFIX = "ptrace"
_NAME = re.compile(rf"{_PREFIX}-(\d+)-([0-9a-f]+)-[0-9a-f]{{6}}-(client|router|server)")

#: Each interface's IPv4, IPv6 and Ethernet address, and the interface at the other end.
_LINKS = {
    "c0": ("192.0.2.2", "2001:db8:1::2", "02:00:00:00:01:02", "r0"),
    "r0": ("192.0.2.1", "2001:db8:1::1", "02:00:00:00:01:01", "c0"),
    "r1": ("198.51.100.1", "2001:db8:2::1", "02:00:00:00:02:01", "s0"),
    "s0": ("198.51.100.2", "2001:db8:2::2", "02:00:00:00:02:02", "r1"),
}

_QUIET = {
    "net/ipv6/conf/default/disable_ipv6": "1",  # until the links are up
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/dad_transmits": "0",
    "net/ipv6/conf/default/router_solicitations": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    # milliseconds; each group's second report comes at a random moment in it, so an hour is not enough
    "net/ipv6/conf/default/mldv1_unsolicited_report_interval": "1000000000",
    # 1: a group is reported in the moment it is joined; MLDv2 does it some ticks later
    "net/ipv6/conf/default/force_mld_version": "1",
    # 1: no link-local address, so the only IPv6 addresses are those given
    "net/ipv6/conf/default/addr_gen_mode": "1",
}
_FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}

_RULES = f"""
table inet lab {{
    chain forward {{
        type filter hook forward priority filter; policy accept;
        tcp dport {DROPPED_PORT} counter drop comment "the lab drops this port"
        udp dport {DROPPED_PORT} counter drop comment "the lab drops this port"
    }}
}}
"""


@dataclass(slots=True)
class Node:
    """One namespace of the lab; ``interfaces`` by name, the first one is the one towards the client."""

    role: str
    netns: Netns
    interfaces: tuple[str, ...]

    @property
    def name(self) -> str:
        """The namespace's name in ``/run/netns``: what ``--netns`` takes."""
        assert self.netns.name is not None  # made by `resolve`
        return self.netns.name

    def ifindex(self, interface: str) -> int:
        """Return the index of one of this node's interfaces."""
        return interface_index(interface, self.netns)


@dataclass(frozen=True, slots=True)
class Route:
    """Where traffic runs: from one namespace to the addresses of another."""

    client: Netns
    server: Netns
    client_addresses: dict[Version, str]
    server_addresses: dict[Version, str]


@dataclass(slots=True)
class Lab:
    """The network, as a context manager: built on entry, gone on exit, also when interrupted.

    Several may exist at once, in one process or many. Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN),
    iproute2 and nftables. Entering also removes what labs of processes that are dead left behind.
    Raises NotPermittedError, NotSupportedError (a program is missing), PtraceError (a command failed).
    """

    mtu: int = 1500
    offloads: bool = True
    client: Node = field(init=False)
    router: Node = field(init=False)
    server: Node = field(init=False)
    route: Route = field(init=False)
    _names: dict[str, str] = field(init=False, default_factory=dict)

    def __enter__(self) -> Lab:
        try:
            uninterrupted(self._build)
        except BaseException:
            uninterrupted(self._remove)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        uninterrupted(self._remove)

    @property
    def nodes(self) -> tuple[Node, Node, Node]:
        """Client, router, server."""
        return self.client, self.router, self.server

    @property
    def labels(self) -> dict[int, str]:
        """Short names of the namespaces by inode, for output: ``{4026532287: "client", ...}``."""
        return {node.netns.inode: node.role for node in self.nodes}

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU of every veth, in bytes (68 to 65535; IPv6 needs at least 1280)."""
        for node in self.nodes:
            ip([f"link set {interface} mtu {mtu}" for interface in node.interfaces], node.netns)

    def set_offloads(self, on: bool) -> None:
        """Switch checksum, scatter, segmentation and receive offloads of every veth on or off."""
        for node in self.nodes:
            with entered(node.netns):
                for interface in node.interfaces:
                    set_offloads(interface, on)

    def add_vlan(self, identifier: int) -> Route:
        """Add VLAN devices between client and router; return the route over them.

        Needs the kernel's 8021q. The devices are named ``c0.N`` and ``r0.N``, the addresses are
        203.0.113.0/24 and 2001:db8:3::/64, so one at a time.
        """
        for node, other, link, host in (
            (self.client, self.router, "c0", 2),
            (self.router, self.client, "r0", 1),
        ):
            device = f"{link}.{identifier}"
            peer = mac(other.interfaces[0])
            ip(
                [
                    f"link add link {link} name {device} type vlan id {identifier}",
                    f"address add 203.0.113.{host}/24 dev {device}",
                    f"address add 2001:db8:3::{host}/64 dev {device} nodad",
                    f"link set {device} up",
                    f"neighbour replace 203.0.113.{3 - host} lladdr {peer} dev {device} nud permanent",
                    f"neighbour replace 2001:db8:3::{3 - host} lladdr {peer} dev {device} nud permanent",
                ],
                node.netns,
            )
        return Route(
            self.client.netns,
            self.router.netns,
            {4: "203.0.113.2", 6: "2001:db8:3::2"},
            {4: "203.0.113.1", 6: "2001:db8:3::1"},
        )

    def _build(self) -> None:
        for program, package in (("ip", "iproute2"), ("nft", "nftables")):
            if shutil.which(program, path=SEARCH_PATH) is None:
                raise NotSupportedError(f"the lab needs {program!r}: install {package}")
        reap()
        stem = f"{_PREFIX}-{os.getpid()}-{_start_time(os.getpid()):x}-{secrets.token_hex(3)}"
        self._names = {role: f"{stem}-{role}" for role in ("client", "router", "server")}
        # An interrupt may fall between two bytecodes of `with` itself, where nobody catches it.
        atexit.register(self._remove)
        ip([f"netns add {name}" for name in self._names.values()])
        self.client = self._node("client", "c0")
        self.router = self._node("router", "r0", "r1")
        self.server = self._node("server", "s0")
        for node in self.nodes:
            sysctl(node.netns, _QUIET)
        # The kernel lets the news of a carrier wait for up to a second, in which the interface loses what it
        # sends, unless an interface's index differs from its peer's (linkwatch_urgent_event).
        ip(
            [
                f"link add {one} index {index} address {mac(one)} mtu {self.mtu} type veth"
                f" peer name {other} address {mac(other)} mtu {self.mtu} netns {there.name}"
                for index, one, other, there in ((12, "r0", "c0", self.client), (13, "r1", "s0", self.server))
            ],
            self.router.netns,
        )
        for node in self.nodes:
            ip([f"link set {interface} up" for interface in ("lo", *node.interfaces)], node.netns)
        for node in self.nodes:
            for interface in node.interfaces:
                wait_for_carrier(node.netns, interface)
        # IPv6 only now: it would announce itself again when the carrier comes, some time later.
        sysctl(self.router.netns, _FORWARDING)
        for node in self.nodes:
            settings = {f"net/ipv6/conf/{name}/disable_ipv6": "0" for name in ("default", *node.interfaces)}
            sysctl(node.netns, settings)
            ip([command for name in node.interfaces for command in _addresses(name)], node.netns)
        ip(["route add default via 192.0.2.1", "route add ::/0 via 2001:db8:1::1"], self.client.netns)
        ip(["route add default via 198.51.100.1", "route add ::/0 via 2001:db8:2::1"], self.server.netns)
        run(["nft", "-f", "-"], _RULES, self.router.netns)
        if not self.offloads:
            self.set_offloads(False)
        self.route = Route(
            self.client.netns,
            self.server.netns,
            {4: "192.0.2.2", 6: "2001:db8:1::2"},
            {4: "198.51.100.2", 6: "2001:db8:2::2"},
        )

    def _node(self, role: str, *interfaces: str) -> Node:
        netns = resolve(self._names[role])
        assert netns is not None  # only "all" is None
        return Node(role, netns, interfaces)

    def _remove(self) -> None:
        _delete(self._names.values())
        atexit.unregister(self._remove)


def run_in(netns: Netns, function: Callable[[], T]) -> T:
    """Return ``function()``, called in this thread while it is in ``netns``."""
    with entered(netns):
        return function()


def reap() -> list[str]:
    """Remove the namespaces of labs whose process is dead; return their names."""
    left: list[str] = []
    try:
        names = [path.name for path in Path(NAMED_DIRECTORY).iterdir()]
    except OSError:
        return left
    for name in names:
        match = _NAME.fullmatch(name)
        # A process id alone is not enough, ids are reused: its start time is part of the name.
        if match and _start_time(int(match[1])) != int(match[2], 16):
            left.append(name)
    _delete(left)
    return left


def _start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot (proc(5), stat); -1 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return -1


def _delete(names: Iterable[str]) -> None:
    # Each by itself, so that one that is gone already does not keep the others.
    for name in names:
        if Path(NAMED_DIRECTORY, name).exists():
            try:
                ip([f"netns delete {name}"])
            except PtraceError:
                if Path(NAMED_DIRECTORY, name).exists():
                    raise


def mac(interface: str) -> str:
    """Return the Ethernet address of one of the lab's veths."""
    return _LINKS[interface][2]


def _addresses(name: str) -> list[str]:
    """Return the commands that give one interface its addresses and its static neighbour."""
    ipv4, ipv6, _, peer = _LINKS[name]
    return [
        f"address add {ipv4}/24 dev {name}",
        f"address add {ipv6}/64 dev {name} nodad",
        f"neighbour replace {_LINKS[peer][0]} lladdr {mac(peer)} dev {name} nud permanent",
        f"neighbour replace {_LINKS[peer][1]} lladdr {mac(peer)} dev {name} nud permanent",
    ]
