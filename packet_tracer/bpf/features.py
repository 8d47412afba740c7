"""What this kernel can do, found by trying: yes, no because of something, or could not tell.

Kernel versions are never compared: distributions backport, and leave out.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.enums import MapType, ProgramType, name_of
from packet_tracer.bpf.errors import BtfError, describe
from packet_tracer.bpf.library import Descriptor
from packet_tracer.bpf.privileges import missing_capabilities
from packet_tracer.errors import BpfError


@dataclass(frozen=True, slots=True)
class Feature:
    """One answer. ``supported`` is None where it could not be told; ``reason`` says why it is not True."""

    name: str
    supported: bool | None
    reason: str = ""

    def __bool__(self) -> bool:
        return self.supported is True


def probe_program_type(type: int) -> Feature:  # noqa: A002
    """Load a two-instruction program of the type."""
    name = f"{name_of(ProgramType, type)} programs"
    return _probe(name, lambda: lib.libbpf_probe_bpf_prog_type(type, ffi.NULL))


def probe_map_type(type: int) -> Feature:  # noqa: A002
    """Create a small map of the type."""
    name = f"{name_of(MapType, type)} maps"
    if type == MapType.STRUCT_OPS:
        # libbpf's probe sets a member (value_type_btf_obj_fd) that kernels before 6.9 do not know and refuse.
        return _probe(name, _has_struct_ops)
    return _probe(name, lambda: lib.libbpf_probe_bpf_map_type(type, ffi.NULL))


def _has_struct_ops() -> int:
    """Whether the kernel's types have the value of a struct_ops map: it makes them for each of its tables."""
    try:
        return int(Btf.vmlinux().get("bpf_struct_ops_tcp_congestion_ops", Kind.STRUCT) is not None)
    except BtfError as error:
        return -(error.errno or errno.ENOENT)


def probe_helper(type: int, helper: int) -> Feature:  # noqa: A002
    """Load a program of the type that calls the helper, by its number in ``enum bpf_func_id``."""
    name = f"helper {helper} in {name_of(ProgramType, type)} programs"
    return _probe(name, lambda: lib.libbpf_probe_bpf_helper(type, helper, ffi.NULL))


def _probe(name: str, ask: Callable[[], int]) -> Feature:
    # A refusal for want of a privilege looks to libbpf like a kernel that does not know the thing.
    missing = missing_capabilities("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN")
    if missing:
        return Feature(name, None, f"can't be tried without {', '.join(missing)}")
    answer = ask()
    if answer < 0:
        return Feature(name, None, describe(-answer))
    return Feature(name, True) if answer else Feature(name, False, "this kernel does not have them")


class RunStatistics(Descriptor):
    """Have the kernel count runs and run time of all programs for as long as this is open (Linux 5.8).

    It costs some 20 ns a run. A context manager. Raises BpfError, EPERM without CAP_SYS_ADMIN.
    """

    def __init__(self) -> None:
        fd = lib.bpf_enable_stats(0)  # BPF_STATS_RUN_TIME
        if fd < 0:
            raise BpfError(f"run statistics can't be switched on: {describe(-fd)}", errno=-fd)
        super().__init__(fd)

    def __enter__(self) -> RunStatistics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
