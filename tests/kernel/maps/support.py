"""What the map tests share: test objects, running their programs, CPUs, cgroups of our own."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import InodeStorage
from packet_tracer.bpf.maps.codecs import u64
from packet_tracer.bpf.object import LoadedObject
from packet_tracer.bpf.program import Program
from tests.kernel.loading import open_object

PACKET = bytes(64)
_AF_XDP, _SOL_XDP, _XDP_RX_RING = 44, 283, 2  # linux/socket.h, linux/if_xdp.h


def covers(*types: MapType) -> pytest.MarkDecorator:
    """Mark a test as the functional test of map types; it is skipped where the kernel lacks one."""
    return pytest.mark.map_types(*types)


def load_maps(name: str, *programs: str, **constants: int) -> LoadedObject:
    """Load a test object of tests/bpf/maps_*.bpf.c, all of its programs unless some are named."""
    with open_object(f"maps_{name}") as opened:
        opened.set_rodata(**constants)
        if programs:
            for spec in opened.programs.values():
                spec.autoload = spec.name in programs
        return opened.load_all()


def run(program: Program, *numbers: int) -> int:
    """Run a raw tracepoint program of the test objects with up to four numbers; return what it returns."""
    padded = [*numbers, *[0] * (4 - len(numbers))]
    value = program.test_run(context=struct.pack("=4Q", *padded)).return_value
    return value - (1 << 32) if value >> 31 else value


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Keep this thread on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def two_cpus() -> list[int]:
    """Return two CPUs that this process may run on; skips where there is one."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two CPUs to show that they differ")
    return cpus


def cgroup_root() -> Path:
    """Return where the second version of cgroups is mounted; skips where it is not."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(path)
    pytest.skip("cgroup2 is not mounted")


@contextmanager
def own_cgroup(*, enter: bool = False) -> Iterator[Path]:
    """Make a cgroup; with ``enter`` this process is in it meanwhile."""
    root = cgroup_root()
    before = next(
        line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line[:3] == "0::"
    )
    path = root / f"ptrace-test-{os.getpid()}-{os.urandom(3).hex()}"
    path.mkdir()
    try:
        if enter:
            (path / "cgroup.procs").write_text(str(os.getpid()))
        yield path
    finally:
        if enter:
            (root / before.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        path.rmdir()


@contextmanager
def datagrams() -> Iterator[tuple[socket.socket, tuple[str, int]]]:
    """A sender and the address of somebody who listens, on the loopback of the current namespace.

    To a closed port the kernel would answer by ICMP, from a socket that may be in the test's cgroup too.
    """
    with socket.socket(type=socket.SOCK_DGRAM) as sender, socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        yield sender, receiver.getsockname()


def require_inode_storage() -> None:
    """Skip where the kernel keeps no values with inodes: it needs room that the bpf LSM asks for at boot."""
    with InodeStorage.create(value=u64) as marks, open("/proc/self/exe", "rb") as file:
        try:
            marks[file] = 1
        except MapError as error:
            if error.errno == errno.EBADF:
                pytest.skip("inode storage: the bpf LSM is not active in this kernel (lsm= at boot)")
            raise


@contextmanager
def directory_of(path: Path) -> Iterator[int]:
    """Open a directory and close it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def raises_errno(kind: type[Any], number: int, action: Callable[[], object]) -> Any:
    """Check that an action raises exactly this error with this errno; return the error."""
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind
    assert caught.value.errno == number
    return caught.value


def xdp_socket() -> socket.socket:
    """Return an AF_XDP socket with a ring to receive by: Linux 7.3 lets no other into an XSKMAP (ENOBUFS)."""
    opened = socket.socket(_AF_XDP, socket.SOCK_RAW)
    opened.setsockopt(_SOL_XDP, _XDP_RX_RING, struct.pack("=I", 64))
    return opened
