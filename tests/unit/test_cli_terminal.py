"""Status line, tables and diagnostics keep out of the way of what is printed, and off terminals' controls."""

from __future__ import annotations

import io
import json

import pytest

from packet_tracer import diagnostics, terminal


class Screen(io.StringIO):
    """A stream that says it is a terminal, and keeps what it is told."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(diagnostics.Settings, "format", "human")
    monkeypatch.setattr(diagnostics.Settings, "level", "warning")


def test_the_status_line_is_written_over_and_goes_without_a_trace() -> None:
    screen = Screen()
    line = terminal.StatusLine(screen)
    line.show("one")
    line.show("two")
    line.clear()
    line.clear()
    assert screen.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"


def test_it_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    screen = Screen()
    terminal.StatusLine(screen).show("x" * 50)
    assert screen.getvalue().count("x") == 19


@pytest.mark.parametrize(
    ("stream", "wanted", "term"),
    [(io.StringIO(), True, "xterm"), (Screen(), False, "xterm"), (Screen(), True, "dumb")],
)
def test_no_status_line_where_it_would_be_in_the_way(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, wanted: bool, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    line = terminal.StatusLine(stream, wanted=wanted)
    line.show("one")
    line.clear()
    assert stream.getvalue() == ""


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.colors_wanted(Screen())
    assert not terminal.colors_wanted(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal.colors_wanted(Screen())
    assert terminal.paint("x", terminal.RED, color=False) == "x"
    assert terminal.paint("x", terminal.BOLD, terminal.RED, color=True) == "\x1b[1;31mx\x1b[0m"


def test_tables_are_aligned_and_escaped() -> None:
    assert terminal.table([("a", "bb", "c"), ("aaa", "b", "\x1b[2J\n")]) == [
        "a    bb  c",
        "aaa  b   \\x1b[2J\\n",
    ]


@pytest.mark.parametrize(
    "text", ["plain", "\x1b]0;title\x07", "a\rb", "\u202eright to left", "\udcff", "\x9b1m"]
)
def test_nothing_that_is_printed_moves_a_cursor(text: str) -> None:
    shown = diagnostics.printable(text)
    assert shown.isprintable()
    shown.encode()
    assert (shown == text) is text.isprintable()


@pytest.mark.parametrize(("verbosity", "levels"), [(0, ["warning"]), (1, ["info", "warning"])])
def test_how_much_is_said(verbosity: int, levels: list[str]) -> None:
    diagnostics.configure("json", verbosity=verbosity)
    stream = io.StringIO()
    log = diagnostics.logger("test", stream=stream)
    log.debug("of no interest")
    log.info("done", what="\x1b[2J")
    log.warning("mind")
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in said] == levels
    assert all(line["source"] == "test" for line in said)


def test_diagnostics_for_people_are_escaped() -> None:
    diagnostics.configure("human", verbosity=1)
    stream = io.StringIO()
    diagnostics.logger("test", stream=stream).info("attached", to="\x1b[2J")
    assert "\x1b" not in stream.getvalue()
    assert "attached" in stream.getvalue()
