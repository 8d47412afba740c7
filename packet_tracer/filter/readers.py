"""How a filter reaches the packet: what all ways have in common, and the slow one that always works."""

from __future__ import annotations

from abc import ABC, abstractmethod

from packet_tracer.filter import cbpf
from packet_tracer.filter.analysis import Analysis
from packet_tracer.filter.ebpf import Assembler, Register
from packet_tracer.filter.pcap import LinkType
from packet_tracer.filter.stubs import Access, Stub

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FRAME = Register

#: Labels every function may jump to. BEYOND: bytes are wanted that the linear part does not have.
ACCEPT, REJECT, BEYOND, RESTART = "accept", "reject", "beyond", "restart"

#: Where a VLAN tag goes in an Ethernet header, and where the bytes behind it begin.
TAG, BEHIND_TAG = 12, 16
#: No packet has bytes from here on.
LARGEST_OFFSET = 0x7FFFFFFF


class Reader(ABC):
    """Emits the instructions that reach bytes, length and metadata; owns the registers."""

    a: Register
    x: Register

    def __init__(self, stub: Stub, facts: Analysis, *, vlan: bool) -> None:
        self.asm = Assembler()
        self._stub = stub
        self._facts = facts
        # An inner packet's tag always lies in its bytes; XDP knows of none that doesn't.
        self._vlan = vlan and not stub.inner and stub.link_type is LinkType.ETHERNET
        if stub.access is Access.XDP:
            self._vlan = False
        self._stack = -4 * len(facts.words)

    def word(self, number: int) -> int:
        """The place of ``M[number]`` on the stack."""
        return -4 * (self._facts.words.index(number) + 1)

    def _slot(self, size: int = 8) -> int:
        """Reserve room on the stack."""
        self._stack = (self._stack - size) & ~7
        return self._stack

    @abstractmethod
    def prologue(self) -> None:
        """What comes before the first instruction."""

    @abstractmethod
    def load(self, target: Register, offset: int, size: int, check: int) -> None:
        """Load from a constant place, after a check for ``check`` bytes (0: known to be there)."""

    @abstractmethod
    def load_indirect(self, target: Register, offset: int, size: int, x_maximum: int) -> None:
        """Load into A from ``X + offset``."""

    @abstractmethod
    def length(self, target: Register) -> None:
        """Load the packet's length."""

    @abstractmethod
    def metadata_word(self, target: Register) -> None:
        """Load ``metadata``."""

    def epilogue(self) -> None:  # noqa: B027 - most have none
        """What comes after the last instruction, where something jumps to it."""

    def metadata(self, target: Register, which: int) -> None:
        """Load one of the values that libpcap calls ancillary data."""
        asm = self.asm
        vlan = which in (cbpf.ANCILLARY_VLAN_TAG, cbpf.ANCILLARY_VLAN_TAG_PRESENT)
        if self._stub.inner or (vlan and self._stub.link_type is LinkType.RAW):
            # What the kernel keeps is about the outer packet, and a tag about one with a link-layer header.
            asm.alu("mov", target, 0)
            return
        self.metadata_word(target)
        if which == cbpf.ANCILLARY_VLAN_TAG:
            asm.alu("and", target, 0xFFFF)
        elif which == cbpf.ANCILLARY_VLAN_TAG_PRESENT:
            asm.alu("mov", target, target)
            absent = asm.fresh_label()
            asm.jump("==", target, 0, absent)
            asm.alu("mov", target, 1)
            asm.label(absent)
        elif which == cbpf.ANCILLARY_PACKET_TYPE:
            asm.alu("rsh", target, 60, wide=True)
        else:
            asm.alu("lsh", target, 4, wide=True)
            asm.alu("rsh", target, 36, wide=True)


