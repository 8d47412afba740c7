"""Journeys from records made by hand: grouping, ends, waiting, bounds."""

from __future__ import annotations

from dataclasses import replace

from packet_tracer.events import EventBatch, EventFlags, Hook, ProbeId
from packet_tracer.events.records import encode
from packet_tracer.formats.journeys import JourneyText, end_text
from packet_tracer.journey import EndKind, Journeys
from tests.unit.format_records import SYN
from tests.unit.journey_records import (
    AGAIN,
    CONSUMED,
    DONE,
    DROP,
    DROP_FLAGS,
    DROPPED,
    ENTRY,
    FIRST,
    FORWARD,
    MERGED,
    MS,
    NAMES,
    PART,
    QUEUE,
    QUEUED,
    READ,
    RECEIVED,
    RESOLVE,
    SENT,
    journeys,
    only,
    records,
    seen,
)

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


def test_a_packet_that_may_wait_for_a_neighbour_is_waited_for() -> None:
    """The kernel asks three times, a second apart, before it drops what waits."""
    clone = seen(1000, CONSUMED, flags=SYN["flags"] | EventFlags.SHARED, skb_address=0x77)
    for last in (clone, seen(1000, RESOLVE)):
        grouped = Journeys()
        grouped.add(records(seen(999, FORWARD), last))
        assert grouped.expire(4900 * MS) == []
        assert grouped.open == 1
        (journey,) = grouped.add(records(seen(4950, DROPPED, **DROP))) + grouped.expire(5200 * MS)
        assert (len(journey.records), journey.end.kind) == (3, EndKind.DROPPED)
        assert grouped.open == 0
        grouped.add(records(seen(6000, FORWARD, packet_id=2), last | {"packet_id": 2}))
        assert len(grouped.expire(5000 * MS)) == 1


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
