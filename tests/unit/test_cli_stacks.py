"""Stacks beside events: as many as there are lines, named once, and said to be missing where they are."""

from __future__ import annotations

import json

from packet_tracer.cli.stacks import WithStacks
from packet_tracer.events import EventBatch


class Lines:
    """Formats any batch as the same lines."""

    def __init__(self, *lines: str) -> None:
        self._text = "".join(f"{line}\n" for line in lines)

    def format(self, batch: EventBatch) -> str:
        return self._text


class Event:
    def __init__(self, stack_id: int | None) -> None:
        self.stack_id = stack_id


def with_stacks(*lines: str, ids: list[int | None], as_json: bool) -> tuple[str, list[int]]:
    asked: list[int] = []

    def frames(stack_id: int) -> tuple[str, ...]:
        asked.append(stack_id)
        return ("ip_rcv+0x5", "evil\x1b[2J")

    batch: EventBatch = [Event(one) for one in ids]  # type: ignore[assignment]
    return WithStacks(Lines(*lines), frames, as_json=as_json).format(batch), asked


def test_below_the_line() -> None:
    text, asked = with_stacks("one", "two", "three", ids=[7, None, 7], as_json=False)
    frames = "    ip_rcv+0x5\n    evil\\x1b[2J\n"
    assert text == f"one\n{frames}two\n    (its kernel stack was not kept)\nthree\n{frames}"
    assert asked == [7]


def test_in_the_object() -> None:
    text, _ = with_stacks('{"a":1}', '{"a":2}', ids=[7, None], as_json=True)
    first, second = (json.loads(line) for line in text.splitlines())
    assert first == {"a": 1, "stack": ["ip_rcv+0x5", "evil\x1b[2J"]}
    assert second == {"a": 2, "stack": None}
