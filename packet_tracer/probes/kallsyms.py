"""Where kernel functions are, and which of them ftrace can trace: /proc/kallsyms and tracefs.

Both files have a line for each of some 100,000 symbols; only those asked for are looked at, in one pass. A
function's key is its name, with ``" [module]"`` behind it where it belongs to one, as tracefs writes it.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from packet_tracer.bpf.privileges import lockdown
from packet_tracer.errors import error_text

KALLSYMS = Path("/proc/kallsyms")
#: tracefs has a place of its own since Linux 4.1; the older one goes through debugfs.
TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))

#: An address line's fields have fixed widths: sixteen digits, a space, the type, a space.
_TYPE, _NAME = 17, 19
_TEXT_TYPES = b"tTwW"
#: ftrace patches a few bytes into a function, behind what marks it as a target of indirect jumps.
_PATCH_SITE_BYTES = 16


def function_key(name: str, module: str) -> str:
    """Return the key of a function; the kernel's own have the module ``"vmlinux"``, as in BTF."""
    return name if module == "vmlinux" else f"{name} [{module}]"


def function_addresses(keys: Collection[str]) -> dict[str, list[int]]:
    """Return the addresses of functions by key, in order; several where static functions share a name.

    Functions that the kernel doesn't have are missing; so are all where it hides addresses (kptr_restrict, no
    CAP_SYSLOG). Raises OSError where /proc/kallsyms can't be read.
    """
    wanted = {key.replace(" [", "\t[").encode(): key for key in keys}
    found: dict[str, list[int]] = {}
    for line in KALLSYMS.read_bytes().split(b"\n"):
        if line[_NAME:] in wanted and line[_TYPE] in _TEXT_TYPES and (address := int(line[:16], 16)):
            found.setdefault(wanted[line[_NAME:]], []).append(address)
    return {key: sorted(addresses) for key, addresses in found.items()}


@dataclass(frozen=True, slots=True)
class Traceable:
    """What ftrace can trace: how many functions of each key, or None where the kernel doesn't tell.

    ``source`` is the file that tells, or why none does.
    """

    counts: Counter[str] | None
    source: str


def traceable_functions(keys: Collection[str]) -> Traceable:
    """Return which of some functions are in tracefs's ``available_filter_functions``."""
    refusal = ""
    for folder in TRACEFS:
        path = folder / "available_filter_functions"
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            refusal = refusal or _refusal(path, error)
            continue
        wanted = {key.encode(): key for key in keys}
        return Traceable(Counter(wanted[line] for line in lines if line in wanted), str(path))
    return Traceable(None, refusal or "tracefs is not mounted (mount -t tracefs tracefs /sys/kernel/tracing)")


def at_patch_sites(addresses: Collection[int]) -> list[int] | None:
    """Return those addresses of functions that ftrace can trace, or None where that can't be known.

    The file that tells is of Linux 6.5 (83f74441bcb1).
    """
    for folder in TRACEFS:
        try:
            lines = (folder / "available_filter_functions_addrs").read_bytes().split(b"\n")
        except OSError:
            continue
        sites = {int(line[:16], 16) for line in lines if line}
        return [
            address
            for address in addresses
            if not sites.isdisjoint(range(address, address + _PATCH_SITE_BYTES + 1))
        ]
    return None


def _refusal(path: Path, error: OSError) -> str:
    """Return why a tracefs file can't be read, or "" where there is no tracefs at all in that place."""
    if error.errno == errno.ENOENT:
        return "this kernel has no dynamic ftrace" if (path.parent / "trace_pipe").exists() else ""
    text = f"{path}: {error_text(error.errno or 0)}"
    mode = lockdown() if error.errno == errno.EPERM else None
    return f"{text} (kernel lockdown: {mode})" if mode not in (None, "none") else text
