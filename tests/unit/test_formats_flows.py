"""Many flows: what is kept does not grow with them, and what is kept changes no line."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from packet_tracer.events import EventBatch, EventFlags
from packet_tracer.events.names import MAPPED_PREFIX
from packet_tracer.events.records import encode
from packet_tracer.formats import jsonl, text
from packet_tracer.formats.jsonl import JsonLines
from packet_tracer.formats.text import Text
from tests.unit.format_records import FLAGS, SIX, SYN, context

FRAGMENT = {"flags": EventFlags.IP | EventFlags.FRAGMENT, "l4_protocol": 17}
ECHO = {"flags": EventFlags.IP | EventFlags.ICMP, "l4_protocol": 1, "icmp_type": 8}
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"tcp_flags": 0x10},
    {"flags": FLAGS | EventFlags.VLAN},
    SIX,
    SIX | FRAGMENT,
    FRAGMENT,
    ECHO,
    {"flags": EventFlags.ARP, "protocol": 0x0806, "arp_operation": 1},
    {"flags": 0, "protocol": 0x88CC},
)


def flood(count: int) -> Iterator[bytes]:
    """Yield records of few kinds, each of a flow of its own."""
    generator = random.Random(1)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        prefix = SIX["source"][:12] if "source" in kind else MAPPED_PREFIX
        own = {
            "source": prefix + generator.randbytes(4),
            "destination": prefix + generator.randbytes(4),
            "fragment_offset": generator.randrange(8192) * 8,
            **{
                name: generator.randrange(65536)
                for name in ("source_port", "destination_port", "vlan_tci", "ip_id", "icmp_id")
            },
            **{name: generator.randrange(256) for name in ("ttl", "tos")},
        }
        yield encode(**(SYN | kind | own))


@pytest.mark.parametrize(
    ("formatter", "module", "maker"), [(JsonLines, jsonl, "line_template"), (Text, text, "packet_template")]
)
def test_a_flow_has_no_template_of_its_own(
    formatter: type[JsonLines | Text], module: Any, maker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    make = getattr(module, maker)
    monkeypatch.setattr(module, maker, lambda *arguments: made.append(arguments) or make(*arguments))
    lines = formatter().format(EventBatch.from_bytes(b"".join(flood(900)), context()))
    assert len(set(lines.splitlines())) >= 800  # LLDP has nothing that tells one from another
    assert len(made) == len(KINDS)


def test_lines_are_the_same_with_and_without_caches() -> None:
    records, names = [*flood(90)], context()
    whole = EventBatch.from_bytes(b"".join(records), names)
    alone = [EventBatch.from_bytes(record, names) for record in records]
    cached = JsonLines()
    first = cached.format(whole)
    assert first == "".join(JsonLines().format(one) for one in alone)
    assert cached.format(whole) == first
    # a packet's number is the output's own
    headers = [line.partition("  len ")[2] for line in Text().format(whole).splitlines()]
    assert headers == [Text().format(one).rstrip("\n").partition("  len ")[2] for one in alone]
