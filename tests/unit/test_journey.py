"""Journeys from records made by hand: grouping, ends, changes, bounds, and how they are printed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from packet_tracer.events import Context, EventBatch, EventFlags, Hook, ProbeId
from packet_tracer.events.names import MAPPED_PREFIX
from packet_tracer.events.records import encode
from packet_tracer.formats.journeys import JourneyText, duration_text, end_text
from packet_tracer.journey import EndKind, Journey, Journeys
from tests.unit.format_records import SYN, context

CLIENT, ROUTER, SERVER = 11, 12, 13
FORWARD, READ, QUEUE, DONE, MERGED, AGAIN, ENTRY = 64, 66, 68, 70, 72, 74, 76
FIRST = EventFlags.FIRST_SIGHT | SYN["flags"]
PART = EventFlags.MERGED | SYN["flags"]
MS = 1_000_000


def names() -> Context:
    """One context for all batches of a capture."""
    probes = {int(probe): probe.name.lower() for probe in ProbeId}
    functions = {
        FORWARD: "ip_forward",
        READ: "skb_copy_datagram_iter",
        QUEUE: "tcp_data_queue",
        DONE: "__kfree_skb",
        MERGED: "kfree_skb_partial",
        AGAIN: "__tcp_retransmit_skb",
    }
    made = context(
        interfaces={(CLIENT, 3): "c0", (ROUTER, 4): "r0", (ROUTER, 5): "r1", (SERVER, 3): "s0"},
        namespaces={CLIENT: "client", ROUTER: "router", SERVER: "server"},
    )
    return replace(made, probes=probes | functions)


NAMES = names()


def seen(at_ms: float, probe: int, **changes: Any) -> dict[str, Any]:
    """What one probe saw of packet 1 at a time, at the client unless changed."""
    return SYN | {"timestamp_ns": int(at_ms * MS), "probe_id": probe, "packet_id": 1} | changes


def records(*members: dict[str, Any]) -> EventBatch:
    return EventBatch.from_bytes(b"".join(encode(**one) for one in members), NAMES)


def journeys(*members: dict[str, Any]) -> list[Journey]:
    """All journeys of these records."""
    grouped = Journeys()
    return grouped.add(records(*members)) + grouped.finish()


def only(*members: dict[str, Any]) -> Journey:
    (journey,) = journeys(*members)
    return journey


def changes_at(journey: Journey, hop: int) -> list[str]:
    return [str(change) for change in journey.hops[hop].changes]


QUEUED, SENT = ProbeId.NET_DEV_QUEUE, ProbeId.NET_DEV_START_XMIT
RECEIVED = ProbeId.NETIF_RECEIVE_SKB
CONSUMED, DROPPED = ProbeId.CONSUME_SKB, ProbeId.KFREE_SKB
DROP = {"drop_reason": 6, "location": 0x1234}
DROP_FLAGS = SYN["flags"] | EventFlags.DROP_REASON | EventFlags.DROP_LOCATION


# Grouping


def test_packets_are_told_apart_and_numbered_as_they_were_first_seen() -> None:
    first, second = journeys(
        seen(1, QUEUED, packet_id=9), seen(2, QUEUED, packet_id=5), seen(3, SENT, packet_id=9)
    )
    assert [(one.number, one.packet_id, len(one.records)) for one in (first, second)] == [
        (1, 9, 2),
        (2, 5, 1),
    ]


def test_hops_have_stages_and_the_time_since_the_one_before() -> None:
    hops = only(seen(1, QUEUED), seen(1.25, SENT), seen(3, RECEIVED)).hops
    assert [(hop.stage, hop.since_ns) for hop in hops] == [
        ("qdisc", 0),
        ("driver out", 250_000),
        ("device in", 1_750_000),
    ]


def test_events_without_an_id_stand_for_themselves() -> None:
    grouped = Journeys()
    over = grouped.add(records(seen(1, QUEUED, packet_id=0), seen(2, QUEUED, packet_id=0)))
    assert [len(journey.records) for journey in over] == [1, 1]
    assert grouped.open == 0


def test_a_child_names_its_parent_and_the_parent_its_children() -> None:
    parent, *children = journeys(
        seen(1, QUEUED, packet_id=5),
        seen(2, SENT, packet_id=6, parent_id=5),
        seen(3, SENT, packet_id=7, parent_id=5),
    )
    assert [(child.parent, child.made, child.merged) for child in children] == [(1, True, False)] * 2
    assert parent.children == [2, 3]


def test_a_packet_that_gets_a_parent_later_was_merged_into_it() -> None:
    _, merged = journeys(
        seen(1, RECEIVED, packet_id=5, flags=FIRST),
        seen(2, RECEIVED, packet_id=6, flags=FIRST),
        seen(3, RECEIVED, packet_id=6, parent_id=5, flags=PART),
    )
    assert (merged.parent, merged.merged, merged.end.kind) == (1, True, EndKind.MERGED)
    assert merged.complete


# Ends


def test_a_dropped_packet_says_why_and_where() -> None:
    journey = only(seen(1, QUEUED, flags=FIRST), seen(2, DROPPED, flags=DROP_FLAGS, **DROP))
    end = journey.end
    assert (end.kind, end.reason, end.location) == (EndKind.DROPPED, "NETFILTER_DROP", "nf_hook_slow+0x42")
    assert journey.complete


def test_a_drop_is_an_end_also_when_its_buffer_is_freed_after_it() -> None:
    assert only(seen(1, DROPPED, flags=DROP_FLAGS, **DROP), seen(2, DONE)).end.kind is EndKind.DROPPED


def test_the_drop_of_a_clone_is_not_the_packets_end() -> None:
    clone = 0xFFFF888000000100
    journey = only(
        seen(1, RECEIVED), seen(2, DROPPED, skb_address=clone, flags=DROP_FLAGS, **DROP), seen(3, CONSUMED)
    )
    assert journey.end.kind is EndKind.CONSUMED


def test_the_drop_of_the_skb_last_seen_on_its_way_is_the_end_whoever_frees_another_later() -> None:
    """A segment dropped at its receiver: the sender frees its own clone when it is acknowledged."""
    sent = 0xFFFF888000000100
    journey = only(
        seen(1, QUEUED, skb_address=sent),
        seen(2, RECEIVED),
        seen(3, DROPPED, flags=DROP_FLAGS, **DROP),
        seen(4, DONE, skb_address=sent),
    )
    assert journey.end.kind is EndKind.DROPPED


def test_what_a_sender_sends_again_has_ended_before() -> None:
    journey = only(
        seen(1, QUEUED, flags=FIRST),
        seen(2, DROPPED, flags=DROP_FLAGS, **DROP),
        seen(3, AGAIN, skb_address=1),
    )
    assert journey.end.kind is EndKind.DROPPED
    assert journey.complete


def test_what_became_a_part_of_another_packet_is_neither_consumed_nor_dropped() -> None:
    """A child whose whole is put together again keeps its parent: the end itself says what it is."""
    _, coalesced, listed = journeys(
        seen(1, QUEUED, packet_id=5, flags=FIRST),
        seen(2, RECEIVED, packet_id=6, parent_id=5),
        seen(3, MERGED, packet_id=6, parent_id=5),
        seen(4, RECEIVED, packet_id=7, parent_id=5),
        seen(5, DROPPED, packet_id=7, parent_id=5, flags=PART | DROP_FLAGS, **DROP),
    )
    assert [one.end.kind for one in (coalesced, listed)] == [EndKind.MERGED] * 2


def test_who_read_it_is_who_copied_it_out() -> None:
    journey = only(
        seen(1, RECEIVED, flags=FIRST),
        seen(2, READ, comm=b"nginx", pid=4711),
        seen(3, CONSUMED, comm=b"other"),
    )
    assert (journey.end.kind, journey.end.process) == (EndKind.READ, "nginx:4711")
    assert journey.complete


def test_what_a_driver_took_was_sent_freed_or_not() -> None:
    assert only(seen(1, QUEUED), seen(2, SENT)).end.kind is EndKind.SENT
    assert only(seen(1, QUEUED), seen(2, SENT), seen(3, CONSUMED)).end.kind is EndKind.SENT


def test_what_a_driver_frees_as_dropped_after_it_took_it_was_sent() -> None:
    """vmxnet3 does so with all that it sends."""
    outside = DROP_FLAGS | EventFlags.OUTSIDE_TRANSMIT
    no_reason = DROP | {"drop_reason": 2}
    sent = only(seen(1, QUEUED), seen(2, SENT), seen(3, DROPPED, flags=outside, **no_reason))
    assert (sent.end.kind, sent.end.location) == (EndKind.SENT, "nf_hook_slow+0x42")
    assert end_text(sent) == "SENT at c0; its driver frees what it sent as dropped, at nf_hook_slow+0x42"
    for drop in (
        seen(3, DROPPED, flags=DROP_FLAGS, **no_reason),  # in its transmit call
        seen(3, DROPPED, flags=outside, **DROP),  # with a reason
    ):
        assert only(seen(1, QUEUED), seen(2, SENT), drop).end.kind is EndKind.DROPPED
    received = only(seen(1, RECEIVED), seen(3, DROPPED, flags=outside, **no_reason))
    assert received.end.kind is EndKind.DROPPED


def test_the_end_of_a_clone_that_was_only_looked_at_is_not_the_packets() -> None:
    """What asks for a neighbour's address is a clone of the packet that waits for it."""
    shared = SYN["flags"] | EventFlags.SHARED
    asked = [seen(at, CONSUMED, flags=shared, skb_address=0x77) for at in (1, 1000, 2000)]
    waiting = only(*asked)
    assert (waiting.end.kind, waiting.complete) == (EndKind.UNFINISHED, False)
    dropped = only(*asked, seen(3000, DROPPED, flags=DROP_FLAGS, **DROP))
    assert dropped.end.kind is EndKind.DROPPED
    assert only(seen(1, QUEUED), seen(2, SENT), asked[1]).end.kind is EndKind.SENT
    # One that went its own way ends it, whoever holds its bytes still: TCP does so with what it has sent.
    on_its_way = seen(3, CONSUMED, flags=shared)
    assert only(seen(1, RECEIVED), on_its_way).end.kind is EndKind.CONSUMED
    assert JourneyText().format([dropped]).count("a clone\n") == 3


