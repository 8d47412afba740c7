"""``ptrace``, the command: it parses, calls, prints. Everything else is in the packages that it calls."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ptrace`` with these arguments (those of the process, unless given) and return its exit code."""
    from packet_tracer.cli.run import run

    return run(arguments)
