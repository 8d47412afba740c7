"""BTF, the kernel's type information (Documentation/bpf/btf.rst, include/uapi/linux/btf.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.errors import BtfError, describe
from packet_tracer.bpf.library import CData, clear_messages, text

if TYPE_CHECKING:
    from packet_tracer.bpf.object import OpenedObject


class Kind(IntEnum):
    """``BTF_KIND_*``."""

    VOID = 0
    INT = 1
    POINTER = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FORWARD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNCTION = 12
    PROTOTYPE = 13
    VARIABLE = 14
    DATA_SECTION = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


@dataclass(frozen=True, slots=True)
class BtfType:
    """A type: its id, kind and name, "" for an anonymous one. Kinds with more to tell are subclasses."""

    id: int
    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Int(BtfType):
    """An integer of ``size`` bytes, ``bits`` of them used."""

    size: int
    bits: int
    signed: bool


@dataclass(frozen=True, slots=True)
class Reference(BtfType):
    """A pointer, typedef, qualifier, type tag, function or variable: it refers to ``type_id`` (0: void)."""

    type_id: int


@dataclass(frozen=True, slots=True)
class Array(BtfType):
    """``count`` elements of type ``type_id``."""

    type_id: int
    count: int


class Member(NamedTuple):
    """A member of a struct or union. ``bit_size`` is 0 unless it is a bit-field."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int


@dataclass(frozen=True, slots=True)
class Struct(BtfType):
    """A struct or union of ``size`` bytes."""

    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Enum(BtfType):
    """An enum of ``size`` bytes."""

    size: int
    values: dict[str, int]


class Parameter(NamedTuple):
    """A parameter of a function; a last one of type 0 without a name stands for varargs."""

    name: str
    type_id: int


@dataclass(frozen=True, slots=True)
class Prototype(BtfType):
    """A function's parameters and the type it returns (0: void)."""

    type_id: int
    parameters: tuple[Parameter, ...]


class SectionVariable(NamedTuple):
    """A variable in a data section: bytes from its start, and its size in bytes."""

    name: str
    type_id: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class DataSection(BtfType):
    """A data section (``.rodata``, ``.bss``) of an object."""

    size: int
    variables: tuple[SectionVariable, ...]


class Function(NamedTuple):
    """A function as :meth:`Btf.functions` lists it.

    ``argument`` is the index of the first parameter that points to the struct asked for, or -1.
    ``traceable`` says whether a BPF trampoline (fentry, fexit) can serve its prototype.
    """

    name: str
    id: int
    prototype: int
    parameters: int
    argument: int
    traceable: bool


