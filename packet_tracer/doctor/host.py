"""Facts about the kernel and about this process that decide what can be traced."""

from __future__ import annotations

import gzip
import os
import platform
import resource
from functools import cache
from pathlib import Path

from packet_tracer.bpf.privileges import effective_capabilities, lockdown, missing_capabilities
from packet_tracer.doctor.finding import Finding, Section
from packet_tracer.errors import PtraceError

#: Where tracefs is mounted by custom, its new place first.
_TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_NEEDED = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")


@cache
def kernel_config() -> dict[str, str] | None:
    """Return this kernel's options that are set, ``{"CONFIG_BPF": "y"}``; None where it does not tell.

    /proc/config.gz (CONFIG_IKCONFIG_PROC), or the file in /boot that distributions put there.
    """
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{platform.release()}")):
        try:
            content = path.read_bytes()
            lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()
        except (OSError, EOFError, ValueError):
            continue
        return dict(line.split("=", 1) for line in lines if line.startswith("CONFIG_") and "=" in line)
    return None


def not_compiled_in(*options: str) -> str:
    """Return ``"CONFIG_KPROBES is not set"`` for the first option the kernel was built without, else ""."""
    config = kernel_config()
    if config is None:
        return ""
    for option in options:
        if option not in config:
            return f"{option} is not set in this kernel"
    return ""


def examine_host() -> tuple[Section, Section]:
    """Return what there is to say of the kernel, and of this process' rights."""
    memlock = _memlock()  # before libbpf raises it, as it does where it matters
    kernel = (_release(), _libbpf(), _btf(), _drop_reasons(), _ring_buffer(), _jit(), _tracefs(), _libpcap())
    return Section("kernel", kernel), Section(
        "privileges", (_capabilities(), _lockdown(), memlock, _unprivileged())
    )


def _release() -> Finding:
    release, machine = platform.release(), platform.machine()
    fields = {"release": release, "machine": machine}
    return Finding("kernel", f"{platform.system()} {release} {machine}", fields=fields)


def _libbpf() -> Finding:
    from packet_tracer.bpf.library import version

    return Finding("libbpf", version(), fields={"version": version()})


def _btf() -> Finding:
    from packet_tracer.bpf.btf import Btf

    try:
        types = len(Btf.vmlinux())
    except PtraceError as error:
        return Finding("kernel BTF", not_compiled_in("CONFIG_DEBUG_INFO_BTF") or str(error), works=False)
    directory = Path("/sys/kernel/btf")
    modules = len(list(directory.iterdir())) - 1 if directory.is_dir() else 0
    detail = f"{types:,} types; {modules} module{'s' * (modules != 1)} with BTF"
    return Finding("kernel BTF", detail, works=True, fields={"types": types, "modules": modules})


def _drop_reasons() -> Finding:
    from packet_tracer.bpf.btf import Btf
    from packet_tracer.events.drop_reasons import DropReasons

    try:
        count = len(DropReasons.from_btf(Btf.vmlinux()).names)
    except PtraceError as error:
        return Finding("drop reasons", str(error), works=False)
    if not count:
        return Finding(
            "drop reasons", "none: kernels name them since 5.17; the place of a drop is told", works=False
        )
    return Finding("drop reasons", f"{count} known by name", works=True, fields={"count": count})


def _ring_buffer() -> Finding:
    from packet_tracer.bpf.enums import MapType
    from packet_tracer.bpf.maps import RawMap

    try:
        RawMap.create(MapType.RINGBUF, 0, 0, os.sysconf("SC_PAGE_SIZE"), name="doctor").close()
    except PtraceError as error:
        return Finding("ring buffer", str(error), works=False)
    return Finding("ring buffer", "can be made", works=True)


def _jit() -> Finding:
    value = _sysctl("net/core/bpf_jit_enable")
    words = {
        "0": "off: probes are interpreted, several times slower",
        "1": "on",
        "2": "on, with debugging output",
    }
    return Finding(
        "BPF JIT", words.get(value, "could not tell"), works=value in ("1", "2") if value else None
    )


def _tracefs() -> Finding:
    # Probes don't need it (they go through BTF and perf_event_open); it lists what ftrace can trace.
    for path in _TRACEFS:
        listing = path / "available_filter_functions"
        try:
            with open(listing, "rb") as file:
                file.read(1)
        except FileNotFoundError:
            if (path / "events").is_dir():
                reason = not_compiled_in("CONFIG_FUNCTION_TRACER") or "it lists no functions"
                return Finding("tracefs", f"mounted at {path}; no function tracer: {reason}", works=False)
        except OSError as error:
            return Finding(
                "tracefs", f"mounted at {path}, but {listing.name} says: {error.strerror}", works=False
            )
        else:
            return Finding("tracefs", f"mounted at {path}", works=True)
    known = "tracefs" in Path("/proc/filesystems").read_text()
    detail = "not mounted: mount -t tracefs nodev /sys/kernel/tracing" if known else "not in this kernel"
    return Finding("tracefs", f"{detail} (only needed to list functions)", works=False)


def _libpcap() -> Finding:
    import ctypes.util

    found = ctypes.util.find_library("pcap")
    if found:
        return Finding("libpcap", f"{found}: filter expressions can be compiled", works=True)
    return Finding(
        "libpcap", "not found: install libpcap (Debian: libpcap0.8) for filter expressions", works=False
    )


def _capabilities() -> Finding:
    have = sorted(effective_capabilities())
    missing = missing_capabilities(*_NEEDED)
    fields = {"effective": have, "missing": list(missing)}
    if missing:
        return Finding(
            "capabilities", f"run as root or grant {', '.join(missing)}", works=False, fields=fields
        )
    detail = ", ".join(name for name in (*_NEEDED, "CAP_SYS_ADMIN") if name in have)
    if "CAP_SYS_ADMIN" not in have:
        detail += "; entering other network namespaces needs CAP_SYS_ADMIN too"
    return Finding("capabilities", detail, works=True, fields=fields)


def _lockdown() -> Finding:
    mode = lockdown()
    if mode is None:
        absent = not_compiled_in("CONFIG_SECURITY_LOCKDOWN_LSM")
        detail = f"none: {absent}" if absent else "could not tell: /sys/kernel/security can't be read"
        return Finding("lockdown", detail, fields={"mode": None})
    works = mode != "confidentiality"
    detail = mode if works else f"{mode}: BPF may not read kernel memory; see kernel_lockdown(7)"
    return Finding("lockdown", detail, works=works, fields={"mode": mode})


def _memlock() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    fields = {"limit_bytes": None if soft == resource.RLIM_INFINITY else soft}
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10:,} KiB"
    if _charged_to_cgroup():
        return Finding(
            "memlock", f"{limit}; BPF memory is charged to the cgroup, not to this limit", fields=fields
        )
    return Finding("memlock", f"{limit}; this kernel charges BPF memory to it", fields=fields)


def _charged_to_cgroup() -> bool:
    """Whether BPF memory goes to the memory cgroup (80ee81e0403c, Linux 5.11).

    A helper that came with the same version tells, as in libbpf's probe_memcg_account.
    """
    from packet_tracer.bpf.btf import Btf, Kind

    try:
        return Btf.vmlinux().get("bpf_ktime_get_coarse_ns", Kind.FUNCTION) is not None
    except PtraceError:
        return False


def _unprivileged() -> Finding:
    value = _sysctl("kernel/unprivileged_bpf_disabled")
    words = {"0": "allowed", "1": "not allowed, for good", "2": "not allowed"}
    return Finding(
        "unprivileged BPF", f"{words.get(value, 'could not tell')} (tracing needs privileges all the same)"
    )


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""
