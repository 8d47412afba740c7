"""``ptrace probes --programs``: the XDP and tc programs of this host, and whether each can be traced."""

from __future__ import annotations

import json

import typer

from packet_tracer.doctor import examine_hooks
from packet_tracer.formats.text import printable
from packet_tracer.probes.program_probes import choose_programs, traceable_programs
from packet_tracer.terminal import table


def list_programs(pattern: str | None, *, as_json: bool) -> None:
    """Print the programs that a pattern names as ``--trace-programs`` does, all without one.

    Raises UsageError if it names none, NotPermittedError without CAP_SYS_ADMIN.
    """
    chosen = choose_programs([pattern]) if pattern else traceable_programs()
    finding = {finding.name: finding for finding in examine_hooks().findings}["fentry"]
    refusals = {
        one.name: one.refusal or ("" if finding.works else f"fentry: {finding.detail}") for one in chosen
    }
    if as_json:
        for one in chosen:
            described = {
                "id": one.program.id,
                "type": one.kind,
                "name": one.program.name,
                "traceable": not refusals[one.name],
                "detail": refusals[one.name],
            }
            typer.echo(json.dumps(described))
        return
    rows = [
        (str(one.program.id), one.kind, printable(one.program.name), refusals[one.name] or "yes")
        for one in chosen
    ]
    for line in table([("ID", "TYPE", "NAME", "CAN BE TRACED"), *rows]):
        typer.echo(line)
    if not chosen:
        typer.echo("No XDP or tc program is loaded on this host.")
