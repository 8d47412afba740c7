"""Records of packets on their way, for journeys made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from packet_tracer.events import Context, EventBatch, EventFlags, ProbeId
from packet_tracer.events.records import encode
from packet_tracer.journey import Journey, Journeys
from tests.unit.format_records import SYN, context

CLIENT, ROUTER, SERVER = 11, 12, 13
FORWARD, READ, QUEUE, DONE, MERGED, AGAIN, ENTRY, RESOLVE = 64, 66, 68, 70, 72, 74, 76, 78
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
        RESOLVE: "neigh_resolve_output",
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


QUEUED, SENT = ProbeId.NET_DEV_QUEUE, ProbeId.NET_DEV_START_XMIT
RECEIVED = ProbeId.NETIF_RECEIVE_SKB
CONSUMED, DROPPED = ProbeId.CONSUME_SKB, ProbeId.KFREE_SKB
DROP = {"drop_reason": 6, "location": 0x1234}
DROP_FLAGS = SYN["flags"] | EventFlags.DROP_REASON | EventFlags.DROP_LOCATION
