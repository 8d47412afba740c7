"""Kernel stacks beside the events that carry them: ``--stack``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from packet_tracer.formats.text import printable

if TYPE_CHECKING:
    from packet_tracer.cli.output import Formatter
    from packet_tracer.events import EventBatch

#: Names the frames of a stack, innermost first.
Frames = Callable[[int], tuple[str, ...]]


class WithStacks:
    """A formatter of one line an event, with the event's stack added: below it, or in the object.

    A stack that could not be kept is said to be lost, in its place.
    """

    def __init__(self, formatter: Formatter, frames: Frames, *, as_json: bool) -> None:
        self._formatter = formatter
        self._frames = frames
        self._add = _into_object if as_json else _below
        self._known: dict[int, tuple[str, ...]] = {}

    def format(self, batch: EventBatch) -> str:
        """Return the lines."""
        lines = self._formatter.format(batch).splitlines()
        ids = (event.stack_id for event in batch)
        return "".join(self._add(line, self._stack(one)) for line, one in zip(lines, ids, strict=True))

    def _stack(self, stack_id: int | None) -> tuple[str, ...] | None:
        if stack_id is None:
            return None
        if stack_id not in self._known:
            self._known[stack_id] = self._frames(stack_id)
        return self._known[stack_id]


def _below(line: str, stack: tuple[str, ...] | None) -> str:
    frames = ("(its kernel stack was not kept)",) if stack is None else stack
    return "".join([line, "\n", *(f"    {printable(frame)}\n" for frame in frames)])


def _into_object(line: str, stack: tuple[str, ...] | None) -> str:
    return f'{line[:-1]},"stack":{json.dumps(stack)}}}\n'
