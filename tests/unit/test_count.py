"""Counted rows: keys as the kernel writes them, tables, JSON lines, and what is refused before loading."""

from __future__ import annotations

import json
import struct
from ipaddress import ip_address

import pytest

from packet_tracer.count import BY, Count, Counter, CountTotals, Snapshot, decode
from packet_tracer.errors import UsageError
from packet_tracer.events import Context, DropReasons
from packet_tracer.events._layout import COUNT_KEY_FORMAT, CountBy, CountFlags
from packet_tracer.events.context import FixedNames
from packet_tracer.formats.counts import Table, json_lines, label, totals_text
from packet_tracer.probes.counting import key_size

CONTEXT = Context(
    interface_names=FixedNames(namespaces={77: "web"}), drop_reasons=DropReasons({2: "NOT_SPECIFIED"})
)
A4, B4 = (bytes(10) + b"\xff\xff" + bytes(address) for address in ((192, 0, 2, 1), (192, 0, 2, 9)))
A6 = bytes.fromhex("20010db8" + "00" * 11 + "01")
BOTH = CountFlags.ADDRESSES | CountFlags.PORTS


def row(kind: CountBy, *members: object) -> Count:
    """Decode a key of these members, cut to what the kernel's map has of it."""
    key = struct.pack(COUNT_KEY_FORMAT, *members)
    assert not any(key[key_size(kind) :])
    return decode(kind, key[: key_size(kind)], 3, 300, CONTEXT)


@pytest.mark.parametrize(
    ("kind", "members", "text"),
    [
        (CountBy.PROTOCOL, (0, 0x0800, 6, 0, 0, 0, b"", b""), "ipv4 tcp"),
        (CountBy.PROTOCOL, (0, 0x86DD, 253, 0, 0, 0, b"", b""), "ipv6 253"),
        (CountBy.PROTOCOL, (0, 0x0806, 0, 0, 0, 0, b"", b""), "arp"),
        (CountBy.PROTOCOL, (0, 0x88B5, 0, 0, 0, 0, b"", b""), "0x88b5"),
        (CountBy.PROTOCOL, (0, 0, 0, 0, 0, 0, b"", b""), "unknown"),
        (CountBy.PORT, (0, 0, 17, CountFlags.PORTS, 53, 0, b"", b""), "udp 53"),
        (CountBy.PORT, (0, 0, 17, CountFlags.PORTS, 0, 0, b"", b""), "udp 0"),
        (CountBy.PORT, (0, 0, 17, 0, 0, 0, b"", b""), "udp"),
        (CountBy.ADDRESS, (0, 0, 0, CountFlags.ADDRESSES, 0, 0, A4, b""), "192.0.2.1"),
        (CountBy.ADDRESS, (0, 0, 0, CountFlags.ADDRESSES, 0, 0, b"", b""), "::"),
        (CountBy.ADDRESS, (0, 0x88CC, 0, 0, 0, 0, b"", b""), "lldp"),
        (CountBy.FLOW, (0, 0x0800, 6, BOTH, 80, 4000, A4, B4), "tcp 192.0.2.1.80 > 192.0.2.9.4000"),
        (CountBy.FLOW, (0, 0x86DD, 17, BOTH, 1, 0, A6, A6), "udp 2001:db8::1.1 > 2001:db8::1.0"),
        (CountBy.FLOW, (0, 0x0800, 1, CountFlags.ADDRESSES, 0, 0, A4, B4), "icmp 192.0.2.1 > 192.0.2.9"),
        (CountBy.FLOW, (0, 0x0806, 0, CountFlags.ADDRESSES, 0, 0, A4, B4), "arp 192.0.2.1 > 192.0.2.9"),
        (CountBy.NETNS, (77, 0, 0, 0, 0, 0, b"", b""), "web"),
        (CountBy.NETNS, (78, 0, 0, 0, 0, 0, b"", b""), "78"),
        (CountBy.NETNS, (0, 0, 0, 0, 0, 0, b"", b""), "unknown"),
        (CountBy.DROP_REASON, (2, 0, 0, 0, 0, 0, b"", b""), "NOT_SPECIFIED"),
    ],
)
def test_keys(kind: CountBy, members: tuple[object, ...], text: str) -> None:
    found = row(kind, *members)
    assert label(found) == text
    assert (found.packets, found.bytes) == (3, 300)


