"""The filter expression: its words or its file, and what it is compiled to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packet_tracer.errors import UsageError

if TYPE_CHECKING:
    from packet_tracer.filter import Filter
    from packet_tracer.filter.predicates import Predicates


def expression_of(words: Sequence[str], file: str | None) -> str:
    """Return the expression that trailing words or ``-F`` (``-``: standard input) give, "" for none."""
    if file is None:
        return " ".join(words).strip()
    if words:
        raise UsageError("a filter expression and -F FILE are both given; one of them is enough")
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        raise UsageError(f"-F {file}: there is no filter expression in it")
    return " ".join(text.split())


def compiled(expression: str, inner: str | None, tunnel: Sequence[str]) -> Filter | None:
    """Return the filter that the options ask for, None for every packet. Raises FilterError, UsageError."""
    if not expression and inner is None and not tunnel:
        return None
    from packet_tracer import filter as filters

    return filters.compile(expression, inner=inner, tunnel=tunnel)


def predicates(
    *,
    pids: Sequence[int] = (),
    comms: Sequence[str] = (),
    cgroups: Sequence[str] = (),
    length: tuple[int, int] | None = None,
    drop_reasons: Sequence[str] = (),
    addresses: str | None = None,
) -> Predicates | None:
    """Return the filters beside the expression, None for none. Raises UsageError for what does not exist."""
    if not (pids or comms or cgroups or length or drop_reasons or addresses):
        return None
    from packet_tracer.filter.addresses import AddressSet
    from packet_tracer.filter.predicates import Predicates, cgroup_id

    return Predicates(
        pids=tuple(pids),
        comms=tuple(comms),
        cgroups=tuple(cgroup_id(path) for path in cgroups),
        length=length,
        drop_reasons=_numbers(drop_reasons),
        addresses=AddressSet.read(addresses) if addresses else None,
    )


def _numbers(names: Sequence[str]) -> tuple[int, ...]:
    """Return drop reasons by number. Raises UsageError for one that this kernel does not have."""
    if not names:
        return ()
    import difflib

    from packet_tracer.events import DropReasons

    reasons = DropReasons.of_this_kernel()
    found = []
    for name in names:
        try:
            found.append(reasons.number(name))
        except KeyError:
            near = difflib.get_close_matches(name.upper(), reasons.names.values(), n=3)
            hint = f" (is {' or '.join(near)} meant?)" if near else ""
            raise UsageError(f"this kernel has no drop reason {name!r}{hint}") from None
    return tuple(found)


def dump(filter_: Filter | None, level: int) -> str:
    """Return what a filter is compiled to: classic BPF (``-d``), or the eBPF made of it (``-dd``).

    Both are for packets with an Ethernet header; the part for the packet inside a tunnel comes second.
    """
    from packet_tracer import filter as filters
    from packet_tracer.filter import Access, LinkType, Stub

    whole = filter_ or filters.compile("")
    parts = [filters.disassemble(whole, Stub(Access.PROBE, LinkType.ETHERNET) if level > 1 else None)]
    if whole.inner is not None:
        stub = Stub(Access.PROBE, LinkType.ETHERNET, inner=True) if level > 1 else None
        parts.append(filters.disassemble(whole.inner, stub))
    return "\n\n".join(parts)
