"""What can go wrong between an object file and an attached program, as exceptions with fields.

Each has a one-line text that says what failed and what to do; the verifier's log, which can have a hundred
thousand lines, is in a field. ``libbpf`` holds what libbpf said meanwhile, which is never printed.
"""

from __future__ import annotations

import errno as _errno
import re

from packet_tracer.bpf.privileges import advice, exit_code
from packet_tracer.errors import EXIT_ERROR, EXIT_NOT_SUPPORTED, BpfError, error_name, error_text

#: libbpf leaves this call number where a CO-RE relocation found no such field or type (libbpf.c).
_POISONED_CALL = "195896080"
_MISSING_FIELD = "it needs a field or type that this kernel does not have (CO-RE)"
_NETWORK_KINDS = frozenset({"xdp", "tcx", "clsact", "netfilter", "cgroup"})
#: Lines of a verifier log that are no reasons: its closing statistics, register dumps, source lines.
_STATISTICS = re.compile(r"processed \d+ insns|verification time|stack depth|max_states|mark_read")
_DUMP = re.compile(r"R\d+|;|\d+: |from \d+ to|last_idx|regs=|parent|-- ")
#: Behind the reason Linux 7.3 explains it at length.
_EXPLANATION = "Verification failed:"


def describe(number: int) -> str:
    """Return an errno in words; libbpf's own numbers (from 4000 on) included."""
    if number >= 4000:
        from packet_tracer.bpf._libbpf import ffi, lib

        text = ffi.new("char[128]")
        lib.libbpf_strerror(-number, text, 128)
        return ffi.string(text).decode(errors="replace")
    return error_text(number)


def _sentence(*parts: str) -> str:
    return ": ".join(part for part in parts if part)


class ObjectOpenError(BpfError):
    """The file can't be read as a BPF object: missing, truncated, not BPF, or without BTF."""

    def __init__(self, source: str, reason: str, *, errno: int = 0, libbpf: str = "") -> None:
        super().__init__(f"{source} can't be opened as a BPF object: {reason}", errno=errno)
        self.source = source
        self.reason = reason
        self.libbpf = libbpf


class ObjectPrepareError(BpfError):
    """A map of the object can't be created, or the object can't be fitted to this kernel's types.

    ``map`` names the map, or is None where it isn't a map that failed.
    """

    def __init__(self, source: str, *, errno: int, libbpf: str = "", map: str | None = None) -> None:  # noqa: A002
        reason = libbpf_reason(libbpf)
        what = f"map {map} of {source} can't be created" if map else f"{source} can't be prepared"
        words = describe(errno)
        hint = advice(errno)
        if "failed to find valid kernel BTF" in libbpf and errno != _errno.EPERM:
            hint = "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
        if map is not None:
            reason = ""  # libbpf's message repeats the errno
        super().__init__(_sentence(what, words, hint or reason), errno=errno)
        self.source = source
        self.map = map
        self.libbpf = libbpf
        self.exit_code = EXIT_NOT_SUPPORTED if "kernel BTF" in hint else exit_code(errno)


class ProgramLoadError(BpfError):
    """The kernel refused a program. ``log`` is the verifier's, "" where it said nothing.

    ``target`` names what the program was to be attached to, where that matters to the verifier.
    """

    def __init__(
        self,
        program: str,
        *,
        section: str = "",
        target: str | None = None,
        errno: int,
        log: str = "",
        reason: str = "",
    ) -> None:
        what = f"program {program} ({section})" if section else f"program {program}"
        if target:
            what += f" for {target}"
        said = verifier_reason(log)
        if said:
            message = _sentence(f"{what} was refused by the verifier ({error_name(errno)})", said)
        else:
            message = _sentence(f"{what} was refused", describe(errno), reason, advice(errno))
        super().__init__(message, errno=errno)
        self.program = program
        self.section = section
        self.target = target
        self.log = log
        if said and errno != _errno.EPERM:
            # The verifier's EACCES is about memory, not about privileges.
            self.exit_code = EXIT_NOT_SUPPORTED if said == _MISSING_FIELD else EXIT_ERROR
        else:
            unknown = errno in (_errno.EINVAL, _errno.ENOENT)  # a type, flag or target this kernel lacks
            self.exit_code = EXIT_NOT_SUPPORTED if unknown else exit_code(errno)


class AttachError(BpfError):
    """A program can't be attached. ``kind`` is the sort of link, ``target`` what it was to be attached to,
    ``reason`` what is known beyond the errno.
    """

    def __init__(self, kind: str, target: str, *, errno: int, reason: str = "") -> None:
        needed = ("CAP_BPF", "CAP_NET_ADMIN") if kind in _NETWORK_KINDS else ()
        what = f"{kind} can't be attached to {target}"
        super().__init__(_sentence(what, describe(errno), reason or advice(errno, *needed)), errno=errno)
        self.kind = kind
        self.target = target
        self.reason = reason
        # The kernel answers EINVAL to an attach type that it does not know.
        self.exit_code = EXIT_NOT_SUPPORTED if errno == _errno.EINVAL else exit_code(errno)


class MapError(BpfError):
    """An operation on a map failed. ``map`` is its name, ``map_type`` its type in words."""

    def __init__(self, operation: str, map: str, map_type: str, *, errno: int, reason: str = "") -> None:  # noqa: A002
        what = f"{operation} of map {map or '(unnamed)'} ({map_type}) failed"
        super().__init__(_sentence(what, describe(errno), reason or advice(errno, "CAP_BPF")), errno=errno)
        self.operation = operation
        self.map = map
        self.map_type = map_type
        self.exit_code = exit_code(errno)


class BtfError(BpfError):
    """Type information is missing, or does not have what was asked for."""

    exit_code = EXIT_NOT_SUPPORTED


def libbpf_reason(messages: str) -> str:
    """Return the first message of libbpf without its prefix: the cause; what follows are its consequences."""
    for line in messages.splitlines():
        text = line.removeprefix("libbpf: ").strip()
        if text and "ulimit" not in text:  # wrong more often than right
            return text
    return ""


def verifier_reason(log: str) -> str:
    """Return the line of a verifier log that says why, in one line."""
    if _POISONED_CALL in log:
        return _MISSING_FIELD
    lines = [line.strip() for line in log.splitlines()]
    lines = [line for line in lines if line and not _STATISTICS.match(line)]
    if not lines:
        return ""
    end = next((at for at, line in enumerate(lines) if at and line.startswith(_EXPLANATION)), len(lines))
    reasons = [line for line in lines[:end] if not _DUMP.match(line)]
    last = (reasons or lines[:end])[-1]
    more = len(lines) - 1
    return f"{last} ({more} more lines in the log)" if more > 0 else last
