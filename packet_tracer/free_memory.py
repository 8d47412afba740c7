"""How much memory this process may still take before others have to give some up, or the kernel ends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

#: A cgroup's limit and use, in version 2 and in version 1.
_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return bytes: what the host says is available, or what is left below the limit of a cgroup that this
    process is in, or of one above, if that is less. None where nothing tells.
    """
    left = [*_of_host(proc / "meminfo")]
    for directory in _directories(proc / "self" / "cgroup", cgroups):
        left.extend(_of_cgroup(directory))
    return max(min(left), 0) if left else None


def _of_host(meminfo: Path) -> Iterator[int]:
    for line in _text(meminfo).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable" and (words := rest.split()) and words[0].isdecimal():
            yield int(words[0]) << 10


def _directories(membership: Path, cgroups: Path) -> Iterator[Path]:
    """Yield the directories of this process's cgroups and of those above, as far as they can be seen here."""
    for line in _text(membership).splitlines():
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        own = root / path.lstrip("/")
        yield own
        yield from (above for above in own.parents if above.is_relative_to(root))


def _of_cgroup(directory: Path) -> Iterator[int]:
    for limit, used in _FILES:
        most, now = _text(directory / limit).strip(), _text(directory / used).strip()
        if most.isdecimal() and now.isdecimal():
            yield int(most) - int(now)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
