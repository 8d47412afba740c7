"""Events as JSON lines: one object a line, always the same keys in the same order (docs/json.md)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

from packet_tracer.events import Context, EventBatch
from packet_tracer.events._layout import EVENT_SIZE
from packet_tracer.events.names import address_text
from packet_tracer.formats import fields
from packet_tracer.formats.cache import TextCache
from packet_tracer.formats.fields import (
    FIELDS,
    KIND,
    MOMENT,
    OUTCOME,
    PLACE,
    Field,
    Kind,
    Outcome,
    Place,
    Value,
)


class JsonLines:
    """Formats batches as JSON lines, about 200,000 events a second on one core, of any number of flows.

    With ``data`` the captured bytes are written too, in hexadecimal. Text is escaped to ASCII, so
    no name can break a line or reach a terminal.
    """

    def __init__(self, *, data: bool = False) -> None:
        self._with_data = data
        self._context: Context | None = None
        self._ipv4, self._ipv6 = _templates(ipv6=False), _templates(ipv6=True)

    def _use(self, context: Context) -> None:
        """Make the caches of a context: what a text says depends on its names."""
        self._context = context
        self._places = TextCache(lambda key: _members(fields.place_values(context, Place._make(key))))
        self._outcomes = TextCache(lambda key: _members(fields.outcome_values(context, Outcome._make(key))))

    def format(self, batch: EventBatch) -> str:
        """Return a line for each event, each ending in a newline. Raises RecordError at a damaged record."""
        batch.check()
        if batch.context is not self._context:
            self._use(batch.context)
        places, outcomes, ipv4, ipv6 = self._places, self._outcomes, self._ipv4, self._ipv6
        places.age()
        outcomes.age()
        unpack_place, unpack_kind = PLACE.unpack_from, KIND.unpack_from
        unpack_outcome, unpack_moment = OUTCOME.unpack_from, MOMENT.unpack_from
        offset_ns, with_data, data = batch.context.wall_clock_offset_ns, self._with_data, batch.data
        second, second_text, hexadecimal = -1, "", "null"
        lines = []
        for at in batch.records.offsets:
            (
                monotonic_ns,
                packet_id,
                skb,
                length,
                captured,
                tos,
                source_port,
                destination_port,
                vlan_tci,
                ttl,
                source_address,
                destination_address,
                parent_id,
                head,
                return_value,
                duration_ns,
                packet_hash,
                sequence,
                acknowledgement,
                ip_id,
                stack_id,
                nonlinear,
                fragment_offset,
                icmp_id,
                icmp_sequence,
                gso_size,
                gso_segments,
            ) = unpack_moment(data, at)
            timestamp_ns = monotonic_ns + offset_ns
            now, nanoseconds = divmod(timestamp_ns, 1_000_000_000)
            if now != second:
                second, second_text = now, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
            if with_data:
                hexadecimal = f'"{data[at + EVENT_SIZE : at + EVENT_SIZE + captured].hex()}"'
            source = address_text(source_address)
            # What is not known is 0 in the record. A template hides it, which takes a text a quarter of the
            # time that it takes a number.
            lines.append(
                (ipv6 if ":" in source else ipv4)[unpack_kind(data, at)]
                % (
                    second_text,
                    nanoseconds,
                    timestamp_ns,
                    monotonic_ns,
                    places[unpack_place(data, at)],
                    packet_id or "null",
                    parent_id or "null",
                    skb,
                    head,
                    packet_hash or "0",
                    length,
                    nonlinear or "0",
                    gso_size or "0",
                    gso_segments or "0",
                    vlan_tci & 0xFFF or "0",
                    vlan_tci >> 13 or "0",
                    source,
                    address_text(destination_address),
                    source_port or "0",
                    destination_port or "0",
                    ttl or "0",
                    tos or "0",
                    ip_id or "0",
                    fragment_offset or "0",
                    sequence or "0",
                    acknowledgement or "0",
                    icmp_id or "0",
                    icmp_sequence or "0",
                    outcomes[unpack_outcome(data, at)],
                    return_value or "0",
                    duration_ns or "0",
                    stack_id if stack_id >= 0 else "null",
                    captured,
                    hexadecimal,
                )
            )
        return "".join(lines)


@lru_cache(maxsize=4096)
def _text(value: str) -> str:
    return json.dumps(value)


def to_json(value: Value) -> str:
    """Return a value as JSON; ``json.dumps`` takes ten times as long for so little."""
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    return _text(value) if isinstance(value, str) else str(value)


def _members(values: dict[str, Value]) -> str:
    """Return members of an object without its braces."""
    return ",".join([f'"{key}":{to_json(value)}' for key, value in values.items()])


def _group(field: Field) -> str:
    return "place" if field.place else "outcome" if field.outcome else ""


def _pieces() -> Iterator[tuple[str, Field | None]]:
    """Yield what a line is joined from: literal text, or a field that the kind decides on.

    The fields of the place stand together in the table, as those of the outcome do: each of these groups is
    one conversion.
    """
    for group, members in groupby(FIELDS, _group):
        if group:
            yield "%s", None
            continue
        for field in members:
            if field.constant is not None:
                yield f'"{field.key}":{to_json(field.constant)}', None
            elif field.moment is not None and field.known is None:
                yield f'"{field.key}":{field.moment}', None
            else:
                yield f'"{field.key}":', field


_PIECES = tuple(_pieces())


def line_template(kind: Kind) -> str:
    """Return the line of a kind of packets, with ``%`` conversions for what is different each time."""
    parts = []
    for text, field in _PIECES:
        if field is None:
            parts.append(text)
        elif field.kind is not None:
            value = to_json(field.kind(kind))
            parts.append(text + (value.replace("%", "%%") if "%" in value else value))
        elif field.known is not None and field.known(kind):
            parts.append(f"{text}{field.moment}")
        else:  # a conversion of no characters takes the argument that says nothing
            parts.append(text + "null%.0s")
    return "{" + ",".join(parts) + "}\n"


def _templates(*, ipv6: bool) -> TextCache[str]:
    return TextCache(
        lambda key: line_template(Kind._make((*key, ipv6))), capacity=4096, lifetime=float("inf")
    )
