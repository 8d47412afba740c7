"""Counting packets from Python: :class:`Counter` has the kernel count, and reads how far it is.

from packet_tracer.count import Counter
with Counter(by="flow", netns="web", filter="tcp port 443") as counter:
    time.sleep(1)
    for count in counter.read()[:10]:
        print(count.source, count.destination, count.packets, count.bytes)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Literal, get_args

from packet_tracer.errors import UsageError
from packet_tracer.events._layout import COUNT_KEY_FORMAT, COUNT_KEY_SIZE, CountBy, CountFlags
from packet_tracer.events.context import Context
from packet_tracer.events.names import ETHER_TYPES, IP_PROTOCOLS, address_of
from packet_tracer.filter import Filter
from packet_tracer.filter import compile as compile_filter
from packet_tracer.filter.predicates import Predicates
from packet_tracer.probes.counting import CountSession, CountSetup, Direction
from packet_tracer.probes.scope import Scope

By = Literal["protocol", "port", "address", "flow", "netns", "drop-reason"]
BY: tuple[By, ...] = get_args(By)

#: Rows there is room for. On two CPUs they take 2.5 MB at most.
DEFAULT_ENTRIES = 16384
_ENTRIES_MAX = 1 << 24


@dataclass(frozen=True, slots=True)
class Count:
    """One row: ``packets``, their ``bytes`` (from the first header on), and what they have in common.

    What a row is not kept by, or what its packets don't have, is None: a ping has no ports, a flow no
    ``address``. ``protocol`` is the name of the EtherType, ``l4_protocol`` that of IP's protocol, in digits
    where they have none; ``netns`` is an inode, and ``netns_name`` None for the counter's own.
    """

    packets: int
    bytes: int
    protocol: str | None = None
    l4_protocol: str | None = None
    port: int | None = None
    address: IPv4Address | IPv6Address | None = None
    source: IPv4Address | IPv6Address | None = None
    source_port: int | None = None
    destination: IPv4Address | IPv6Address | None = None
    destination_port: int | None = None
    netns: int | None = None
    netns_name: str | None = None
    drop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class CountTotals:
    """What was counted in all, whether a row tells of it still or not.

    ``packets`` and ``bytes`` passed the filters, each packet counted once. ``rows`` are there now;
    ``evicted_rows`` had to make room for others, with the ``evicted_packets`` counted in them (a packet
    counts at both its ports and both its addresses). ``failed`` found no room at all. All these are exact
    once the counter is closed; while packets come, the rows are read a little later than the rest.
    ``missed`` packets of the whole host the kernel did not show, for the program was running on that CPU
    already (known since Linux 6.2: 05b24ff9b2cf).
    """

    packets: int
    bytes: int
    rows: int
    evicted_rows: int
    evicted_packets: int
    failed: int
    missed: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows, those with most packets first, and the totals of the same moment."""

    rows: list[Count]
    totals: CountTotals


