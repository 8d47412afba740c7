"""What the tool says about itself, on stderr: through structlog, for people or, with ``json``, for programs.

Events never come this way. Nothing is imported before there is something to say: structlog alone takes
longer to import than ``ptrace --help`` takes to run.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

LogFormat = Literal["human", "json"]
Level = Literal["debug", "info", "warning", "error"]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Settings:
    """How the diagnostics of this process look: set by :func:`configure`, once."""

    format: LogFormat = "human"
    level: Level = "warning"


def configure(log_format: LogFormat = "human", *, verbosity: int = 0) -> None:
    """Choose the format, and how much is said: warnings, with ``verbosity`` what is done, then everything."""
    Settings.format = log_format
    levels: tuple[Level, ...] = ("warning", "info", "debug")
    Settings.level = levels[min(verbosity, 2)]


def logger(name: str, *, stream: TextIO | None = None, level: Level | None = None) -> FilteringBoundLogger:
    """Return the logger of a part of the program, which writes to ``stream`` (stderr) from ``level`` on."""
    import structlog

    file = stream or sys.stderr
    renderer: structlog.typing.Processor
    if Settings.format == "json":
        renderer = structlog.processors.JSONRenderer()
        timestamper = structlog.processors.TimeStamper(fmt="iso", utc=True)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=file.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
        timestamper = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    bound: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(file),
        processors=[structlog.processors.add_log_level, timestamper, _printable, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level or Settings.level]),
        source=name,
    )
    return bound


def _printable(_logger: object, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Names of processes, interfaces and symbols are chosen by others: what moves a cursor is escaped."""
    if Settings.format == "json":
        return fields
    return {key: printable(value) if isinstance(value, str) else value for key, value in fields.items()}


def printable(text: str) -> str:
    r"""Return ``text`` with everything that is not printable escaped as ``\x1b``; safe on any terminal.

    As packet_tracer.formats.text has it, which takes the decoder to import.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say(text: str, **fields: object) -> None:
    """Write one line for the user: ``ptrace: text``, or an object with ``fields`` where the format is JSON.

    Lines of people don't show the fields. Errors of writing are ignored: there is nobody left to tell.
    """
    _write("info", text, fields)


def complain(text: str, **fields: object) -> None:
    """Write one line that says what went wrong, as :func:`say` does."""
    _write("error", text, fields)


def _write(level: Literal["info", "error"], text: str, fields: dict[str, object]) -> None:
    try:
        if Settings.format == "json":
            write = logger("ptrace", level="info")
            (write.error if level == "error" else write.info)(text, **fields)
        else:
            print(f"ptrace: {printable(text)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # stderr is closed, full or gone
        pass
