"""What the lab is built with: commands run in a namespace, settings, and patience with Ctrl-C."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable

from packet_tracer.errors import NotPermittedError, NotSupportedError, PtraceError
from packet_tracer.netns import Netns, entered

_COMMAND_TIMEOUT = 20.0  # seconds; a command takes milliseconds
_CARRIER_TIMEOUT = 5.0  # seconds; it takes a millisecond

_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_IFF_RUNNING = 0x40  # linux/if.h

# linux/ethtool.h: commands that set one offload each, oldest interface, known to every kernel
_SIOCETHTOOL = 0x8946
_OFFLOADS = {"rx": 0x15, "tx": 0x17, "sg": 0x19, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}

#: Where programs are looked for: administrators' directories are not on everyone's path.
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def uninterrupted(action: Callable[[], None]) -> None:
    """Run ``action`` to its end; a KeyboardInterrupt (or what a signal handler raises) waits for it.

    Signal handlers run in the main thread only, so the action gets a thread of its own and the main
    thread does nothing but wait. ``Thread.start`` itself may be interrupted before or after the
    thread exists, hence the lock: it is tried again, and the action still runs only once.
    """
    failure: list[BaseException] = []
    interrupted: BaseException | None = None
    once, finished = threading.Lock(), threading.Event()

    def run() -> None:
        if not once.acquire(blocking=False):
            return
        # Commands inherit this: one that was just forked is not in its own session yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            action()
        except BaseException as error:  # handed to the caller below
            failure.append(error)
        finally:
            finished.set()

    while True:
        try:
            if finished.is_set():
                break
            if not once.locked():
                threading.Thread(target=run, name="lab").start()
            finished.wait()
        except BaseException as error:  # whatever a signal handler raises
            interrupted = error
    if interrupted is not None:
        raise interrupted from (failure[0] if failure else None)
    if failure:
        raise failure[0]


def sysctl(netns: Netns, values: dict[str, str]) -> None:
    """Write settings of a namespace, given by their path below ``/proc/sys``; those it lacks are left out."""
    with entered(netns):
        for name, value in values.items():
            try:
                with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
                    file.write(value)
            except FileNotFoundError:  # IPv6 is off, or an older kernel
                continue
            except OSError as error:
                raise NotPermittedError(f"the lab can't write /proc/sys/{name}: {error.strerror}") from error


def ip(commands: list[str], netns: Netns | None = None) -> None:
    """Run commands of ip(8) in a namespace, in one process; the first that fails ends it."""
    run(["ip", "-batch", "-"], "\n".join(commands) + "\n", netns)


def run(command: list[str], text: str, netns: Netns | None) -> None:
    """Run a program in a namespace with ``text`` as its input.

    Raises NotPermittedError, NotSupportedError (the kernel lacks a kind of device), PtraceError with
    what the program said.
    """
    if netns is not None:
        with entered(netns):
            run(command, text, None)
        return
    result = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=_COMMAND_TIMEOUT,
        env={"PATH": SEARCH_PATH, "LC_ALL": "C"},
        start_new_session=True,  # Ctrl-C at the terminal is for us, not for half a command
    )
    if result.returncode:
        reason = " ".join(result.stderr.split()) or f"exit status {result.returncode}"
        if "Unknown device type" in reason:
            raise NotSupportedError(f"the lab: this kernel lacks a kind of device: {reason}")
        if "not permitted" in reason or "Permission denied" in reason:
            raise NotPermittedError(f"the lab needs root: {command[0]}: {reason}")
        raise PtraceError(f"the lab: {' '.join(command)}: {reason}")


def set_offloads(interface: str, on: bool) -> None:
    """Switch the offloads of one interface of the calling thread's namespace (SIOCETHTOOL)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for command in _OFFLOADS.values():
            value = array.array("I", [command, int(on)])
            request = struct.pack("16sP16x", interface.encode(), value.buffer_info()[0])
            try:
                fcntl.ioctl(handle, _SIOCETHTOOL, request)
            except OSError:  # fixed for this device: nothing to switch
                continue


def wait_for_carrier(netns: Netns, interface: str) -> None:
    """Wait until an interface is up and running, which the kernel makes known some time after the fact."""
    deadline = time.monotonic() + _CARRIER_TIMEOUT
    with entered(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        while True:
            answer = fcntl.ioctl(handle, _SIOCGIFFLAGS, struct.pack("16s24x", interface.encode()))
            if struct.unpack_from("H", answer, 16)[0] & _IFF_RUNNING:
                return
            if time.monotonic() > deadline:
                raise PtraceError(f"the lab: {interface} got no carrier in {_CARRIER_TIMEOUT:g} s")
            time.sleep(0.001)
