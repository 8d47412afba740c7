"""Text and JSON: golden lines, agreement with the events, the schema, hostile names."""

from __future__ import annotations

import json
import re
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.errors import RecordError
from packet_tracer.events import (
    Context,
    DropReasons,
    Event,
    EventBatch,
    EventFlags,
    FixedNames,
    Hook,
    ProbeId,
    RecordBlock,
)
from packet_tracer.events._layout import EVENT_FIELDS
from packet_tracer.events.names import MAPPED_PREFIX
from packet_tracer.events.records import encode
from packet_tracer.formats.cache import TextCache
from packet_tracer.formats.fields import FIELDS
from packet_tracer.formats.jsonl import JsonLines
from packet_tracer.formats.schema import markdown, schema
from packet_tracer.formats.text import Text

ROOT = Path(__file__).parents[2]
FLAGS = EventFlags.IP | EventFlags.PORTS | EventFlags.TCP | EventFlags.LINK_HEADER


class NoSymbols:
    """Names no address."""

    def name(self, address: int) -> str | None:
        return "nf_hook_slow+0x42" if address == 0x1234 else None


def context(**names: Any) -> Context:
    return Context(
        probes={7: "kfree_skb", 4: "net_dev_queue", 6: "net_dev_xmit", 16: "xdp"},
        wall_clock_offset_ns=1_700_000_000_000_000_000,
        interface_names=FixedNames(
            names.get("interfaces", {(11, 3): "c0"}), names.get("namespaces", {11: "client"})
        ),
        drop_reasons=DropReasons({6: "NETFILTER_DROP"}),
        symbols=NoSymbols(),  # type: ignore[arg-type]
    )


SYN: dict[str, Any] = {
    "hook": Hook.TRACEPOINT,
    "probe_id": ProbeId.NET_DEV_QUEUE,
    "timestamp_ns": 123_456_789,
    "packet_id": 1 << 50,
    "skb_address": 0xFFFF888012345600,
    "head_address": 0xFFFF888012345000,
    "pid": 12,
    "tgid": 10,
    "netns_inode": 11,
    "ifindex": 3,
    "packet_length": 74,
    "flags": FLAGS,
    "mtu": 1500,
    "protocol": 0x0800,
    "l4_protocol": 6,
    "source_port": 40000,
    "destination_port": 0,
    "tcp_flags": 2,
    "ttl": 64,
    "source": MAPPED_PREFIX + bytes([192, 0, 2, 2]),
    "destination": MAPPED_PREFIX + bytes([198, 51, 100, 2]),
    "comm": b"curl",
    "tcp_sequence": 1000,
    "stack_id": -1,
}
SIX = {
    "source": bytes.fromhex("20010db8" + "00" * 11 + "01"),
    "destination": bytes(15) + b"\1",
    "protocol": 0x86DD,
}


def batch(*members: dict[str, Any], data: bytes = b"", **names: Any) -> EventBatch:
    return EventBatch.from_bytes(b"".join(encode(data, **one) for one in members), context(**names))


def line(**changes: Any) -> str:
    """One event's text, from the length on."""
    (made,) = Text().format(batch(SYN | changes)).splitlines()
    return made.partition("  len ")[2]


def test_a_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    drop = {
        "probe_id": ProbeId.KFREE_SKB,
        "timestamp_ns": 123_457_000,
        "flags": FLAGS | EventFlags.DROP_REASON | EventFlags.DROP_LOCATION,
        "drop_reason": 6,
        "location": 0x1234,
        "cpu": 1,
    }
    text = Text()
    assert text.header() + text.format(batch(SYN, SYN | drop, SYN | {"packet_id": 0})) == (
        "time                packet  cpu  where           probe               task            headers\n"
        "22:13:20.123456789  #1      0   client/c0       net_dev_queue       curl:12         "
        "len 74    IP 192.0.2.2.40000 > 198.51.100.2.0: tcp [S] seq 1000\n"
        "22:13:20.123457000  #1      1   client/c0       kfree_skb           curl:12         "
        "len 74    IP 192.0.2.2.40000 > 198.51.100.2.0: tcp [S] seq 1000"
        "  DROP NETFILTER_DROP at nf_hook_slow+0x42\n"
        "22:13:20.123456789  #-      0   client/c0       net_dev_queue       curl:12         "
        "len 74    IP 192.0.2.2.40000 > 198.51.100.2.0: tcp [S] seq 1000\n"
    )


