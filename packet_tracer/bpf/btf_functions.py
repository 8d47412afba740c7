"""Which functions take or return which structs: one fast pass over a BTF blob, in plain Python.

A kernel has 130,000 types, and asking libbpf for one at a time costs a foreign call each. Here the type
section is read as an array of 32-bit words and walked once (about 50 ms), and then only prototypes are looked
at (30 ms).
Format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from packet_tracer.errors import NotSupportedError

_MAGIC = 0xEB9F
_HEADER = struct.Struct(
    "=HBBIIIII"
)  # magic, version, flags, header size, types' offset and size, strings' likewise

# BTF_KIND_*
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)

_MODIFIERS = {_TYPEDEF: "", _VOLATILE: "volatile", _CONST: "const", _RESTRICT: "restrict", _TYPE_TAG: ""}
_KEYWORDS = {_STRUCT: "struct ", _UNION: "union ", _ENUM: "enum ", _ENUM64: "enum "}
#: Words that follow a type's three: once, and for each of its elements.
_EXTRA_WORDS = {_INT: 1, _ARRAY: 3, _VAR: 1, _DECL_TAG: 1}
_ELEMENT_WORDS = {_STRUCT: 3, _UNION: 3, _ENUM: 2, _FUNC_PROTO: 2, _DATASEC: 3, _ENUM64: 3}

#: What a BPF trampoline takes (MAX_BPF_FUNC_ARGS in include/linux/bpf.h, btf_distill_func_proto in
#: kernel/bpf/btf.c).
_MAX_TRAMPOLINE_PARAMETERS = 12
_SLOT_BYTES = 8
_MAX_REGISTER_BYTES = 16


@dataclass(frozen=True, slots=True)
class Parameter:
    """A pointer to a struct among a function's parameters.

    ``slot`` counts the registers that carry arguments from 0, as ``bpf_get_func_arg`` does: it is the place
    among the parameters, except behind one of 16 bytes, which takes two. ``pointers`` is 1 for ``struct *``
    and 2 for ``struct **``.
    """

    slot: int
    struct: str
    pointers: int


@dataclass(frozen=True, slots=True)
class FunctionType:
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


#: Parameters, struct returned, trampoline.
_Signature = tuple[tuple[Parameter, ...], str, bool]


class _Found(NamedTuple):
    """What a walk over all types notes: plain numbers, since a tuple for each type would double its time."""

    starts: list[int]  # where each type begins, as an index of words
    functions: list[int]  # ids of functions, and in the same order
    names: list[int]  # their names, as offsets of strings
    signatures: list[int]  # their prototypes' ids
    prototypes: dict[int, int]  # id -> start, for these kinds
    structs: dict[int, int]
    references: dict[int, int]  # pointers, qualifiers and typedefs


class TypeTable:
    """The types of one BTF blob: the kernel's, or a module's on top of the kernel's.

    ``source`` names it in errors. Raises NotSupportedError for what is not BTF or has kinds not known here.
    """

    def __init__(
        self, data: bytes | mmap.mmap, *, base: TypeTable | None = None, source: str = "BTF"
    ) -> None:
        if len(data) < _HEADER.size or _HEADER.unpack_from(data)[0] != _MAGIC:
            raise NotSupportedError(f"{source}: not BTF of this machine's byte order")
        _, _, _, header, types, types_size, strings, strings_size = _HEADER.unpack_from(data)
        self.source = source
        self._base = base
        self._strings = data[header + strings : header + strings + strings_size]
        self._words = memoryview(data)[header + types : header + types + types_size].cast("I")
        # A module's type ids and string offsets go on where the kernel's end; type 0 is void.
        self._first_id: int = base._first_id + len(base) if base else 1
        self._first_string: int = base._first_string + len(base._strings) if base else 0
        self._found = self._walk()
        self._known_leads: dict[tuple[str, ...], dict[int, tuple[str, int]]] = {}
        self._known_signatures: dict[tuple[str, ...], dict[int, _Signature]] = {}

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
        return len(self._found.starts)

    def functions(self, structs: Collection[str]) -> Iterator[FunctionType]:
        """Yield the functions that take or return a pointer to one of ``structs``, const or not.

        A pointer to such a pointer counts among parameters.
        """
        key = tuple(structs)
        signatures = self._signatures(key)
        if self._base:  # a module's function can have a prototype that is among the kernel's types
            signatures = self._base._signatures(key) | signatures
        found = self._found
        namesakes = Counter(found.names)
        for type_id, name, prototype in zip(found.functions, found.names, found.signatures, strict=True):
            if prototype in signatures:
                yield FunctionType(type_id, self._name(name), *signatures[prototype], namesakes[name])

    def prototype(self, type_id: int) -> str:
        """Return a function's prototype in C: ``"int ip_rcv(struct sk_buff *skb, ...)"``."""
        table, start = self._locate(type_id)
        return self._declare(table._words[start + 2], table._name(table._words[start]))

    def _walk(self) -> _Found:
        """Go over all types once and note where each begins and what later steps look at."""
        fixed = [3 + _EXTRA_WORDS.get(kind, 0) for kind in range(32)]
        each = [_ELEMENT_WORDS.get(kind, 0) for kind in range(32)]
        words = self._words.tolist()
        found = _Found([], [], [], [], {}, {}, {})
        starts, functions, names, signatures, prototypes, structs, references = found
        type_id, at, end = self._first_id, 0, len(words)
        while at < end:
            starts.append(at)
            info = words[at + 1]
            kind = info >> 24 & 31
            if kind == _FUNC:
                functions.append(type_id)
                names.append(words[at])
                signatures.append(words[at + 2])
            elif kind == _FUNC_PROTO:
                prototypes[type_id] = at
            elif kind == _PTR or kind in _MODIFIERS:
                references[type_id] = at
            elif kind in (_STRUCT, _FWD):
                structs[type_id] = at
            elif not 0 < kind <= _ENUM64:
                raise NotSupportedError(f"{self.source}: type {type_id} is of kind {kind}, not known here")
            at += fixed[kind] + (info & 0xFFFF) * each[kind]
            type_id += 1
        return found

    def _signatures(self, structs: tuple[str, ...]) -> dict[int, _Signature]:
        """Return this blob's prototypes that have to do with ``structs``; worked out once."""
        if structs not in self._known_signatures:
            leads = self._leads(structs)
            if self._base:
                leads = self._base._leads(structs) | leads
            pointers = {type_id: lead for type_id, lead in leads.items() if lead[1] in (1, 2)}
            irrelevant = frozenset(pointers).isdisjoint
            words = self._words
            signatures = {}
            for type_id, start in self._found.prototypes.items():
                # What is returned lies right before the parameters, of which each second word is a type.
                types = words[start + 2 : start + 3 + 2 * (words[start + 1] & 0xFFFF) : 2]
                if not irrelevant(types):
                    signature = self._signature(types.tolist(), pointers)
                    if signature[0] or signature[1]:
                        signatures[type_id] = signature
            self._known_signatures[structs] = signatures
        return self._known_signatures[structs]

    def _leads(self, structs: tuple[str, ...]) -> dict[int, tuple[str, int]]:
        """Return this blob's types that lead to one of ``structs``: its name, and by how many pointers."""
        if structs in self._known_leads:
            return self._known_leads[structs]
        words = self._words
        names = {offset: name for name in structs for offset in self._name_offsets(name)}
        inherited = self._base._leads(structs) if self._base else {}
        leads = {}
        for type_id, start in self._found.structs.items():
            if name := names.get(words[start]):
                leads[type_id] = (name, 0)
        references = self._found.references
        targets = {type_id: words[start + 2] for type_id, start in references.items()}
        before = -1
        while len(leads) > before:  # a type can refer to a later one
            before = len(leads)
            for type_id, target in targets.items():
                if (target in leads or target in inherited) and type_id not in leads:
                    name, depth = leads.get(target) or inherited[target]
                    is_pointer = words[references[type_id] + 1] >> 24 & 31 == _PTR
                    leads[type_id] = (name, depth + is_pointer)
        self._known_leads[structs] = leads
        return leads

    def _signature(self, types: list[int], pointers: dict[int, tuple[str, int]]) -> _Signature:
        """Work out a prototype of which ``types`` are what it returns and its parameters."""
        result, *parameter_types = types
        parameters = []
        slot, trampoline = 0, len(parameter_types) <= _MAX_TRAMPOLINE_PARAMETERS
        for type_id in parameter_types:
            if type_id in pointers:
                parameters.append(Parameter(slot, *pointers[type_id]))
            size = self._size(type_id)
            if not 0 < size <= _MAX_REGISTER_BYTES:
                # Variable arguments, or a struct in memory: where the rest goes differs by architecture.
                trampoline = False
                break
            slot += -(-size // _SLOT_BYTES)
        if result and self._kind_behind(result, typedefs=True) in (_STRUCT, _UNION):
            trampoline = False
        name, depth = pointers.get(result, ("", 0))
        return tuple(parameters), name if depth == 1 else "", trampoline

    def _locate(self, type_id: int) -> tuple[TypeTable, int]:
        """Return the table that has a type, this or its base, and where its words begin."""
        if type_id < self._first_id and self._base:
            return self._base._locate(type_id)
        return self, self._found.starts[type_id - self._first_id]

    def _name(self, offset: int) -> str:
        if offset < self._first_string and self._base:
            return self._base._name(offset)
        begin = offset - self._first_string
        return self._strings[begin : self._strings.index(b"\0", begin)].decode()

    def _name_offsets(self, name: str) -> Iterator[int]:
        """Yield each offset that reads ``name``: one, but for strings that share their ends."""
        if self._base:
            yield from self._base._name_offsets(name)
        for found in re.finditer(re.escape(name.encode()) + b"\0", self._strings):
            yield self._first_string + found.start()

    def _size(self, type_id: int) -> int:
        """Return the size in bytes of a value of a type, as far as parameters need it."""
        if type_id == 0:
            return 0
        table, start = self._locate(type_id)
        info, word = table._words[start + 1], table._words[start + 2]
        kind = info >> 24 & 31
        if kind in _MODIFIERS:
            return self._size(word)
        return _SLOT_BYTES if kind in (_PTR, _ARRAY, _FUNC_PROTO) else word

    def _declare(self, type_id: int, inner: str) -> str:
        """Return the C declaration of ``inner`` (a name, perhaps with stars) as being of a type."""
        if type_id == 0:
            return _join("void", inner)
        table, start = self._locate(type_id)
        words = table._words
        info, word = words[start + 1], words[start + 2]
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
            return self._declare(words[start + 3], f"{inner}[{words[start + 5]}]")
        if kind == _FUNC_PROTO:
            rows = range(start + 3, start + 3 + 2 * (info & 0xFFFF), 2)
            listed = [
                "..." if words[row + 1] == 0 else self._declare(words[row + 1], table._name(words[row]))
                for row in rows
            ]
            return self._declare(word, f"{inner}({', '.join(listed) or 'void'})")
        keyword = ("union " if info >> 31 else "struct ") if kind == _FWD else _KEYWORDS.get(kind, "")
        return _join(keyword + (table._name(words[start]) or "{...}"), inner)

    def _kind_behind(self, type_id: int, *, typedefs: bool = False) -> int:
        """Return the kind of a type, qualifiers skipped, and typedefs if wanted."""
        while type_id:
            table, start = self._locate(type_id)
            kind = table._words[start + 1] >> 24 & 31
            if kind not in _MODIFIERS or (kind == _TYPEDEF and not typedefs):
                return kind
            type_id = table._words[start + 2]
        return 0


def _join(left: str, right: str) -> str:
    return f"{left} {right}" if right else left
