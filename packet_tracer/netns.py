"""Network namespaces: find one, enter it and come back, and name the interfaces inside.

Only the standard library is needed, and nothing here knows of BPF or packets. A namespace is
identified by the inode of its nsfs file, which is also what the kernel side reports
(``net->ns.inum``). See namespaces(7), network_namespaces(7), setns(2) and socket(7).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from packet_tracer.errors import NotPermittedError, PtraceError, UsageError, error_text

if TYPE_CHECKING:
    import ctypes

    from packet_tracer.netns_hidden import Search

#: Where iproute2 keeps the names (ip-netns(8)).
NAMED_DIRECTORY = "/run/netns"

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h
_SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since Linux 5.14
_CURRENT = "/proc/thread-self/ns/net"
_MISSES_REMEMBERED = 65536
#: A search through all descriptors is waited for so long, in seconds, and may take a twentieth of the time.
_SHORT = 0.05
_PAUSE = 20


@dataclass(frozen=True, slots=True)
class Netns:
    """A network namespace as it was found: ``path`` opens it for as long as it lives.

    ``name`` is what ``--netns`` accepts for it: a name of ``/run/netns``, ``pid:N`` or a path; None
    for the namespace of the caller. ``cookie`` is None where the kernel has none (before 5.14) or
    where it may not be read.
    """

    inode: int
    path: str
    name: str | None = None
    cookie: int | None = None


@cache
def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _setns(descriptor: int, what: str) -> None:
    import ctypes

    if _libc().setns(descriptor, _CLONE_NEWNET) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EPERM:
        raise NotPermittedError(f"entering network namespace {what} needs CAP_SYS_ADMIN; run as root")
    raise PtraceError(f"entering network namespace {what}: {error_text(number)}")


def _open(path: str, what: str) -> int:
    """Open a namespace file and check that it is one; the caller closes the descriptor."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise NotPermittedError(
            f"network namespace {what}: {path}: permission denied, needs CAP_SYS_PTRACE"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"no network namespace {what!r}; {_what_there_is()}") from error
    try:
        is_netns = fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        is_netns = False
    if not is_netns:
        os.close(descriptor)
        raise UsageError(f"{path} is not a network namespace; {_what_there_is()}")
    return descriptor


def _what_there_is() -> str:
    names = sorted(_directory(NAMED_DIRECTORY))
    if names:
        return f"there are: {', '.join(names)} (or a path, pid:N, all)"
    return f"{NAMED_DIRECTORY} names none; give a path, pid:N or all"


def _directory(path: str) -> list[str]:
    try:
        return [entry.name for entry in Path(path).iterdir()]
    except OSError:
        return []


def resolve(text: str) -> Netns | None:
    """Return the namespace that ``NAME``, ``PATH``, ``pid:N`` stands for; None for ``all``.

    A text with a slash is a path. Raises UsageError (one line that lists the names there are) where
    there is no such namespace, NotPermittedError where it may not be looked at.
    """
    if text == "all":
        return None
    if not text:
        raise UsageError(f"empty name of a network namespace; {_what_there_is()}")
    if text.startswith("pid:"):
        if not (text[4:].isascii() and text[4:].isdigit()):
            raise UsageError(f"{text!r}: pid: is followed by a process id, as in pid:1234")
        path = f"/proc/{int(text[4:])}/ns/net"
        if not Path(path).parent.is_dir():
            raise UsageError(f"no process {text[4:]}, so no network namespace {text!r}")
    elif "/" in text:
        path = text
    else:
        path = f"{NAMED_DIRECTORY}/{text}"
    return _identify(path, text)


def current() -> Netns:
    """Return the namespace of the calling thread. Its ``name`` is None."""
    return _identify(_current_path(), None)


def _here() -> Netns:
    return Netns(Path(_CURRENT).stat().st_ino, _current_path())


def _current_path() -> str:
    """Return a path to the calling thread's namespace that means the same in every thread."""
    process = "/proc/self/ns/net"
    if Path(process).stat().st_ino == Path(_CURRENT).stat().st_ino:
        return process
    return f"/proc/self/task/{threading.get_native_id()}/ns/net"


