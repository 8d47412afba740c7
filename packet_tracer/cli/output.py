"""Where events go: standard output or a file, as text or JSON lines, by the batch and without a buffer."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from packet_tracer.errors import UsageError

if TYPE_CHECKING:
    from packet_tracer.capture import Tracer
    from packet_tracer.cli.stacks import Frames
    from packet_tracer.cli.totals import Totals
    from packet_tracer.events import EventBatch
    from packet_tracer.probes.setup import Counters

_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_STDOUT = 1


class Writer:
    """Writes to a file descriptor, all or nothing of a line."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        mode = os.fstat(fd).st_mode
        self.is_file = stat.S_ISREG(mode)
        self.is_pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)

    def write(self, text: str) -> None:
        """Write whole lines. Raises OSError with the file's name; what was written ends with a whole line."""
        data = text.encode("utf-8", "backslashreplace")
        done = 0
        try:
            while done < len(data):
                try:
                    done += os.write(self.fd, memoryview(data)[done:])
                except BlockingIOError:  # somebody else made it so
                    select.select((), (self.fd,), ())
        except OSError as error:
            if self.is_file:
                self._cut(done - (data.rfind(b"\n", 0, done) + 1))
            raise type(error)(error.errno, error.strerror, self.name) from None

    def _cut(self, count: int) -> None:
        """Take back the beginning of a line whose rest found no room."""
        if count:
            end = os.lseek(self.fd, -count, os.SEEK_CUR)
            os.ftruncate(self.fd, end)

    def empty(self) -> None:
        """Remove what is in the file."""
        if self.is_file:
            os.ftruncate(self.fd, 0)

    def reader_gone(self) -> bool:
        """Whether it is a pipe or socket whose other end was closed; otherwise only a write would tell."""
        if not self.is_pipe:
            return False
        poll = select.poll()
        poll.register(self.fd, 0)  # errors are always told
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


class Formatter(Protocol):
    """Turns events into lines (packet_tracer.formats)."""

    def format(self, batch: EventBatch) -> str:
        """Return whole lines."""
        ...


class Output:
    """A place that events go to, in some format."""

    def __init__(self, writer: Writer, formatter: Formatter) -> None:
        self._writer = writer
        self._formatter = formatter

    def begin(self, tracer: Tracer, snaplen: int) -> None:
        """Write what stands before the first event."""

    def write(self, batch: EventBatch) -> None:
        """Write a batch. Raises OSError with the name of the file."""
        self._writer.write(self._formatter.format(batch))

    def idle(self) -> None:
        """Write what has waited long enough; called now and then where no events come."""

    def end(self, totals: Totals, stats: Mapping[str, Counters]) -> None:
        """Write what stands after the last event; a writer that failed before may fail again, unheard."""

    def reader_gone(self) -> bool:
        """Whether nobody reads any more."""
        return self._writer.reader_gone()


class JsonOutput(Output):
    """JSON lines: one that says what is captured, the events, and one that says what they came to."""

    def begin(self, tracer: Tracer, snaplen: int) -> None:
        """Empty the file, and write the first line."""
        from packet_tracer.formats.frame import start_line

        self._writer.empty()
        names = [*tracer.stats()]
        offset_ns = tracer.context.wall_clock_offset_ns
        self._writer.write(start_line(probes=names, snaplen=snaplen, wall_clock_offset_ns=offset_ns))

    def end(self, totals: Totals, stats: Mapping[str, Counters]) -> None:
        """Write the last line."""
        from packet_tracer.formats.frame import end_line

        with suppress(OSError):
            self._writer.write(
                end_line(
                    events=totals.events,
                    packets=totals.packets,
                    duration_seconds=totals.seconds,
                    stats=stats,
                    journeys=self._also_at_end(),
                )
            )

    def _also_at_end(self) -> Mapping[str, int]:
        """Return what the last line says beside the totals of every capture."""
        return {}


@contextmanager
def choose(
    output: str | None,
    path: str | None,
    *,
    data: bool = False,
    frames: Frames | None = None,
    journeys: bool = False,
) -> Iterator[list[Output]]:
    """Open what ``--format`` and ``-w`` ask for: events on stdout, in a file, or both.

    ``-w`` writes the captured bytes too, ``--format json`` with ``data``; both kernel stacks with ``frames``,
    which names theirs. With ``journeys`` stdout gets packets, not events. A file that exists is emptied
    when the capture has begun, not before: a mistake does not cost the last one. Raises OSError where it
    can't be opened.
    """
    with ExitStack() as files:
        chosen: list[Output] = []
        stdout = Writer(_STDOUT, "standard output")
        if journeys:
            chosen.append(_journeys(stdout, as_json=output == "json", frames=frames))
        elif output == "json" or path == "-":
            chosen.append(_json(stdout, data=data or path == "-", frames=frames))
        elif output == "text" or path is None:
            chosen.append(_text(stdout, frames=frames))
        if path is not None and path != "-":
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            files.callback(os.close, fd)
            chosen.append(_json(Writer(fd, path), data=True, frames=frames))
        yield chosen


def _json(writer: Writer, *, data: bool, frames: Frames | None) -> Output:
    from packet_tracer.formats.jsonl import JsonLines

    return JsonOutput(writer, _with_stacks(JsonLines(data=data), frames, as_json=True))


def _text(writer: Writer, *, frames: Frames | None) -> Output:
    from packet_tracer.formats.text import Text
    from packet_tracer.terminal import colors_wanted

    return Output(writer, _with_stacks(Text(color=colors_wanted()), frames, as_json=False))


def _journeys(writer: Writer, *, as_json: bool, frames: Frames | None) -> Output:
    from packet_tracer.cli.journeys import JourneyJsonOutput, JourneyOutput
    from packet_tracer.terminal import colors_wanted

    if as_json:
        return JourneyJsonOutput(writer, frames=frames)
    return JourneyOutput(writer, color=colors_wanted(), frames=frames)


def _with_stacks(formatter: Formatter, frames: Frames | None, *, as_json: bool) -> Formatter:
    if frames is None:
        return formatter
    from packet_tracer.cli.stacks import WithStacks

    return WithStacks(formatter, frames, as_json=as_json)


def check(output: str | None, path: str | None) -> None:
    """Raise UsageError for a file of a format that can't be written, and for two formats on one stdout."""
    suffix = Path(path).suffix.lower() if path is not None else ""
    if suffix and suffix not in _JSON_SUFFIXES:
        can = "events are written as JSON lines: -w FILE.jsonl, or -w - for stdout"
        raise UsageError(f"can't write {path}: {can}")
    if path == "-" and output == "text":
        raise UsageError("-w - and --format text can't both have stdout")
