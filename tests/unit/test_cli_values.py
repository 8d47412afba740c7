"""Values as they are typed on the command line."""

from __future__ import annotations

import contextlib

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.cli import values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 10), ("10s", 10), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("1.5m", 90), ("250us", 0.00025)],
)
def test_duration(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "-1", "0", "0s", "10x", "1e3", "ten", "1 2s", "10s\n5", "9999999d", "\u0661s"]
)
def test_not_a_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        values.duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("4096", 4096), ("64K", 65536), ("64M", 64 << 20), ("1G", 1 << 30), ("64MiB", 64 << 20), ("1.5k", 1536)],
)
def test_size(text: str, count: int) -> None:
    assert values.size(text) == count


@pytest.mark.parametrize("text", ["", "M", "0", "-1", "64T", "64MM", "0x10", "9999999G"])
def test_not_a_size(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        values.size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", (1, 0xFFFFFFFF)),
        ("0x10", (16, 0xFFFFFFFF)),
        ("0x10/0xff", (16, 255)),
        ("0/1", (0, 1)),
        ("4294967295", (0xFFFFFFFF, 0xFFFFFFFF)),
    ],
)
def test_mark(text: str, expected: tuple[int, int]) -> None:
    assert values.mark(text) == expected


@pytest.mark.parametrize(
    "text", ["", "/", "1/", "/1", "x", "-1", "4294967296", "1/4294967296", "0x100/0xff", "1/2/3"]
)
def test_not_a_mark(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        values.mark(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64..128", (64, 128)),
        ("..128", (0, 128)),
        ("1500..", (1500, 0xFFFFFFFF)),
        ("98", (98, 98)),
        ("0..0", (0, 0)),
    ],
)
def test_length_range(text: str, expected: tuple[int, int]) -> None:
    assert values.length_range(text) == expected


@pytest.mark.parametrize("text", ["", "..", "9..1", "-1..5", "a..b", "1...5", "1..99999999999"])
def test_not_a_length_range(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        values.length_range(text)


@given(st.text(max_size=12))
def test_any_text_is_taken_or_refused_in_one_way(text: str) -> None:
    for parse in (values.duration, values.size, values.mark):
        with contextlib.suppress(typer.BadParameter):
            parse(text)
