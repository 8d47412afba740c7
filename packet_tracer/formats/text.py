"""Events as text: one line each, in columns, for eyes that know tcpdump.

::

    10:58:51.123456789  #12  0  client/c0  net_dev_queue  curl:4711  len 74  IP 192.0.2.2.40000 > ...

Time is the local time of day, then the packet's number in this output (events of one packet share it), CPU,
namespace and interface, probe, task, length and headers of the packet, and what became of it.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import NamedTuple

from packet_tracer.events import Context, EventBatch, names
from packet_tracer.events import flags as bits
from packet_tracer.events.names import address_text
from packet_tracer.events.records import Selection
from packet_tracer.formats import fields
from packet_tracer.formats.cache import TextCache
from packet_tracer.formats.fields import KIND, OUTCOME, PLACE, Kind, Outcome, Place, Value

_RESET, _DIM, _DROP, _PROBE = "\x1b[0m", "\x1b[2m", "\x1b[1;31m", "\x1b[36m"

_MOMENT = Selection(
    "timestamp_ns",
    "packet_id",
    "packet_length",
    "source_port",
    "destination_port",
    "vlan_tci",
    "source",
    "destination",
    "return_value",
    "duration_ns",
    "tcp_sequence",
    "tcp_acknowledgement",
    "ip_id",
    "fragment_offset",
    "icmp_id",
    "icmp_sequence",
)

_NUMBERS_KEPT = 65536  # packets whose number is remembered, at least


def printable(text: str) -> str:
    """Return text that can't do anything to a terminal: what is not printable becomes an escape.

    Names of tasks and interfaces are chosen by whoever runs them.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def stack_lines(stack: tuple[str, ...] | None) -> list[str]:
    """Return the lines of a kernel stack, innermost function first; None is one that was not kept."""
    frames = ("(its kernel stack was not kept)",) if stack is None else stack
    return [f"    {printable(frame)}" for frame in frames]


class Columns(NamedTuple):
    """The text of a place, column by column."""

    cpu: str
    where: str
    probe: str
    task: str


