"""Journeys as JSON lines: one object a packet, with its hops and its end (docs/json.md).

Each object is made from the tables here, and so are its schema and its page: a key is never left out, null
means not known or not there, and zero means zero.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any, NamedTuple

from packet_tracer.events import Event, names
from packet_tracer.formats.schema import STACK
from packet_tracer.journey import Hop, Journey

#: Names the frames of an event's kernel stack, innermost first; None: it was not kept.
StackOf = Callable[[Event], "tuple[str, ...] | None"]

_NANOSECONDS = 1_000_000_000
_STR: dict[str, Any] = {"type": "string"}
_INT: dict[str, Any] = {"type": "integer"}
_BOOL: dict[str, Any] = {"type": "boolean"}
_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}


class Key(NamedTuple):
    """A key: its JSON type, what it means, and how its value is found."""

    name: str
    type: dict[str, Any]
    description: str
    value: Callable[[Any], Any]
    nullable: bool = True


def timestamp(nanoseconds: int) -> str:
    """Return wall-clock time as RFC 3339 in UTC, with nanoseconds."""
    seconds, rest = divmod(nanoseconds, _NANOSECONDS)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _headed(journey: Journey) -> Event:
    """The first event that has addresses: the first of all may be from before the headers were written."""
    return next((event for event in journey.events if event.packet.source is not None), journey.events[0])


def _protocol_name(journey: Journey) -> str | None:
    number = _headed(journey).packet.l4_protocol
    return None if number is None else names.IP_PROTOCOLS.get(number)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


_CHANGE = (
    Key(
        "what",
        _STR,
        "`namespace`, `interface`, `source`, `destination`, `ttl`, `length`, `encapsulated`, `decapsulated`, "
        "`vlan`, `mark`",
        lambda change: change.what,
        False,
    ),
    Key("before", _STR, "as it was when the packet was last seen", lambda change: change.before, False),
    Key("after", _STR, "as it is here", lambda change: change.after, False),
)

_HOP = (
    Key("timestamp", _TIME, "wall-clock time in UTC", lambda hop: timestamp(hop.event.timestamp_ns), False),
    Key("timestamp_ns", _INT, "in nanoseconds since 1970", lambda hop: hop.event.timestamp_ns, False),
    Key("monotonic_ns", _INT, "CLOCK_MONOTONIC in nanoseconds", lambda hop: hop.event.monotonic_ns, False),
    Key(
        "since_ns", _INT, "nanoseconds since the hop before; 0 at the first", lambda hop: hop.since_ns, False
    ),
    Key("stage", _STR, "where in the kernel, in plain words; see journeys.md", lambda hop: hop.stage),
    Key("probe", _STR, "the probe's name", lambda hop: hop.event.probe, False),
    Key("cpu", _INT, "the CPU it ran on", lambda hop: hop.event.cpu, False),
    Key("pid", _INT, "the thread that ran", lambda hop: hop.event.pid, False),
    Key("comm", _STR, "its name, taken in the kernel", lambda hop: hop.event.comm, False),
    Key("netns", _INT, "inode of the network namespace", lambda hop: hop.event.netns_inode or None),
    Key(
        "netns_name",
        _STR,
        "its name; null for the tracer's own and where it is not known",
        lambda hop: hop.event.context.netns_name(hop.event.netns_inode),
    ),
    Key("ifindex", _INT, "index of the packet's device", lambda hop: hop.event.ifindex or None),
    Key("interface", _STR, "name of that device", lambda hop: hop.event.interface),
    Key(
        "skb",
        _STR,
        "address of the sk_buff: clones have others",
        lambda hop: hex(hop.event.skb_address),
        False,
    ),
    Key("length", _INT, "bytes of the packet there (skb->len)", lambda hop: hop.event.length, False),
    Key("mark", _INT, "the packet's mark; null at XDP", lambda hop: hop.event.mark),
    Key(
        "drop_reason",
        _STR,
        "why the packet, or this clone of it, was dropped",
        lambda hop: hop.event.drop_reason,
    ),
    Key("drop_location", _STR, "the code that dropped it", lambda hop: hop.event.drop_location),
    Key("verdict", _STR, "as in its event: `NETDEV_TX_OK`, ...", lambda hop: hop.event.verdict),
    Key("return_value", _INT, "what a traced function returned", lambda hop: hop.event.return_value),
    Key("duration_ns", _INT, "time inside it, in nanoseconds", lambda hop: hop.event.duration_ns),
)

_END = (
    Key(
        "kind",
        _STR,
        "`read`, `dropped`, `sent`, `consumed`, `merged`, `queued`, `unfinished` or `forgotten`: "
        "see journeys.md",
        lambda end: end.kind.value,
        False,
    ),
    Key(
        "timestamp_ns",
        _INT,
        "time of the event that shows it, in nanoseconds since 1970",
        lambda end: end.event.timestamp_ns,
        False,
    ),
    Key(
        "pid",
        _INT,
        "the thread that read it, or ran when it was consumed; null for other ends",
        lambda end: None if end.process is None else end.event.pid,
    ),
    Key(
        "comm",
        _STR,
        "its name",
        lambda end: None if end.process is None else end.event.comm,
    ),
    Key(
        "reason",
        _STR,
        "why it was dropped, or freed as if it were (`sent`); null where the kernel doesn't say",
        lambda end: end.reason,
    ),
    Key("location", _STR, "the code that dropped it, or freed it as if", lambda end: end.location),
    Key("probe", _STR, "the probe that saw the end", lambda end: end.event.probe, False),
    Key("netns", _INT, "namespace where it ended", lambda end: end.event.netns_inode or None),
    Key("interface", _STR, "device where it ended", lambda end: end.event.interface),
)

_JOURNEY = (
    Key("number", _INT, "counts the packets of this output from 1", lambda journey: journey.number, False),
    Key(
        "packet_id",
        _INT,
        "as in its events; null if it is not tracked",
        lambda journey: journey.packet_id or None,
    ),
    Key(
        "parent_id", _INT, "the packet that it was made from or became part of", lambda j: j.parent_id or None
    ),
    Key("parent", _INT, "that one's number; null if it was not seen", lambda journey: journey.parent),
    Key(
        "relation",
        {"enum": ["made from", "part of", None]},
        "what it is to its parent",
        lambda j: None if not j.parent_id else "part of" if j.merged else "made from",
        False,
    ),
    Key(
        "children",
        {"type": "array", "items": {"type": "integer"}},
        "numbers of the packets that were made from it or became part of it",
        lambda journey: journey.children,
        False,
    ),
    Key(
        "resumed", _BOOL, "seen again after its journey was given out", lambda journey: journey.resumed, False
    ),
    Key("begun", _BOOL, "whether its beginning was seen", lambda journey: journey.begun, False),
    Key("complete", _BOOL, "whether its beginning and its end were seen", lambda j: j.complete, False),
    Key("timestamp", _TIME, "of its first event", lambda j: timestamp(j.events[0].timestamp_ns), False),
    Key("timestamp_ns", _INT, "the same since 1970", lambda j: j.events[0].timestamp_ns, False),
    Key(
        "duration_ns",
        _INT,
        "from its first event to its end",
        lambda j: j.end.event.monotonic_ns - j.events[0].monotonic_ns,
        False,
    ),
    Key("length", _INT, "bytes, where its headers were first seen", lambda j: _headed(j).length, False),
    Key("protocol", _INT, "EtherType", lambda j: _headed(j).packet.protocol),
    Key("source", _STR, "its first source address", lambda j: _text(_headed(j).packet.source)),
    Key("destination", _STR, "its first destination", lambda j: _text(_headed(j).packet.destination)),
    Key("l4_protocol", _INT, "IP protocol", lambda j: _headed(j).packet.l4_protocol),
    Key("l4_protocol_name", _STR, "its name", _protocol_name),
    Key("source_port", _INT, "null without ports", lambda j: _headed(j).packet.source_port),
    Key("destination_port", _INT, "null without ports", lambda j: _headed(j).packet.destination_port),
)


class JourneyJson:
    """Formats journeys as JSON lines. ``exact`` says how packets are told apart in this capture.

    With ``stack_of`` each hop has its kernel stack.
    """

    def __init__(self, *, exact: bool, stack_of: StackOf | None = None) -> None:
        self._identity = "exact" if exact else "best effort"
        self._stack_of = stack_of

    def format(self, journeys: Iterable[Journey]) -> str:
        """Return a line for each journey, each ending in a newline."""
        return "".join(
            json.dumps(self._journey(journey), separators=(",", ":")) + "\n" for journey in journeys
        )

    def _journey(self, journey: Journey) -> dict[str, Any]:
        return {
            "type": "journey",
            "identity": self._identity,
            **_values(_JOURNEY, journey),
            "hops": [self._hop(hop) for hop in journey.hops],
            "end": _values(_END, journey.end),
        }

    def _hop(self, hop: Hop) -> dict[str, Any]:
        values = _values(_HOP, hop) | {"changes": [_values(_CHANGE, change) for change in hop.changes]}
        if self._stack_of is not None:
            values["stack"] = self._stack_of(hop.event)
        return values


def _values(keys: tuple[Key, ...], what: object) -> dict[str, Any]:
    return {key.name: key.value(what) for key in keys}


# What describes the lines


def journey_schema() -> dict[str, Any]:
    """Return the JSON Schema of a journey's line, for the schema of all lines."""
    changes = {"type": "array", "items": _object(_CHANGE), "description": "what changed since the hop before"}
    hop = _object(_HOP, {"changes": changes})
    hop["properties"]["stack"] = STACK
    described = _object(
        _JOURNEY,
        {
            "hops": {"type": "array", "items": hop, "description": "its events, in order of time"},
            "end": _object(_END) | {"description": "how it ended, as far as was seen"},
        },
    )
    first = {
        "type": {"const": "journey"},
        "identity": {
            "enum": ["exact", "best effort"],
            "description": "how packets are told apart; see identity.md",
        },
    }
    described["properties"] = first | described["properties"]
    described["required"] = [*first, *described["required"]]
    return {"description": "One packet's journey: --journeys with --format json."} | described


def _object(keys: tuple[Key, ...], more: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {key.name: _property(key) for key in keys} | (more or {})
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _property(key: Key) -> dict[str, Any]:
    described = {**key.type, "description": key.description}
    if key.nullable and "type" in described:
        described["type"] = [described["type"], "null"]
    return described


def journey_markdown() -> str:
    """Return the section of docs/json.md about journeys."""
    parts = []
    for title, keys in (
        ("A journey", _JOURNEY),
        ("Each of its `hops`", _HOP),
        ("Each of a hop's `changes`", _CHANGE),
        ("Its `end`", _END),
    ):
        rows = "".join(f"| `{key.name}` | {_type_text(key)} | {key.description} |\n" for key in keys)
        parts.append(f"{title}:\n\n| key | type | meaning |\n| --- | --- | --- |\n{rows}")
    return "\n".join(parts)


def _type_text(key: Key) -> str:
    if "enum" in key.type:
        return ", ".join("null" if value is None else f"`{value}`" for value in key.type["enum"])
    return f"{key.type['type']}{' or null' if key.nullable else ''}"
