"""The one place where an exception becomes a line on stderr and an exit code."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from packet_tracer.diagnostics import complain
from packet_tracer.errors import EXIT_ERROR, EXIT_OK, EXIT_USAGE, PtraceError

#: What a shell reports of a command that ctrl-C ended: 128 + SIGINT.
EXIT_INTERRUPTED = 130


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; nothing is raised, and no traceback shown.

    With ``PTRACE_DEBUG=1`` in the environment the traceback of what ended the command is printed too.
    """
    # SIGTERM and a terminal that goes away unwind as ctrl-C does, so that what was made is taken down again.
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not under nohup
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except BaseException as error:
        code = _report(error)
        if os.environ.get("PTRACE_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        _abandon_output()
        return code
    finally:
        if arguments is None:  # the process ends here
            _ignore_signals()
            gc.freeze()  # or the interpreter looks for garbage three times over: 100 ms


def _ignore_signals() -> None:
    """All is taken down and the exit code decided: a signal while Python shuts down must not change it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _invoke(arguments: Sequence[str] | None) -> int:
    from typer.main import get_command

    from packet_tracer.cli.app import build

    arguments = sys.argv[1:] if arguments is None else arguments
    command = get_command(build(arguments))
    result = command.main(args=arguments, prog_name="ptrace", standalone_mode=False)
    return result if isinstance(result, int) else EXIT_OK


def _report(error: BaseException) -> int:
    """Write the error's line; return the exit code it stands for."""
    if isinstance(error, PtraceError):
        complain(str(error))
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    # The reader has what it wanted: `ptrace probes | head`. Typer makes an exit of it.
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        return EXIT_OK
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_ERROR
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        complain(f"{where}{error.strerror or error}")
        return EXIT_ERROR
    if hasattr(error, "format_message"):  # of typer or, in its older versions, of click
        return _report_usage(error)
    if type(error).__name__ == "Abort":
        return EXIT_INTERRUPTED
    complain(
        f"internal error: {type(error).__name__}: {error} (PTRACE_DEBUG=1 shows where; please report it)"
    )
    return EXIT_ERROR


def _report_usage(error: BaseException) -> int:
    context = getattr(error, "ctx", None)
    message = " ".join(str(error.format_message()).split())  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help
        sys.stderr.write(f"{error.format_message()}\n")  # type: ignore[attr-defined]
    else:
        path = context.command_path if context is not None else "ptrace"
        complain(f"{message.rstrip('.')}; see {path} --help")
    return EXIT_USAGE


def _abandon_output() -> None:
    """Write what stdout still holds, or let the interpreter's own flush at exit find nothing to fail at."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        quiet = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(quiet, 1)
        finally:
            os.close(quiet)
