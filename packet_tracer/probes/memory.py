"""Where the kernel keeps the bytes of a page, for packets that do not lie in one piece.

Programs that have no helper to read a whole packet walk its pages themselves. A page's bytes lie in the
linear mapping, at ``base + (address of its struct page / sizeof(struct page) << page shift)``; the base
follows from two variables of the kernel (arch/x86/include/asm/page_64.h,
Documentation/arch/x86/x86_64/mm.rst).
"""

from __future__ import annotations

import os
import struct
from functools import cache
from pathlib import Path
from typing import NamedTuple

from packet_tracer.bpf.btf import Btf, Struct
from packet_tracer.bpf.maps import RawMap
from packet_tracer.bpf.object import BpfObject
from packet_tracer.errors import PtraceError
from packet_tracer.probes.kallsyms import page_variables

_WORD = 1 << 64


class PageMapping(NamedTuple):
    """How to get from a ``struct page`` to its bytes; a ``base`` of 0 means that it could not be found
    out.
    """

    base: int
    struct_bytes: int
    shift: int


UNKNOWN = PageMapping(0, 64, 12)


def read_word(objects: Path, address: int) -> int:
    """Return the 64-bit word at a kernel address. Raises BpfError where it can't be read."""
    with BpfObject.open(objects / "memory.bpf.o") as opened:
        opened.set_rodata(address=address)
        with opened.prepare(RawMap) as prepared, prepared.load() as loaded:
            loaded.programs["read_word"].test_run()
            value = loaded.maps[".bss"].raw.lookup(bytes(4))
    return int(struct.unpack_from("=Q", value or bytes(8))[0])


@cache
def page_mapping(objects: Path) -> PageMapping:
    """Return this kernel's mapping, :data:`UNKNOWN` where the kernel does not show it."""
    if os.uname().machine != "x86_64":
        return UNKNOWN
    try:
        addresses = page_variables()
        if not all(addresses):
            return UNKNOWN
        vmemmap, page_offset = (read_word(objects, address) for address in addresses)
        page = Btf.vmlinux().struct("page")
    except (OSError, PtraceError):
        return UNKNOWN
    assert isinstance(page, Struct)
    shift = os.sysconf("SC_PAGE_SIZE").bit_length() - 1
    return PageMapping((page_offset - (vmemmap // page.size << shift)) % _WORD, page.size, shift)
