"""``ptrace demo``."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    color: Annotated[
        bool | None, typer.Option("--color/--no-color", help="Colours; by default on a terminal only.")
    ] = None,
) -> None:
    """Trace packets in a small network of its own: three namespaces, a few packets, some of them dropped.

    It takes a few seconds, needs root, touches nothing but its own namespaces and leaves nothing behind.
    """
    from packet_tracer.demo import run
    from packet_tracer.terminal import colors_wanted

    run(color=colors_wanted() if color is None else color)
