"""JSON lines: a golden line, agreement with the events, the schema and its page."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.events import Event, EventBatch, Hook
from packet_tracer.events._layout import EVENT_FIELDS
from packet_tracer.events.names import MAPPED_PREFIX
from packet_tracer.events.records import encode
from packet_tracer.formats.fields import FIELDS
from packet_tracer.formats.jsonl import JsonLines
from packet_tracer.formats.schema import markdown, schema
from packet_tracer.formats.text import Text
from tests.unit.format_records import AT_XDP, SYN, batch, context

ROOT = Path(__file__).parents[2]


def test_a_whole_json_line() -> None:
    (made,) = JsonLines(data=True).format(batch(SYN, data=b"\x00\xff")).splitlines()
    assert json.loads(made) == {
        "type": "event",
        "timestamp": "2023-11-14T22:13:20.123456789Z",
        "timestamp_ns": 1_700_000_000_123_456_789,
        "monotonic_ns": 123_456_789,
        "probe": "net_dev_queue",
        "hook": "tracepoint",
        "direction": None,
        "cpu": 0,
        "pid": 12,
        "tgid": 10,
        "comm": "curl",
        "netns": 11,
        "netns_name": "client",
        "netns_cookie": None,
        "ifindex": 3,
        "interface": "c0",
        "rx_ifindex": None,
        "mtu": 1500,
        "mark": 0,
        "queue": 0,
        "packet_type": "host",
        "checksum": "none",
        "packet_id": 1 << 50,
        "parent_id": None,
        "skb": "0xffff888012345600",
        "head": "0xffff888012345000",
        "hash": 0,
        "length": 74,
        "nonlinear_length": 0,
        "gso_size": 0,
        "gso_segments": 0,
        "protocol": 2048,
        "protocol_name": "ipv4",
        "vlan": None,
        "vlan_priority": None,
        "source": "192.0.2.2",
        "destination": "198.51.100.2",
        "source_port": 40000,
        "destination_port": 0,
        "l4_protocol": 6,
        "l4_protocol_name": "tcp",
        "ttl": 64,
        "tos": 0,
        "ip_id": 0,
        "fragment": False,
        "fragment_offset": None,
        "tcp_flags": 2,
        "tcp_flags_text": "S",
        "tcp_sequence": 1000,
        "tcp_acknowledgement": 0,
        "icmp_type": None,
        "icmp_code": None,
        "icmp_id": None,
        "icmp_sequence": None,
        "arp_operation": None,
        "encapsulated": False,
        "first_sight": False,
        "followed": False,
        "remembered": False,
        "drop_reason": None,
        "drop_location": None,
        "verdict": None,
        "return_value": None,
        "duration_ns": None,
        "stack_id": None,
        "link_header": True,
        "captured_length": 2,
        "data": "00ff",
    }


def from_event(event: Event) -> dict[str, Any]:
    """The same through the objects: another way of decoding, which must agree."""
    packet, netns = event.packet, event.netns
    return {
        "timestamp_ns": event.timestamp_ns,
        "monotonic_ns": event.monotonic_ns,
        "probe": event.probe,
        "direction": event.direction,
        "cpu": event.cpu,
        "pid": event.pid,
        "tgid": event.tgid,
        "comm": event.comm,
        "netns": netns.inode if netns else None,
        "netns_name": netns.name if netns else None,
        "ifindex": event.ifindex or None,
        "interface": event.interface,
        "rx_ifindex": event.rx_ifindex,
        "mtu": event.mtu,
        "mark": event.mark,
        "packet_id": event.packet_id or None,
        "parent_id": event.parent_id,
        "skb": f"{event.skb_address:#x}",
        "length": packet.length,
        "protocol": packet.protocol,
        "vlan": packet.vlan.id if packet.vlan else None,
        "vlan_priority": packet.vlan.priority if packet.vlan else None,
        "source": packet.source,
        "destination": packet.destination,
        "source_port": packet.source_port,
        "destination_port": packet.destination_port,
        "l4_protocol": packet.l4_protocol,
        "ttl": packet.ttl,
        "tos": packet.tos,
        "ip_id": packet.ip_id,
        "fragment": packet.fragment,
        "fragment_offset": packet.fragment_offset,
        "tcp_flags": packet.tcp_flags,
        "tcp_sequence": packet.tcp_sequence,
        "tcp_acknowledgement": packet.tcp_acknowledgement,
        "icmp_type": packet.icmp_type,
        "icmp_code": packet.icmp_code,
        "icmp_id": packet.icmp_id,
        "icmp_sequence": packet.icmp_sequence,
        "arp_operation": packet.arp_operation,
        "drop_reason": event.drop_reason,
        "drop_location": event.drop_location,
        "verdict": event.verdict,
        "return_value": event.return_value,
        "duration_ns": event.duration_ns,
        "stack_id": event.stack_id,
        "captured_length": packet.captured_length,
        "data": event.data.hex(),
    }


RANGES = {
    "B": (0, 255),
    "H": (0, 65535),
    "I": (0, 2**32 - 1),
    "Q": (0, 2**63 - 1),
    "i": (-(2**31), 2**31 - 1),
}


@st.composite
def anything(draw: st.DrawFn) -> dict[str, Any]:
    """A record with any value in any member, rather often a plausible one."""
    members: dict[str, Any] = {}
    for field in EVENT_FIELDS:
        if field.name in ("size", "version", "captured_length"):
            continue
        if field.format == "s":
            members[field.name] = draw(st.binary(min_size=field.count, max_size=field.count))
        else:
            low, high = RANGES.get(field.format, (-(2**63), 2**63 - 1))
            members[field.name] = draw(st.one_of(st.just(0), st.integers(low, high)))
    members["hook"] = draw(st.one_of(st.sampled_from(Hook), st.integers(0, 255)))
    members["l4_protocol"] = draw(st.sampled_from([0, 1, 6, 17, 58, 200]))
    members["icmp_type"] = draw(st.sampled_from([0, 3, 8, 128, 129, 135]))
    members["netns_inode"], members["ifindex"] = draw(st.sampled_from([(11, 3), (11, 4), (0, 0), (12, 3)]))
    if draw(st.booleans()):
        members["source"] = MAPPED_PREFIX + members["source"][12:]
    members["timestamp_ns"] %= 2**61
    return members


def valid(value: Any, described: dict[str, Any]) -> bool:
    """Whether a value satisfies the little of JSON Schema that we use; bool is no integer there."""
    if "const" in described:
        return bool(value == described["const"])
    types = {"string": str, "boolean": bool, "integer": int, "null": type(None)}
    allowed = described["type"] if isinstance(described["type"], list) else [described["type"]]
    return any(type(value) is types[name] for name in allowed)


@given(st.lists(st.tuples(anything(), st.binary(max_size=8)), max_size=4))
def test_json_is_valid_and_agrees_with_the_events(records: list[tuple[dict[str, Any], bytes]]) -> None:
    made = EventBatch.from_bytes(b"".join(encode(data, **one) for one, data in records), context())
    lines = JsonLines(data=True).format(made)
    assert lines.isascii()
    described = schema()
    objects = [json.loads(one) for one in lines.splitlines()]
    for one, event in zip(objects, made, strict=True):
        assert list(one) == described["required"]
        assert all(valid(value, described["properties"][key]) for key, value in one.items())
        for end in ("source", "destination"):  # an address may be written in several ways
            one[end] = ip_address(one[end]) if one[end] is not None else None
        expected = from_event(event)
        assert {key: one[key] for key in expected} == expected
    text = Text().format(made)
    assert text.count("\n") == len(records)
    assert all(row.isprintable() for row in text.splitlines())


def test_without_data() -> None:
    assert json.loads(JsonLines().format(batch(SYN, data=b"x")))["data"] is None


def test_at_xdp_there_is_no_skb() -> None:
    values = json.loads(JsonLines().format(batch(SYN | AT_XDP)))
    for key in ("mark", "packet_type", "checksum", "hash", "nonlinear_length", "gso_size", "gso_segments"):
        assert values[key] is None, key
    assert values["queue"] == 0


def test_another_context_s_names_are_not_mixed_up() -> None:
    formatter = JsonLines()
    assert json.loads(formatter.format(batch(SYN)))["interface"] == "c0"
    assert json.loads(formatter.format(batch(SYN, interfaces={(11, 3): "other"})))["interface"] == "other"


def test_schema_describes_every_key() -> None:
    described = schema()
    assert described["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert described["required"] == [field.key for field in FIELDS]
    assert list(described["properties"]) == [*described["required"], "stack"]
    assert all(one["description"] for one in described["properties"].values())
    for field in FIELDS:
        sources = [field.constant, field.place, field.kind, field.outcome, field.moment]
        assert sum(source is not None for source in sources) == 1, field.key


def test_the_page_is_made_from_the_table() -> None:
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m packet_tracer.formats.schema > docs/json.md"