class Btf:
    """Types of the kernel, of one of its modules, or of an object.

    It keeps its memory for as long as it lives (the kernel's: about 5 MB); :meth:`vmlinux` is shared.
    A split BTF (a module's) finds the types of its base too.
    """

    def __init__(self, handle: CData, *, name: str, owner: object = None, base: Btf | None = None) -> None:
        self._handle = handle
        self._owner = owner  # whose memory the handle is in
        self._indexes: dict[Kind, dict[str, int]] = {}
        self.name = name
        self.base = base

    @staticmethod
    @cache
    def vmlinux() -> Btf:
        """Return the running kernel's types: parsed once (4 ms), then shared.

        Raises BtfError where the kernel has none (built without CONFIG_DEBUG_INFO_BTF).
        """
        return Btf(_load(lib.btf__load_vmlinux_btf(), "the kernel"), name="vmlinux")

    @staticmethod
    @cache
    def module(name: str) -> Btf:
        """Return a loaded module's types, with the kernel's as base (Linux 5.11).

        Raises BtfError where there is no such module, or it has no BTF.
        """
        base = Btf.vmlinux()
        handle = lib.btf__load_module_btf(name.encode(), base._handle)
        return Btf(_load(handle, f"module {name}"), name=name, base=base)

    @staticmethod
    def from_id(id: int) -> Btf:  # noqa: A002
        """Return the types of a BTF object in the kernel, a loaded program's for instance, by its id."""
        return Btf(_load(lib.btf__load_from_kernel_by_id(id), f"BTF object {id}"), name=f"BTF object {id}")

    @staticmethod
    def from_object(opened: OpenedObject) -> Btf:
        """Return the types of an opened object; they live as long as it."""
        return opened.btf

    def __len__(self) -> int:
        """Number of types, those of the base and void included: ids are below it."""
        return lib.btf__type_cnt(self._handle)

    @property
    def first_id(self) -> int:
        """The first id that is not the base's."""
        return len(self.base) if self.base else 1

    def find(self, name: str, kind: Kind) -> int:
        """Return the id of a type. Raises BtfError where there is none."""
        found = self.get(name, kind)
        if found is None:
            raise BtfError(f"{self.name} has no {kind.name.lower().replace('_', ' ')} {name} in its BTF")
        return found

    def get(self, name: str, kind: Kind) -> int | None:
        """Return the id of a type or None."""
        if kind in self._indexes:
            return self._indexes[kind].get(name)
        found = lib.btf__find_by_name_kind(self._handle, name.encode(), kind)
        return found if found > 0 else None

    def index(self, kind: Kind) -> dict[str, int]:
        """Return name -> id of all types of a kind, the base's left out; a double name keeps its first id.

        One pass of 1-15 ms; from then on :meth:`find` looks here instead of searching.
        """
        if kind not in self._indexes:
            entries, names = self._walk(kind, None)
            # Backwards, so that the first of a double name remains.
            index: dict[str, int] = {
                name: entry[0] for name, entry in zip(reversed(names), reversed(entries), strict=True)
            }
            if self.base:
                return index
            self._indexes[kind] = index
        return self._indexes[kind]

    def functions(self, argument: str | None = None) -> list[Function]:
        """Return all functions, the base's left out, in one pass (about 30 ms for the kernel's 60,000).

        With ``argument="sk_buff"`` each says which parameter points to such a struct, const or not.
        """
        entries, names = self._walk(Kind.FUNCTION, argument)
        return [
            Function(name, id_, prototype, count, index, bool(traceable))
            for name, (id_, prototype, count, index, traceable) in zip(names, entries, strict=True)
        ]

    def _walk(self, kind: Kind, argument: str | None) -> tuple[list[tuple[int, ...]], list[str]]:
        size = ffi.new("size_t *")
        wanted = argument.encode() if argument else ffi.NULL
        count = lib.ptrace_btf_index(self._handle, self.first_id, kind, ffi.NULL, ffi.NULL, ffi.NULL, size)
        entries = ffi.new("struct ptrace_btf_entry[]", max(count, 1))
        names = ffi.new("char[]", size[0] + 1)
        count = lib.ptrace_btf_index(self._handle, self.first_id, kind, wanted, entries, names, size)
        if count < 0:
            raise BtfError(f"the BTF of {self.name} can't be read: {describe(-count)}", errno=-count)
        width = ffi.sizeof("struct ptrace_btf_entry")
        rows = list(struct.iter_unpack("=IIIiI", ffi.buffer(entries)[: width * count]))
        return rows, ffi.buffer(names)[: size[0]].decode(errors="replace").split("\n")[:-1]

    def enum(self, name: str) -> dict[str, int]:
        """Return the values of an enum by name. Raises BtfError where there is none."""
        found = self.get(name, Kind.ENUM)
        described = self.type(self.find(name, Kind.ENUM64) if found is None else found)
        assert isinstance(described, Enum)
        return described.values

    def struct(self, name: str) -> Struct:
        """Return a struct by name, or a union. Raises BtfError where there is none."""
        found = self.get(name, Kind.UNION)
        described = self.type(self.find(name, Kind.STRUCT) if found is None else found)
        assert isinstance(described, Struct)
        return described

    def size_of(self, type_id: int) -> int:
        """Return the size in bytes of a value of the type, typedefs and qualifiers followed."""
        size = lib.btf__resolve_size(self._handle, type_id)
        if size < 0:
            raise BtfError(f"type {type_id} of {self.name} has no size")
        return size

    def resolve(self, type_id: int) -> BtfType:
        """Return the type behind typedefs and qualifiers."""
        described = self.type(type_id)
        while described.kind in _TRANSPARENT and isinstance(described, Reference):
            described = self.type(described.type_id)
        return described

    def type(self, type_id: int) -> BtfType:
        """Return a type by id. Raises BtfError where there is none."""
        if type_id == 0:
            return BtfType(0, Kind.VOID, "void")
        pointer = lib.btf__type_by_id(self._handle, type_id)
        if not pointer:
            raise BtfError(f"{self.name} has no type {type_id} in its BTF")
        return self._decode(type_id, pointer)

    def text(self, offset: int) -> str:
        """Return the name at an offset of the string section."""
        return text(lib.btf__name_by_offset(self._handle, offset))

    def _decode(self, type_id: int, pointer: CData) -> BtfType:
        number, count, flag = pointer.info >> 24 & 0x1F, pointer.info & 0xFFFF, bool(pointer.info >> 31)
        name, word = self.text(pointer.name_off), pointer.size
        try:
            kind = Kind(number)
        except ValueError:
            raise BtfError(f"type {type_id} of {self.name} is of a kind ({number}) not known here") from None

        def rows(layout: str, rows: int) -> list[tuple[int, ...]]:
            size = struct.calcsize(layout) * rows
            return list(struct.iter_unpack(layout, ffi.buffer(pointer + 1, size)[:])) if size else []

        if kind is Kind.INT:
            (encoding,) = rows("=I", 1)[0]
            return Int(type_id, kind, name, word, encoding & 0xFF, bool(encoding >> 24 & 1))
        if kind is Kind.ARRAY:
            element, _index, length = rows("=III", 1)[0]
            return Array(type_id, kind, name, element, length)
        if kind in (Kind.STRUCT, Kind.UNION):
            members = tuple(
                # With the flag set the offset's upper 8 bits are a bit-field's size.
                Member(self.text(at), member, offset & 0xFFFFFF, offset >> 24)
                if flag
                else Member(self.text(at), member, offset, 0)
                for at, member, offset in rows("=III", count)
            )
            return Struct(type_id, kind, name, word, members)
        if kind is Kind.ENUM:
            # Unsigned unless the flag says signed; before Linux 6.0 the flag was not set, and negative
            # values were the rule for error codes: read as signed then, as bpftool does.
            values = {self.text(at): value for at, value in rows("=Ii", count)}
            return Enum(type_id, kind, name, word, values)
        if kind is Kind.ENUM64:
            wide = {self.text(at): low | high << 32 for at, low, high in rows("=III", count)}
            if flag:
                wide = {key: value - (value >> 63 << 64) for key, value in wide.items()}
            return Enum(type_id, kind, name, word, wide)
        if kind is Kind.PROTOTYPE:
            parameters = tuple(Parameter(self.text(at), parameter) for at, parameter in rows("=II", count))
            return Prototype(type_id, kind, name, word, parameters)
        if kind is Kind.DATA_SECTION:
            variables = tuple(
                SectionVariable(self.type(variable).name, variable, offset, size)
                for variable, offset, size in rows("=III", count)
            )
            return DataSection(type_id, kind, name, word, variables)
        if kind in (Kind.FORWARD, Kind.FLOAT):
            return BtfType(type_id, kind, name)
        return Reference(type_id, kind, name, word)


_TRANSPARENT = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})


def _load(handle: CData, what: str) -> CData:
    if not handle:
        number = ffi.errno
        raise BtfError(f"{what} has no BTF type information: {describe(number)}", errno=number)
    clear_messages()
    return ffi.gc(handle, lib.btf__free)
