"""The JSON Schema of a line, and the page that documents it; both from the table of fields.

``python -m packet_tracer.formats.schema > docs/json.md`` writes the page.
"""

from __future__ import annotations

from typing import Any

from packet_tracer.formats.fields import FIELDS, Field

#: The one key that is not always there.
STACK = {
    "type": ["array", "null"],
    "items": {"type": "string"},
    "description": "with --stack: the functions of the kernel's stack, innermost first; null: not kept",
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of an event's line."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "packet-tracer event",
        "description": "One event, as `ptrace capture --format json` writes it, one a line.",
        "type": "object",
        "properties": {field.key: _property(field) for field in FIELDS} | {"stack": STACK},
        "required": [field.key for field in FIELDS],
        "additionalProperties": False,
    }


def _property(field: Field) -> dict[str, Any]:
    described: dict[str, Any] = {"description": field.description}
    if field.constant is not None:
        return {"const": field.constant, **described}
    described["type"] = [field.type, "null"] if field.nullable else field.type
    if field.key == "timestamp":
        described["format"] = "date-time"
    return described


def markdown() -> str:
    """Return the page that documents the keys."""
    from packet_tracer.formats.journey_json import journey_markdown

    rows = "".join(
        f"| `{field.key}` | {field.type}{' or null' if field.nullable else ''} | {field.description} |\n"
        for field in FIELDS
    )
    return f"""# JSON lines

`ptrace capture --format json` and `-w FILE.jsonl` write one JSON object a line. Every event has every key, in
this order. A value is `null` where it is not known or does not exist; zero means zero. Text is escaped to
ASCII. New keys may be added; those here keep their name and meaning. With `--stack` there is also `stack`,
the functions of the kernel's stack, innermost first (null: it could not be kept).

`ptrace schema` prints the JSON Schema (draft 2020-12) that these lines satisfy. This page is made from the
same table of fields: `python -m packet_tracer.formats.schema > docs/json.md`.

| key | type | meaning |
| --- | --- | --- |
{rows}
## Journeys

`ptrace capture --journeys --format json` writes an object of `type` `journey` for each packet, once its
journey is over ([journeys.md](journeys.md)), between a `start` and an `end` line. `identity` says how packets
are told apart: `exact` or `best effort` ([identity.md](identity.md)). The `end` line then also has
`journeys`, the number of these objects, and `forgotten`, how many of them were given out early because too
many packets were under way. With `--stack` each hop has a `stack`.

{journey_markdown()}"""


if __name__ == "__main__":
    print(markdown(), end="")
