"""On a real wire: the filter keeps as many packets as tcpdump does, and finds headers that lie in pages."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from packet_tracer import lab
from packet_tracer.capture import Tracer
from packet_tracer.events import Event
from packet_tracer.filter.expression import compile_filter
from packet_tracer.lab import Lab
from packet_tracer.lab.topology import mac
from packet_tracer.netns import entered
from packet_tracer.probes.memory import page_mapping
from packet_tracer.probes.setup import objects_directory
from tests.kernel.capturing import trace
from tests.tunnel_packets import TUNNELS

EXPRESSIONS = [
    "",
    "tcp",
    "udp",
    "icmp",
    "icmp6",
    "arp or icmp6",
    "udp port 53",
    "host 192.0.2.2 and not tcp",
    "net 2001:db8::/32",
    "tcp[tcpflags] & tcp-syn != 0",
    "greater 200",
    "vlan",
    "vlan 7",
    "vlan 7 and udp port 7",
    "vlan 7 and ip6",
    "vlan 8",
    "not vlan",
    "ether[12:2] = 0x0800",
    "udp port 4789 and udp[8] & 8 != 0",
    "ip proto 47",
]


def traffic(network: Lab) -> None:
    """Both families, TCP and UDP, VLAN tags, tunnels."""
    for version in (4, 6):
        lab.ping(network.route, version=version, count=2)
        lab.udp_exchange(network.route, version=version, port=53, count=2)
        lab.http(network.route, version=version, port=8080)
        lab.vlan_tagged(network, vlan=7, version=version, count=3)
    addresses = bytes.fromhex((mac("r0") + mac("c0")).replace(":", ""))
    for case in TUNNELS:
        lab.frame(network.client, "c0", addresses + case.packet[12:])


def tcpdump_counts(network: Lab, expression: str, tracer: Tracer) -> tuple[int, list[Event]]:
    """Let tcpdump and a tracer see the same traffic at r0; return tcpdump's count and what we saw."""
    with entered(network.router.netns):
        dump = subprocess.Popen(
            [
                "tcpdump",
                "-i",
                "r0",
                "-n",
                "-Z",
                "root",
                "-B",
                "4096",
                "--immediate-mode",
                "-w",
                "/dev/null",
                expression,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
    assert dump.stderr is not None
    try:
        line = dump.stderr.readline()
        while "listening" not in line:
            assert line, "tcpdump did not start"
            line = dump.stderr.readline()
        events = trace(tracer, lambda: traffic(network))
        time.sleep(0.1)
    finally:
        dump.send_signal(signal.SIGINT)
        _, report = dump.communicate(timeout=10)
    found = re.search(r"(\d+) packets? captured", report)
    assert found, report
    return int(found[1]), events


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="no tcpdump to compare with")
@pytest.mark.requires("tcx")
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_it_keeps_as_many_packets_as_tcpdump(network: Lab, expression: str) -> None:
    tracer = Tracer(netns=network.router.name, interface="r0", probes="tc:*", filter=expression)
    theirs, events = tcpdump_counts(network, expression, tracer)
    assert len(events) == theirs
    assert bool(theirs) == (expression != "vlan 8")


@pytest.mark.requires("tcx")
@pytest.mark.parametrize("probe", ["tc:ingress", "xdp", "netif_receive_skb"])
def test_tags_are_found_in_the_bytes_and_beside_them(network: Lab, probe: str) -> None:
    """XDP and the first tracepoint see the tag in the bytes, TC sees it beside them."""
    for expression, count in (
        ("vlan 7", 6),
        ("vlan 7 and ip6", 3),
        ("vlan 7 and udp dst port 7", 6),
        ("vlan 9", 0),
    ):
        tracer = Tracer(netns=network.router.name, interface="r0", probes=probe, filter=expression)
        assert len(trace(tracer, lambda: traffic(network))) == count, expression


@pytest.mark.requires("tcx")
@pytest.mark.parametrize("probe", ["tc:ingress", "xdp", "netif_receive_skb"])
def test_the_packet_in_a_tunnel(network: Lab, probe: str) -> None:
    inner = compile_filter("", inner="tcp port 80 and src port 4444")
    tracer = Tracer(netns=network.router.name, interface="r0", probes=probe, filter=inner)
    assert len(trace(tracer, lambda: traffic(network))) == len(TUNNELS)
    vxlan = compile_filter("tcp port 80", tunnel="vxlan")
    tracer = Tracer(netns=network.router.name, interface="r0", probes=probe, filter=vxlan)
    wanted = sum(case.kind.name == "VXLAN" for case in TUNNELS)
    assert len(trace(tracer, lambda: traffic(network))) == wanted


# Headers in pages: a TAP device copies only as many bytes to the linear part as it is told.

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_LENGTH = 6000
#: How many bytes the device is told to copy to the linear part, and the port that such a packet is from.
_LINEAR = {14: 1014, 20: 1020, 40: 1040}


def large_packet(version: int, port: int) -> bytes:
    """Return a frame larger than a page: such a one the device puts into pages."""
    udp = struct.pack("!HHHH", port, 2222, _LENGTH, 0) + b"x" * (_LENGTH - 8)
    if version == 4:
        header = (
            struct.pack("!BBHHHBBH", 0x45, 0, 20 + _LENGTH, 1, 0, 64, 17, 0) + b"\x0a\x01\0\x02\x0a\x01\0\x01"
        )
        ether_type = 0x0800
    else:
        addresses = b"".join(socket.inet_pton(socket.AF_INET6, f"fd01::{host}") for host in (2, 1))
        header = struct.pack("!IHBB", 6 << 28, _LENGTH, 17, 64) + addresses
        ether_type = 0x86DD
    return b"\xff" * 6 + b"\x02\0\0\0\0\x09" + struct.pack("!H", ether_type) + header + udp


@pytest.fixture(scope="module")
def tap(network: Lab) -> Iterator[int]:
    """A TAP device `p0` in the router's namespace."""
    if not Path("/dev/net/tun").exists():
        subprocess.run(["modprobe", "tun"], check=False, capture_output=True)
    if not Path("/dev/net/tun").exists():
        pytest.skip("this kernel has no TAP devices")
    with entered(network.router.netns):
        device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"p0", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        subprocess.run(["ip", "link", "set", "p0", "mtu", "9000", "up"], check=True)
    try:
        yield device
    finally:
        os.close(device)


@pytest.mark.parametrize(
    ("expression", "versions"),
    [
        ("ip and udp dst port 2222", {4}),
        ("ip6 and udp dst port 2222", {6}),
        ("udp dst port 2223", set()),
        ("ip6 or tcp", {6}),
        ("ip or tcp", {4}),
        ("udp[8:4] = 0x78787878", {4}),
        (f"ether[{_LENGTH + 30}:4] = 0x78787878", {4, 6}),
        (f"ip and ether[{_LENGTH + 31}:4] = 0x78787878", set()),
        (f"ether[{_LENGTH + 50}:4] = 0x78787878", {6}),
        (f"ether[{_LENGTH + 51}:4] = 0x78787878", set()),
        (f"greater {_LENGTH + 54} and not less {_LENGTH + 53}", {6}),
        (f"greater {_LENGTH + 34} and not less {_LENGTH + 33} and less {_LENGTH + 34}", {4}),
    ],
)
@pytest.mark.parametrize("probe", ["netif_receive_skb", "tc:ingress"])
@pytest.mark.requires("tcx")
def test_headers_in_pages_are_found(
    network: Lab, tap: int, probe: str, expression: str, versions: set[int]
) -> None:
    if probe == "netif_receive_skb" and not page_mapping(objects_directory()).base:
        pytest.skip("this kernel does not tell where its pages lie (no vmemmap_base in /proc/kallsyms)")

    def send() -> None:
        for linear, port in _LINEAR.items():
            # struct virtio_net_hdr: hdr_len says how much to copy.
            head = struct.pack("=BBHHHH", 0, 0, linear, 0, 0, 0)
            for version in (4, 6):
                os.write(tap, head + large_packet(version, port))

    # More than headers: with only our own walk (before Linux 6.11) those in pages are not captured else.
    tracer = Tracer(netns=network.router.name, interface="p0", probes=probe, filter=expression, snaplen=144)
    seen = [event for event in trace(tracer, send) if event.length > _LENGTH]
    found = sorted((4 if event.packet.protocol == 0x0800 else 6, event.packet.source_port) for event in seen)
    assert found == sorted((version, port) for version in versions for port in _LINEAR.values())
    assert all(event.raw()["data_length"] > 2000 for event in seen)