UDP = {"flags": EventFlags.IP | EventFlags.PORTS, "l4_protocol": 17}
ICMP = {"flags": EventFlags.IP | EventFlags.ICMP, "l4_protocol": 1}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (SIX | UDP, "74    IP6 2001:db8::1.40000 > ::1.0: udp"),
        (
            {"tcp_flags": 0x12, "tcp_acknowledgement": 0},
            "74    IP 192.0.2.2.40000 > 198.51.100.2.0: tcp [S.] seq 1000 ack 0",
        ),
        (
            ICMP | {"icmp_type": 8, "icmp_id": 5, "icmp_sequence": 0},
            "74    IP 192.0.2.2 > 198.51.100.2: icmp echo request id 5 seq 0",
        ),
        (
            ICMP | {"icmp_type": 3, "icmp_code": 3},
            "74    IP 192.0.2.2 > 198.51.100.2: icmp unreachable code 3",
        ),
        (
            {
                "flags": EventFlags.IP | EventFlags.FRAGMENT,
                "l4_protocol": 17,
                "fragment_offset": 1480,
                "ip_id": 7,
            },
            "74    IP 192.0.2.2 > 198.51.100.2: udp fragment at 1480 id 7",
        ),
        (
            {
                "flags": EventFlags.ARP | EventFlags.VLAN,
                "arp_operation": 1,
                "vlan_tci": 0x2007,
                "protocol": 0x0806,
            },
            "74    vlan 7 ARP who-has 198.51.100.2 tell 192.0.2.2",
        ),
        ({"flags": EventFlags.ARP, "arp_operation": 2}, "74    ARP reply 192.0.2.2 to 198.51.100.2"),
        ({"flags": 0, "protocol": 0x88CC}, "74    lldp"),
        ({"flags": 0, "protocol": 0x1234}, "74    ethertype 0x1234"),
        ({"flags": 0, "protocol": 0}, "74    ?"),
        ({"flags": EventFlags.IP, "l4_protocol": 200}, "74    IP 192.0.2.2 > 198.51.100.2: ip-proto-200"),
        (
            UDP | {"hook": Hook.FUNCTION_RETURN, "return_value": -22, "duration_ns": 900},
            "74    IP 192.0.2.2.40000 > 198.51.100.2.0: udp = -22 after 900 ns",
        ),
        (
            UDP | {"flags": UDP["flags"] | EventFlags.VERDICT, "verdict": 16},
            "74    IP 192.0.2.2.40000 > 198.51.100.2.0: udp  NETDEV_TX_BUSY",
        ),
        (
            UDP | {"flags": UDP["flags"] | EventFlags.DROP_LOCATION, "location": 0x99},
            "74    IP 192.0.2.2.40000 > 198.51.100.2.0: udp  DROP at 0x99",
        ),
    ],
)
def test_packets_as_text(members: dict[str, Any], expected: str) -> None:
    assert line(**members) == expected


def test_places_without_names() -> None:
    def where(**changes: Any) -> str:
        return Text().format(batch(SYN | changes)).split()[3]

    assert where() == "client/c0"
    assert where(ifindex=9) == "client/if9"
    assert where(ifindex=0) == "client/-"
    assert where(netns_inode=12) == "12/if3"
    assert where(netns_inode=0, ifindex=0) == "-"


