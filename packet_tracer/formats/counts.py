"""Counted rows as a table for people and as JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone

from packet_tracer.count import By, Count, CountTotals, Snapshot
from packet_tracer.diagnostics import printable

#: The members of a row that each kind has.
_KEYS: Mapping[By, tuple[str, ...]] = {
    "protocol": ("protocol", "l4_protocol"),
    "port": ("protocol", "l4_protocol", "port"),
    "address": ("protocol", "address"),
    "flow": ("protocol", "l4_protocol", "source", "source_port", "destination", "destination_port"),
    "netns": ("netns", "netns_name"),
    "drop-reason": ("drop_reason",),
}
_UNKNOWN = "unknown"


def label(count: Count) -> str:
    """Return what the packets of a row have in common: ``ipv4 tcp``, ``udp 53``, ``udp A.80 > B.53``."""
    if count.drop_reason is not None:
        return count.drop_reason
    if count.netns is not None:
        return count.netns_name or str(count.netns)
    if count.address is not None:
        return str(count.address)
    what = count.l4_protocol or count.protocol
    if count.source is not None:
        ports = ("" if port is None else f".{port}" for port in (count.source_port, count.destination_port))
        return f"{what} {count.source}{next(ports)} > {count.destination}{next(ports)}"
    if count.port is not None:
        return f"{what} {count.port}"
    if count.l4_protocol and count.protocol:
        return f"{count.protocol} {count.l4_protocol}"
    return what or _UNKNOWN


class Table:
    """Formats snapshots as tables with rates, which are of the time since the snapshot before."""

    def __init__(self, by: By) -> None:
        self._by = by
        self._before: dict[str, Count] = {}
        self._at = 0.0

    def lines(self, snapshot: Snapshot, seconds: float, top: int | None = None) -> list[str]:
        """Return a heading and a line for each of the first ``top`` rows; ``seconds`` is since the start."""
        elapsed = max(seconds - self._at, 1e-9)
        cells = [["packets", "bytes", "packets/s", "bytes/s", self._by]]
        for count in snapshot.rows[:top]:
            name = label(count)
            before = self._before.get(name)
            # A row that made room and came again starts anew.
            known = before is not None and before.packets <= count.packets and before.bytes <= count.bytes
            packets, length = (before.packets, before.bytes) if known and before is not None else (0, 0)
            rates = ((count.packets - packets) / elapsed, (count.bytes - length) / elapsed)
            cells.append(
                [f"{count.packets:,}", f"{count.bytes:,}", *(f"{rate:,.0f}" for rate in rates), name]
            )
        self._before = {label(count): count for count in snapshot.rows}
        self._at = seconds
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
        return [
            "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), name])
            for *row, name in ([*row[:-1], printable(row[-1])] for row in cells)
        ]


def totals_text(totals: CountTotals) -> str:
    """Return the totals in words, with what rows no longer tell of."""
    parts = [f"{totals.packets:,} packets, {totals.bytes:,} bytes, {totals.rows:,} rows"]
    if totals.evicted_rows or totals.evicted_packets:
        parts.append(
            f"{totals.evicted_rows:,} rows with {totals.evicted_packets:,} packets made room for others "
            "(the totals have them; --entries N keeps more)"
        )
    if totals.failed:
        parts.append(f"{totals.failed:,} packets found no row")
    if totals.missed:
        parts.append(f"MISSED {totals.missed:,} packets of the host, met while the program was running")
    return "; ".join(parts)


def json_lines(by: By, snapshot: Snapshot, seconds: float, wall_clock: float, top: int | None = None) -> str:
    """Return a line for each of the first ``top`` rows and one for the totals, each ending in a newline.

    ``seconds`` is since the start, as all counts are; ``wall_clock`` is in seconds since 1970. Text is
    escaped to ASCII.
    """
    moment = datetime.fromtimestamp(wall_clock, timezone.utc).isoformat(timespec="microseconds")
    common = {"timestamp": moment.replace("+00:00", "Z"), "seconds": round(seconds, 3), "by": by}
    lines: list[Mapping[str, object]] = []
    for count in snapshot.rows[:top]:
        values = {name: getattr(count, name) for name in _KEYS[by]}
        lines.append({"type": "count", **common, "packets": count.packets, "bytes": count.bytes, **values})
    lines.append({"type": "counts", **common, **asdict(snapshot.totals)})
    return _join(lines)


def _join(lines: Sequence[Mapping[str, object]]) -> str:
    return "".join(f"{json.dumps(line, default=str)}\n" for line in lines)
