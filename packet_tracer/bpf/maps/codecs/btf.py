"""Codecs derived from BTF: a map whose BTF says ``struct flow_key`` has keys with its fields by name.

C becomes Python so:

=================  ====================================================================================
C                  Python
=================  ====================================================================================
integers, bool     ``int``, ``bool``; 128-bit ones too
char arrays        ``bytes`` without the zeros at the end
other arrays       ``tuple``
enum               a generated ``IntEnum``; a value without a name stays an ``int``
pointer            ``int``
struct             a generated dataclass with slots, hashable (so it can be a ``dict`` key; treat it as
                   immutable), named as in C; all fields default to zero; bit-fields are ``int``;
                   the members of an anonymous struct are fields of the struct around it
data section       a generated dataclass of its variables (``.bss``, ``.rodata`` as maps)
union              a generated class with one property per member over the same ``raw`` bytes, made from
                   ``raw`` or from one member: ``address(v4=...)``; an anonymous one is the field
                   ``anonymous`` (``anonymous_2``, ...)
=================  ====================================================================================
"""

from __future__ import annotations

import dataclasses
import keyword
import re
import sys
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any, Protocol

from packet_tracer.bpf import btf as types
from packet_tracer.bpf.btf import Kind
from packet_tracer.bpf.maps.codecs.base import Buffer, Codec, refuse
from packet_tracer.bpf.maps.codecs.records import Record, RecordField
from packet_tracer.bpf.maps.codecs.scalars import ArrayOf, Bytes, Float, Int, Text, boolean, u64
from packet_tracer.bpf.maps.errors import CodecError


class TypeSource(Protocol):
    """What is needed of :class:`packet_tracer.bpf.btf.Btf`."""

    def type(self, type_id: int) -> types.BtfType: ...
    def size_of(self, type_id: int) -> int: ...


class EnumCodec(Codec[int]):
    """A C enum: members of a generated ``IntEnum``; a number without a name stays a number."""

    def __init__(self, kind: type[IntEnum], size: int, *, signed: bool) -> None:
        self.kind = kind
        self._int = Int(size, signed=signed)
        self.size = self.alignment = size
        self._members: dict[int, int] = {int(member): member for member in kind}

    def encode(self, value: int | str) -> bytes:
        if isinstance(value, str):
            if value not in self.kind.__members__:
                raise refuse(self, value)
            return self._int.encode(self.kind[value])
        return self._int.encode(value)

    def decode(self, data: Buffer) -> int:
        number = self._int.decode(data)
        return self._members.get(number, number)

    def describe(self) -> str:
        return f"one of {', '.join(list(self.kind.__members__)[:8])}"


class UnionValue:
    """Base of the generated classes of unions: ``raw`` bytes, and one property per member over them."""

    __slots__ = ("raw",)
    _members: Mapping[str, Codec[Any]] = {}
    _size = 0

    def __init__(self, raw: bytes | None = None, **member: Any) -> None:
        if (raw is None) == (not member) or len(member) > 1:
            raise CodecError(f"{type(self).__name__} is made from raw bytes or from one of its members")
        for name, value in member.items():
            if name not in self._members:
                raise CodecError(f"{type(self).__name__} has no member {name}: {', '.join(self._members)}")
            raw = self._members[name].encode(value)
        assert raw is not None
        self.raw = bytes(raw).ljust(self._size, b"\0")

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        members = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._members)
        return f"{type(self).__name__}({members})"


class UnionCodec(Codec[UnionValue]):
    """A C union."""

    def __init__(self, name: str, members: Mapping[str, Codec[Any]], size: int, alignment: int) -> None:
        def reader(codec: Codec[Any]) -> property:
            return property(lambda self: codec.decode(self.raw[: codec.size]))

        namespace: dict[str, Any] = {"__slots__": (), "_members": dict(members), "_size": size}
        namespace |= {member: reader(codec) for member, codec in members.items()}
        self.kind: type[UnionValue] = type(name, (UnionValue,), namespace)
        self.size = size
        self.alignment = alignment

    def encode(self, value: UnionValue) -> bytes:
        if not isinstance(value, UnionValue) or len(value.raw) != self.size:
            raise refuse(self, value)
        return value.raw

    def decode(self, data: Buffer) -> UnionValue:
        self._check(data)
        return self.kind(bytes(data))

    def describe(self) -> str:
        return f"union {self.kind.__name__}({' or '.join(self.kind._members)})"


