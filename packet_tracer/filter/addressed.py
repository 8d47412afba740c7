"""Reading from addresses, as tracepoints, netfilter and kernel functions know them: through
bpf_probe_read_kernel, or in place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from packet_tracer.filter import cbpf
from packet_tracer.filter.analysis import Analysis, load_end, reads_bytes
from packet_tracer.filter.ebpf import PROBE_READ_KERNEL, Register
from packet_tracer.filter.readers import (
    BEHIND_TAG,
    BEYOND,
    FRAME,
    LARGEST_OFFSET,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    REJECT,
    RESTART,
    TAG,
    Reader,
)
from packet_tracer.filter.stubs import SLOW, Stub
from packet_tracer.filter.typed import TypedMemory

#: Bytes of stack that the function takes. All frames of a call chain together have 512 (MAX_BPF_STACK), and
#: below this one lie the second function's and those that walk the pages.
_FRAME_SIZE = 96
#: X as the length of an IPv4 header: at most, and without options.
_IHL_MAXIMUM, _IHL_USUAL = 0x0F << 2, 20


class AddressReader(Reader):
    """Probes, the fast function: where the packet lies is known by addresses.

    r7 = readable bytes from offset 0, r8 = A, r9 = X; r6 is what offset 0 is reached by. Every load is
    checked against r7. Those whose place is known, up to ``_near`` bytes, cost no call.
    """

    a, x = R8, R9

    def __init__(self, stub: Stub, facts: Analysis, *, vlan: bool) -> None:
        super().__init__(stub, facts, vlan=vlan)
        # What the second function wants and r6 and r7 do not tell.
        self._length = self._slot()
        self._spilled = {R3: self._slot(), R4: self._length}
        if self._vlan or stub.inner:
            self._spilled |= {R1: self._slot(), R2: self._slot()}
        self._metadata = self._slot() if self._vlan or facts.reads_metadata else 0
        self._word = self._slot()
        self._near = 0

    @abstractmethod
    def _prepare(self) -> None:
        """Set r6 from r1, and have the near bytes ready."""

    @abstractmethod
    def _address(self, target: Register) -> None:
        """Set ``target`` to where offset 0 is, as a number."""

    @abstractmethod
    def _load_near(self, target: Register, offset: int, size: int) -> None:
        """Load from a known place."""

    def prologue(self) -> None:
        asm = self.asm
        for register, slot in self._spilled.items():
            asm.store(8, FRAME, slot, register)
        if self._metadata:
            asm.store(8, FRAME, self._metadata, R5)
        asm.mov(R7, R2)
        asm.alu("sub", R7, R1, wide=True)
        if self._stub.inner:
            # It may begin behind the linear part.
            begins_inside = asm.fresh_label()
            asm.jump(">=", R2, R1, begins_inside, wide=True)
            asm.mov(R7, 0)
            asm.label(begins_inside)
        self._prepare()

    def load(self, target: Register, offset: int, size: int, check: int) -> None:
        asm = self.asm
        if check > LARGEST_OFFSET:
            asm.goto(REJECT)
            return
        if check:
            asm.jump("<", R7, check, BEYOND, wide=True)
        if offset + size <= self._near:
            self._load_near(target, offset, size)
            return
        self._address(R3)
        asm.alu("add", R3, offset, wide=True)
        self._read_word(target, size)

    def load_indirect(self, target: Register, offset: int, size: int, x_maximum: int) -> None:
        asm = self.asm
        if offset > LARGEST_OFFSET:
            asm.goto(REJECT)
            return
        asm.mov(R3, self.x)
        if offset:
            asm.alu("add", R3, offset, wide=True)
        if self._vlan:
            asm.jump("<", R3, BEHIND_TAG, RESTART, wide=True)
        asm.mov(R2, R3)
        asm.alu("add", R2, size, wide=True)
        asm.jump(">", R2, R7, BEYOND, wide=True)
        done = asm.fresh_label()
        if x_maximum == _IHL_MAXIMUM and _IHL_USUAL + offset + size <= self._near:
            # Nearly every IPv4 header has no options: what follows it is near.
            other = asm.fresh_label()
            asm.jump("!=", self.x, _IHL_USUAL, other)
            self._load_near(target, _IHL_USUAL + offset, size)
            asm.goto(done)
            asm.label(other)
        self._address(R1)
        asm.alu("add", R3, R1, wide=True)
        self._read_word(target, size)
        asm.label(done)

    def _read_word(self, target: Register, size: int) -> None:
        """Read ``size`` bytes at r3."""
        asm = self.asm
        asm.mov(R1, FRAME)
        asm.alu("add", R1, self._word, wide=True)
        asm.alu("mov", R2, size)
        asm.call_helper(PROBE_READ_KERNEL)
        asm.jump("!=", R0, 0, REJECT)
        asm.load(size, target, FRAME, self._word)
        asm.to_host_order(target, size)

    def length(self, target: Register) -> None:
        self.asm.load(4, target, FRAME, self._length)

    def metadata_word(self, target: Register) -> None:
        self.asm.load(8, target, FRAME, self._metadata)

    def epilogue(self) -> None:
        asm = self.asm
        if asm.wanted(BEYOND):
            asm.label(BEYOND)
            if not self._vlan:
                asm.load(8, R1, FRAME, self._length)
                asm.jump(">=", R7, R1, REJECT, wide=True)
        if asm.wanted(RESTART) or asm.wanted(BEYOND):
            asm.label(RESTART)
            if R1 not in self._spilled:
                asm.mov(R1, R6)
                asm.mov(R2, R6)
                asm.alu("add", R2, R7, wide=True)
            for register, slot in self._spilled.items():
                asm.load(8, register, FRAME, slot)
            if self._metadata:
                asm.load(8, R5, FRAME, self._metadata)
            else:
                asm.mov(R5, 0)
            asm.call(SLOW)
            asm.exit()


class TypedReader(AddressReader):
    """Where the kernel reads memory in place: each load is one of the packet's bytes. r6 = a pointer."""

    def __init__(self, stub: Stub, facts: Analysis, memory: TypedMemory) -> None:
        super().__init__(stub, facts, vlan=False)
        self._memory = memory
        if R1 not in self._spilled:
            self._spilled |= {R1: self._slot(), R2: self._slot()}
        self._near = memory.size

    def _prepare(self) -> None:
        self._memory.cast(self.asm)
        self.asm.mov(R6, R0)

    def _address(self, target: Register) -> None:
        self.asm.load(8, target, FRAME, self._spilled[R1])

    def _load_near(self, target: Register, offset: int, size: int) -> None:
        self.asm.load(size, target, R6, self._memory.start + offset)
        self.asm.to_host_order(target, size)


