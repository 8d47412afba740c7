"""Who else traces or filters here: BPF programs and links that are loaded already, ours and others'."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import LinkType, ProgramType, name_of
from packet_tracer.bpf.loaded import ids
from packet_tracer.bpf.program import Program
from packet_tracer.doctor.finding import Finding, Section
from packet_tracer.errors import BpfError

#: Types of programs that watch the kernel or handle packets, which a tracer may meet.
_RELATED = frozenset(
    {
        ProgramType.KPROBE,
        ProgramType.TRACEPOINT,
        ProgramType.RAW_TRACEPOINT,
        ProgramType.PERF_EVENT,
        ProgramType.TRACING,
        ProgramType.XDP,
        ProgramType.SCHED_CLS,
        ProgramType.NETFILTER,
        ProgramType.CGROUP_SKB,
        ProgramType.LSM,
    }
)


def examine_others() -> Section:
    """Return how many programs and links there are, by type."""
    return Section("others", (_count("BPF programs", _program_types), _count("BPF links", _link_types)))


def _count(name: str, types: Callable[[], Iterator[str]]) -> Finding:
    try:
        counted = Counter(types())
    except BpfError as error:
        return Finding(name, f"could not tell: {error}")
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items()))
    return Finding(name, words or "none that trace or handle packets", fields={"counts": dict(counted)})


def _program_types() -> Iterator[str]:
    for identifier in ids(lib.bpf_prog_get_next_id):
        try:
            with Program.from_id(identifier) as program:
                if program.type in _RELATED:
                    yield name_of(ProgramType, program.type)
        except BpfError:  # gone meanwhile
            continue


def _link_types() -> Iterator[str]:
    for identifier in ids(lib.bpf_link_get_next_id):
        fd = lib.bpf_link_get_fd_by_id(identifier)
        if fd < 0:
            continue
        info = ffi.new("struct bpf_link_info *")
        try:
            if lib.bpf_link_get_info_by_fd(fd, info, ffi.new("__u32 *", ffi.sizeof(info[0]))) == 0:
                yield name_of(LinkType, info.type)
        finally:
            os.close(fd)
