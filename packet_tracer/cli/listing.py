"""``ptrace probes`` and ``ptrace schema``."""

from __future__ import annotations

import fnmatch
import json
from enum import Enum
from typing import Annotated

import typer

from packet_tracer.cli import complete
from packet_tracer.errors import UsageError


class Format(str, Enum):
    """How a listing is printed."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.", show_default=True)]


def probes(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Only probes whose name matches this glob.", autocompletion=complete.probes),
    ] = None,
    functions: Annotated[
        bool,
        typer.Option(
            "--functions",
            help="List kernel functions that handle packets. PATTERN may be a /regex/ or module:NAME too.",
        ),
    ] = False,
    programs: Annotated[
        bool,
        typer.Option("--programs", help="List the BPF programs of others that --trace-programs can trace."),
    ] = False,
    output: FormatOption = Format.TEXT,
) -> None:
    """List the probes: where each sits, whether this kernel has it, and if not, why.

    Needs root to find out, by trying.
    """
    if functions and programs:
        raise UsageError("--functions and --programs are two listings: ask for one")
    if programs:
        from packet_tracer.cli.programs import list_programs

        list_programs(pattern, as_json=output == Format.JSON)
        return
    if functions:
        from packet_tracer.cli.functions import list_functions

        list_functions(pattern, as_json=output == Format.JSON)
        return
    from packet_tracer.doctor.availability import availability
    from packet_tracer.probes.catalogue import PROBES, PROFILES
    from packet_tracer.terminal import GREEN, RED, YELLOW, colors_wanted, paint, table

    chosen = [probe for probe in PROBES if pattern is None or fnmatch.fnmatchcase(probe.name, pattern)]
    if not chosen:
        raise UsageError(f"no probe matches {pattern!r}; `ptrace probes` lists them all")
    found = availability(chosen)
    profiles = {
        probe.name: [name for name, members in PROFILES.items() if probe.name in members] for probe in chosen
    }
    if output == Format.JSON:
        for probe in chosen:
            finding = found[probe.name]
            described = {
                "name": probe.name,
                "hook": probe.hook.name.lower(),
                "available": finding.works,
                "detail": finding.detail,
                "summary": probe.summary,
                "needs_interface": probe.needs_interface,
                "profiles": profiles[probe.name],
            }
            typer.echo(json.dumps(described))
        return
    color = colors_wanted()
    words = {True: ("yes", GREEN), False: ("no", RED), None: ("?", YELLOW)}
    rows = [
        (probe.name, probe.hook.name.lower(), words[found[probe.name].works][0], probe.summary)
        for probe in chosen
    ]
    lines = table([("PROBE", "HOOK", "HERE", "WHERE IT SITS"), *rows])
    typer.echo(lines[0])
    for probe, line in zip(chosen, lines[1:], strict=True):
        word, code = words[found[probe.name].works]
        typer.echo(paint(line, code, color=color) if word != "yes" else line)
    reasons = {found[probe.name].detail for probe in chosen if not found[probe.name].works}
    for reason in sorted(reasons):
        names = ", ".join(probe.name for probe in chosen if found[probe.name].detail == reason)
        typer.echo(f"\n{names}: {reason}")


def schema() -> None:
    """Print the JSON Schema of what `--format json` and `-w FILE.jsonl` write, one object a line."""
    from packet_tracer.formats.frame import lines_schema

    typer.echo(json.dumps(lines_schema(), indent=2))
