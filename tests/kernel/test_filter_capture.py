"""A filter in a capture: the kernel keeps what tcpdump's filter would, at every kind of hook."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from packet_tracer import lab
from packet_tracer.capture import Tracer
from packet_tracer.events import Event, Packet
from packet_tracer.lab import Lab

from .capturing import netfilter_links_lacking, trace

PROBES = [
    "netif_receive_skb",
    "net_dev_queue",
    "net_dev_start_xmit",
    "net_dev_xmit",
    "consume_skb",
    "kfree_skb",
    "xdp",
    "tc:*",
]


def traffic(network: Lab) -> None:
    lab.ping(network.route, count=3)
    lab.ping(network.route, version=6, count=3)
    lab.http(network.route, port=8080)
    lab.udp_exchange(network.route, port=53, count=5)
    lab.udp_exchange(network.route, version=6, port=53, count=5)


@pytest.fixture(scope="module")
def probes(network: Lab) -> list[str]:
    """All kinds that this kernel has."""
    return PROBES + ["netfilter:*"] * (not netfilter_links_lacking(network.router))


def seen(network: Lab, probes: list[str], expression: str = "") -> list[Event]:
    tracer = Tracer(netns=network.router.name, interface=["r0", "r1"], probes=probes, filter=expression)
    return trace(tracer, lambda: traffic(network))


@pytest.fixture(scope="module")
def everything(network: Lab, probes: list[str]) -> list[Event]:
    """What is seen without a filter, once for all: on an emulated machine the verifier takes long."""
    return seen(network, probes)


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("udp port 53", lambda packet: 53 in (packet.source_port, packet.destination_port)),
        ("icmp[icmptype] == icmp-echo", lambda packet: packet.icmp_type == 8),
        ("ip6 and not udp", lambda packet: packet.protocol == 0x86DD and packet.l4_protocol == 58),
        ("tcp[tcpflags] & tcp-syn != 0", lambda packet: (packet.tcp_flags or 0) & 2),
        ("dst port 8080 and greater 100", lambda packet: packet.destination_port == 8080),
        ("port 9", lambda packet: False),
    ],
)
@pytest.mark.requires("tracepoint", "xdp", "tc")
def test_every_probe_filters_alike(
    network: Lab,
    everything: list[Event],
    probes: list[str],
    expression: str,
    wanted: Callable[[Packet], object],
) -> None:
    """What passes is what was asked for, and no probe that saw such a packet unfiltered misses it."""
    filtered = seen(network, probes, expression)
    assert all(wanted(event.packet) for event in filtered)
    if "greater" not in expression:
        expected = {event.probe for event in everything if wanted(event.packet)}
        assert {event.probe for event in filtered} == expected
