"""The filter expression: its words or its file, and what it is compiled to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packet_tracer.errors import UsageError

if TYPE_CHECKING:
    from packet_tracer.filter import Filter


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