class Text:
    """Formats batches as text, about 300,000 events a second on one core, of any number of flows.

    ``color`` writes ANSI colours: for terminals only. Columns grow with what they hold and don't shrink,
    so lines stay aligned.
    """

    def __init__(self, *, color: bool = False) -> None:
        self._color = color
        self._context: Context | None = None
        self._widths = [2, 14, 18, 14]
        self._numbers: dict[int, int] = {}
        self._older_numbers: dict[int, int] = {}
        self._last_number = 0
        self._ipv4, self._ipv6 = self._templates(ipv6=False), self._templates(ipv6=True)

    def _use(self, context: Context) -> None:
        self._context = context
        self._places = TextCache(lambda key: self._place(place_columns(context, Place._make(key))))
        self._outcomes = TextCache(lambda key: self._outcome(context, Outcome._make(key)))

    def _templates(self, *, ipv6: bool) -> TextCache[str]:
        return TextCache(
            lambda key: self._line(Kind._make((*key, ipv6))), capacity=4096, lifetime=float("inf")
        )

    def header(self) -> str:
        """Return the line that names the columns."""
        cells = (name.ljust(width) for name, width in zip(Columns._fields, self._widths, strict=True))
        return f"{'time':18}  {'packet':6}  {'  '.join(cells)}  headers\n"

    def format(self, batch: EventBatch) -> str:
        """Return a line for each event, each ending in a newline. Raises RecordError at a damaged record."""
        batch.check()
        if batch.context is not self._context:
            self._use(batch.context)
        places, outcomes, numbers = self._places, self._outcomes, self._numbers
        ipv4, ipv6 = self._ipv4, self._ipv6
        places.age()
        outcomes.age()
        unpack_place, unpack_kind = PLACE.unpack_from, KIND.unpack_from
        unpack_outcome, unpack_moment = OUTCOME.unpack_from, _MOMENT.unpack_from
        offset_ns, data = batch.context.wall_clock_offset_ns, batch.data
        second, second_text = -1, ""
        lines = []
        for at in batch.records.offsets:
            (
                monotonic_ns,
                packet_id,
                length,
                source_port,
                destination_port,
                vlan_tci,
                source_address,
                destination_address,
                return_value,
                duration_ns,
                sequence,
                acknowledgement,
                ip_id,
                fragment_offset,
                icmp_id,
                icmp_sequence,
            ) = unpack_moment(data, at)
            now, nanoseconds = divmod(monotonic_ns + offset_ns, 1_000_000_000)
            if now != second:
                second, second_text = now, time.strftime("%H:%M:%S", time.localtime(now))
            number = numbers.get(packet_id) or self._number(packet_id)
            source, destination = address_text(source_address), address_text(destination_address)
            # Texts instead of zeros: see JsonLines.format. In the order of _ARGUMENTS.
            lines.append(
                (ipv6 if ":" in source else ipv4)[unpack_kind(data, at)]
                % (
                    second_text,
                    nanoseconds,
                    number,
                    places[unpack_place(data, at)],
                    length,
                    vlan_tci & 0xFFF or "0",
                    destination,
                    source,
                    source_port or "0",
                    destination,
                    destination_port or "0",
                    fragment_offset or "0",
                    return_value or "0",
                    duration_ns or "0",
                    sequence or "0",
                    acknowledgement or "0",
                    ip_id or "0",
                    icmp_id or "0",
                    icmp_sequence or "0",
                    outcomes[unpack_outcome(data, at)],
                )
            )
        return "".join(lines)

    def _number(self, packet_id: int) -> int | str:
        """Return a packet's number in this output; ``-`` if it is not tracked."""
        if not packet_id:
            return "-"
        number = self._older_numbers.get(packet_id)
        if number is None:
            self._last_number += 1
            number = self._last_number
        if len(self._numbers) >= _NUMBERS_KEPT:  # those not seen since the last time are forgotten
            self._older_numbers = self._numbers.copy()
            self._numbers.clear()
        self._numbers[packet_id] = number
        return number

    def _paint(self, color: str, text: str) -> str:
        return f"{color}{text}{_RESET}" if self._color and text else text

    def _place(self, columns: Columns) -> str:
        cells = []
        for index, (name, cell) in enumerate(zip(Columns._fields, columns, strict=True)):
            if len(cell) > self._widths[index]:
                self._widths[index] = len(cell)
                self._places.forget()  # made for the narrower column
            padding = " " * (self._widths[index] - len(cell))
            cells.append((self._paint(_PROBE, cell) if name == "probe" else cell) + padding)
        return "  ".join(cells)

    def _outcome(self, context: Context, outcome: Outcome) -> str:
        text = outcome_text(fields.outcome_values(context, outcome))
        dropped = outcome.flags & (bits.DROP_REASON | bits.DROP_LOCATION)
        return ("  " + self._paint(_DROP if dropped else "", text)) if text else ""

    def _line(self, kind: Kind) -> str:
        stamp = self._paint(_DIM, "%s.%09d")
        return f"{stamp}  #%-5s  %s  {packet_template(kind)}%s\n"


def place_columns(context: Context, place: Place) -> Columns:
    """Return where it happened and who ran, as the columns show it."""
    values = fields.place_values(context, place)
    netns = context.netns_label(place.netns_inode)
    interface = values["interface"] or (f"if{place.ifindex}" if place.ifindex else "-")
    return Columns(
        cpu=str(values["cpu"]),
        where=printable(f"{netns}/{interface}" if netns else str(interface)),
        probe=printable(str(values["probe"])),
        task=printable(f"{values['comm']}:{values['pid']}"),
    )


def outcome_text(values: dict[str, Value]) -> str:
    """Return what became of it: ``DROP NETFILTER_DROP at nf_hook_slow+0x42``, a verdict, or nothing."""
    reason, location, verdict = values["drop_reason"], values["drop_location"], values["verdict"]
    if reason is None and location is None:
        return str(verdict or "")
    where = f" at {location}" if location is not None else ""
    return printable(f"DROP {reason or ''}{where}" if reason else f"DROP{where}")


