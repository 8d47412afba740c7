"""``ptrace count``: its options, and how they become a counter."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from packet_tracer.cli import complete, filtering, values
from packet_tracer.cli.capture import Format, LogFormat
from packet_tracer.errors import UsageError


class By(str, Enum):
    """What makes a row."""

    PROTOCOL = "protocol"
    PORT = "port"
    ADDRESS = "address"
    FLOW = "flow"
    NETNS = "netns"
    DROP_REASON = "drop-reason"


class Direction(str, Enum):
    """Which way packets go at a device."""

    IN = "in"
    OUT = "out"
    BOTH = "both"


def count(
    expression: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPRESSION", help="Only packets that match, as in pcap-filter(7)."),
    ] = None,
    expression_file: Annotated[
        str | None,
        typer.Option("-F", metavar="FILE", help="Read the expression from a file; - is standard input."),
    ] = None,
    by: Annotated[By, typer.Option("--by", help="What makes a row.")] = By.FLOW,
    direction: Annotated[
        Direction, typer.Option("--direction", help="Packets that come in at a device, or go out.")
    ] = Direction.BOTH,
    interface: Annotated[
        list[str] | None,
        typer.Option(
            "-i",
            "--interface",
            metavar="IFACE",
            autocompletion=complete.interfaces,
            help="Only packets at this device (drops: also those that came in by it). Repeatable; "
            "'any' is all.",
        ),
    ] = None,
    netns: Annotated[
        list[str] | None,
        typer.Option(
            "--netns",
            metavar="NAME|PATH|pid:N|all",
            autocompletion=complete.namespaces,
            help="Only packets in this network namespace. Repeatable. "
            "Default: with -i the current one, else all.",
        ),
    ] = None,
    mark: Annotated[
        str | None,
        typer.Option("--mark", metavar="N[/MASK]", help="Only packets with this mark, as 1 or 0x10/0xff."),
    ] = None,
    cgroup: Annotated[
        list[str] | None,
        typer.Option(
            "--cgroup", metavar="PATH|ID", help="Only of this cgroup and those below it. Repeatable."
        ),
    ] = None,
    length: Annotated[
        str | None, typer.Option("--length", metavar="MIN..MAX", help="Only packets of so many bytes.")
    ] = None,
    addresses: Annotated[
        str | None,
        typer.Option("--addresses", metavar="FILE", help="Only to or from these prefixes, one a line."),
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option(
            "--interval",
            metavar="TIME",
            help="Show the counts so often: 1s, 500ms. Default: every second on a terminal, else at the end.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            metavar="N",
            min=1,
            help="Only the rows with most packets. Default: on a terminal what fits it, else all.",
        ),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option("--duration", metavar="TIME", help="Stop after this time: 10s, 500ms, 2m, 1h."),
    ] = None,
    entries: Annotated[
        int,
        typer.Option(
            "--entries",
            metavar="N",
            min=1,
            help="Rows there is room for in the kernel; then those not counted in lately make room.",
        ),
    ] = 16384,
    output: Annotated[
        Format, typer.Option("--format", help="A table, or JSON lines: one a row, one for the totals.")
    ] = Format.TEXT,
    quiet: Annotated[
        bool,
        typer.Option("-q", "--quiet", help="No totals on stderr; rows that made room are told of anyway."),
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", help="How the messages on stderr are written.")
    ] = LogFormat.HUMAN,
) -> int:
    """Count packets in the kernel, by what they are, until ctrl-C. No packet leaves it, so it is cheap.

    \b
    ptrace count                             flows, live
    ptrace count --by port -i eth0 tcp       ports of TCP at a device
    ptrace count --by drop-reason            why packets are dropped anywhere
    ptrace count --by address --duration 10s --format json
    """
    from packet_tracer import diagnostics

    diagnostics.configure(log_format.value)
    if by is By.DROP_REASON and direction is not Direction.BOTH:
        raise UsageError("drops have no direction: --direction does not go with --by drop-reason")
    pattern = filtering.expression_of(expression or (), expression_file)
    seconds = values.duration(duration) if duration is not None else None
    every = values.duration(interval) if interval is not None else None

    from packet_tracer.cli.counting import Counting
    from packet_tracer.count import Counter

    counter = Counter(
        by.value,
        direction=direction.value,
        interface=interface,
        netns=netns,
        mark=values.mark(mark) if mark is not None else None,
        filter=filtering.compiled(pattern, None, ()),
        predicates=filtering.predicates(
            cgroups=cgroup or (),
            length=values.length_range(length) if length is not None else None,
            addresses=addresses,
        ),
        entries=entries,
    )
    Counting(
        counter, as_json=output is Format.JSON, interval=every, seconds=seconds, top=top, quiet=quiet
    ).run()
    return 0
