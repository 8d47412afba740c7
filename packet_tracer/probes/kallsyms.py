"""Where kernel functions are, and which of them ftrace can trace: /proc/kallsyms and tracefs.

Both files have a line for each of some 100,000 symbols, which the kernel takes a tenth of a second to write;
they are read, and those asked for picked out, in C (``lines.h``). A function's key is its name, with
``" [module]"`` behind it where it belongs to one, as tracefs writes it.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.privileges import lockdown
from packet_tracer.errors import error_text

KALLSYMS = Path("/proc/kallsyms")
#: tracefs has a place of its own since Linux 4.1; the older one goes through debugfs.
TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))

_TRACEABLE = "available_filter_functions"

#: An address line's fields have fixed widths: sixteen digits, a space, the type, a space.
_DIGITS, _TYPE, _NAME = 16, 17, 19
_TEXT_TYPES = b"tTwW"
_HIT = struct.Struct("=II")
#: What :func:`page_variables` tells. Noted whenever the file is read: to write it takes the kernel 50 ms.
_VARIABLES = ("vmemmap_base", "page_offset_base")
_noted: dict[str, int] = {}
#: ftrace patches a few bytes into a function, behind what marks it as a target of indirect jumps.
_PATCH_SITE_BYTES = 16


class KernelText:
    """What a file of the kernel's says, read by a thread of its own while others go on, Python's too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ffi.gc(ffi.new("struct ptrace_text *"), lib.ptrace_text_free)
        self._result = -errno.EINTR
        self._reader = threading.Thread(target=self._read, name="read-kernel-text")
        self._reader.start()

    def _read(self) -> None:
        self._result = lib.ptrace_text_read(os.fsencode(self._path), self._text)

    def lines(self, keys: Collection[str], *, skip: int = 0) -> Iterator[tuple[str, int]]:
        """Yield the keys that are lines from byte ``skip`` of a line on, and where it begins.

        Raises OSError where the file can't be read.
        """
        self._reader.join()
        if self._result < 0:
            raise OSError(-self._result, error_text(-self._result), str(self._path))
        names = list(keys)
        joined = "".join(f"{name}\n" for name in names).encode()
        room = 2 * len(names)
        while True:
            hits = ffi.new("struct ptrace_hit[]", room)
            found = lib.ptrace_lines_find(
                self._text.data, self._text.size, skip, joined, len(joined), hits, room
            )
            if found < 0:
                raise MemoryError
            if found <= room:
                break
            room = found
        for place, line in _HIT.iter_unpack(ffi.buffer(hits)[: found * _HIT.size]):
            yield names[place], line

    def bytes(self, start: int, count: int) -> bytes:
        """Return some bytes of what :meth:`lines` went through."""
        return bytes(ffi.buffer(self._text.data + start, count))


#: What :func:`read_ahead` began to read.
_ahead: dict[Path, KernelText] = {}


def read_ahead() -> None:
    """Begin to read what :func:`function_addresses` and :func:`traceable_functions` will look at.

    For who is about to call both, and has other things to do before. A second call does nothing.
    """
    for path in (KALLSYMS, TRACEFS[0] / _TRACEABLE):
        if path not in _ahead:
            _ahead[path] = KernelText(path)


def _text(path: Path) -> KernelText:
    return _ahead.pop(path, None) or KernelText(path)


def function_key(name: str, module: str) -> str:
    """Return the key of a function; the kernel's own have the module ``"vmlinux"``, as in BTF."""
    return name if module == "vmlinux" else f"{name} [{module}]"


def function_addresses(keys: Collection[str]) -> dict[str, list[int]]:
    """Return the addresses of functions by key, in order; several where static functions share a name.

    Functions that the kernel doesn't have are missing; so are all where it hides addresses (kptr_restrict, no
    CAP_SYSLOG). Raises OSError where /proc/kallsyms can't be read.
    """
    text = _text(KALLSYMS)
    found: dict[str, list[int]] = {}
    # The file has a tab there, where tracefs has a space.
    wanted = {key.replace(" [", "\t["): key for key in (*keys, *_VARIABLES)}
    for name, line in text.lines(wanted, skip=_NAME):
        address = int(text.bytes(line, _DIGITS), 16)
        if name in _VARIABLES:
            _noted[name] = address
        elif address and text.bytes(line + _TYPE, 1) in _TEXT_TYPES:
            found.setdefault(wanted[name], []).append(address)
    return {key: sorted(addresses) for key, addresses in found.items()}


def page_variables() -> tuple[int, int]:
    """Return the addresses of ``vmemmap_base`` and ``page_offset_base``, 0 for what is hidden or not there.

    Raises OSError where /proc/kallsyms can't be read.
    """
    if not _noted:
        _noted.update(dict.fromkeys(_VARIABLES, 0))
        function_addresses(())
    vmemmap, page_offset = (_noted.get(name, 0) for name in _VARIABLES)
    return vmemmap, page_offset


class Traceable(NamedTuple):
    """What ftrace can trace: how many functions of each key, or None where the kernel doesn't tell.

    ``source`` is the file that tells, or why none does.
    """

    counts: Counter[str] | None
    source: str


def traceable_functions(keys: Collection[str]) -> Traceable:
    """Return which of some functions are in tracefs's ``available_filter_functions``."""
    refusal = ""
    for folder in TRACEFS:
        path = folder / _TRACEABLE
        try:
            counts = Counter(key for key, _ in _text(path).lines(keys))
        except OSError as error:
            refusal = refusal or _refusal(path, error)
            continue
        return Traceable(counts, str(path))
    return Traceable(None, refusal or "tracefs is not mounted (mount -t tracefs tracefs /sys/kernel/tracing)")


def patch_sites(keys: Collection[str]) -> dict[str, list[int]]:
    """Return where ftrace patches functions, by key; nothing where that can't be known.

    The file that tells is of Linux 6.5 (83f74441bcb1).
    """
    for folder in TRACEFS:
        text = _text(folder / f"{_TRACEABLE}_addrs")
        sites: dict[str, list[int]] = {}
        try:
            for key, line in text.lines(keys, skip=_DIGITS + 1):
                sites.setdefault(key, []).append(int(text.bytes(line, _DIGITS), 16))
        except OSError:
            continue
        return sites
    return {}


def is_patched(address: int, sites: Collection[int]) -> bool:
    """Whether the function at an address is one of those that have these :func:`patch_sites`."""
    return any(0 <= site - address <= _PATCH_SITE_BYTES for site in sites)


def _refusal(path: Path, error: OSError) -> str:
    """Return why a tracefs file can't be read, or "" where there is no tracefs at all in that place."""
    if error.errno == errno.ENOENT:
        return "this kernel has no dynamic ftrace" if (path.parent / "trace_pipe").exists() else ""
    text = f"{path}: {error_text(error.errno or 0)}"
    mode = lockdown() if error.errno == errno.EPERM else None
    return f"{text} (kernel lockdown: {mode})" if mode not in (None, "none") else text
