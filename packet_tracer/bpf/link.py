"""Links: a program attached to something. Each is a context manager; closing it detaches.

Which way a program is attached is found by trying, newest first; :attr:`Link.kind` tells which it was.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.attachment import Link, created
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.enums import AttachType
from packet_tracer.bpf.errors import AttachError
from packet_tracer.bpf.interface_links import XdpLink, attach_tcx, attach_xdp
from packet_tracer.bpf.library import CData, options, text
from packet_tracer.bpf.perf_links import attach_kprobe, attach_tracepoint
from packet_tracer.bpf.program import Program

_FAMILIES = {"ipv4": 2, "ipv6": 10}  # NFPROTO_IPV4, NFPROTO_IPV6
_KPROBE_MULTI_RETURN = 1


def _attach_type(program: Program, otherwise: int) -> int:
    return otherwise if program.expected_attach_type is None else program.expected_attach_type


def attach_tracing(program: Program, *, cookie: int | None = None) -> Link:
    """Attach a tp_btf, fentry, fexit, fmod_ret or LSM program to what it was loaded for.

    ``cookie`` is what ``bpf_get_attach_cookie`` returns to it (fentry and fexit since Linux 5.19, tp_btf
    since 6.11). Raises AttachError: EBUSY or ENOTSUPP where the function can't be traced, EINVAL for a
    cookie on kernels without.
    """
    target = program.target or program.name
    kind = program.section.split("/", 1)[0].rstrip("s").rstrip(".") or "tracing"
    if cookie is None:
        # All kernels know it, and it is what BPF_LINK_CREATE does for these programs.
        result = lib.bpf_raw_tracepoint_open(ffi.NULL, program.fd)
    else:
        opts = options("bpf_link_create_opts")
        opts.tracing.cookie = cookie
        result = lib.bpf_link_create(program.fd, 0, _attach_type(program, AttachType.TRACE_FENTRY), opts)
    return created(result, kind, target, program)


def attach_raw_tracepoint(program: Program, name: str, *, cookie: int | None = None) -> Link:
    """Attach a raw tracepoint program to a tracepoint, ``"kfree_skb"``. ENOENT where there is none.

    A cookie needs Linux 6.10.
    """
    label = ffi.new("char[]", name.encode())
    if cookie is None:
        result = lib.bpf_raw_tracepoint_open(label, program.fd)
    else:
        result = lib.bpf_raw_tracepoint_open_opts(
            program.fd, options("bpf_raw_tp_opts", tp_name=label, cookie=cookie)
        )
    return created(result, "raw_tp", name, program)


def attach_netfilter(
    program: Program,
    family: Literal["ipv4", "ipv6"],
    hook: int,
    priority: int,
    *,
    defragment: bool = False,
    tries: int = 1,
) -> Link:
    """Attach to a netfilter hook (0 prerouting .. 4 postrouting) of the current namespace (Linux 6.4).

    Lower priorities run first; the smallest and largest integers are the kernel's. Programs at one hook must
    differ in priority: of ``tries`` from ``priority`` on, the first that is free is taken. Raises AttachError
    EINVAL on kernels without netfilter links.
    """
    opts = options("bpf_link_create_opts")
    opts.netfilter.pf, opts.netfilter.hooknum = _FAMILIES[family], hook
    opts.netfilter.flags = int(defragment)
    for chosen in range(priority, priority + tries):
        opts.netfilter.priority = chosen
        result = lib.bpf_link_create(program.fd, 0, AttachType.NETFILTER, opts)
        if result != -errno.EBUSY:
            break
    reason = "another program is there with the same priority" if result == -errno.EBUSY else ""
    return created(result, "netfilter", f"{family} hook {hook} priority {chosen}", program, reason)


def attach_cgroup(program: Program, cgroup_path: Path | str, attach_type: int | None = None) -> Link:
    """Attach to a cgroup v2 directory and all below it; ``attach_type`` is the program's own unless given.

    By a link (Linux 5.7); other programs there keep running.
    """
    chosen = _attach_type(program, AttachType.CGROUP_INET_INGRESS) if attach_type is None else attach_type
    try:
        directory = os.open(cgroup_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise AttachError("cgroup", str(cgroup_path), errno=error.errno or 0) from None
    try:
        result = lib.bpf_link_create(program.fd, directory, chosen, ffi.NULL)
    finally:
        os.close(directory)
    reason = "it is not a cgroup v2 directory" if result == -errno.EBADF else ""
    return created(result, "cgroup", str(cgroup_path), program, reason)


def attach_kprobe_multi(
    program: Program,
    *,
    addresses: Sequence[int] | None = None,
    symbols: Sequence[str] | None = None,
    cookies: Sequence[int] | None = None,
    returns: bool = False,
) -> Link:
    """Attach one program to many kernel functions with one link (Linux 5.18, CONFIG_FPROBE).

    Give either addresses or symbols, and as many cookies as functions or none. One function that can't be
    probed fails the whole link. The program's expected attach type must be TRACE_KPROBE_MULTI, or
    TRACE_KPROBE_SESSION (Linux 6.10): then it runs at entry, and at the return unless it returned 1.
    """
    if (addresses is None) == (symbols is None):
        raise ValueError("either addresses or symbols")
    count = len(addresses if addresses is not None else symbols or ())
    if cookies is not None and len(cookies) != count:
        raise ValueError(f"{len(cookies)} cookies for {count} functions")
    opts = options("bpf_link_create_opts")
    keep: list[CData] = []
    if addresses is not None:
        keep.append(ffi.new("unsigned long[]", list(addresses)))
        opts.kprobe_multi.addrs = keep[-1]
    else:
        names = [ffi.new("char[]", symbol.encode()) for symbol in symbols or ()]
        keep += [*names, ffi.new("const char *[]", names)]
        opts.kprobe_multi.syms = keep[-1]
    if cookies is not None:
        keep.append(ffi.new("__u64[]", list(cookies)))
        opts.kprobe_multi.cookies = keep[-1]
    opts.kprobe_multi.cnt = count
    opts.kprobe_multi.flags = _KPROBE_MULTI_RETURN if returns else 0
    attach_type = _attach_type(program, AttachType.TRACE_KPROBE_MULTI)
    result = lib.bpf_link_create(program.fd, 0, attach_type, opts)
    # The kernel's answer is the same for functions that can't be probed: EOPNOTSUPP, or EINVAL if it is old.
    reason = kprobe_multi_missing() if result < 0 else ""
    return created(result, "kprobe-multi", f"{count} function{'s' * (count != 1)}", program, reason)


def kprobe_multi_missing() -> str:
    """Return why this kernel has no kprobe-multi at all, as its types tell; "" where it has."""
    if Btf.vmlinux().get("bpf_kprobe_multi_link", Kind.STRUCT) is not None:
        return ""
    return "this kernel has no kprobe-multi (Linux 5.18 with CONFIG_FPROBE)"


def kprobe_session_missing() -> str:
    """Return why this kernel has no kprobe sessions, as its functions tell; "" where it has."""
    if Btf.vmlinux().get("bpf_session_cookie", Kind.FUNCTION) is not None:
        return ""
    return "this kernel has no kprobe sessions (Linux 6.10 with CONFIG_FPROBE)"


def attach_tracing_multi(program: Program, btf_ids: Sequence[int], *, cookies: Sequence[int]) -> Link:
    """Attach one program to many kernel functions by BPF trampolines, with one link (Linux 7.2).

    ``btf_ids`` are of the BTF that the program was loaded for: the kernel's or, by ``attach_btf_obj_fd``, a
    module's. One function that can't be traced fails the whole link. The program's expected attach type must
    be TRACE_FENTRY_MULTI, TRACE_FEXIT_MULTI or TRACE_FSESSION_MULTI.
    """
    count = len(btf_ids)
    if len(cookies) != count:
        raise ValueError(f"{len(cookies)} cookies for {count} functions")
    ids, values = ffi.new("__u32[]", list(btf_ids)), ffi.new("__u64[]", list(cookies))
    attach_type = _attach_type(program, AttachType.TRACE_FENTRY_MULTI)
    result = lib.ptrace_tracing_multi_link(program.fd, attach_type, ids, values, count)
    reason = tracing_multi_missing() if result < 0 else ""
    return created(result, "fentry-multi", f"{count} function{'s' * (count != 1)}", program, reason)


def tracing_multi_missing() -> str:
    """Return why this kernel can't attach trampolines to many functions at once, as its types tell; "" where
    it can.
    """
    if Btf.vmlinux().get("bpf_tracing_multi_link", Kind.STRUCT) is not None:
        return ""
    return "this kernel has no fentry-multi (struct bpf_tracing_multi_link, Linux 7.2)"


def attach_iterator(program: Program) -> Link:
    """Attach an iterator program; :func:`read_iterator` runs it."""
    result = lib.bpf_link_create(program.fd, 0, AttachType.TRACE_ITER, ffi.NULL)
    return created(result, "iter", program.target or program.name, program)


def read_iterator(link: Link) -> bytes:
    """Run an attached iterator program over all objects and return what it wrote."""
    fd = lib.bpf_iter_create(link.fd)
    if fd < 0:
        raise AttachError("iter", link.description, errno=-fd)
    with os.fdopen(fd, "rb", buffering=0) as file:
        return file.readall()


class StructOpsLink(Link):
    """A struct_ops map registered with its subsystem."""

    def __init__(self, handle: CData, name: str) -> None:
        super().__init__(lib.bpf_link__fd(handle), "struct_ops", name)
        self._handle = handle

    def close(self) -> None:
        """Unregister."""
        self._fd = -1
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.bpf_link__destroy(handle)


def attach_struct_ops(map_handle: CData) -> StructOpsLink:
    """Register a struct_ops map: ``attach_struct_ops(loaded.libbpf_map("name"))``."""
    handle = lib.bpf_map__attach_struct_ops(map_handle)
    name = text(lib.bpf_map__name(map_handle))
    if not handle:
        raise AttachError("struct_ops", name, errno=ffi.errno)
    return StructOpsLink(handle, name)


def close_all(links: Iterable[Link], *, progress: Callable[[int], None] | None = None) -> None:
    """Detach many links, last first, all of them even when one raises; ``progress`` gets the number done.

    Each waits for the kernel's grace period (about a millisecond), so this is for after the last record was
    taken, not before.
    """
    failure: BaseException | None = None
    for done, link in enumerate(reversed(list(links)), 1):
        try:
            link.close()
        except Exception as error:
            failure = failure or error
        if progress:
            progress(done)
    if failure:
        raise failure


__all__ = [
    "Link",
    "StructOpsLink",
    "XdpLink",
    "attach_cgroup",
    "attach_iterator",
    "attach_kprobe",
    "attach_kprobe_multi",
    "attach_netfilter",
    "attach_raw_tracepoint",
    "attach_struct_ops",
    "attach_tcx",
    "attach_tracepoint",
    "attach_tracing",
    "attach_tracing_multi",
    "attach_xdp",
    "close_all",
    "kprobe_multi_missing",
    "kprobe_session_missing",
    "read_iterator",
    "tracing_multi_missing",
]
