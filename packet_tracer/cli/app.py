"""The commands and what they are called. Each imports what it runs when it runs, so that help is quick."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from packet_tracer.cli import capture, demo, doctor, listing

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


def _version(wanted: bool) -> None:
    if wanted:
        from packet_tracer import __version__
        from packet_tracer.bpf.library import version

        typer.echo(
            f"packet-tracer {__version__}, libbpf {version()}, {platform.system()} {platform.release()}"
        )
        raise typer.Exit


@app.callback()
def ptrace(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the versions that matter and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before the command."""


app.command("capture", short_help="Trace packets, one line an event.")(capture.capture)
app.command("demo", short_help="See it work, in a small network of its own.")(demo.demo)
app.command("doctor", short_help="Tell what this host allows, and why not.")(doctor.doctor)
app.command("probes", short_help="List the places to look at packets.")(listing.probes)
app.command("schema", short_help="Print the JSON Schema of the events.")(listing.schema)
