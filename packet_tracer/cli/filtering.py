"""The filter expression: its words or its file, and what it is compiled to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from packet_tracer.errors import UsageError


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


def dump(expression: str, level: int) -> str:
    """Return what the expression is compiled to: classic BPF (``-d``), or the eBPF made of it (``-dd``).

    Both are for packets with an Ethernet header. Raises FilterError.
    """
    from packet_tracer import filter as filters
    from packet_tracer.filter import Access, LinkType, Stub

    compiled = filters.compile(expression)
    return filters.disassemble(compiled, Stub(Access.PROBE, LinkType.ETHERNET) if level > 1 else None)
