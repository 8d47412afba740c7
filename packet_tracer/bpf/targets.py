"""What tracing programs attach to, found in the BTF of the kernel and its modules."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.errors import BtfError
from packet_tracer.bpf.library import text

_BTF_DIRECTORY = Path("/sys/kernel/btf")


def kernel_target(name: str, prefix: str, kind: Kind) -> tuple[int, int | None]:
    """Find what a tracing program attaches to: the type's id, and an open BTF fd of the module it is in.

    ``name`` may be ``module:name``; without a module the kernel is searched first, then all
    modules, as libbpf does. The fd is the caller's to close, None for the kernel itself.
    Raises BtfError where there is no such type.
    """
    module, _, bare = name.rpartition(":")
    wanted = prefix + bare
    if module in ("", "vmlinux"):
        types = Btf.vmlinux()
        # Typedefs are few: their index costs less than two searches, and a tracer has several tracepoints.
        found = types.index(kind).get(wanted) if kind is Kind.TYPEDEF else types.get(wanted, kind)
        if found is not None:
            return found, None
    modules = (
        [module]
        if module
        else sorted(path.name for path in _BTF_DIRECTORY.glob("*") if path.name != "vmlinux")
    )
    for candidate in modules:
        if candidate == "vmlinux":
            continue
        found = Btf.module(candidate).index(kind).get(wanted)
        if found is not None:
            return found, open_module(candidate)
    what = "tracepoint" if kind is Kind.TYPEDEF else "function"
    raise BtfError(f"this kernel has no {what} {name}", errno=errno.ENOENT)


def open_module(name: str) -> int:
    """Return a file descriptor of a module's BTF, the caller's to close, by walking all BTF ids."""
    current = ffi.new("__u32 *", 0)
    while lib.bpf_btf_get_next_id(current[0], current) == 0:
        fd = lib.bpf_btf_get_fd_by_id(current[0])
        if fd < 0:
            continue
        info, label = ffi.new("struct bpf_btf_info *"), ffi.new("char[64]")
        info.name, info.name_len = int(ffi.cast("uintptr_t", label)), 64
        size = ffi.new("__u32 *", ffi.sizeof(info[0]))
        if lib.bpf_btf_get_info_by_fd(fd, info, size) == 0 and info.kernel_btf and text(label) == name:
            return fd
        os.close(fd)
    raise BtfError(f"module {name} has no BTF in the kernel")