def test_every_kind_has_a_key_as_short_as_can_be() -> None:
    assert {by: key_size(CountBy[by.upper().replace("-", "_")]) for by in BY} == {
        "protocol": 8,
        "port": 12,
        "address": 28,
        "flow": 44,
        "netns": 4,
        "drop-reason": 4,
    }


def snapshot(*rows: Count, **totals: int) -> Snapshot:
    names = ("packets", "bytes", "rows", "evicted_rows", "evicted_packets", "failed", "missed")
    return Snapshot(list(rows), CountTotals(**{name: totals.get(name, 0) for name in names}))


def test_table_shows_rates_since_the_reading_before() -> None:
    table = Table("port")
    first = table.lines(snapshot(Count(1000, 64000, l4_protocol="udp", port=53)), 2.0)
    assert [line.split() for line in first] == [
        ["packets", "bytes", "packets/s", "bytes/s", "port"],
        ["1,000", "64,000", "500", "32,000", "udp", "53"],
    ]
    rows = (Count(1010, 65000, l4_protocol="udp", port=53), Count(1, 60, l4_protocol="tcp", port=22))
    second = table.lines(snapshot(*rows), 4.0)
    assert second[1].split() == ["1,010", "65,000", "5", "500", "udp", "53"]
    assert len({line.index(name) for line, name in zip(second, ("port", "udp", "tcp"), strict=True)}) == 1
    assert len(table.lines(snapshot(*rows), 5.0, top=1)) == 2


def test_a_row_that_came_again_has_no_negative_rate() -> None:
    table = Table("port")
    table.lines(snapshot(Count(1000, 64000, l4_protocol="udp", port=53)), 1.0)
    line = table.lines(snapshot(Count(10, 640, l4_protocol="udp", port=53)), 2.0)[1]
    assert line.split()[2:4] == ["10", "640"]


def test_names_of_others_do_not_move_the_cursor() -> None:
    lines = Table("netns").lines(snapshot(Count(1, 60, netns=5, netns_name="\x1b[2Jx\n")), 1.0)
    assert all(line.isprintable() for line in lines)


def test_totals_say_what_rows_do_not_tell() -> None:
    assert totals_text(snapshot(packets=5, bytes=300, rows=2).totals) == "5 packets, 300 bytes, 2 rows"
    text = totals_text(snapshot(evicted_rows=7, evicted_packets=1234, failed=3, missed=2).totals)
    for part in ("7 rows with 1,234 packets made room", "3 packets found no row", "MISSED 2 packets"):
        assert part in text


def test_json_lines() -> None:
    flow = Count(
        3,
        300,
        protocol="ipv4",
        l4_protocol="udp",
        source=ip_address("192.0.2.1"),
        source_port=1,
        destination=ip_address("192.0.2.9"),
        destination_port=2,
    )
    text = json_lines("flow", snapshot(flow, flow, packets=6, rows=2), 1.5, 1.0, top=1)
    found, totals = [json.loads(line) for line in text.splitlines()]
    assert found == {
        "type": "count",
        "timestamp": "1970-01-01T00:00:01.000000Z",
        "seconds": 1.5,
        "by": "flow",
        "packets": 3,
        "bytes": 300,
        "protocol": "ipv4",
        "l4_protocol": "udp",
        "source": "192.0.2.1",
        "source_port": 1,
        "destination": "192.0.2.9",
        "destination_port": 2,
    }
    assert (totals["type"], totals["packets"], totals["rows"], totals["missed"]) == ("counts", 6, 2, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "colour"}, "can't count by 'colour'"),
        ({"direction": "up"}, "no direction 'up'"),
        ({"by": "drop-reason", "direction": "in"}, "drops have no direction"),
        ({"entries": 0}, "0 rows"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Counter(**options)  # type: ignore[arg-type]


def test_nothing_is_read_before_the_start() -> None:
    with pytest.raises(ValueError, match="not started"):
        Counter().read()
