"""Which functions take or return which structs, in a BTF blob: one pass over all its types, in C.

A kernel has 150,000 types; the pass takes 5 ms (``btf_functions.h``). Only what it finds becomes Python.
Format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h.
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.library import CData, text
from packet_tracer.errors import NotSupportedError

# BTF_KIND_*
_PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(2, 12)
_FUNC_PROTO, _TYPE_TAG, _ENUM64 = 13, 18, 19

_MODIFIERS = {_TYPEDEF: "", _VOLATILE: "volatile", _CONST: "const", _RESTRICT: "restrict", _TYPE_TAG: ""}
_KEYWORDS = {_STRUCT: "struct ", _UNION: "union ", _ENUM: "enum ", _ENUM64: "enum "}

#: How the kernel side of :meth:`TypeTable.functions` lays out what it finds.
_FUNCTION, _PARAMETER = struct.Struct("=IIIiII"), struct.Struct("=III")
#: Room for so many functions at first, and for twice as many parameters: a kernel has half of it.
_ROOM = 1 << 13


class Parameter(NamedTuple):
    """A pointer to a struct among a function's parameters.

    ``slot`` counts the registers that carry arguments from 0, as ``bpf_get_func_arg`` does: it is the place
    among the parameters, except behind one of 16 bytes, which takes two. ``pointers`` is 1 for ``struct *``
    and 2 for ``struct **``.
    """

    slot: int
    struct: str
    pointers: int


class FunctionType(NamedTuple):
    """A function that has to do with one of the structs asked for.

    ``returned`` is the struct whose address it returns, or "". ``trampoline`` says whether a BPF trampoline
    (fentry, fexit) takes such a prototype. ``prototypes`` is how many functions of this name the blob has:
    they differ in prototype, and nothing says which belongs to which address.
    """

    id: int
    name: str
    parameters: tuple[Parameter, ...]
    returned: str
    trampoline: bool
    prototypes: int


class TypeTable:
    """The types of one BTF blob: the kernel's, or a module's on top of the kernel's.

    ``source`` names it in errors. Raises NotSupportedError for what is not BTF, is cut off, or has kinds not
    known here.
    """

    def __init__(
        self, data: bytes | mmap.mmap, *, base: TypeTable | None = None, source: str = "BTF"
    ) -> None:
        self.source = source
        self._base = base
        self._data = ffi.from_buffer(data)
        self._types = ffi.gc(ffi.new("struct ptrace_types *"), lib.ptrace_types_free)
        self._types.base = base._types if base else ffi.NULL
        result = lib.ptrace_types_read(self._types, self._data, len(data))
        if result < 0:
            raise NotSupportedError(f"{source}: {self._refusal(-result)}")

    def _refusal(self, number: int) -> str:
        if number == errno.ENOTSUP:
            return f"type {self._types.bad_id} is of kind {self._types.bad_kind}, not known here"
        if number == errno.EINVAL:
            return "not BTF of this machine's byte order"
        return "its types can't be read: " + ("it is damaged" if number == errno.EBADMSG else "no memory")

    @classmethod
    def read(cls, path: Path, *, base: TypeTable | None = None) -> TypeTable:
        """Read a file such as ``/sys/kernel/btf/vmlinux``. Raises OSError, NotSupportedError."""
        with path.open("rb") as file:
            try:
                # The kernel's can be mapped since 6.16 (a539e2a6d51d), which saves a copy of 20 ms.
                data: bytes | mmap.mmap = mmap.mmap(
                    file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ
                )
            except (OSError, ValueError):
                data = file.read()
        return cls(data, base=base, source=str(path))

    def __len__(self) -> int:
        """The number of types in this blob."""
        return int(self._types.end_id - self._types.first_id)

    def functions(self, structs: Collection[str]) -> Iterator[FunctionType]:
        """Yield the functions that take or return a pointer to one of ``structs``, const or not.

        A pointer to such a pointer counts among parameters. MemoryError where there is none left.
        """
        names = tuple(structs)
        functions, parameters = self._find(names)
        every = (
            Parameter(slot, names[structure], pointers)
            for slot, structure, pointers in _PARAMETER.iter_unpack(parameters)
        )
        for type_id, name, prototypes, returned, trampoline, count in _FUNCTION.iter_unpack(functions):
            yield FunctionType(
                type_id,
                self._name(name),
                tuple(islice(every, count)),
                names[returned] if returned >= 0 else "",
                bool(trampoline),
                prototypes,
            )

    def _find(self, structs: Collection[str]) -> tuple[bytes, bytes]:
        """Return the functions that have to do with ``structs``, and their parameters, as C lays them out."""
        names = b"".join(name.encode() + b"\0" for name in structs)
        functions_room, parameters_room = _ROOM, 2 * _ROOM
        used = ffi.new("__u32 *")
        while True:
            functions = ffi.new("struct ptrace_function[]", functions_room)
            parameters = ffi.new("struct ptrace_parameter[]", parameters_room)
            found = lib.ptrace_types_functions(
                self._types, names, len(structs), functions, functions_room, parameters, parameters_room, used
            )
            if found < 0:
                raise MemoryError
            if found <= functions_room and used[0] <= parameters_room:
                return (
                    ffi.buffer(functions)[: found * _FUNCTION.size],
                    ffi.buffer(parameters)[: used[0] * _PARAMETER.size],
                )
            functions_room, parameters_room = found, used[0]

    def prototype(self, type_id: int) -> str:
        """Return a function's prototype in C: ``"int ip_rcv(struct sk_buff *skb, ...)"``."""
        function = self._type(type_id)
        return self._declare(function[2], self._name(function[0]))

    def _type(self, type_id: int) -> CData:
        """Return the words of a type: its name, its info, its size or what it refers to, and more."""
        words = lib.ptrace_types_at(self._types, type_id)
        if not words:
            raise NotSupportedError(f"{self.source}: there is no type {type_id}")
        return words

    def _name(self, offset: int) -> str:
        return text(lib.ptrace_types_name(self._types, offset))

    def _declare(self, type_id: int, inner: str) -> str:
        """Return the C declaration of ``inner`` (a name, perhaps with stars) as being of a type."""
        if type_id == 0:
            return _join("void", inner)
        words = self._type(type_id)
        info, word = words[1], words[2]
        kind = info >> 24 & 31
        if kind == _PTR:
            target = self._kind_behind(word)
            return self._declare(word, f"(*{inner})" if target in (_ARRAY, _FUNC_PROTO) else f"*{inner}")
        if kind in _MODIFIERS and kind != _TYPEDEF:
            word_text = _MODIFIERS[kind]
            if not word_text:
                return self._declare(word, inner)
            if self._kind_behind(word) == _PTR:
                return self._declare(word, _join(word_text, inner))
            return f"{word_text} {self._declare(word, inner)}"
        if kind == _ARRAY:
            return self._declare(words[3], f"{inner}[{words[5]}]")
        if kind == _FUNC_PROTO:
            rows = range(3, 3 + 2 * (info & 0xFFFF), 2)
            listed = [
                "..." if words[row + 1] == 0 else self._declare(words[row + 1], self._name(words[row]))
                for row in rows
            ]
            return self._declare(word, f"{inner}({', '.join(listed) or 'void'})")
        keyword = ("union " if info >> 31 else "struct ") if kind == _FWD else _KEYWORDS.get(kind, "")
        return _join(keyword + (self._name(words[0]) or "{...}"), inner)

    def _kind_behind(self, type_id: int) -> int:
        """Return the kind of a type, qualifiers skipped."""
        while type_id:
            words = self._type(type_id)
            kind = words[1] >> 24 & 31
            if kind not in _MODIFIERS or kind == _TYPEDEF:
                return int(kind)
            type_id = words[2]
        return 0


def _join(left: str, right: str) -> str:
    return f"{left} {right}" if right else left