class CallReader(Reader):
    """The slow function of every hook: each load is a call of a function in C that knows every case.

    r6 = context or start, r7 = second argument (metadata or end), r8 = A, r9 = X.
    """

    a, x = R8, R9

    def __init__(self, stub: Stub, facts: Analysis, *, vlan: bool) -> None:
        super().__init__(stub, facts, vlan=vlan)
        probe = stub.access is Access.PROBE
        self._length = self._slot() if facts.reads_length else 0
        self._shared = self._slot() if probe else 0
        self._metadata = self._slot() if probe and (self._vlan or facts.reads_metadata) else 0

    def prologue(self) -> None:
        asm, access = self.asm, self._stub.access
        if access is Access.PROBE:
            for slot, register in ((self._shared, R3), (self._length, R4), (self._metadata, R5)):
                if slot:
                    asm.store(8, FRAME, slot, register)
        asm.mov(R6, R1)
        asm.mov(R7, R2)
        if access is Access.PROBE:
            if self._vlan:
                self._ignore_tag_of_short_packet(R4)
            return
        if access is Access.TC:
            asm.load(4, R0, R6, 0)
        else:
            asm.call("filter_xdp_length")
            # Only a read past the linear part leads here: without another part it is past the end.
            asm.load(4, R1, R6, 0)
            asm.load(4, R2, R6, 4)
            asm.alu("sub", R2, R1, wide=True)
            asm.alu("mov", R0, R0)
            asm.jump(">=", R2, R0, REJECT, wide=True)
        if self._length:
            asm.store(8, FRAME, self._length, R0)
        if self._vlan:
            self._ignore_tag_of_short_packet(R0)

    def _ignore_tag_of_short_packet(self, length: Register) -> None:
        """Without the addresses there is no place for a tag."""
        asm = self.asm
        long_enough = asm.fresh_label()
        asm.jump(">=", length, TAG, long_enough)
        if self._stub.access is Access.PROBE:
            asm.store(8, FRAME, self._metadata, 0)
        else:
            asm.mov(R7, 0)
        asm.label(long_enough)

    def load(self, target: Register, offset: int, size: int, check: int) -> None:
        if offset > LARGEST_OFFSET - size:
            self.asm.goto(REJECT)
            return
        self.asm.alu("mov", R2, offset)
        self._call(target, size)

    def load_indirect(self, target: Register, offset: int, size: int, x_maximum: int) -> None:
        asm = self.asm
        if offset > LARGEST_OFFSET - size:
            asm.goto(REJECT)
            return
        asm.mov(R2, self.x)
        asm.alu("add", R2, offset, wide=True)
        asm.jump(">", R2, LARGEST_OFFSET - size, REJECT, wide=True)
        self._call(target, size)

    def _call(self, target: Register, size: int) -> None:
        """Load ``size`` bytes from the offset in r2."""
        asm, access = self.asm, self._stub.access
        asm.mov(R1, R6)
        if access is Access.PROBE:
            # One argument for two: there are six.
            asm.mov(R4, size)
            asm.alu("lsh", R4, 32, wide=True)
            asm.alu("or", R4, R2, wide=True)
            asm.mov(R2, R7)
            asm.load(8, R3, FRAME, self._shared)
            self._tag(R5)
            asm.call("filter_load")
        else:
            if self._stub.has_offset:
                asm.alu("mov", R3, R7)
                asm.alu("add", R2, R3, wide=True)
                asm.jump(">", R2, LARGEST_OFFSET - size, REJECT, wide=True)
            asm.alu("mov", R3, size)
            self._tag(R4)
            asm.call("filter_tc_load" if access is Access.TC else "filter_xdp_load")
        asm.jump("s<", R0, 0, REJECT, wide=True)
        asm.alu("mov", target, R0)

    def _tag(self, register: Register) -> None:
        if not self._vlan:
            self.asm.alu("mov", register, 0)
        elif self._stub.access is Access.PROBE:
            self.asm.load(4, register, FRAME, self._metadata)
        else:
            self.asm.alu("mov", register, R7)

    def length(self, target: Register) -> None:
        self.asm.load(4, target, FRAME, self._length)
        if self._stub.has_offset:
            self.asm.alu("sub", target, R7)

    def metadata_word(self, target: Register) -> None:
        if self._stub.access is Access.PROBE:
            self.asm.load(8, target, FRAME, self._metadata)
        else:
            self.asm.mov(target, R7)
