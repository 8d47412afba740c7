"""Every error packet-tracer raises, and the exit code each stands for.

An error's text is one line that says what failed and what to do about it; what a program needs is in
its fields. The command prints that line and exits with ``exit_code``; nothing else decides an exit code.
"""

from __future__ import annotations

import errno as _errno
import os

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NOT_PERMITTED = 3
EXIT_NOT_SUPPORTED = 4

#: The kernel's own ENOTSUPP: not in :mod:`errno`, and :func:`os.strerror` does not know it
#: (include/linux/errno.h).
ENOTSUPP = 524


def error_name(number: int) -> str:
    """Return the symbolic name of an errno value, ``ENOTSUPP`` (524) included: ``"EPERM"``."""
    if number == ENOTSUPP:
        return "ENOTSUPP"
    return _errno.errorcode.get(number, f"errno {number}")


def error_text(number: int) -> str:
    """Return ``"EPERM: Operation not permitted"`` for an errno value."""
    if number == ENOTSUPP:
        return "ENOTSUPP: operation not supported by this kernel"
    return f"{error_name(number)}: {os.strerror(number)}"


class PtraceError(Exception):
    """Base of all errors of this package: one line of text, and the exit code of the command."""

    exit_code = EXIT_ERROR


class UsageError(PtraceError):
    """What was asked for makes no sense, or names what does not exist."""

    exit_code = EXIT_USAGE


class NotPermittedError(PtraceError):
    """The kernel refused for want of a privilege."""

    exit_code = EXIT_NOT_PERMITTED


class NotSupportedError(PtraceError):
    """This kernel or host cannot do what was asked for."""

    exit_code = EXIT_NOT_SUPPORTED


class RecordError(PtraceError):
    """A record does not have the size or the version that it declares."""


class BpfError(PtraceError):
    """A call into the kernel's BPF failed. ``errno`` is positive; 0 when there is none."""

    def __init__(self, message: str, *, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno
