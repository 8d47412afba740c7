"""A small eBPF machine in Python: what a filter's program answers, without a kernel.

For tests, and for filtering packets that were read from a file. It knows the instructions that
filters are made of and the functions they call, and it is strict: a read of memory that the program
has no right to is an :class:`EvaluationError`, as the verifier would have refused it.
"""

from __future__ import annotations

from packet_tracer.filter import ebpf
from packet_tracer.filter.readers import TAG
from packet_tracer.filter.stubs import Access, Stub

_PACKET = 0x1000_0000
_CONTEXT = 0x2000_0000
_STACK_TOP = 0x7000_0000
_STACK_SIZE = 512
_FRAME_DISTANCE = 0x1000
_SHARED = 0x3000_0000
_MASK32, _MASK64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
#: struct skb_shared_info lies behind every buffer, so a probe may copy that far (linux/skbuff.h).
_BEHIND_BUFFER = b"\xa5" * 320
_NUMBERS = {1: 0xFF, 2: 0xFFFF, 4: _MASK32, 8: _MASK64}


class EvaluationError(Exception):
    """The program did what no verified program does."""


def evaluate(
    program: ebpf.Program,
    stub: Stub,
    packet: bytes,
    *,
    length: int | None = None,
    linear: int | None = None,
    metadata: int = 0,
    start: int = 0,
) -> bool:
    """Return whether ``program``, made for ``stub``, accepts ``packet``.

    ``length`` is the packet's own where ``packet`` was cut short; ``linear`` how many bytes lie in the
    linear part (all of them by default); ``metadata`` as in :mod:`packet_tracer.filter.stubs`;
    ``start`` where the packet begins, for stubs that are told.
    """
    machine = _Machine(
        program,
        packet,
        len(packet) if length is None else length,
        len(packet) if linear is None else min(linear, len(packet)),
        metadata,
        start,
    )
    return machine.run(stub) != 0


class _Machine:
    def __init__(
        self, program: ebpf.Program, packet: bytes, length: int, linear: int, metadata: int, start: int
    ) -> None:
        self._functions = {function.name: function.instructions for function in program.functions}
        self._entry = program.functions[0].name
        self._packet = packet
        self._length = length
        self._linear = linear
        self._metadata = metadata
        self._start = start
        self._memory: list[tuple[int, bytearray]] = []

    def run(self, stub: Stub) -> int:
        end = _PACKET + self._linear
        if stub.access is Access.PROBE:
            data = _PACKET + self._start
            arguments = [data, end, _SHARED, self._length - self._start, self._metadata]
            # Only the helper may touch it.
            self._readable = self._packet[: self._linear] + _BEHIND_BUFFER
        else:
            context = bytearray(192)
            xdp = stub.access is Access.XDP
            for offset, value in (
                ((0, _PACKET), (4, end)) if xdp else ((0, self._length), (76, _PACKET), (80, end))
            ):
                context[offset : offset + 4] = value.to_bytes(4, "little")
            self._memory += [(_CONTEXT, context), (_PACKET, bytearray(self._packet[: self._linear]))]
            arguments = [_CONTEXT, self._start | self._metadata if stub.has_offset else self._metadata]
        return self._call(self._entry, arguments, _STACK_TOP) & _MASK32

    def _call(self, name: str, arguments: list[int], frame: int) -> int:
        instructions = self._functions[name]
        stack = bytearray(_STACK_SIZE)
        self._memory.append((frame - _STACK_SIZE, stack))
        registers: list[int | None] = [None, *arguments, *[None] * (9 - len(arguments)), frame]
        position = 0
        while True:
            if not 0 <= position < len(instructions):
                raise EvaluationError(f"{name}: control left the function at {position}")
            i = instructions[position]
            position += 1
            kind = i.opcode & 0x07
            if kind in (ebpf.ALU, ebpf.ALU64):
                registers[i.destination] = _arithmetic(i, registers, wide=kind == ebpf.ALU64)
            elif kind == ebpf.LDX:
                address = _value(registers, i.source) + i.offset
                registers[i.destination] = self._load(address, ebpf.SIZES[i.opcode & 0x18])
            elif kind in (ebpf.ST, ebpf.STX):
                size = ebpf.SIZES[i.opcode & 0x18]
                value = i.immediate if kind == ebpf.ST else _value(registers, i.source)
                self._store(_value(registers, i.destination) + i.offset, value & _NUMBERS[size], size)
            elif i.opcode == ebpf.JMP | ebpf.JUMPS["exit"]:
                self._memory.pop()
                return _value(registers, 0)
            elif i.opcode == ebpf.JMP | ebpf.JUMPS["call"]:
                registers[0] = self._called(i, registers, frame)
                registers[1:6] = [None] * 5
            elif _taken(i, registers, wide=kind == ebpf.JMP):
                position += i.offset

    def _called(self, i: ebpf.Instruction, registers: list[int | None], frame: int) -> int:
        if i.symbol in self._functions:
            arguments = [register for register in registers[1:6] if register is not None]
            return self._call(i.symbol, arguments, frame - _FRAME_DISTANCE)
        if i.symbol == "filter_load":
            data, place = _value(registers, 1), _value(registers, 4)
            return self._read(data - _PACKET + (place & _MASK32), place >> 32, _value(registers, 5))
        if i.symbol == "filter_tc_load":
            return self._read(_value(registers, 2), _value(registers, 3), _value(registers, 4))
        if i.symbol == "filter_xdp_load":
            return self._read(_value(registers, 2), _value(registers, 3), 0)
        if i.symbol == "filter_xdp_length":
            return self._length
        if i.source == ebpf.PSEUDO_KFUNC_CALL:
            return self._cast(_value(registers, 1))
        if not i.symbol and i.immediate == ebpf.PROBE_READ_KERNEL:
            return self._probe_read(*(_value(registers, number) for number in (1, 2, 3)))
        raise EvaluationError(f"a call of {i.symbol or i.immediate}")

    def _cast(self, address: int) -> int:
        """bpf_rdonly_cast(): from there on memory may be read, whatever lies there."""
        packet = bytes(_PACKET - address) + self._readable if address < _PACKET else self._readable
        self._memory.insert(0, (min(address, _PACKET), bytearray(packet)))
        return address

    def _read(self, offset: int, size: int, tag: int) -> int:
        """The functions in bpf_src/filter.bpf.h: a number in host order, or negative."""
        packet = self._packet
        if tag:
            packet = packet[:TAG].ljust(TAG, b"\xa5") + tag.to_bytes(4, "big") + packet[TAG:]
        if offset < 0 or offset + size > len(packet):
            return -14 & _MASK64
        return int.from_bytes(packet[offset : offset + size], "big")

    def _probe_read(self, destination: int, size: int, source: int) -> int:
        data = self._readable[source - _PACKET :][:size] if source >= _PACKET else b""
        if len(data) < size:
            return -14 & _MASK64
        for start, buffer in self._memory:
            if start <= destination and destination + size <= start + len(buffer):
                buffer[destination - start : destination - start + size] = data
                return 0
        raise EvaluationError(f"bpf_probe_read_kernel writes {size} bytes at {destination:#x}")

    def _load(self, address: int, size: int) -> int:
        for start, buffer in self._memory:
            if start <= address and address + size <= start + len(buffer):
                return int.from_bytes(buffer[address - start : address - start + size], "little")
        raise EvaluationError(f"reads {size} bytes at {address:#x}")

    def _store(self, address: int, value: int, size: int) -> None:
        start, buffer = self._memory[-1]
        if not (start <= address and address + size <= start + len(buffer)):
            raise EvaluationError(f"writes {size} bytes at {address:#x}")
        buffer[address - start : address - start + size] = value.to_bytes(size, "little")


def _value(registers: list[int | None], number: int) -> int:
    value = registers[number]
    if value is None:
        raise EvaluationError(f"r{number} is read before it is written")
    return value


def _arithmetic(i: ebpf.Instruction, registers: list[int | None], *, wide: bool) -> int:
    mask = _MASK64 if wide else _MASK32
    name = ebpf.ARITHMETIC_NAMES[i.opcode & 0xF0]
    right = (
        _value(registers, i.source) if i.opcode & ebpf.REGISTER and name != "swap" else i.immediate
    ) & mask
    if name == "mov":
        return right
    left = _value(registers, i.destination) & mask
    if name == "swap":
        size = i.immediate // 8
        return int.from_bytes((left & _NUMBERS[size]).to_bytes(size, "little"), "big")
    if name == "add":
        left += right
    elif name == "sub":
        left -= right
    elif name == "mul":
        left *= right
    elif name in ("div", "mod"):
        if not right:
            raise EvaluationError("a division by zero that was not checked")
        left = left // right if name == "div" else left % right
    elif name == "or":
        left |= right
    elif name == "and":
        left &= right
    elif name == "xor":
        left ^= right
    elif name == "neg":
        left = -left
    else:
        right &= 63 if wide else 31
        left = left << right if name == "lsh" else left >> right
    return left & mask


def _taken(i: ebpf.Instruction, registers: list[int | None], *, wide: bool) -> bool:
    name = ebpf.JUMP_NAMES[i.opcode & 0xF0]
    if name == "ja":
        return True
    mask = _MASK64 if wide else _MASK32
    left = _value(registers, i.destination) & mask
    right = (_value(registers, i.source) if i.opcode & ebpf.REGISTER else i.immediate) & mask
    if name.startswith("s"):
        name = name[1:]
        half = (mask + 1) >> 1
        left, right = (left ^ half) - half, (right ^ half) - half
    if name == "==":
        return left == right
    if name == "!=":
        return left != right
    if name == "&":
        return bool(left & right)
    if name == ">":
        return left > right
    if name == ">=":
        return left >= right
    return left < right if name == "<" else left <= right
