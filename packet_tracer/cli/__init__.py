"""``ptrace``, the command: it parses, calls, prints. Everything else is in the packages that it calls."""

from __future__ import annotations

import gc
from collections.abc import Sequence

#: Objects made before the interpreter looks for garbage among them. By its own measure, 700, it looks a
#: hundred times while a program is imported, where there is none: 5 % of the start.
_GARBAGE_THRESHOLD = 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``ptrace`` with these arguments (those of the process, unless given) and return its exit code."""
    if arguments is None:  # this process is the command's alone
        gc.set_threshold(_GARBAGE_THRESHOLD)
    from packet_tracer.cli.run import run

    return run(arguments)
