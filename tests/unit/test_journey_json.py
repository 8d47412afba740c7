"""Journeys as JSON: what one line holds, that it satisfies the schema, and the stacks beside hops."""

from __future__ import annotations

import json
from typing import Any

from packet_tracer.events import Event, EventFlags
from packet_tracer.formats.frame import lines_schema
from packet_tracer.formats.journey_json import JourneyJson
from packet_tracer.formats.journeys import JourneyText
from packet_tracer.journey import Journey
from tests.unit.journey_records import (
    DROP,
    DROP_FLAGS,
    DROPPED,
    FIRST,
    MS,
    PART,
    QUEUED,
    READ,
    RECEIVED,
    ROUTER,
    SENT,
    journeys,
    only,
    seen,
)

_TYPES = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


def check(value: Any, schema: dict[str, Any], path: str = "") -> None:
    """Fail where a value doesn't satisfy a schema of the few words that ours is made of."""
    if "const" in schema:
        assert value == schema["const"], path
    elif "enum" in schema:
        assert value in schema["enum"], path
    else:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(type(value) is _TYPES[kind] for kind in kinds), f"{path}: {value!r}"
    for index, item in enumerate(value if isinstance(value, list) else ()):
        check(item, schema["items"], f"{path}[{index}]")
    if isinstance(value, dict):
        assert set(schema["required"]) <= set(value) <= set(schema["properties"]), path
        for key, member in value.items():
            check(member, schema["properties"][key], f"{path}.{key}")


def written(*found: Journey, **options: Any) -> list[dict[str, Any]]:
    """The objects of journeys, each checked against the schema."""
    text = JourneyJson(**{"exact": True} | options).format(found)
    assert text.isascii()
    assert text.count("\n") == len(found)
    objects = [json.loads(line) for line in text.splitlines()]
    for one in objects:
        check(one, lines_schema()["$defs"]["journey"])
    return objects


def test_a_dropped_packet() -> None:
    dropped = {"netns_inode": ROUTER, "ifindex": 4, "flags": DROP_FLAGS, "ttl": 63, **DROP}
    (found,) = written(only(seen(1, QUEUED, flags=FIRST), seen(1.0124, DROPPED, **dropped)))
    assert (found["number"], found["packet_id"], found["parent_id"], found["relation"]) == (1, 1, None, None)
    assert (found["identity"], found["begun"], found["complete"]) == ("exact", True, True)
    assert (found["source"], found["source_port"], found["destination_port"]) == ("192.0.2.2", 40000, 0)
    assert found["l4_protocol_name"] == "tcp"
    assert found["duration_ns"] == 12_400
    first, second = found["hops"]
    assert (first["stage"], first["probe"], first["since_ns"], first["changes"]) == (
        "qdisc",
        "net_dev_queue",
        0,
        [],
    )
    assert (first["cpu"], first["mark"]) == (0, 0)  # zero is zero, and there
    assert first["timestamp"] == "2023-11-14T22:13:20.001000000Z"
    assert first["timestamp_ns"] - first["monotonic_ns"] == 1_700_000_000_000_000_000
    assert (second["netns_name"], second["interface"], second["since_ns"]) == ("router", "r0", 12_400)
    assert [change["what"] for change in second["changes"]] == ["namespace", "interface", "ttl"]
    assert second["changes"][-1] == {"what": "ttl", "before": "64", "after": "63"}
    assert found["end"] == {
        "kind": "dropped",
        "timestamp_ns": second["timestamp_ns"],
        "pid": None,
        "comm": None,
        "reason": "NETFILTER_DROP",
        "location": "nf_hook_slow+0x42",
        "probe": "kfree_skb",
        "netns": ROUTER,
        "interface": "r0",
    }


def test_who_read_it() -> None:
    (found,) = written(only(seen(1, RECEIVED), seen(3, READ, comm=b"a\x1b:b", pid=9)), exact=False)
    assert (found["end"]["kind"], found["end"]["pid"], found["end"]["comm"]) == ("read", 9, "a\x1b:b")
    assert (found["begun"], found["complete"], found["identity"]) == (False, False, "best effort")


def test_relatives() -> None:
    parent, child, merged, _ = written(
        *journeys(
            seen(1, QUEUED, packet_id=5, flags=FIRST),
            seen(2, SENT, packet_id=6, parent_id=5),
            seen(3, RECEIVED, packet_id=7),
            seen(4, RECEIVED, packet_id=8),
            seen(5, RECEIVED, packet_id=7, parent_id=8, flags=PART),
        )
    )
    assert parent["children"] == [2]
    assert (child["parent_id"], child["parent"], child["relation"]) == (5, 1, "made from")
    assert (merged["parent_id"], merged["parent"], merged["relation"]) == (8, 4, "part of")
    assert merged["end"]["kind"] == "merged"


def test_a_packet_without_an_id() -> None:
    (found,) = written(only(seen(1, QUEUED, packet_id=0)))
    assert found["packet_id"] is None


def test_headers_are_from_where_there_are_some() -> None:
    bare = {"flags": EventFlags.FIRST_SIGHT}
    (found,) = written(only(seen(1, QUEUED, **bare), seen(2, SENT)))
    assert found["source"] == "192.0.2.2"
    assert found["timestamp_ns"] % 1_000_000_000 == MS


def test_stacks_are_beside_hops_in_json_and_below_them_in_text() -> None:
    def stack_of(event: Event) -> tuple[str, ...] | None:
        return ("ip_rcv+0x5", "evil\x1b[2J") if event.probe == "net_dev_queue" else None

    journey = only(seen(1, QUEUED), seen(2, SENT))
    (found,) = written(journey, stack_of=stack_of)
    assert [hop["stack"] for hop in found["hops"]] == [["ip_rcv+0x5", "evil\x1b[2J"], None]
    lines = JourneyText(stack_of=stack_of).format([journey]).splitlines()
    assert lines[2:4] == ["        ip_rcv+0x5", "        evil\\x1b[2J"]
    assert lines[5] == "        (its kernel stack was not kept)"
