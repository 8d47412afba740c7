"""Where events go: standard output or a file, as text or JSON lines, by the batch and without a buffer."""

from __future__ import annotations

import os
import select
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

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

    def reader_gone(self) -> bool:
        """Whether it is a pipe or socket whose other end was closed; otherwise only a write would tell."""
        if not self.is_pipe:
            return False
        poll = select.poll()
        poll.register(self.fd, 0)  # errors are always told
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


class Formatter(Protocol):
    """Turns events into text (packet_tracer.formats)."""

    def format(self, batch: EventBatch) -> str:
        """Return whole lines."""


class Output:
    """A place that events go to, in some format."""

    def __init__(self, writer: Writer, formatter: Formatter) -> None:
        self._writer = writer
        self._formatter = formatter

    def begin(self, tracer: Tracer) -> None:
        """Write what stands before the first event."""

    def write(self, batch: EventBatch) -> None:
        """Write a batch. Raises OSError with the name of the file."""
        self._writer.write(self._formatter.format(batch))

    def end(self, totals: Totals, stats: Mapping[str, Counters]) -> None:
        """Write what stands after the last event."""

    def reader_gone(self) -> bool:
        """Whether nobody reads any more."""
        return self._writer.reader_gone()


class JsonOutput(Output):
    """JSON lines: an object that says what was captured, the events, and one that says what was lost."""

    def begin(self, tracer: Tracer) -> None:
        self._writer.empty()


@contextmanager
def choose(output: str | None, path: str | None) -> Iterator[list[Output]]:
    """Open what ``--format`` and ``-w`` ask for: events on stdout, in a file, or both.

    A file that exists is emptied when the capture has begun, not before: a mistake does not cost the last one.
    Raises UsageError for a format that can't be written, OSError where the file can't be opened.
    """
    check_path(path)
    with ExitStack() as files:
        chosen: list[Output] = []
        if output == "json" or path == "-":
            chosen.append(json_output(Writer(_STDOUT, "standard output")))
        elif output == "text" or path is None:
            chosen.append(text_output(Writer(_STDOUT, "standard output")))
        if path is not None and path != "-":
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            files.callback(os.close, fd)
            chosen.append(json_output(Writer(fd, path)))
        yield chosen


def check_path(path: str | None) -> None:
    """Raise UsageError if the name of the file says that it is to have a format that can't be written."""
    suffix = Path(path).suffix.lower() if path is not None else ""
    if suffix and suffix not in _JSON_SUFFIXES:
        raise UsageError(
            f"can't write {path}: events are written as JSON lines, to a FILE.jsonl or to - (stdout)"
        )
