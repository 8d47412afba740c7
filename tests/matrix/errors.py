"""What can go wrong before or around a test run in a guest, each with the exit status it stands for."""

from __future__ import annotations

from collections.abc import Sequence


class MatrixError(Exception):
    """Base: one line that says what is missing and what to do; ``details`` are lines of evidence."""

    exit_status = 1

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


class MissingProgram(MatrixError):
    """A program that the runner needs is not installed."""

    exit_status = 69


class UnknownKernel(MatrixError):
    """No such suite or flavour, or no mirror that has it."""

    exit_status = 69


class GuestDied(MatrixError):
    """The guest ended before the command did: a panic, mostly."""

    exit_status = 71


class GuestStumbled(GuestDied):
    """It died of its emulation: while it booted, or at a breakpoint that the kernel puts into its own code
    while it patches it, and that an emulated processor finds there when it is gone already.
    """


class GuestTimeout(MatrixError):
    """The command took longer than it was given; the guest was killed."""

    exit_status = 124
