"""What memory is left: the host's, and below the limits of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from packet_tracer.free_memory import free_memory

GIB = 1 << 30
HOST = "MemTotal:       8388608 kB\nMemFree:         100 kB\nMemAvailable:    4194304 kB\n"


def tree(directory: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory / "proc", directory / "cgroup"


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 4 * GIB),
        ({"cgroup/a/b/memory.max": "max\n", "cgroup/a/b/memory.current": "5\n"}, 4 * GIB),
        ({"cgroup/a/b/memory.max": f"{GIB}\n", "cgroup/a/b/memory.current": f"{GIB // 4}\n"}, 3 * GIB // 4),
        ({"cgroup/a/memory.max": f"{GIB}\n", "cgroup/a/memory.current": "0\n"}, GIB),
        ({"cgroup/memory.max": "1000\n", "cgroup/memory.current": "2000\n"}, 0),
        (
            {
                "proc/self/cgroup": "3:cpu:/c\n2:hugetlb,memory:/m\n",
                "cgroup/memory/m/memory.limit_in_bytes": "5000\n",
                "cgroup/memory/m/memory.usage_in_bytes": "4000\n",
            },
            1000,
        ),
        ({"cgroup/a/b/memory.max": "nonsense\n", "cgroup/a/b/memory.current": "\xff"}, 4 * GIB),
    ],
    ids=["none", "no limit", "own", "above", "beyond it", "version 1", "damaged"],
)
def test_what_is_left(tmp_path: Path, files: dict[str, str], left: int) -> None:
    proc, cgroups = tree(tmp_path, {"proc/meminfo": HOST, "proc/self/cgroup": "0::/a/b\n"} | files)
    assert free_memory(proc, cgroups) == left


def test_nothing_tells(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path) is None


def test_here() -> None:
    left = free_memory()
    assert left is not None
    assert 0 < left < 1 << 50