def test_a_packet_whose_clone_ended_is_waited_for() -> None:
    grouped = Journeys()
    clone = seen(1000, CONSUMED, flags=SYN["flags"] | EventFlags.SHARED, skb_address=0x77)
    grouped.add(records(clone))
    assert grouped.expire(2900 * MS) == []
    assert len(grouped.expire(3000 * MS)) == 1


def test_what_has_no_end_lies_in_a_queue_or_was_not_seen_again() -> None:
    waiting, lost = only(seen(1, RECEIVED, flags=FIRST), seen(2, QUEUE)), only(seen(1, RECEIVED, flags=FIRST))
    assert (waiting.end.kind, lost.end.kind) == (EndKind.QUEUED, EndKind.UNFINISHED)
    assert not waiting.complete
    assert not lost.complete


def test_a_journey_whose_beginning_was_not_seen_is_not_complete() -> None:
    assert not only(seen(1, RECEIVED), seen(2, CONSUMED)).complete
    assert only(seen(1, RECEIVED, flags=FIRST), seen(2, CONSUMED)).complete


# Waiting


def test_after_its_end_a_packet_is_given_out_when_it_has_settled() -> None:
    grouped = Journeys()
    assert grouped.add(records(seen(1000, RECEIVED), seen(1001, CONSUMED))) == []
    assert grouped.expire(1200 * MS) == []
    assert len(grouped.expire(1201 * MS)) == 1
    assert grouped.open == 0


