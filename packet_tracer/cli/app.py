"""The commands, by name. Only the one that is called is imported and built, so that help is quick."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer


class Entry(NamedTuple):
    """Where a command is: a function of a module, or a Typer app for a command with commands of its own."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "capture": Entry("capture", "capture", "Trace packets, one line an event."),
    "count": Entry("count", "count", "Count packets in the kernel, by what they are."),
    "demo": Entry("demo", "demo", "See it work, in a small network of its own."),
    "doctor": Entry("doctor", "doctor", "Tell what this host allows, and why not."),
    "maps": Entry("maps", "app", "Look at the BPF maps of this host, and change them."),
    "probes": Entry("listing", "probes", "List the places to look at packets."),
    "schema": Entry("listing", "schema", "Print the JSON Schema of the events."),
}


def _version(wanted: bool) -> None:
    if wanted:
        from packet_tracer import __version__
        from packet_tracer.bpf.library import version

        kernel = os.uname()
        typer.echo(f"packet-tracer {__version__}, libbpf {version()}, {kernel.sysname} {kernel.release}")
        raise typer.Exit


def _ptrace(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the versions that matter and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before the command."""


def build(arguments: Sequence[str]) -> typer.Typer:
    """Return the app with the commands that these arguments may call; others have name and summary only."""
    # Plain help: rich takes longer to import than all the rest.
    app = typer.Typer(
        name="ptrace",
        help="Follow packets through the Linux kernel: where they go, what happens to them there, and why.",
        epilog="Exit status: 0 done, 1 error, 2 usage, 3 not permitted, 4 not supported by this kernel. "
        "PTRACE_DEBUG=1 shows tracebacks.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_ptrace)
    completing = "_PTRACE_COMPLETE" in os.environ
    for name, entry in COMMANDS.items():
        called: Any = _absent
        if completing or name in arguments:
            called = getattr(importlib.import_module(f"packet_tracer.cli.{entry.module}"), entry.attribute)
        if isinstance(called, typer.Typer):
            app.add_typer(called, name=name, short_help=entry.summary)
        else:
            app.command(name, short_help=entry.summary)(called)
    return app


def _absent() -> None:
    """Stand for a command that is not called."""