# What a packet's template takes, in this order. A destination stands first too: ARP asks who has it.
_ARGUMENTS = (
    "packet_length",
    "vlan_tci",
    "destination",
    "source",
    "source_port",
    "destination",
    "destination_port",
    "fragment_offset",
    "return_value",
    "duration_ns",
    "tcp_sequence",
    "tcp_acknowledgement",
    "ip_id",
    "icmp_id",
    "icmp_sequence",
)

# A conversion of no characters takes the argument that is not shown.
_HIDE = "%.0s"


@lru_cache(maxsize=4096)
def packet_template(kind: Kind) -> str:
    """Return the text of a kind of packets, with ``%`` conversions for ``_ARGUMENTS``."""
    subject, shown = _subject(fields.kind_values(kind), kind)
    moment = "".join(
        template if name in shown else _HIDE
        for name, template in (
            ("fragment_offset", " fragment at %s"),
            ("return_value", " = %s"),
            ("duration_ns", " after %s ns"),
            ("tcp_sequence", " seq %s"),
            ("tcp_acknowledgement", " ack %s"),
            ("ip_id", " id %s"),
            ("icmp_id", " id %s"),
            ("icmp_sequence", " seq %s"),
        )
    )
    return f"len %-5d {subject}{moment}"


def packet_text(record: bytes) -> str:
    """Return the packet of one record as a line shows it: ``len 84 IP 192.0.2.2 > 198.51.100.2: icmp``."""
    members = dict(zip(_MOMENT.names, _MOMENT.unpack_from(record, 0), strict=True))
    members["vlan_tci"] &= 0xFFF
    for end in ("source", "destination"):
        members[end] = address_text(members[end])
    kind = Kind._make((*KIND.unpack_from(record, 0), ":" in members["source"]))
    return printable(packet_template(kind) % tuple(members[name] for name in _ARGUMENTS))


def _subject(values: dict[str, Value], kind: Kind) -> tuple[str, set[str]]:
    """Return what the packet is, with conversions for its ends, and the names of the other members shown."""
    shown = {"return_value", "duration_ns"} if "return_value" in fields.known_moments(kind) else set()
    vlan = "vlan %s " if kind.has(bits.VLAN) else _HIDE
    if kind.has(bits.ARP):
        return f"{vlan}ARP {_arp(kind.arp_operation)}", shown
    if not kind.has(bits.IP):
        protocol = values["protocol_name"] or (f"ethertype {kind.protocol:#06x}" if kind.protocol else "?")
        return f"{vlan}{protocol}{_HIDE * 5}", shown
    port = ".%s" if kind.has(bits.PORTS) else _HIDE
    ends = f"{_HIDE}%s{port} > %s{port}"
    what = str(values["l4_protocol_name"] or f"ip-proto-{kind.l4_protocol}")
    if kind.has(bits.TCP):
        what += f" [{values['tcp_flags_text']}]"
        shown |= {"tcp_sequence"} | ({"tcp_acknowledgement"} if kind.tcp_flags & 0x10 else set())
    elif kind.has(bits.ICMP):
        what += f" {names.icmp_text(kind.l4_protocol, kind.icmp_type, kind.icmp_code)}"
        shown |= {"icmp_id", "icmp_sequence"} & fields.known_moments(kind)
    if kind.has(bits.FRAGMENT):
        shown |= {"fragment_offset", "ip_id"}
    return f"{vlan}{'IP6' if kind.ipv6 else 'IP'} {ends}: {what}", shown


def _arp(operation: int) -> str:
    """Return an ARP packet's text with conversions for its ends."""
    if operation == 1:
        return f"who-has %s tell %s{_HIDE * 3}"
    name = names.ARP_OPERATIONS.get(operation) or f"operation {operation}"
    return f"{name}{_HIDE} %s{_HIDE} to %s{_HIDE}"
