"""What can go wrong with a filter."""

from __future__ import annotations

from packet_tracer.errors import UsageError


class FilterError(UsageError):
    """An expression that cannot be a filter. ``expression`` is its text, ``reason`` why not."""

    def __init__(self, expression: str, reason: str) -> None:
        super().__init__(f"filter {expression!r}: {reason}" if expression else f"filter: {reason}")
        self.expression = expression
        self.reason = reason


class PcapMissingError(FilterError):
    """There is no libpcap here; only filter expressions need it."""

    def __init__(self) -> None:
        super().__init__(
            "", "expressions need libpcap: install libpcap0.8 (Debian, Ubuntu) or libpcap (Fedora, Arch)"
        )
