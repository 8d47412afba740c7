"""Text: golden lines, columns, colours, hostile names; and what both formats share."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from packet_tracer.errors import RecordError
from packet_tracer.events import EventBatch, EventFlags, Hook, ProbeId, RecordBlock
from packet_tracer.formats.cache import TextCache
from packet_tracer.formats.jsonl import JsonLines
from packet_tracer.formats.text import Text
from tests.unit.format_records import FLAGS, SIX, SYN, batch, context


def line(**changes: Any) -> str:
    """One event's text, from the length on."""
    (made,) = Text().format(batch(SYN | changes)).splitlines()
    return made.partition("  len ")[2]


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lines show local time: let it be UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("utc")
def test_a_whole_line() -> None:
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


def test_damage_is_an_error() -> None:
    block = RecordBlock(1, bytes(16), memoryview(bytes(4)).cast("I"), memoryview(bytes(4)).cast("I"))
    for formatter in (Text(), JsonLines()):
        with pytest.raises(RecordError):
            formatter.format(EventBatch(block, context()))


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
