"""Values as they are typed: durations, sizes, marks. Each raises typer.BadParameter that says what is one."""

from __future__ import annotations

import re

import typer

_SECONDS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 0, "K": 10, "M": 20, "G": 30}
_LARGEST_MARK = _LARGEST_LENGTH = 0xFFFFFFFF


def duration(text: str) -> float:
    """Return seconds: ``10`` and ``10s`` are ten of them, ``500ms`` half of one, ``1.5m`` ninety."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|m|h|d|)", text.strip(), re.ASCII)
    if not found:
        raise typer.BadParameter(f"{text!r} is not a duration like 10s, 500ms, 2m or 1h")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if not 0 < seconds < 1e9:
        raise typer.BadParameter(f"{text!r} is not a duration that can be waited for")
    return seconds


def size(text: str, *, least: int = 1) -> int:
    """Return bytes: ``64M`` is 64 MiB; K, M, G with or without ``B`` or ``iB``, or a plain number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    if not found:
        raise typer.BadParameter(f"{text!r} is not a size like 512K, 64M or 1G")
    count = int(float(found[1]) * (1 << _BYTES[found[2].upper()]))
    if not least <= count <= 1 << 40:
        raise typer.BadParameter(f"{text!r} is not a size that can be had")
    return count


def length_range(text: str) -> tuple[int, int]:
    """Return least and greatest length in bytes: ``64..128``, ``..128``, ``1500..``, or one number."""
    found = re.fullmatch(r"(\d*)\.\.(\d*)|(\d+)", text.strip(), re.ASCII)
    if not found or text.strip() == "..":
        raise typer.BadParameter(f"{text!r} is not a range of lengths like 64..128, 1500.. or ..64")
    least, greatest = int(found[3] or found[1] or 0), int(found[3] or found[2] or _LARGEST_LENGTH)
    if not least <= greatest <= _LARGEST_LENGTH:
        raise typer.BadParameter(f"no packet has a length of {text}")
    return least, greatest


def mark(text: str) -> tuple[int, int]:
    """Return value and mask of ``N[/MASK]``, each decimal or hexadecimal (``0x10/0xff``)."""
    value, slash, mask = text.strip().partition("/")
    try:
        numbers = int(value, 0), int(mask, 0) if slash else _LARGEST_MARK
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a mark like 1, 0x10 or 0x10/0xff") from None
    for number in numbers:
        if not 0 <= number <= _LARGEST_MARK:
            raise typer.BadParameter(f"{number} does not fit the 32 bits of a mark")
    if numbers[0] & ~numbers[1]:
        raise typer.BadParameter(f"{text!r} can't match: the value has bits outside its mask")
    return numbers