def test_while_a_clone_lives_it_is_waited_for() -> None:
    grouped = Journeys()
    grouped.add(records(seen(1000, RECEIVED), seen(1001, RECEIVED, skb_address=64), seen(1002, CONSUMED)))
    assert grouped.expire(3001 * MS) == []
    assert len(grouped.expire(3002 * MS)) == 1


def test_time_goes_on_with_the_records() -> None:
    grouped = Journeys()
    grouped.add(records(seen(1000, RECEIVED)))
    (over,) = grouped.add(records(seen(3000, RECEIVED, packet_id=2)))
    assert over.packet_id == 1


def test_a_packet_seen_again_later_keeps_its_number() -> None:
    grouped = Journeys()
    grouped.add(records(seen(1000, RECEIVED, flags=FIRST)))
    grouped.expire(9000 * MS)
    grouped.add(records(seen(9000, CONSUMED)))
    (again,) = grouped.finish()
    assert (again.number, again.resumed, again.complete) == (1, True, False)


# Bounds


def test_beyond_the_bound_the_packet_longest_unseen_is_forgotten_and_counted() -> None:
    grouped = Journeys(max_journeys=2)
    over = grouped.add(
        records(
            *(
                seen(number, RECEIVED, packet_id=packet, flags=FIRST)
                for number, packet in enumerate((1, 2, 1, 3), 1)
            )
        )
    )
    assert [(one.packet_id, one.end.kind) for one in over] == [(2, EndKind.FORGOTTEN)]
    assert (grouped.open, grouped.forgotten) == (2, 1)
    assert not over[0].complete


