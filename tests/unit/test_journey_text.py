"""What changes on a packet's way, and how journeys are printed: records made by hand."""

from __future__ import annotations

from packet_tracer.events import EventFlags, ProbeId
from packet_tracer.events.names import MAPPED_PREFIX
from packet_tracer.formats.journeys import JourneyText, duration_text
from packet_tracer.journey import Journey
from tests.unit.format_records import SYN
from tests.unit.journey_records import (
    CONSUMED,
    DONE,
    DROP,
    DROP_FLAGS,
    DROPPED,
    FIRST,
    FORWARD,
    QUEUED,
    READ,
    RECEIVED,
    ROUTER,
    SENT,
    SERVER,
    journeys,
    only,
    seen,
)


def changes_at(journey: Journey, hop: int) -> list[str]:
    return [str(change) for change in journey.hops[hop].changes]


# Changes


def test_a_router_takes_one_from_the_ttl_and_moves_it_on() -> None:
    journey = only(
        seen(1, SENT),
        seen(2, RECEIVED, netns_inode=ROUTER, ifindex=4),
        seen(3, FORWARD, netns_inode=ROUTER, ifindex=5, ttl=63),
    )
    assert changes_at(journey, 1) == ["namespace client -> router", "interface c0 -> r0"]
    assert changes_at(journey, 2) == ["interface r0 -> r1", "ttl 64 -> 63"]


def test_nat_is_marked_where_it_happens() -> None:
    other = {"destination": MAPPED_PREFIX + bytes([203, 0, 113, 9]), "destination_port": 8080}
    journey = only(seen(1, RECEIVED), seen(2, FORWARD, **other), seen(3, SENT, **other))
    assert changes_at(journey, 1) == ["destination 198.51.100.2.0 -> 203.0.113.9.8080"]
    assert changes_at(journey, 2) == []


def test_a_clone_with_the_headers_from_before_nat_is_no_change_back() -> None:
    other = {"source": MAPPED_PREFIX + bytes([203, 0, 113, 9])}
    clone = {"skb_address": 0xFFFF888000000100}
    journey = only(
        seen(1, RECEIVED), seen(2, RECEIVED, **clone), seen(3, FORWARD, **other), seen(4, CONSUMED, **clone)
    )
    assert [len(hop.changes) for hop in journey.hops] == [0, 0, 1, 0]


def test_a_link_header_more_or_less_is_no_change_of_length() -> None:
    without = {"flags": FIRST & ~EventFlags.LINK_HEADER, "network_offset": 0, "packet_length": 60}
    journey = only(seen(1, FORWARD, **without), seen(2, SENT, network_offset=14, packet_length=74))
    assert changes_at(journey, 1) == []


def test_a_tunnel_is_told_by_its_outer_header() -> None:
    outer = {
        "source": MAPPED_PREFIX + bytes([203, 0, 113, 1]),
        "destination": MAPPED_PREFIX + bytes([203, 0, 113, 2]),
        "l4_protocol": 17,
        "flags": EventFlags.IP | EventFlags.PORTS | EventFlags.LINK_HEADER,
        "destination_port": 4789,
        "packet_length": 124,
    }
    journey = only(seen(1, FORWARD), seen(2, SENT, **outer), seen(3, RECEIVED))
    (into,), (out,) = changes_at(journey, 1), changes_at(journey, 2)
    assert into.startswith("encapsulated: ")
    assert "VXLAN 203.0.113.1.40000 > 203.0.113.2.4789, +50 bytes" in into
    assert out.startswith("decapsulated: ")
    assert out.endswith("-50 bytes")


def test_vlan_and_mark() -> None:
    tagged = {"flags": SYN["flags"] | EventFlags.VLAN, "vlan_tci": 0x2007, "mark": 5}
    assert changes_at(only(seen(1, FORWARD), seen(2, SENT, **tagged)), 1) == [
        "vlan none -> 7",
        "mark 0x0 -> 0x5",
    ]


def test_what_tcp_keeps_in_the_place_of_the_mark_is_no_mark() -> None:
    """Before there is a device, and where its own copy is freed."""
    journey = only(seen(1, FORWARD, ifindex=0, mark=0x1C0), seen(2, SENT), seen(3, DONE, mark=0x1C0))
    assert [hop.changes for hop in journey.hops] == [(), (), ()]


def test_headers_that_are_only_remembered_change_nothing() -> None:
    remembered = {"flags": SYN["flags"] | EventFlags.NO_PACKET, "ttl": 9}
    assert changes_at(only(seen(1, SENT), seen(2, ProbeId.NET_DEV_XMIT, **remembered)), 1) == []


# Text


def test_the_lines_of_a_journey() -> None:
    dropped = {"netns_inode": ROUTER, "ifindex": 4, "flags": DROP_FLAGS, "ttl": 63, **DROP}
    journey = only(seen(1, QUEUED, flags=FIRST), seen(1.0124, DROPPED, **dropped))
    title, first, second, end, empty = JourneyText().format([journey]).split("\n")[:5]
    assert title.startswith("packet 1  ")
    assert title.endswith("IP 192.0.2.2.40000 > 198.51.100.2.0: tcp [S] seq 1000")
    assert first.split() == ["+0.0us", "qdisc", "net_dev_queue", "client/c0"]
    assert second.split() == "+12.4us dropped kfree_skb router/r0 ttl 64 -> 63; NETFILTER_DROP".split()
    assert end == "  DROPPED NETFILTER_DROP at nf_hook_slow+0x42, 12.4us after its first event"
    assert empty == ""


def test_columns_are_aligned() -> None:
    text = JourneyText().format([only(seen(1, QUEUED), seen(2, RECEIVED, netns_inode=SERVER, ifindex=3))])
    _, first, second, *_ = text.splitlines()
    assert first.index("net_dev_queue") == second.index("netif_receive_skb")
    assert first.index("client/c0") == second.index("server/s0")


def test_colours_only_when_asked_for_and_control_characters_never() -> None:
    hostile = only(seen(1, RECEIVED), seen(2, READ, comm=b"\x1b[2Jx", pid=1))
    plain, coloured = JourneyText().format([hostile]), JourneyText(color=True).format([hostile])
    assert "\x1b" not in plain
    assert "READ by \\x1b[2Jx:1" in plain
    assert "\x1b[1;32m" in coloured
    assert "\x1b[2J" not in coloured


def test_relatives_are_named() -> None:
    text = JourneyText().format(
        journeys(seen(1, QUEUED, packet_id=5, flags=FIRST), seen(2, SENT, packet_id=6, parent_id=5))
    )
    assert "; see packet 2\n" in text
    assert "packet 2 (made from packet 1)  " in text


def test_durations() -> None:
    assert [duration_text(ns) for ns in (0, 12_400, 3_100_000, 2_000_000_000)] == [
        "0.0us",
        "12.4us",
        "3.1ms",
        "2.0s",
    ]
