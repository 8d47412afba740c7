"""Links that go through a perf event: single kprobes and classic tracepoints (perf_event_open(2))."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.attachment import Link
from packet_tracer.bpf.enums import AttachType
from packet_tracer.bpf.errors import AttachError
from packet_tracer.bpf.kprobes import KPROBE
from packet_tracer.bpf.library import options
from packet_tracer.bpf.program import Program

_TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_TYPE_TRACEPOINT = 2
_IOC_ENABLE = 0x2400  # include/uapi/linux/perf_event.h
_IOC_SET_BPF = 0x40042408


def attach_kprobe(
    program: Program,
    symbol: str = "",
    *,
    address: int = 0,
    offset: int = 0,
    returns: bool = False,
    cookie: int | None = None,
) -> Link:
    """Attach to one kernel function, by symbol or address: at its entry (plus ``offset``) or its return.

    With both the address counts, and the symbol names it in errors.
    Raises AttachError: ENOENT where the kernel has no kprobes or no such symbol, EINVAL where the function
    can't be probed. A cookie needs Linux 5.15.
    """
    target = symbol or hex(address)
    kind = "kretprobe" if returns else "kprobe"
    try:
        type_ = int((KPROBE / "type").read_text())
        bit = int((KPROBE / "format/retprobe").read_text().removeprefix("config:"))
    except OSError:
        reason = "this kernel has no kprobes (CONFIG_KPROBE_EVENTS)"
        raise AttachError(kind, target, errno=errno.ENOENT, reason=reason) from None
    name = ffi.NULL if address else ffi.new("char[]", symbol.encode())
    where = address or offset
    event = lib.ptrace_perf_event_open(type_, 1 << bit if returns else 0, name, where)
    return _attach(program, event, kind, target, cookie)


def attach_tracepoint(program: Program, category: str, name: str, *, cookie: int | None = None) -> Link:
    """Attach to a classic tracepoint, ``attach_tracepoint(program, "net", "netif_rx")``.

    ENOENT where there is none, or tracefs is not mounted.
    """
    target = f"{category}:{name}"
    for tracefs in _TRACEFS:
        try:
            number = int((tracefs / "events" / category / name / "id").read_text())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise AttachError("tracepoint", target, errno=error.errno or 0) from None
        event = lib.ptrace_perf_event_open(_TYPE_TRACEPOINT, number, ffi.NULL, 0)
        return _attach(program, event, "tracepoint", target, cookie)
    reason = "there is no such tracepoint, or tracefs is not mounted"
    raise AttachError("tracepoint", target, errno=errno.ENOENT, reason=reason)


def _attach(program: Program, event: int, kind: str, target: str, cookie: int | None) -> Link:
    if event < 0:
        raise AttachError(kind, target, errno=-event)
    description = f"{program.name} at {target}"
    opts = options("bpf_link_create_opts")
    opts.perf_event.bpf_cookie = cookie or 0
    link = lib.bpf_link_create(program.fd, event, AttachType.PERF_EVENT, opts)
    try:
        if link < 0 and cookie is not None:
            raise AttachError(kind, target, errno=-link)
        if link < 0:
            # No perf links before Linux 5.15 (b89fbfbb854c): the event itself holds the program.
            fcntl.ioctl(event, _IOC_SET_BPF, program.fd)
        fcntl.ioctl(event, _IOC_ENABLE, 0)
    except (OSError, AttachError) as error:
        os.close(event)
        if link >= 0:
            os.close(link)
        if isinstance(error, AttachError):
            raise
        raise AttachError(kind, target, errno=error.errno or 0) from None
    if link < 0:
        return Link(event, kind, description)
    os.close(event)  # the link holds it
    return Link(link, kind, description)
