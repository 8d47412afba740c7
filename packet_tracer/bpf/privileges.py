"""Why the kernel said no: capabilities, lockdown, and the words for it.

See capabilities(7) and kernel_lockdown(7). Nothing here is needed to run, only to explain.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from packet_tracer.errors import ENOTSUPP, EXIT_ERROR, EXIT_NOT_PERMITTED, EXIT_NOT_SUPPORTED

#: Numbers of include/uapi/linux/capability.h. CAP_BPF and CAP_PERFMON are of Linux 5.8.
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}

_UNSUPPORTED = frozenset({ENOTSUPP, errno.EOPNOTSUPP, errno.ENOSYS})


def effective_capabilities() -> frozenset[str]:
    """Return which of :data:`CAPABILITIES` this thread has in effect."""
    status = Path("/proc/thread-self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    mask = int(found[1], 16) if found else 0
    return frozenset(name for name, bit in CAPABILITIES.items() if mask >> bit & 1)


def missing_capabilities(*needed: str) -> tuple[str, ...]:
    """Return those of the needed capabilities that are not in effect.

    CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON.
    """
    have = effective_capabilities()
    if "CAP_SYS_ADMIN" in have:
        have |= {"CAP_BPF", "CAP_PERFMON"}
    return tuple(name for name in needed if name not in have)


def lockdown() -> str | None:
    """Return the kernel's lockdown mode: none, integrity or confidentiality; None where it can't be read."""
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return None
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else None


def exit_code(number: int) -> int:
    """Return the exit code that an errno from the kernel's BPF stands for."""
    if number in (errno.EPERM, errno.EACCES):
        return EXIT_NOT_PERMITTED
    return EXIT_NOT_SUPPORTED if number in _UNSUPPORTED else EXIT_ERROR


def advice(number: int, *needed: str) -> str:
    """Return what to do about a refusal, as the end of a sentence, or "" where the errno alone says it.

    ``needed`` are the capabilities the call asks for; BPF and PERFMON unless told.
    """
    if number == errno.EPERM:
        missing = missing_capabilities(*(needed or ("CAP_BPF", "CAP_PERFMON")))
        if missing:
            return f"run as root or grant {', '.join(missing)}"
        mode = lockdown()
        if mode == "confidentiality":
            return "kernel lockdown is in confidentiality mode, which keeps BPF from reading kernel memory"
        return "the process has the capabilities, so this kernel or a security module does not allow it"
    if number == errno.EMFILE:
        return "raise the limit of open files (ulimit -n)"
    if number == errno.ENOMEM:
        return "not enough kernel memory: ask for smaller maps or rings"
    return ""
