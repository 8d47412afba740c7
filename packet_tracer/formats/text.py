"""Events as text: one line each, in columns, for eyes that know tcpdump.

::

    10:58:51.123456789  #12  0  client/c0  net_dev_queue  curl:4711  len 74  IP 192.0.2.2.40000 > ...

Time is the local time of day, then the packet's number in this output (events of one packet share it), CPU,
namespace and interface, probe, task, length and headers of the packet, and what became of it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from packet_tracer.events import Context, EventBatch, names
from packet_tracer.events import flags as bits
from packet_tracer.events.records import Selection
from packet_tracer.formats import fields
from packet_tracer.formats.cache import TextCache
from packet_tracer.formats.fields import FLOW, OUTCOME, PLACE, Flow, Outcome, Place, Value

_RESET, _DIM, _DROP, _PROBE = "\x1b[0m", "\x1b[2m", "\x1b[1;31m", "\x1b[36m"

_MOMENT = Selection(
    "timestamp_ns",
    "packet_id",
    "packet_length",
    "return_value",
    "duration_ns",
    "tcp_sequence",
    "tcp_acknowledgement",
    "ip_id",
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
    """Formats batches as text, about 300,000 events a second on one core.

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

    def _use(self, context: Context) -> None:
        self._context = context
        self._places = TextCache(lambda key: self._place(place_columns(context, Place._make(key))))
        self._flows = TextCache(lambda key: self._flow(context, Flow._make(key)), lifetime=float("inf"))
        self._outcomes = TextCache(lambda key: self._outcome(context, Outcome._make(key)))

    def header(self) -> str:
        """Return the line that names the columns."""
        cells = (name.ljust(width) for name, width in zip(Columns._fields, self._widths, strict=True))
        return f"{'time':18}  {'packet':6}  {'  '.join(cells)}  headers\n"

    def format(self, batch: EventBatch) -> str:
        """Return a line for each event, each ending in a newline. Raises RecordError at a damaged record."""
        batch.check()
        if batch.context is not self._context:
            self._use(batch.context)
        places, flows, outcomes, numbers = self._places, self._flows, self._outcomes, self._numbers
        places.age()
        outcomes.age()
        unpack_place, unpack_flow = PLACE.unpack_from, FLOW.unpack_from
        unpack_outcome, unpack_moment = OUTCOME.unpack_from, _MOMENT.unpack_from
        offset_ns, data = batch.context.wall_clock_offset_ns, batch.data
        second, second_text = -1, ""
        lines = []
        for at in batch.records.offsets:
            monotonic_ns, packet_id, *moment = unpack_moment(data, at)
            now, nanoseconds = divmod(monotonic_ns + offset_ns, 1_000_000_000)
            if now != second:
                second, second_text = now, time.strftime("%H:%M:%S", time.localtime(now))
            number = numbers.get(packet_id) or self._number(packet_id)
            lines.append(
                flows[unpack_flow(data, at)]
                % (
                    second_text,
                    nanoseconds,
                    number,
                    places[unpack_place(data, at)],
                    *moment,
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

    def _flow(self, context: Context, flow: Flow) -> str:
        stamp = self._paint(_DIM, "%s.%09d")
        return f"{stamp}  #%-5s  %s  {flow_template(fields.flow_values(context, flow), flow)}%s\n"


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


# A conversion of no characters takes the argument that is not shown.
_HIDE = "%.0s"


def flow_template(values: dict[str, Value], flow: Flow) -> str:
    """Return a packet's text, with ``%`` conversions for the members of ``_MOMENT`` from the length on."""
    subject, shown = _subject(values, flow)
    moment = "".join(
        template if name in shown else _HIDE
        for name, template in (
            ("return_value", " = %d"),
            ("duration_ns", " after %d ns"),
            ("tcp_sequence", " seq %d"),
            ("tcp_acknowledgement", " ack %d"),
            ("ip_id", " id %d"),
            ("icmp_id", " id %d"),
            ("icmp_sequence", " seq %d"),
        )
    )
    return f"len %-5d {subject.replace('%', '%%')}{moment}"


def packet_text(record: bytes, context: Context) -> str:
    """Return the packet of one record as a line shows it: ``len 84 IP 192.0.2.2 > 198.51.100.2: icmp``."""
    flow = Flow._make(FLOW.unpack_from(record, 0))
    _timestamp_ns, _packet_id, *moment = _MOMENT.unpack_from(record, 0)
    template = flow_template(fields.flow_values(context, flow), flow)
    return printable(template % tuple(moment))


def _subject(values: dict[str, Value], flow: Flow) -> tuple[str, set[str]]:
    """Return what the packet is, and the names of the members of the moment that belong to it."""
    shown = {"return_value", "duration_ns"} if "return_value" in fields.known_moments(flow) else set()
    vlan = f"vlan {values['vlan']} " if values["vlan"] is not None else ""
    source, destination = values["source"], values["destination"]
    if flow.has(bits.ARP):
        return f"{vlan}ARP {_arp(flow.arp_operation, source, destination)}", shown
    if not flow.has(bits.IP):
        protocol = values["protocol_name"] or (f"ethertype {flow.protocol:#06x}" if flow.protocol else "?")
        return f"{vlan}{protocol}", shown
    if flow.has(bits.PORTS):
        source, destination = f"{source}.{flow.source_port}", f"{destination}.{flow.destination_port}"
    version = "IP" if flow.source.startswith(names.MAPPED_PREFIX) else "IP6"
    what = str(values["l4_protocol_name"] or f"ip-proto-{flow.l4_protocol}")
    if flow.has(bits.TCP):
        what += f" [{values['tcp_flags_text']}]"
        shown |= {"tcp_sequence"} | ({"tcp_acknowledgement"} if flow.tcp_flags & 0x10 else set())
    elif flow.has(bits.ICMP):
        what += f" {names.icmp_text(flow.l4_protocol, flow.icmp_type, flow.icmp_code)}"
        shown |= {"icmp_id", "icmp_sequence"} & fields.known_moments(flow)
    if flow.has(bits.FRAGMENT):
        what += f" fragment at {flow.fragment_offset}"
        shown.add("ip_id")
    return f"{vlan}{version} {source} > {destination}: {what}", shown


def _arp(operation: int, source: Value, destination: Value) -> str:
    if operation == 1:
        return f"who-has {destination} tell {source}"
    name = names.ARP_OPERATIONS.get(operation) or f"operation {operation}"
    return f"{name} {source} to {destination}"
