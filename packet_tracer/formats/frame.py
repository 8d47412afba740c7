"""The lines around the events: what a capture was, and what it came to. With them the schema of every line.

A file of events says itself whether anything is missing in it: its last line counts what was lost, and a file
without that line was cut short.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import datetime, timezone
from operator import attrgetter
from typing import Any

from packet_tracer._version import __version__
from packet_tracer.formats.schema import schema
from packet_tracer.probes.setup import Counters

#: What each counter of a probe counts, in events.
_COUNTERS = {
    "seen": "that passed the filters",
    "kept": "of these, those that were read",
    "lost_ring": "of these, those that found the ring full",
    "lost_stack": "whose kernel stack could not be kept",
    "rejected": "that the filters turned away; 0 unless they were counted",
    "untracked": "kept without a packet id, because the table of packets was full",
    "missed": "of the whole host that the kernel kept from the probe, because it ran on that CPU already",
}
_values = attrgetter(*_COUNTERS)  # dataclasses.asdict() takes 20 us for each of thousands of functions


def start_line(*, probes: Iterable[str], snaplen: int, wall_clock_offset_ns: int) -> str:
    """Return the line before the first event."""
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    return _line(
        {
            "type": "start",
            "timestamp": now,
            "version": __version__,
            "kernel": platform.release(),
            "machine": platform.machine(),
            "host": platform.node(),
            "probes": list(probes),
            "snaplen": snaplen,
            "wall_clock_offset_ns": wall_clock_offset_ns,
        }
    )


def end_line(
    *,
    events: int,
    packets: int,
    duration_seconds: float,
    stats: Mapping[str, Counters],
    journeys: Mapping[str, int] | None = None,
) -> str:
    """Return the line after the last event. ``journeys`` are the keys that only journeys add to it."""
    came_to = totals(events, packets, duration_seconds, stats)
    return _line({"type": "end", **came_to, **(journeys or {})})


def totals(
    events: int, packets: int, duration_seconds: float, stats: Mapping[str, Counters]
) -> dict[str, Any]:
    """Return what a capture came to: ``events`` were written, ``lost`` are those no ring had room for."""
    return {
        "events": events,
        "packets": packets,
        "lost": sum(counters.lost_ring for counters in stats.values()),
        "duration_seconds": round(duration_seconds, 6),
        "probes": {
            name: dict(zip(_COUNTERS, _values(counters), strict=True)) for name, counters in stats.items()
        },
    }


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":")) + "\n"


def lines_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of every line that is written."""
    from packet_tracer.formats.journey_json import journey_schema  # no capture of events waits for it

    event = schema()
    dialect = event.pop("$schema")
    return {
        "$schema": dialect,
        "title": "packet-tracer lines",
        "description": "What `ptrace capture --format json` and `-w FILE.jsonl` write, one object a line.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in ("event", "journey", "start", "end")],
        "$defs": {"event": event, "journey": journey_schema(), "start": _START, "end": _END},
    }


def _object(
    description: str,
    type_: str,
    properties: Mapping[str, Mapping[str, Any]],
    optional: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "properties": {"type": {"const": type_}, **properties, **(optional or {})},
        "required": ["type", *properties],
        "additionalProperties": False,
    }


_START = _object(
    "The first line: what is captured, where.",
    "start",
    {
        "timestamp": {"type": "string", "format": "date-time", "description": "when it began, in UTC"},
        "version": {"type": "string", "description": "packet-tracer's"},
        "kernel": {"type": "string", "description": "release of the kernel"},
        "machine": {"type": "string", "description": "architecture"},
        "host": {"type": "string", "description": "name of the host"},
        "probes": {"type": "array", "items": {"type": "string"}, "description": "names of the probes in use"},
        "snaplen": {"type": "integer", "description": "bytes kept of each packet"},
        "wall_clock_offset_ns": {
            "type": "integer",
            "description": "what was added to monotonic_ns for timestamp_ns",
        },
    },
)

_END = _object(
    "The last line: what it came to. A file without it was cut short.",
    "end",
    {
        "events": {
            "type": "integer",
            "description": "event lines in this output; with --journeys: events in its journeys",
        },
        "packets": {"type": "integer", "description": "packets that they belong to"},
        "lost": {"type": "integer", "description": "events that no ring had room for"},
        "duration_seconds": {"type": "number", "description": "from the first moment to the last"},
        "probes": {
            "type": "object",
            "description": "counters of each probe",
            "additionalProperties": {
                "type": "object",
                "properties": {
                    name: {"type": "integer", "description": f"events {words}"}
                    for name, words in _COUNTERS.items()
                },
                "required": [field.name for field in fields(Counters)],
            },
        },
    },
    {
        "journeys": {"type": "integer", "description": "with --journeys: journey lines in this output"},
        "forgotten": {
            "type": "integer",
            "description": "with --journeys: of these, given out early because too many were under way",
        },
    },
)
