"""A network namespace of our own for a moment, where nobody's traffic can be disturbed.

It has no name and no process in it: it belongs to a thread and ends with it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from packet_tracer.errors import NotPermittedError, PtraceError, error_text

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
#: The loopback device's index is the same in every namespace (include/net/net_namespace.h, LOOPBACK_IFINDEX).
LOOPBACK = 1

T = TypeVar("T")


def in_scratch_netns(function: Callable[[], T]) -> T:
    """Return ``function()``, called in a thread that has a new network namespace to itself.

    Raises NotPermittedError without CAP_SYS_ADMIN, and what the function raises.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET):
                number = ctypes.get_errno()
                if number == errno.EPERM:
                    raise NotPermittedError("a network namespace to try it in needs CAP_SYS_ADMIN")
                raise PtraceError(f"no network namespace to try it in: {error_text(number)}")
            results.append(function())
        except BaseException as error:  # handed to the caller
            failures.append(error)

    thread = threading.Thread(target=run, name="doctor")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


@contextmanager
def veth() -> Iterator[int | None]:
    """Make a veth pair in the calling thread's namespace; yield an index, None where it can't be made."""
    program = shutil.which("ip", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        yield None
        return
    command = [program, "link", "add", "doctor0", "type", "veth", "peer", "name", "doctor1"]
    made = subprocess.run(command, capture_output=True, check=False, timeout=20)
    yield socket.if_nametoindex("doctor0") if made.returncode == 0 else None