def test_packets_that_ended_make_room_first_and_are_not_forgotten() -> None:
    grouped = Journeys(max_journeys=2)
    over = grouped.add(
        records(
            seen(1, RECEIVED),
            seen(2, CONSUMED, packet_id=2),
            seen(3, RECEIVED, packet_id=3),
        )
    )
    assert [(one.packet_id, one.end.kind) for one in over] == [(2, EndKind.CONSUMED)]
    assert grouped.forgotten == 0


def test_the_number_of_events_kept_is_bounded_too() -> None:
    grouped = Journeys(max_events=3)
    over = grouped.add(records(*(seen(number, RECEIVED) for number in range(1, 9))))
    assert [len(one.records) for one in over] == [4, 4]
    assert grouped.forgotten == 2


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


def test_a_traced_program_s_drop_is_an_end() -> None:
    """A driver takes the buffer back, and no skb ends."""
    xdp = EventFlags.XDP | EventFlags.VERDICT
    members = (
        seen(1, ENTRY, hook=Hook.PROGRAM, flags=FIRST | EventFlags.XDP),
        seen(2, ENTRY + 1, hook=Hook.PROGRAM_RETURN, flags=xdp, verdict=1),
    )
    names = replace(NAMES, probes={ENTRY: "xdp:firewall#7", ENTRY + 1: "xdp:firewall#7 returns"})
    batch = EventBatch.from_bytes(b"".join(encode(**one) for one in members), names)
    grouped = Journeys()
    (journey,) = grouped.add(batch) + grouped.finish()
    assert (journey.end.kind, journey.end.reason) == (EndKind.DROPPED, "XDP_DROP")
    assert [hop.stage for hop in journey.hops] == ["XDP", "XDP"]
    assert "DROPPED XDP_DROP at xdp:firewall#7, " in JourneyText().format([journey])


def test_hooks_without_an_skb_keep_no_journey_open() -> None:
    grouped = Journeys()
    grouped.add(
        records(seen(1, ProbeId.XDP, hook=Hook.XDP, flags=EventFlags.XDP, skb_address=77), seen(2, CONSUMED))
    )
    assert len(grouped.expire(202 * MS)) == 1
