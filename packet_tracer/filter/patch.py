"""Putting filters into a program that libbpf has prepared and the kernel has not yet verified.

The filter's functions are appended behind the last instruction. Nothing that is there moves: no jump, no
record of func_info or line_info in the program changes. Calls of the stub become calls of the filter, for
each call and return costs as much as a small filter does. The stub itself must stay in use, for the verifier
refuses code that nothing reaches: its body becomes ``call slow; exit``, no-ops before it, and the filter
calls its second function that way. A filter without a second function is called from the stub.

The verifier wants a func_info record for each function and, where there is line_info, one for each function's
first instruction; both are copied from the stub's, whose type is the filter's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from packet_tracer.filter import ebpf
from packet_tracer.filter.errors import FilterError
from packet_tracer.filter.expression import Filter
from packet_tracer.filter.stubs import SLOW, STUBS
from packet_tracer.filter.typed import TypedMemory, typed_memory

if TYPE_CHECKING:
    from packet_tracer.bpf.program import PreparedProgram, Program

_INSTRUCTION_BYTES = 8
_WORD = struct.Struct("=I")
_IMMEDIATE = struct.Struct("=i")
#: How a call of a function of the program begins.
_CALL = bytes([ebpf.JMP | ebpf.JUMPS["call"], ebpf.PSEUDO_CALL << 4])
_NOTHING = ebpf.Instruction(ebpf.JMP | ebpf.JUMPS["ja"])
_EXIT = ebpf.Instruction(ebpf.JMP | ebpf.JUMPS["exit"])


class Prepared(Protocol):
    """What is needed of a :class:`packet_tracer.bpf.PreparedProgram`."""

    @property
    def name(self) -> str: ...
    @property
    def instructions(self) -> bytes: ...
    @property
    def func_info(self) -> bytes: ...
    @property
    def func_info_record_size(self) -> int: ...
    @property
    def line_info(self) -> bytes: ...
    @property
    def line_info_record_size(self) -> int: ...
    @property
    def functions(self) -> tuple[tuple[str, int], ...]: ...


class Patched(NamedTuple):
    """A program's code with filters in it: what :meth:`PreparedProgram.load` takes in place of its own."""

    instructions: bytes
    func_info: bytes
    line_info: bytes

    def arguments(self) -> dict[str, bytes]:
        """Return the three as keyword arguments."""
        return self._asdict()


def patch(
    program: Prepared,
    filter_: Filter | None,
    *,
    instructions: bytes | None = None,
    memory: TypedMemory | None = None,
) -> Patched:
    """Put a filter, and its inner one, into every stub that ``program`` calls; None leaves it as it is.

    ``instructions``: the program's, where they have been changed already without moving anything
    (:func:`packet_tracer.bpf.constants.patch_constants`). ``memory``: how the kernel it is for reads
    memory in place (:func:`packet_tracer.filter.typed.typed_memory`).
    A program without stubs is returned as it is. Raises FilterError for an expression that cannot be a
    program.
    """
    replacements = {}
    functions = dict(program.functions)
    for stub in STUBS:
        part = filter_.inner if filter_ is not None and stub.inner else filter_
        if part is not None and stub.symbol in functions:
            replacements[stub.symbol] = part.program(stub, memory)
    return replace_functions(program, replacements, instructions=instructions)


def patch_for_kernel(program: Prepared, filter_: Filter | None) -> Patched:
    """Return what :func:`patch` makes for the running kernel."""
    return patch(program, filter_, memory=typed_memory() if filter_ else None)


def load_filtered(
    program: PreparedProgram,
    filter_: Filter | None,
    *,
    expected_attach_type: int | None = None,
    attach_btf_obj_fd: int | None = None,
) -> Program:
    """Load a program with a filter in it, or as it is; the rest is :meth:`PreparedProgram.load`'s.

    Raises FilterError and ProgramLoadError.
    """
    code = patch_for_kernel(program, filter_)
    return program.load(
        instructions=code.instructions,
        func_info=code.func_info,
        line_info=code.line_info,
        expected_attach_type=expected_attach_type,
        attach_btf_obj_fd=attach_btf_obj_fd,
    )


def replace_functions(
    program: Prepared, replacements: Mapping[str, ebpf.Program], *, instructions: bytes | None = None
) -> Patched:
    """Return the code of ``program`` with functions replaced, by name. A pure function on bytes."""
    code = bytearray(program.instructions if instructions is None else instructions)
    func_info, line_info = bytearray(program.func_info), bytearray(program.line_info)
    places = dict(program.functions)
    starts = sorted(places.values())
    size = len(program.instructions) // _INSTRUCTION_BYTES
    for symbol, replacement in replacements.items():
        stub = places[symbol]
        end = next((start for start in starts if start > stub), size)
        position = len(code) // _INSTRUCTION_BYTES
        entry = position
        own = dict(places)
        for function in replacement.functions:
            own[function.name] = position
            func_info += _record(program.func_info, program.func_info_record_size, stub, position)
            line_info += _record(program.line_info, program.line_info_record_size, stub, position)
            position += len(function.instructions)
        target = entry
        if SLOW in own:
            _redirect(code, size, stub, entry)
            target, own[SLOW] = own[SLOW], stub
        for function in replacement.functions:
            code += _linked(program.name, function, own, len(code) // _INSTRUCTION_BYTES)
        body = [*[_NOTHING] * (end - stub - 2), _call(stub, end - 2, target), _EXIT]
        code[stub * _INSTRUCTION_BYTES : end * _INSTRUCTION_BYTES] = ebpf.encode(body)
    return Patched(bytes(code), bytes(func_info), bytes(line_info))


def _call(stub: int, at: int, target: int) -> ebpf.Instruction:
    if at < stub:
        raise FilterError("", "a stub has no room for a call")
    return ebpf.Instruction(ebpf.JMP | ebpf.JUMPS["call"], 0, ebpf.PSEUDO_CALL, 0, target - at - 1)


def _redirect(code: bytearray, size: int, old: int, new: int) -> None:
    """Make the calls of the function at ``old``, by the first ``size`` instructions, calls of that at
    ``new``.
    """
    at, end = -1, size * _INSTRUCTION_BYTES
    while (at := code.find(_CALL, at + 1, end)) >= 0:
        index, inside = divmod(at, _INSTRUCTION_BYTES)
        if not inside and index + 1 + _IMMEDIATE.unpack_from(code, at + 4)[0] == old:
            _IMMEDIATE.pack_into(code, at + 4, new - index - 1)


def _linked(program: str, function: ebpf.Function, places: Mapping[str, int], start: int) -> bytes:
    """Return a function's bytes, its calls resolved, to be put at ``start``."""
    linked = []
    for index, instruction in enumerate(function.instructions):
        if instruction.symbol:
            if instruction.symbol not in places:
                raise FilterError("", f"program {program} has no function {instruction.symbol}")
            distance = places[instruction.symbol] - (start + index) - 1
            instruction = instruction._replace(immediate=distance)
        linked.append(instruction)
    return ebpf.encode(linked)


def _record(records: bytes, size: int, old: int, new: int) -> bytes:
    """Return the record of the instruction at ``old`` as one of ``new``; nothing if there are no records."""
    for start in range(0, len(records), size or 1):
        if _WORD.unpack_from(records, start)[0] == old:
            return _WORD.pack(new) + records[start + _WORD.size : start + size]
    if records:
        raise FilterError("", f"no debug information for the function at instruction {old}")
    return b""