class WindowReader(AddressReader):
    """Elsewhere, and for packets that a VLAN tag is to be seen in: one copy of the headers to the stack, then
    plain loads. r6 = where offset 0 would be.

    The copy may run past the packet's end but not past its buffer, which ends in struct skb_shared_info (320
    bytes); what lies there is never used.
    """

    def __init__(
        self, stub: Stub, program: Sequence[cbpf.Instruction], facts: Analysis, *, vlan: bool
    ) -> None:
        super().__init__(stub, facts, vlan=vlan)
        # What does not fit is read one by one; up to three bytes are lost to alignment.
        room = _FRAME_SIZE + self._stack - 3
        loads = [(at, size) for at, size in _places(program, facts) if at + size <= room]
        self._near = max((offset + size for offset, size in loads), default=0)
        if self._near and self._vlan:
            self._near = max(self._near, BEHIND_TAG)
        # Loads from the stack must be aligned: choose the start that splits the fewest.
        if self._near:
            base = self._slot(self._near + 3)
            self._window = min(
                range(base, base + 4), key=lambda start: sum(_pieces(start + at, size) for at, size in loads)
            )

    def _prepare(self) -> None:
        asm = self.asm
        asm.mov(R6, R1)
        if not self._vlan:
            if self._near:
                self._copy(self._window, self._near, R6)
            return
        tagged, done = asm.fresh_label(), asm.fresh_label()
        asm.jump("!=", R5, 0, tagged)
        if self._near:
            self._copy(self._window, self._near, R6)
        asm.goto(done)
        asm.label(tagged)
        asm.jump("<", R7, TAG, RESTART, wide=True)
        if self._near:
            self._copy(self._window, TAG, R6)
            self._copy_tag()
        asm.alu("sub", R6, BEHIND_TAG - TAG, wide=True)
        asm.alu("add", R7, BEHIND_TAG - TAG, wide=True)
        if self._near > BEHIND_TAG:
            asm.mov(R3, R6)
            asm.alu("add", R3, BEHIND_TAG, wide=True)
            self._copy(self._window + BEHIND_TAG, self._near - BEHIND_TAG, R3)
        asm.label(done)

    def _copy(self, place: int, size: int, source: Register) -> None:
        asm = self.asm
        if source is not R3:
            asm.mov(R3, source)
        asm.mov(R1, FRAME)
        asm.alu("add", R1, place, wide=True)
        asm.alu("mov", R2, size)
        asm.call_helper(PROBE_READ_KERNEL)
        asm.jump("!=", R0, 0, RESTART)

    def _copy_tag(self) -> None:
        # Byte by byte: the window need not be aligned.
        for index in range(4):
            self.asm.load(1, R1, FRAME, self._metadata + 3 - index)
            self.asm.store(1, FRAME, self._window + TAG + index, R1)

    def _address(self, target: Register) -> None:
        self.asm.mov(target, R6)

    def _load_near(self, target: Register, offset: int, size: int) -> None:
        asm, place = self.asm, self._window + offset
        if place % size == 0:
            asm.load(size, target, FRAME, place)
            asm.to_host_order(target, size)
            return
        piece = 2 if place % 2 == 0 else 1
        for index in range(0, size, piece):
            register = target if index == 0 else R1
            asm.load(piece, register, FRAME, place + index)
            asm.to_host_order(register, piece)
            if index:
                asm.alu("lsh", target, 8 * piece)
                asm.alu("or", target, R1)


def _places(program: Sequence[cbpf.Instruction], facts: Analysis) -> Iterator[tuple[int, int]]:
    """The offset and size of every load whose place is known, or nearly always the same."""
    for instruction, known in zip(program, facts.known, strict=True):
        if known is None:
            continue
        if reads_bytes(instruction):
            yield instruction.k, load_end(instruction) - instruction.k
        elif (
            instruction.instruction_class == cbpf.LD
            and instruction.mode == cbpf.IND
            and known.x_maximum == _IHL_MAXIMUM
        ):
            yield _IHL_USUAL + instruction.k, instruction.size


def _pieces(place: int, size: int) -> int:
    """Aligned loads that ``size`` bytes at ``place`` take."""
    if place % size == 0:
        return 1
    return size // 2 if place % 2 == 0 else size
