"""Local storage: values by socket, task, inode and cgroup, written by programs and read here."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from packet_tracer import lab
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.link import attach_cgroup
from packet_tracer.bpf.maps import CgrpStorage, InodeStorage, SkStorage, TaskStorage
from packet_tracer.bpf.maps.codecs import u32, u64
from packet_tracer.netns import entered
from tests.kernel.maps.support import (
    covers,
    datagrams,
    directory_of,
    load_maps,
    own_cgroup,
    raises_errno,
    require_inode_storage,
    run,
)


@dataclass
class Mark:
    number: Annotated[int, u32]
    total: Annotated[int, u64]
    more: Annotated[bytes, "5s"]


@covers(MapType.SK_STORAGE)
def test_a_program_counts_what_a_socket_sends() -> None:
    with own_cgroup(enter=True) as path, load_maps("cgroup") as loaded, lab.Lab() as network:
        by_socket = loaded.maps["by_socket"]
        assert isinstance(by_socket, SkStorage)
        with (
            entered(network.client.netns),
            attach_cgroup(loaded.programs["on_egress"], path),
            datagrams() as (one, listener),
            socket.socket(type=socket.SOCK_DGRAM) as other,
        ):
            by_socket[other] = 10
            for sender, count in ((one, 4), (other, 2)):
                for _ in range(count):
                    sender.sendto(b"x", listener)
            assert by_socket[one] == 4
            assert by_socket[other.fileno()] == 12


@covers(MapType.SK_STORAGE)
def test_what_is_no_socket_is_refused() -> None:
    with SkStorage.create(value=Mark, name="marks") as marks, open("/proc/self/exe", "rb") as file:
        raises_errno(MapError, errno.ENOTSOCK, lambda: marks[file])
        with socket.socket() as one:
            assert one not in marks
            assert marks.get(one) is None
            with pytest.raises(KeyError):
                marks[one]
            with pytest.raises(KeyError):
                del marks[one]
            assert marks.insert(one, Mark(1, 2, b"hello"))
            assert not marks.insert(one, Mark(1, 3, b"hello"))
            assert marks[one] == Mark(1, 2, b"hello")
            del marks[one]
            assert one not in marks


@covers(MapType.TASK_STORAGE)
def test_a_program_adds_to_its_task() -> None:
    with load_maps("task_storage") as loaded:
        marks = loaded.maps["marks"]
        assert isinstance(marks, TaskStorage)
        mine = os.pidfd_open(os.getpid())
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        its = os.pidfd_open(child.pid)
        try:
            assert mine not in marks
            assert [run(loaded.programs["add"], 7) for _ in range(2)] == [7, 14]
            assert marks[mine] == 14
            assert its not in marks
            marks[mine] = 100
            assert run(loaded.programs["add"], 7) == 107
            marks[its] = 5
            child.communicate(b"\n")
            assert marks.get(mine) == 107
            raises_errno(MapError, errno.EBADF, lambda: marks[0])
            del marks[mine]
        finally:
            child.kill()
            os.close(mine)
            os.close(its)


@covers(MapType.INODE_STORAGE)
def test_inodes_have_one_value_however_they_are_opened(tmp_path: Path) -> None:
    """Only LSM programs reach it, which not every kernel lets load: this is what user space can prove."""
    require_inode_storage()
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    with (
        InodeStorage.create(value=u64) as marks,
        one.open() as first,
        one.open() as again,
        other.open() as second,
    ):
        marks[first] = 7
        assert marks[again] == 7
        assert second not in marks
        del marks[again]
        assert first not in marks


@covers(MapType.CGRP_STORAGE)
def test_a_program_adds_to_the_cgroup_it_runs_in() -> None:
    with own_cgroup(enter=True) as path, own_cgroup() as elsewhere, load_maps("cgrp_storage") as loaded:
        marks = loaded.maps["marks"]
        assert isinstance(marks, CgrpStorage)
        with directory_of(path) as mine, directory_of(elsewhere) as other:
            assert mine not in marks
            assert [run(loaded.programs["add"], 3) for _ in range(2)] == [3, 6]
            assert marks[mine] == 6
            assert other not in marks
            marks[mine] = 50
            assert run(loaded.programs["add"], 3) == 53
            del marks[mine]
            assert mine not in marks
