"""Terminals: colours, tables, and a status line that makes way for what is printed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

from packet_tracer.diagnostics import printable

#: SGR codes (ECMA-48): bold, dim and the three colours that mean something here.
BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"


def colors_wanted(stream: TextIO | None = None) -> bool:
    """Whether to colour what goes to this stream (stdout): a terminal, without NO_COLOR (no-color.org)."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, *codes: str, color: bool) -> str:
    """Return the text in these SGR codes, or as it is."""
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if color and codes else text


def table(rows: Sequence[Sequence[str]], *, gap: str = "  ") -> list[str]:
    """Return rows as lines with aligned columns, the last one not padded, control characters escaped."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        gap.join(cell.ljust(width) for cell, width in zip(row, [*widths[:-1], 0], strict=True)).rstrip()
        for row in cells
    ]


class StatusLine:
    """One line on a terminal that is written over; nothing at all where the stream is no terminal."""

    def __init__(self, stream: TextIO, *, wanted: bool = True) -> None:
        self._stream = stream
        self.enabled = wanted and stream.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = ""

    def show(self, text: str) -> None:
        """Show this text, cut to the terminal's width, instead of what was there."""
        if not self.enabled:
            return
        width = shutil.get_terminal_size().columns - 1
        self._shown = printable(text)[:width]
        self._write(f"\r\x1b[K{self._shown}")

    def clear(self) -> None:
        """Make way."""
        if self._shown:
            self._shown = ""
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # the terminal is gone: nobody looks
            self.enabled = False
