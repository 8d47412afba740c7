"""Kernel stacks beside the events that carry them: ``--stack``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from packet_tracer.events.records import Selection
from packet_tracer.formats.text import stack_lines

if TYPE_CHECKING:
    from packet_tracer.cli.output import Formatter
    from packet_tracer.events import Event, EventBatch

_STACK_ID = Selection("stack_id")

#: Names the frames of a stack, innermost first.
Frames = Callable[[int], tuple[str, ...]]


class Stacks:
    """The stacks that events carry, named while the capture runs: after it the kernel has forgotten them."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._known: dict[int, tuple[str, ...]] = {}

    def learn(self, batch: EventBatch) -> None:
        """Name the stacks of a batch whose events are shown later."""
        unpack, data = _STACK_ID.unpack_from, batch.data
        for stack_id in {unpack(data, at)[0] for at in batch.records.offsets}:
            if stack_id >= 0:
                self.frames(stack_id)

    def frames(self, stack_id: int | None) -> tuple[str, ...] | None:
        """Return a stack's frames, innermost first; None if it was not kept."""
        if stack_id is None:
            return None
        if stack_id not in self._known:
            self._known[stack_id] = self._frames(stack_id)
        return self._known[stack_id]

    def of(self, event: Event) -> tuple[str, ...] | None:
        """Return an event's stack."""
        return self.frames(event.stack_id)


class WithStacks:
    """A formatter of one line an event, with the event's stack added: below it, or in the object.

    A stack that could not be kept is said to be lost, in its place.
    """

    def __init__(self, formatter: Formatter, frames: Frames, *, as_json: bool) -> None:
        self._formatter = formatter
        self._stacks = Stacks(frames)
        self._add = _into_object if as_json else _below

    def format(self, batch: EventBatch) -> str:
        """Return the lines."""
        lines = self._formatter.format(batch).splitlines()
        stacks = (self._stacks.of(event) for event in batch)
        return "".join(self._add(line, stack) for line, stack in zip(lines, stacks, strict=True))


def _below(line: str, stack: tuple[str, ...] | None) -> str:
    return "\n".join([line, *stack_lines(stack), ""])


def _into_object(line: str, stack: tuple[str, ...] | None) -> str:
    return f'{line[:-1]},"stack":{json.dumps(stack)}}}\n'
