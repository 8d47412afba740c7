"""``ptrace doctor``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from packet_tracer.cli.listing import Format, FormatOption
from packet_tracer.errors import EXIT_NOT_PERMITTED, EXIT_NOT_SUPPORTED, EXIT_OK

if TYPE_CHECKING:
    from packet_tracer.doctor import Report


def doctor(output: FormatOption = Format.TEXT) -> int:
    """Tell what this host allows: each hook and backend tried, with the reason for each no.

    Exit status 0 if a capture can run here, 3 if it is for want of privileges that it can't, 4 otherwise.
    """
    from packet_tracer.doctor import examine

    report = examine()
    if output == Format.JSON:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _print(report)
    if report.can_capture:
        return EXIT_OK
    return EXIT_NOT_PERMITTED if report.lacks_privileges else EXIT_NOT_SUPPORTED


def _print(report: Report) -> None:
    from packet_tracer.terminal import BOLD, GREEN, RED, YELLOW, colors_wanted, paint, table

    color = colors_wanted()
    signs = {True: ("yes", GREEN), False: ("no", RED), None: ("", YELLOW)}
    rows = [
        (finding.name, signs[finding.works][0], finding.detail)
        for section in report.sections
        for finding in section.findings
    ]
    lines = iter(table(rows))
    for section in report.sections:
        typer.echo(paint(section.name.upper(), BOLD, color=color))
        for finding in section.findings:
            line = next(lines)
            typer.echo("  " + (paint(line, signs[False][1], color=color) if finding.works is False else line))
    verdict = "a capture can run here" if report.can_capture else "no capture can run here"
    typer.echo("\n" + paint(verdict, GREEN if report.can_capture else RED, color=color))
