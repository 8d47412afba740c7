"""Network namespaces that no name, mount or process leads to: those of single threads, and those held open.

A namespace lives as long as something refers to it, and an open file (nsfs, namespaces(7)) or a thread that
went its own way is enough. Finding those takes a look at every descriptor of every process.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from packet_tracer.netns import Netns

#: What /proc says of an open namespace: its kind and inode, or the place where it is mounted, "/" if nowhere
#: any more. Nothing else is looked at closer: stat(2) of a file on a dead server would wait for it.
_HELD = re.compile(r"net:\[\d+\]|/|.*/netns/[^/]+")


class Search(threading.Thread):
    """A search under way; when it is over ``found`` is what :func:`hidden` returns, in ``seconds``."""

    def __init__(self) -> None:
        super().__init__(name="namespaces", daemon=True)
        self.found: dict[int, Netns] = {}
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        """Search."""
        started = time.monotonic()
        self.found = hidden()
        self.seconds = time.monotonic() - started


def hidden() -> dict[int, Netns]:
    """Return namespaces of threads and of open files, by inode, each named by its path in ``/proc``.

    It takes some microseconds a descriptor, so it is for those who have looked everywhere else. What may not
    be looked at is left out.
    """
    found: dict[int, Netns] = {}
    for process in _entries("/proc"):
        if process.isdigit():
            for path, inode in (*_of_threads(process), *_of_files(process)):
                found.setdefault(inode, Netns(inode, path, path))
    return found


def _of_threads(process: str) -> Iterator[tuple[str, int]]:
    for thread in _entries(f"/proc/{process}/task"):
        path = f"/proc/{process}/task/{thread}/ns/net"
        try:
            yield path, Path(path).stat().st_ino
        except OSError:  # ended meanwhile, or not ours to look at
            continue


def _of_files(process: str) -> Iterator[tuple[str, int]]:
    namespaces = Path("/proc/self/ns/net").stat().st_dev
    for descriptor in _entries(f"/proc/{process}/fd"):
        path = Path(f"/proc/{process}/fd/{descriptor}")
        try:
            if _HELD.fullmatch(str(path.readlink())):
                found = path.stat()
                if found.st_dev == namespaces:
                    yield str(path), found.st_ino
        except OSError:
            continue


def _entries(path: str) -> list[str]:
    try:
        return [entry.name for entry in Path(path).iterdir()]
    except OSError:
        return []
