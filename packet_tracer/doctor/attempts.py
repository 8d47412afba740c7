"""Every hook and backend, tried with a program of two instructions."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from packet_tracer.bpf import link as links
from packet_tracer.bpf.attachment import Link
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.enums import AttachType, ProgramType
from packet_tracer.bpf.errors import AttachError
from packet_tracer.bpf.idle import QUIET_FUNCTION, idle_program
from packet_tracer.bpf.privileges import advice
from packet_tracer.bpf.program import Program
from packet_tracer.doctor.finding import Finding, Section
from packet_tracer.doctor.host import not_compiled_in
from packet_tracer.doctor.scratch import LOOPBACK, in_scratch_netns, veth
from packet_tracer.errors import BpfError, NotPermittedError, PtraceError, error_text

_TRACEPOINT = "kfree_skb"
#: What lets a packet pass, by type of program (include/uapi/linux/bpf.h).
_XDP_PASS, _TCX_NEXT, _NF_ACCEPT, _CGROUP_PASS = 2, -1, 1, 1

#: What an attempt returns: how it worked, in words.
Attempt = Callable[[], str]


def examine_hooks() -> Section:
    """Return a finding for each hook and backend, the ones that carry packets first."""
    found = [
        _try("tracepoint", _tracepoint),
        *_network_hooks(),
        _try("cgroup_skb", _cgroup, "CONFIG_CGROUP_BPF"),
        _try("fentry", lambda: _trampoline("fentry", AttachType.TRACE_FENTRY)),
        _try("fexit", lambda: _trampoline("fexit", AttachType.TRACE_FEXIT)),
        _try("fentry-multi", _fentry_multi),
        _try("kprobe-multi", _kprobe_multi, "CONFIG_KPROBES", "CONFIG_FPROBE"),
        _try("kprobe-session", _kprobe_session, "CONFIG_KPROBES", "CONFIG_FPROBE"),
        _try("kprobe", _kprobe, "CONFIG_KPROBES", "CONFIG_KPROBE_EVENTS"),
    ]
    return Section("hooks", tuple(found))


def _try(name: str, attempt: Attempt, *options: str) -> Finding:
    """Return what an attempt came to. ``options`` are what the kernel must be built with."""
    try:
        return Finding(name, attempt(), works=True)
    except NotPermittedError as error:
        return Finding(name, f"could not tell: {error}")
    except BpfError as error:
        return Finding(name, reason(error, *options), works=False, fields={"errno": error.errno})
    except (PtraceError, OSError) as error:
        return Finding(name, f"could not tell: {error}")


def reason(error: BpfError, *options: str) -> str:
    """Return why the kernel refused: it was built without, or the errno and what stands behind it."""
    stage = "attaching" if hasattr(error, "kind") else "loading"
    if error.errno not in (errno.EPERM, errno.EACCES):
        missing = not_compiled_in(*options)
        if missing:
            return missing
    if not error.errno:
        return str(error)
    said = getattr(error, "reason", "") or advice(error.errno)
    return f"{stage} is refused: {error_text(error.errno)}" + (f"; {said}" if said else "")


def _attached(program: Program, attach: Callable[[], Link]) -> Link:
    """Attach, detach at once, and return the link for what it tells."""
    with program, attach() as link:
        return link


def _tracepoint() -> str:
    Btf.vmlinux()  # its absence is a clearer reason than the verifier's
    program = idle_program(
        ProgramType.TRACING, AttachType.TRACE_RAW_TP, section=f"tp_btf/{_TRACEPOINT}", target=_TRACEPOINT
    )
    _attached(program, lambda: links.attach_tracing(program))
    return "BTF tracepoints (tp_btf)"


def _trampoline(section: str, attach_type: AttachType) -> str:
    program = idle_program(
        ProgramType.TRACING, attach_type, section=f"{section}/{QUIET_FUNCTION}", target=QUIET_FUNCTION
    )
    _attached(program, lambda: links.attach_tracing(program))
    return "kernel functions, by trampoline"


def _fentry_multi() -> str:
    if reason := links.tracing_multi_missing():
        raise AttachError("fentry-multi", QUIET_FUNCTION, errno=errno.EOPNOTSUPP, reason=reason)
    program = idle_program(ProgramType.TRACING, AttachType.TRACE_FENTRY_MULTI, section="fentry.multi")
    function = Btf.vmlinux().find(QUIET_FUNCTION, Kind.FUNCTION)
    _attached(program, lambda: links.attach_tracing_multi(program, [function], cookies=[0]))
    return "kernel functions, many at once, by trampoline"


def _kprobe() -> str:
    program = idle_program(ProgramType.KPROBE, section="kprobe")
    _attached(program, lambda: links.attach_kprobe(program, QUIET_FUNCTION))
    return "kernel functions, one by one"


def _kprobe_multi() -> str:
    program = idle_program(ProgramType.KPROBE, AttachType.TRACE_KPROBE_MULTI, section="kprobe.multi")
    _attached(program, lambda: links.attach_kprobe_multi(program, symbols=[QUIET_FUNCTION]))
    return "kernel functions, many at once"


def _kprobe_session() -> str:
    program = idle_program(ProgramType.KPROBE, AttachType.TRACE_KPROBE_SESSION, section="kprobe.session")
    _attached(program, lambda: links.attach_kprobe_multi(program, symbols=[QUIET_FUNCTION]))
    return "kernel functions, entry and return of many at once"


def _network_hooks() -> list[Finding]:
    """Try what is attached in a network namespace, in one that nobody else is in."""
    attempts: list[tuple[str, Attempt, tuple[str, ...]]] = [
        ("xdp", _xdp, ()),
        ("tc", _tc, ("CONFIG_NET_CLS_ACT",)),
        ("netfilter ipv4", lambda: _netfilter("ipv4"), ("CONFIG_NETFILTER_BPF_LINK",)),
        ("netfilter ipv6", lambda: _netfilter("ipv6"), ("CONFIG_NETFILTER_BPF_LINK",)),
    ]
    try:
        return in_scratch_netns(
            lambda: [_try(name, attempt, *options) for name, attempt, options in attempts]
        )
    except PtraceError as error:
        return [Finding(name, f"could not tell: {error}") for name, _, _ in attempts]


def _xdp() -> str:
    def attach(ifindex: int) -> str:
        program = idle_program(ProgramType.XDP, AttachType.XDP, section="xdp", returns=_XDP_PASS)
        with program:
            link = links.attach_xdp(program, ifindex)
            link.close()
            return link.mode

    generic = attach(LOOPBACK)
    with veth() as ifindex:
        if ifindex is None:
            return f"{generic}; native not tried: no veth here"
        native = attach(ifindex)
    return (
        "native where the driver has it, else generic"
        if native == "native"
        else "generic only, veth has no native"
    )


def _tc() -> str:
    program = idle_program(
        ProgramType.SCHED_CLS, AttachType.TCX_INGRESS, section="tcx/ingress", returns=_TCX_NEXT
    )
    kind = _attached(program, lambda: links.attach_tcx(program, LOOPBACK, "ingress")).kind
    return "TCX" if kind == "tcx" else "clsact (TCX is of Linux 6.6)"


def _netfilter(family: Literal["ipv4", "ipv6"]) -> str:
    program = idle_program(
        ProgramType.NETFILTER, AttachType.NETFILTER, section="netfilter", returns=_NF_ACCEPT
    )
    _attached(program, lambda: links.attach_netfilter(program, family, 0, -1000))
    return "netfilter links"


@contextmanager
def _scratch_cgroup() -> Iterator[Path]:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    root = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if root is None:
        raise PtraceError("no cgroup v2 is mounted")
    path = Path(root, f"ptrace-doctor-{os.getpid()}")
    try:
        path.mkdir()
    except OSError as error:
        raise PtraceError(f"a cgroup to try it in can't be made: {error.strerror}") from error
    try:
        yield path
    finally:
        path.rmdir()


def _cgroup() -> str:
    with _scratch_cgroup() as path:
        program = idle_program(
            ProgramType.CGROUP_SKB,
            AttachType.CGROUP_INET_INGRESS,
            section="cgroup_skb/ingress",
            returns=_CGROUP_PASS,
        )
        _attached(program, lambda: links.attach_cgroup(program, path))
    return "cgroup v2 ingress and egress"


def tracepoint_exists(name: str) -> bool:
    """Whether this kernel has a tracepoint that BTF programs can be attached to."""
    try:
        return Btf.vmlinux().get(f"btf_trace_{name}", Kind.TYPEDEF) is not None
    except PtraceError:
        return False
