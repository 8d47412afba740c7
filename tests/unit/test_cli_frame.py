"""The lines around the events satisfy their schema, and the schema tells the three kinds of line apart."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from packet_tracer.formats import frame
from packet_tracer.probes.session import Counters

TYPES = {"string": str, "integer": int, "number": (int, float), "array": list, "object": dict}


def satisfies(line: str, schema: dict[str, Any]) -> bool:
    """Whether an object has the keys of a schema, all of them and no others, with their types."""
    found = json.loads(line)
    if not set(schema["required"]) <= set(found) <= set(schema["properties"]):
        return False
    for key, rule in schema["properties"].items():
        if key not in found:
            continue
        if "const" in rule:
            if found[key] != rule["const"]:
                return False
        elif not isinstance(found[key], TYPES[rule["type"]]):
            return False
    return True


def lines() -> tuple[str, str]:
    start = frame.start_line(probes=["kfree_skb"], snaplen=96, wall_clock_offset_ns=5)
    stats = {"kfree_skb": Counters(seen=5, kept=3, lost_ring=2), "xdp": Counters(seen=1, kept=0, lost_ring=1)}
    return start, frame.end_line(events=3, packets=2, duration_seconds=1.25, stats=stats)


def test_each_line_satisfies_its_own_schema_only() -> None:
    definitions = frame.lines_schema()["$defs"]
    for line, kind in zip(lines(), ("start", "end"), strict=True):
        assert line.endswith("}\n")
        assert line.count("\n") == 1
        assert [name for name, schema in definitions.items() if satisfies(line, schema)] == [kind]


def test_the_end_counts_what_was_lost() -> None:
    found = json.loads(lines()[1])
    assert found["lost"] == 3
    assert found["probes"]["kfree_skb"]["kept"] == 3
    assert found["duration_seconds"] == 1.25


def test_the_end_of_journeys_says_how_many_there_were() -> None:
    more = {"journeys": 7, "forgotten": 1}
    line = frame.end_line(events=3, packets=2, duration_seconds=1.25, stats={}, journeys=more)
    assert satisfies(line, frame.lines_schema()["$defs"]["end"])
    assert {key: json.loads(line)[key] for key in more} == more


def test_every_counter_is_described() -> None:
    counters = frame.lines_schema()["$defs"]["end"]["properties"]["probes"]["additionalProperties"]
    assert set(counters["properties"]) == {field.name for field in fields(Counters)}
    assert set(counters["required"]) == set(counters["properties"])


def test_the_kinds_of_line_are_told_apart_by_their_type() -> None:
    schema = frame.lines_schema()
    constants = [definition["properties"]["type"]["const"] for definition in schema["$defs"].values()]
    assert sorted(constants) == ["end", "event", "journey", "start"]
    assert [part["$ref"] for part in schema["oneOf"]] == [f"#/$defs/{name}" for name in schema["$defs"]]