def test_columns_stay_aligned_as_they_grow() -> None:
    long = SYN | {"comm": b"fifteen letters", "pid": 4194304}
    lines = Text().format(batch(SYN, long, SYN)).splitlines()
    assert lines[1].index("len 74") == lines[2].index("len 74") > lines[0].index("len 74")


def test_colour_only_when_asked() -> None:
    drop = SYN | {"flags": FLAGS | EventFlags.DROP_REASON, "drop_reason": 6}
    assert "\x1b" not in Text().format(batch(drop))
    coloured = Text(color=True).format(batch(drop))
    assert "\x1b[1;31mDROP NETFILTER_DROP\x1b[0m" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert plain == Text().format(batch(drop))


def test_a_packet_keeps_its_number() -> None:
    text = Text()
    numbers = [
        row.split()[1]
        for row in text.format(
            batch(*(SYN | {"packet_id": number} for number in (7, 8, 7, 9, 8)))
        ).splitlines()
    ]
    assert numbers == ["#1", "#2", "#1", "#3", "#2"]
    assert text.format(batch(SYN | {"packet_id": 9})).split()[1] == "#3"


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


EVIL = '\x1b]0;owned\x07\r\n\x00\x9b31m\u202e%s%d\u2028"\\'


def test_hostile_names_can_not_reach_the_terminal_or_break_a_line() -> None:
    evil = SYN | {"comm": b"\x1b[2J%s\n\r\x00x"}
    made = batch(evil, interfaces={(11, 3): EVIL}, namespaces={11: EVIL})
    for output in (Text().format(made), JsonLines().format(made)):
        assert output.count("\n") == 1
        assert output[:-1].isprintable()
    values = json.loads(JsonLines().format(made))
    assert (values["interface"], values["netns_name"]) == (EVIL, EVIL)
    assert values["comm"] == "\x1b[2J%s\n\r"


def test_without_data() -> None:
    assert json.loads(JsonLines().format(batch(SYN, data=b"x")))["data"] is None


def test_at_xdp_there_is_no_skb() -> None:
    values = json.loads(JsonLines().format(batch(SYN | {"hook": Hook.XDP, "probe_id": ProbeId.XDP})))
    for key in ("mark", "packet_type", "checksum", "hash", "nonlinear_length", "gso_size", "gso_segments"):
        assert values[key] is None, key
    assert values["queue"] == 0


def test_damage_is_an_error() -> None:
    block = RecordBlock(1, bytes(16), memoryview(bytes(4)).cast("I"), memoryview(bytes(4)).cast("I"))
    for formatter in (Text(), JsonLines()):
        with pytest.raises(RecordError):
            formatter.format(EventBatch(block, context()))


def test_another_context_s_names_are_not_mixed_up() -> None:
    formatter = JsonLines()
    assert json.loads(formatter.format(batch(SYN)))["interface"] == "c0"
    assert json.loads(formatter.format(batch(SYN, interfaces={(11, 3): "other"})))["interface"] == "other"


def test_schema_describes_every_key() -> None:
    described = schema()
    assert described["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert described["required"] == list(described["properties"]) == [field.key for field in FIELDS]
    assert all(one["description"] for one in described["properties"].values())
    for field in FIELDS:
        sources = [field.constant, field.place, field.flow, field.outcome, field.moment]
        assert sum(source is not None for source in sources) == 1, field.key


def test_the_page_is_made_from_the_table() -> None:
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m packet_tracer.formats.schema > docs/json.md"


def test_cache_keeps_what_was_used_last() -> None:
    made: list[Any] = []

    def make(key: tuple[Any, ...]) -> str:
        made.append(key)
        return str(key)

    cache: TextCache[str] = TextCache(make, capacity=4, lifetime=float("inf"))
    for number in range(100):
        assert cache[(number,)] == f"({number},)"
        assert cache[(0,)] == "(0,)"
        assert len(cache) <= 4
    assert made.count((0,)) == 1
    cache.age()
    assert cache[(0,)]
    cache.forget()
    assert cache[(0,)]
    assert made.count((0,)) == 2
