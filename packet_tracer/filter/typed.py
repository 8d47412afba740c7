"""Reading memory in place: the verifier is told that a number points to a struct, and lets it be loaded.

bpf_rdonly_cast() (Linux 6.2) costs nothing at run time, where bpf_probe_read_kernel() costs more than a
filter does. What cannot be read then reads as 0. The struct is one that every kernel has, with bytes in it
that may be loaded at any offset and by any size.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.enums import ProgramType
from packet_tracer.bpf.idle import small_program
from packet_tracer.errors import BpfError
from packet_tracer.filter import ebpf

#: ``struct sockaddr_storage``: its family, and the bytes (include/uapi/linux/socket.h).
_STRUCT, _START, _SIZE = "__kernel_sockaddr_storage", 2, 126


class TypedMemory(NamedTuple):
    """What the verifier is told: BTF ids of ``function`` and ``struct``; ``size`` bytes from ``start`` on may
    be loaded.
    """

    function: int
    struct: int
    start: int = _START
    size: int = _SIZE

    def cast(self, asm: ebpf.Assembler) -> None:
        """Make r0 a pointer to the struct whose bytes begin where r1 points to, a number; r1 to r5 die."""
        asm.alu("sub", ebpf.Register.R1, self.start, wide=True)
        asm.alu("mov", ebpf.Register.R2, self.struct)
        asm.call_kfunc(self.function)


@cache
def typed_memory() -> TypedMemory | None:
    """Return how this kernel reads memory in place, None if it can't: found by trying, in a millisecond."""
    try:
        btf = Btf.vmlinux()
        function, struct = btf.get("bpf_rdonly_cast", Kind.FUNCTION), btf.get(_STRUCT, Kind.STRUCT)
        if function is None or struct is None:
            return None
        memory = TypedMemory(function, struct)
        asm = ebpf.Assembler()
        asm.mov(ebpf.Register.R1, -1)
        memory.cast(asm)
        for offset, size in ((0, 1), (1, 4), (memory.size - 4, 4)):
            asm.load(size, ebpf.Register.R1, ebpf.Register.R0, memory.start + offset)
        asm.alu("mov", ebpf.Register.R0, 0)
        asm.exit()
        small_program(ProgramType.KPROBE, (_fields(i) for i in asm.finish())).close()
    except BpfError:
        return None
    return memory


def _fields(i: ebpf.Instruction) -> tuple[int, int, int, int]:
    return i.opcode, i.destination | i.source << 4, i.offset, i.immediate
