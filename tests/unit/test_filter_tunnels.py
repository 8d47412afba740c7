"""Finding the packet inside a tunnel: against packets that scapy makes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.errors import UsageError
from packet_tracer.filter import LinkType, Tunnel
from packet_tracer.filter.expression import compile_filter
from packet_tracer.filter.tunnels import ALL, Inner, find_inner, tunnels
from tests.filter_corpus import packets
from tests.tunnel_packets import FRAME, OTHERS, TUNNELS, Case


@pytest.mark.parametrize("case", TUNNELS)
def test_the_inner_packet_is_where_scapy_put_it(case: Case) -> None:
    expected = Inner(len(case.packet) - len(case.inner), case.link_type)
    assert find_inner(case.packet, LinkType.ETHERNET, ALL) == expected
    assert find_inner(case.packet, LinkType.ETHERNET, case.kind) == expected
    assert find_inner(case.packet, LinkType.ETHERNET, ALL & ~case.kind) is None


@pytest.mark.parametrize("packet", OTHERS)
def test_what_is_no_tunnel(packet: bytes) -> None:
    assert find_inner(packet, LinkType.ETHERNET, ALL) is None


@given(packets() | st.binary(max_size=80))
def test_any_packet_is_survived(packet: bytes) -> None:
    for link_type in LinkType:
        inner = find_inner(packet, link_type, ALL)
        assert inner is None or inner.offset > 0


def test_both_expressions_must_match() -> None:
    data = TUNNELS[0].packet
    assert compile_filter("host 10.0.0.1", inner="host 192.168.7.1").matches(data)
    assert not compile_filter("host 10.0.0.9", inner="host 192.168.7.1").matches(data)
    assert not compile_filter("host 10.0.0.1", inner="host 192.168.7.9").matches(data)
    assert compile_filter("", inner="tcp port 80").matches(data)
    assert compile_filter("udp", inner="").matches(data)
    assert not compile_filter("", inner="tcp port 80").matches(bytes(FRAME))


def test_a_tunnel_alone_moves_the_expression_inside() -> None:
    data = TUNNELS[0].packet
    assert compile_filter("host 192.168.7.1", tunnel="vxlan").matches(data)
    assert compile_filter("host 192.168.7.1", tunnel=["gre", "vxlan"]).matches(data)
    assert not compile_filter("host 192.168.7.1", tunnel=["gre"]).matches(data)
    assert not compile_filter("host 192.168.7.1").matches(data)


def test_names() -> None:
    assert tunnels(["vxlan", "ipip"]) == Tunnel.VXLAN | Tunnel.IPIP
    with pytest.raises(UsageError, match="there are vxlan, geneve, gre, ipip"):
        tunnels(["l2tp"])


def test_configuration() -> None:
    assert compile_filter("tcp").rodata()["filter_inner"] == 0
    made = compile_filter("tcp", inner="vlan 5", tunnel=["gre"]).rodata()
    assert made == {"filter_enabled": 1, "filter_reads_metadata": 0, "filter_inner": 1, "filter_tunnels": 4}
    assert compile_filter("vlan 5").rodata()["filter_reads_metadata"] == 1