class Counter:
    """Counts packets in the kernel between ``with`` and its end, without an event for any of them.

    - ``by``: what makes a row: ``protocol``; ``port`` or ``address`` (a packet counts at both its ends, once
      where they are the same); ``flow`` (addresses and ports, in this direction); ``netns``; ``drop-reason``.
    - ``direction``: packets that come ``in`` at a device, go ``out``, or ``both``, as tcpdump sees them: one
      that is forwarded counts at both devices, one on a loopback device only when it comes in. By drop
      reason it is the drops that are counted.
    - ``interface``: only packets at these devices; of drops also those that came in by them. ``netns``,
      ``mark``, ``filter``, ``predicates``: as those of :class:`~packet_tracer.capture.Tracer`.
    - ``entries``: rows there is room for. When they are full, rows not counted in lately make room, and
      :meth:`totals` says so.

    Raises UsageError for what does not exist, NotPermittedError without the privileges, NotSupportedError by
    drop reason before Linux 5.17, and BpfError for what this kernel refuses. Methods may be called from any
    thread.
    """

    def __init__(
        self,
        by: By = "flow",
        *,
        direction: Direction = "both",
        interface: str | Iterable[str] | None = None,
        netns: str | Iterable[str] | None = None,
        mark: int | tuple[int, int] | None = None,
        filter: str | Filter | None = None,  # noqa: A002 - what everyone calls it
        predicates: Predicates | None = None,
        entries: int = DEFAULT_ENTRIES,
    ) -> None:
        if by not in BY:
            raise UsageError(f"can't count by {by!r}; there are: {', '.join(BY)}")
        if direction not in get_args(Direction):
            raise UsageError(f"no direction {direction!r}; there are: {', '.join(get_args(Direction))}")
        if by == "drop-reason" and direction != "both":
            raise UsageError("drops have no direction: leave it out to count by drop reason")
        if not 1 <= entries <= _ENTRIES_MAX:
            raise UsageError(f"{entries} rows: 1 to {_ENTRIES_MAX}")
        self.by: By = by
        self._kind = CountBy[by.upper().replace("-", "_")]
        scope = Scope.resolve(netns, interface)
        chosen = scope.predicates(predicates, mark)
        self._scope = scope
        self._setup = CountSetup(
            by=self._kind,
            direction=direction,
            entries=entries,
            rodata=chosen.rodata(),
            filter=compile_filter(filter) if isinstance(filter, str) else filter,
            addresses=chosen.addresses,
        )
        self._context: Context | None = None
        self._session: CountSession | None = None
        self._last: Snapshot | None = None

    # Life

    def start(self) -> None:
        """Load and attach. Called by ``with``."""
        context = Context()
        for netns in self._scope.namespaces:
            context.interface_names.add(netns)
        self._last, self._context = None, context
        self._session = CountSession(self._setup).__enter__()

    def close(self) -> None:
        """Stop counting and give back the memory; what was counted stays readable. Called by ``with``."""
        session = self._session
        if session is None:
            return
        try:
            session.detach()
            self._last = self._read(session)
        finally:
            self._session = None
            session.close()

    def __enter__(self) -> Counter:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # What was counted

    def read(self) -> list[Count]:
        """Return the rows as they are now, those with most packets first."""
        return self.snapshot().rows

    def totals(self) -> CountTotals:
        """Return what was counted in all, rows that made room for others included."""
        return self.snapshot().totals

    def snapshot(self) -> Snapshot:
        """Return rows and totals of one moment. ValueError if the counter was never started."""
        session = self._session
        if session is not None:
            return self._read(session)
        if self._last is None:
            raise ValueError("the counter is not started")
        return self._last

    def _read(self, session: CountSession) -> Snapshot:
        totals = session.totals()
        # A packet that comes in between must not look like one whose row is gone, so rows come second.
        rows = session.rows()
        rows.sort(key=lambda row: (-row[1], -row[2], row[0]))
        assert self._context is not None
        return Snapshot(
            [decode(self._kind, *row, self._context) for row in rows],
            CountTotals(
                packets=totals.packets,
                bytes=totals.bytes,
                rows=len(rows),
                evicted_rows=max(0, totals.inserted - len(rows)),
                evicted_packets=max(0, totals.added - sum(row[1] for row in rows)),
                failed=totals.failed,
                missed=session.missed(),
            ),
        )


def decode(kind: CountBy, key: bytes, packets: int, length: int, context: Context) -> Count:
    """Return the row of a key as the kernel has it (the first bytes of struct ptrace_count_key)."""
    number, protocol, l4_protocol, flags, source_port, destination_port, source, destination = struct.unpack(
        COUNT_KEY_FORMAT, key.ljust(COUNT_KEY_SIZE, b"\0")
    )
    if kind == CountBy.NETNS:
        return Count(packets, length, netns=number or None, netns_name=context.netns_name(number))
    if kind == CountBy.DROP_REASON:
        return Count(packets, length, drop_reason=context.drop_reasons.name(number) or str(number))
    addresses, ports = flags & CountFlags.ADDRESSES, flags & CountFlags.PORTS
    one, ends = kind in (CountBy.PORT, CountBy.ADDRESS), kind == CountBy.FLOW
    return Count(
        packets,
        length,
        protocol=(ETHER_TYPES.get(protocol) or f"0x{protocol:04x}") if protocol else None,
        # 0 is an extension header (hop-by-hop options), which is no packet's protocol.
        l4_protocol=(IP_PROTOCOLS.get(l4_protocol) or str(l4_protocol)) if l4_protocol else None,
        port=source_port if one and ports else None,
        address=address_of(source) if one and addresses else None,
        source=address_of(source) if ends and addresses else None,
        source_port=source_port if ends and ports else None,
        destination=address_of(destination) if ends and addresses else None,
        destination_port=destination_port if ends and ports else None,
    )