def _identify(path: str, name: str | None) -> Netns:
    descriptor = _open(path, name or path)
    try:
        found = Netns(os.fstat(descriptor).st_ino, path, name)
    finally:
        os.close(descriptor)
    try:
        with entered(found), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            cookie = int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except (OSError, NotPermittedError):
        return found
    return Netns(found.inode, path, name, cookie)


@contextmanager
def entered(netns: Netns) -> Iterator[None]:
    """Put the calling thread into ``netns`` for the block, and back afterwards.

    Sockets opened and processes started inside belong to that namespace for good; other threads are
    not affected. ``/sys`` still shows the namespace it was mounted in. Raises NotPermittedError
    without CAP_SYS_ADMIN, UsageError when the namespace is gone (or its path means another one now).
    """
    home = os.open(_CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(home).st_ino == netns.inode:
            yield
            return
        what = netns.name or netns.path
        descriptor = _open(netns.path, what)
        try:
            if os.fstat(descriptor).st_ino != netns.inode:
                raise UsageError(f"network namespace {what} is gone; another one has its name")
            _setns(descriptor, what)
        finally:
            os.close(descriptor)
        try:
            yield
        finally:
            _setns(home, "of the caller, to come back")
    finally:
        os.close(home)


def interfaces(netns: Netns | None = None) -> dict[int, str]:
    """Return the interfaces of a namespace (None: the caller's) as ``{ifindex: name}``."""
    if netns is None:
        return dict(socket.if_nameindex())
    with entered(netns):
        return dict(socket.if_nameindex())


def interface_index(name: str, netns: Netns | None = None) -> int:
    """Return the index of the interface ``name``; UsageError lists those there are if it is missing."""
    there = interfaces(netns)
    for index, known in there.items():
        if known == name:
            return index
    where = f" in network namespace {netns.name}" if netns is not None and netns.name else ""
    raise UsageError(
        f"no interface {name!r}{where}; there are: {', '.join(sorted(there.values())) or 'none'}"
    )


def named() -> list[Netns]:
    """Return the namespaces of ``/run/netns``, sorted by name (without cookies)."""
    found = []
    for name in sorted(_directory(NAMED_DIRECTORY)):
        path = f"{NAMED_DIRECTORY}/{name}"
        try:
            descriptor = _open(path, name)
        except PtraceError:  # a stale file, or one of another mount namespace
            continue
        found.append(Netns(os.fstat(descriptor).st_ino, path, name))
        os.close(descriptor)
    return found


_MOUNTED = re.compile(r"^\S+ \S+ \S+ net:\[(\d+)\] (\S+) ", re.MULTILINE)
_OCTAL = re.compile(r"\\([0-7]{3})")


def _mounted() -> list[Netns]:
    """Return the namespaces that are bind-mounted anywhere (container engines do), from mountinfo."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except OSError:
        return []
    found = []
    for inode, path in _MOUNTED.findall(text):
        path = _OCTAL.sub(lambda match: chr(int(match[1], 8)), path)
        found.append(Netns(int(inode), path, path))
    return found


def of_processes() -> list[Netns]:
    """Return the namespaces that processes live in, each named after its lowest process id, ``pid:N``."""
    found: dict[int, Netns] = {}
    for pid in sorted(int(entry) for entry in _directory("/proc") if entry.isdigit()):
        path = f"/proc/{pid}/ns/net"
        try:
            inode = Path(path).stat().st_ino
        except OSError:  # ended meanwhile, or not ours to look at
            continue
        found.setdefault(inode, Netns(inode, path, f"pid:{pid}"))
    return list(found.values())


def every(own: Netns | None = None) -> dict[int, Netns]:
    """Return all namespaces that can be found, by inode: named, bind-mounted, then those of processes.

    The caller's own namespace (``own``, else the one it is in now) is among them; its name is None
    unless ``/run/netns`` names it.
    """
    found: dict[int, Netns] = {}
    for source in (named(), [own or _here()], _mounted(), of_processes()):
        for netns in source:
            found.setdefault(netns.inode, netns)
    return found


class InterfaceNames:
    """Names of interfaces by (namespace inode, ifindex), read when needed and kept after they vanish.

    A packet's record is read after the fact, when its interface or namespace may be gone already: call
    :meth:`refresh` when a capture starts. What is not known is looked for when it is first asked for, and
    again at most once in ``interval`` seconds; a namespace's names are re-read when older than ``max_age``
    seconds, because interfaces are renamed. Safe to use from several threads.
    """

    def __init__(self, *, interval: float = 0.5, max_age: float = 10.0) -> None:
        self._interval = interval
        self._max_age = max_age
        self._lock = threading.Lock()
        self._own = _here()
        self._netns: dict[int, Netns] = {}
        self._names: dict[int, dict[int, str]] = {}
        self._read_at: dict[int, float] = {}
        #: When an interface, or a namespace (with None), was last looked for in vain.
        self._missed_at: dict[tuple[int, int | None], float] = {}
        self._search: Search | None = None
        self._search_again_at = float("-inf")

    @property
    def own_inode(self) -> int:
        """The namespace this was made in."""
        return self._own.inode

    def refresh(self) -> None:
        """Read the names of every namespace there is now."""
        with self._lock:
            self._learn(every(self._own))
            for inode in self._netns:
                self._read(inode, time.monotonic())

    def add(self, netns: Netns) -> None:
        """Make a namespace known that no listing would find."""
        with self._lock:
            self._netns[netns.inode] = netns
            self._read(netns.inode, time.monotonic())

    def interface_name(self, netns_inode: int, ifindex: int) -> str | None:
        """Return the name of an interface; None if it is 0 or can't be found out."""
        if not ifindex:
            return None
        now = time.monotonic()
        name = self._names.get(netns_inode, {}).get(ifindex)
        if name is not None and now - self._read_at.get(netns_inode, float("-inf")) < self._max_age:
            return name
        with self._lock:
            if name is not None or self._worth_a_look((netns_inode, ifindex), now):
                self._find(netns_inode, now)
                self._read(netns_inode, now)
            return self._names.get(netns_inode, {}).get(ifindex)

    def netns_name(self, inode: int) -> str | None:
        """Return what ``--netns`` calls a namespace; None for the tracer's own and for unknown ones."""
        found = self._netns.get(inode)
        if found is None and inode:
            with self._lock:
                self._find(inode, time.monotonic())
            found = self._netns.get(inode)
        return found.name if found is not None else None

    def _worth_a_look(self, missing: tuple[int, int | None], now: float) -> bool:
        """Whether it was never looked for, or not lately: what can't be found costs no more than that."""
        if now - self._missed_at.get(missing, float("-inf")) < self._interval:
            return False
        if len(self._missed_at) >= _MISSES_REMEMBERED:
            self._missed_at.clear()
        self._missed_at[missing] = now
        return True

    def _find(self, inode: int, now: float) -> None:
        """Find the way into a namespace: where there was none, and where the one there was is gone."""
        known = self._netns.get(inode)
        if known is not None and Path(known.path).exists():
            return
        if not self._worth_a_look((inode, None), now):
            return
        self._learn(every(self._own))
        if inode not in self._netns:
            self._search_everywhere(now)

    def _search_everywhere(self, now: float) -> None:
        """Look through all descriptors, in a thread: on a large host it takes long, and rings fill."""
        from packet_tracer.netns_hidden import Search

        if self._search is None and now >= self._search_again_at:
            self._search = Search()
            self._search.join(_SHORT)
        if self._search is not None and not self._search.is_alive():
            self._learn(self._search.found)
            self._search_again_at = now + max(self._interval, self._search.seconds * _PAUSE)
            self._search = None

    def _learn(self, found: dict[int, Netns]) -> None:
        for inode, netns in found.items():
            known = self._netns.get(inode)
            # A name given once stays: "pid:7" must not turn into "pid:9" within one capture.
            if known is None or known.name is None or not Path(known.path).exists():
                name = known.name if known is not None and known.name is not None else netns.name
                self._netns[inode] = Netns(inode, netns.path, name, netns.cookie)

    def _read(self, inode: int, now: float) -> None:
        self._read_at[inode] = now
        netns = self._netns.get(inode)
        if netns is None:
            return
        try:
            self._names.setdefault(inode, {}).update(interfaces(netns))
        except (PtraceError, OSError):  # gone, or not permitted: what is known stays
            return