class BtfCodecs:
    """Makes codecs of the types of one BTF; each type's class is made once."""

    def __init__(self, source: TypeSource) -> None:
        self._source = source
        self._made: dict[int, Codec[Any]] = {}

    def codec(self, type_id: int) -> Codec[Any]:
        """Return the codec of a type. CodecError for what has no size: void, functions, forwards."""
        if type_id not in self._made:
            self._made[type_id] = self._make(type_id, "")
        return self._made[type_id]

    def _make(self, type_id: int, alias: str) -> Codec[Any]:
        described = self._source.type(type_id)
        kind = described.kind
        if isinstance(described, types.Int):
            return boolean if described.name in ("_Bool", "bool") else _int(described)
        if isinstance(described, types.Array):
            return self._array(described)
        if isinstance(described, types.Enum):
            return _enum(described, alias)
        if isinstance(described, types.Struct):
            return self._struct(described, alias)
        if isinstance(described, types.DataSection):
            return self._section(described)
        if kind is Kind.POINTER:
            return u64
        if kind is Kind.FLOAT and (size := self._source.size_of(type_id)) in (4, 8):
            return Float(4 if size == 4 else 8)
        if isinstance(described, types.Reference) and kind in _TRANSPARENT:
            alias = described.name if kind is Kind.TYPEDEF else alias
            return self._made.get(described.type_id) or self._make(described.type_id, alias)
        raise CodecError(f"a {kind.name.lower()} {described.name} has no value")

    def _array(self, array: types.Array) -> Codec[Any]:
        element = self.codec(array.type_id)
        if isinstance(element, Int) and self._is_char(array.type_id):
            return Text(array.count)
        return ArrayOf(element, array.count)

    def _is_char(self, type_id: int) -> bool:
        described = self._source.type(type_id)
        while isinstance(described, types.Reference) and described.kind in _QUALIFIERS:
            described = self._source.type(described.type_id)
        return described.kind is Kind.INT and described.name == "char"

    def _struct(self, described: types.Struct, alias: str) -> Codec[Any]:
        name = _identifier(described.name or alias or "anonymous")
        if described.kind is Kind.UNION:
            members = {
                _identifier(member.name or f"anonymous_{index}"): self.codec(member.type_id)
                for index, member in enumerate(described.members, 1)
            }
            alignment = max((codec.alignment for codec in members.values()), default=1)
            return UnionCodec(name, members, described.size, alignment)
        fields = list(self._fields(described, 0, _Anonymous()))
        alignment = max((field.codec.alignment for field in fields), default=1)
        made = dataclasses.make_dataclass(
            name, [_dataclass_field(field) for field in fields], slots=True, unsafe_hash=True
        )
        return Record(made, fields, described.size, alignment=alignment)

    def _section(self, section: types.DataSection) -> Codec[Any]:
        """Return the codec of an object's data section: its variables by name."""
        variables = sorted(section.variables, key=lambda variable: variable.offset)
        fields = [
            RecordField(_identifier(variable.name), variable.offset, self.codec(variable.type_id))
            for variable in variables
            if variable.size
        ]
        name = "section_" + re.sub(r"\W", "_", section.name.strip("."))
        made = dataclasses.make_dataclass(name, [_dataclass_field(field) for field in fields], slots=True)
        return Record(made, fields, section.size)

    def _fields(self, described: types.Struct, base: int, anonymous: _Anonymous) -> Iterable[RecordField]:
        """Yield the fields of a struct that begins at bit ``base``, anonymous structs' among them."""
        bits: list[types.Member] = []
        for member in described.members:
            if bits and not (member.bit_size and member.bit_offset < _byte_end(bits)):
                yield from self._bitfields(bits, base)
                bits = []
            if member.bit_size:
                bits.append(member)
                continue
            inner = self._source.type(member.type_id)
            if not member.name and isinstance(inner, types.Struct) and inner.kind is Kind.STRUCT:
                yield from self._fields(inner, base + member.bit_offset, anonymous)
                continue
            codec = self.codec(member.type_id)
            if codec.size:  # a flexible array has none
                name = _identifier(member.name) if member.name else anonymous.name()
                yield RecordField(name, (base + member.bit_offset) // 8, codec)
        if bits:
            yield from self._bitfields(bits, base)

    def _bitfields(self, members: list[types.Member], base: int) -> Iterable[RecordField]:
        if sys.byteorder != "little":
            raise CodecError("bit-fields are only known as little-endian machines lay them out")
        start = members[0].bit_offset // 8
        storage = Bytes(_byte_end(members) // 8 - start)
        for member in members:
            codec = self.codec(member.type_id)
            signed = isinstance(codec, Int) and codec.signed
            if member.name:
                shift = member.bit_offset - 8 * start
                name = _identifier(member.name)
                yield RecordField(name, base // 8 + start, storage, shift, member.bit_size, signed)


class _Anonymous:
    """Names for the anonymous unions of one struct: ``anonymous``, ``anonymous_2``..."""

    def __init__(self) -> None:
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return "anonymous" if self._count == 1 else f"anonymous_{self._count}"


_QUALIFIERS = frozenset({Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
_TRANSPARENT = _QUALIFIERS | {Kind.TYPEDEF, Kind.VARIABLE}


def _int(described: types.Int) -> Int:
    return Int(described.size, signed=described.signed)


def _enum(described: types.Enum, alias: str) -> EnumCodec:
    name = _identifier(described.name or alias or "anonymous")
    kind = IntEnum(name, described.values)  # type: ignore[misc]  # names known at run time only
    return EnumCodec(kind, described.size, signed=any(value < 0 for value in described.values.values()))


def _byte_end(members: list[types.Member]) -> int:
    """Return the first bit after the bytes that these bit-fields lie in."""
    last = members[-1]
    return -(-(last.bit_offset + last.bit_size) // 8) * 8


def _dataclass_field(field: RecordField) -> tuple[str, Any, Any]:
    if field.width:
        return field.name, int, dataclasses.field(default=0)
    codec, zero = field.codec, bytes(field.codec.size)
    kind = type(codec.decode(zero))
    return field.name, kind, dataclasses.field(default_factory=lambda: codec.decode(zero))


def _identifier(name: str) -> str:
    """Return a C name as Python can write it (``class`` -> ``class_``)."""
    return f"{name}_" if keyword.iskeyword(name) or (name.startswith("__") and name.endswith("__")) else name
