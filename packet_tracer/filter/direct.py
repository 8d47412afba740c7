"""Reading by direct packet access: TC and XDP."""

from __future__ import annotations

from packet_tracer.filter.ebpf import Register
from packet_tracer.filter.readers import (
    BEHIND_TAG,
    BEYOND,
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
from packet_tracer.filter.stubs import SLOW, Access

#: No packet is larger than direct access can reach (MAX_PACKET_OFF, kernel/bpf/verifier.c).
_DIRECT_LIMIT = 0xFFFF
#: An instruction's own offset has 16 bits, signed.
_LARGEST_DISPLACEMENT = 0x7FFF
#: Behind this no packet may begin, so that it and an offset together stay below the limit above.
_INNER_LIMIT = 0x3FFF


class DirectReader(Reader):
    """TC and XDP, the fast function: nothing but loads, compares and byte swaps.

    No call is made after the prologue, so A, X and the bounds live in registers that cost nothing to use.
    r1 = context, r2 = where offset 0 would be, r3 = end, r4 = scratch, r6 = second argument,
    r7 = start and r8 = 4 (VLAN only, where r2 is 4 below r7 if there is a tag), r9 = length (XDP).
    """

    a, x = R0, R5

    @property
    def _limit(self) -> int:
        return _DIRECT_LIMIT - _INNER_LIMIT if self._stub.has_offset else _DIRECT_LIMIT

    @property
    def _keeps_metadata(self) -> bool:
        return self._vlan or self._facts.reads_metadata or self._stub.has_offset

    def prologue(self) -> None:
        asm, facts = self.asm, self._facts
        xdp = self._stub.access is Access.XDP
        if self._keeps_metadata:
            asm.mov(R6, R2)
        if xdp and facts.reads_length:
            asm.mov(R8, R1)
            asm.call("filter_xdp_length")
            asm.mov(R9, R0)
            asm.mov(R1, R8)
        asm.load(4, R2, R1, 0 if xdp else 76)
        asm.load(4, R3, R1, 4 if xdp else 80)
        if self._stub.has_offset:
            asm.alu("mov", R4, R6)
            asm.jump(">", R4, _INNER_LIMIT, REJECT, wide=True)
            asm.alu("add", R2, R4, wide=True)
        if self._vlan:
            untagged = asm.fresh_label()
            asm.mov(R7, R2)
            asm.mov(R8, 0)
            asm.jump("==", R6, 0, untagged)
            asm.mov(R8, BEHIND_TAG - TAG)
            asm.alu("sub", R2, BEHIND_TAG - TAG, wide=True)
            asm.label(untagged)

    def load(self, target: Register, offset: int, size: int, check: int) -> None:
        asm = self.asm
        end = offset + size
        if end > self._limit:
            asm.goto(BEYOND)
            return
        if check:
            # Behind the tag's place every offset is the same distance from r2, tag or no tag.
            check = max(check, BEHIND_TAG) if self._vlan else check
            if check > self._limit:
                asm.goto(BEYOND)
                return
            asm.mov(R4, R2)
            asm.alu("add", R4, check, wide=True)
            asm.jump(">", R4, R3, BEYOND, wide=True)
        if self._vlan and end > TAG and offset < BEHIND_TAG:
            self._load_near_tag(target, offset, size)
            return
        base = R7 if self._vlan and end <= TAG else R2
        # Linux 7.3 refuses a register that lies before the packet, as r2 may, though the sum does not.
        if offset > _LARGEST_DISPLACEMENT or (self._vlan and base == R2):
            asm.mov(R4, base)
            asm.alu("add", R4, offset, wide=True)
            base, offset = R4, 0
        asm.load(size, target, base, offset)
        asm.to_host_order(target, size)

    def _load_near_tag(self, target: Register, offset: int, size: int) -> None:
        asm = self.asm
        tagged, done = asm.fresh_label(), asm.fresh_label()
        inside = offset >= TAG and offset + size <= BEHIND_TAG
        # Asked of r8, a constant on either way: verifiers of old (5.10) forget that r6 was not 0.
        asm.jump("!=", R8, 0, tagged if inside else RESTART)
        asm.load(size, target, R7, offset)
        asm.to_host_order(target, size)
        if not inside:
            return
        asm.goto(done)
        asm.label(tagged)
        asm.alu("mov", target, R6)
        if offset + size < BEHIND_TAG:
            asm.alu("rsh", target, 8 * (BEHIND_TAG - offset - size))
        if size < 4 and offset > TAG:
            asm.alu("and", target, (1 << 8 * size) - 1)
        asm.label(done)

    def load_indirect(self, target: Register, offset: int, size: int, x_maximum: int) -> None:
        asm = self.asm
        room = self._limit - offset - size
        if room < 0:
            asm.goto(BEYOND)
            return
        if x_maximum > room:
            asm.jump(">", self.x, room, BEYOND, wide=True)
        asm.mov(R4, self.x)
        if self._vlan:
            # The verifier wants each fixed offset to be positive: take the tag's four bytes off X instead.
            if offset:
                asm.alu("add", R4, offset, wide=True)
            asm.jump("<", R4, BEHIND_TAG, RESTART, wide=True)
            asm.alu("sub", R4, R8, wide=True)
            asm.alu("add", R4, R7, wide=True)
            asm.alu("add", R4, size, wide=True)
        else:
            asm.alu("add", R4, R2, wide=True)
            asm.alu("add", R4, offset + size, wide=True)
        asm.jump(">", R4, R3, BEYOND, wide=True)
        asm.load(size, target, R4, -size)
        asm.to_host_order(target, size)

    def length(self, target: Register) -> None:
        if self._stub.access is Access.XDP:
            self.asm.alu("mov", target, R9)
        else:
            self.asm.load(4, target, R1, 0)
        if self._stub.has_offset:
            self.asm.alu("sub", target, R6)

    def metadata_word(self, target: Register) -> None:
        self.asm.mov(target, R6)

    def epilogue(self) -> None:
        asm = self.asm
        if asm.wanted(BEYOND):
            asm.label(BEYOND)
            if self._stub.access is Access.TC and not self._vlan:
                # Nothing behind the linear part: the read is past the end of the packet.
                asm.load(4, R2, R1, 76)
                asm.load(4, R4, R1, 0)
                asm.alu("sub", R3, R2, wide=True)
                asm.jump(">=", R3, R4, REJECT, wide=True)
        if asm.wanted(RESTART) or asm.wanted(BEYOND):
            asm.label(RESTART)
            asm.mov(R2, R6 if self._keeps_metadata else 0)
            asm.call(SLOW)
            asm.exit()
