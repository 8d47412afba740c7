"""Codecs of records: a dataclass laid out as C lays out a struct.

:class:`Record` is the engine (fields at given offsets, bitfields too) that the BTF-derived codecs share;
:func:`dataclass_codec` works the offsets out from a dataclass's annotations.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from packet_tracer.bpf.maps.codecs.base import Buffer, Codec, refuse
from packet_tracer.bpf.maps.errors import CodecError

R = TypeVar("R")


class RecordField(NamedTuple):
    """One field: where its bytes begin, and how to read them.

    For a bitfield ``offset`` and ``codec`` are those of the bytes it lies in, ``shift`` and ``width``
    its bits in them, counted from the lowest, and ``signed`` whether the highest is a sign.
    """

    name: str
    offset: int
    codec: Codec[Any]
    shift: int = 0
    width: int = 0
    signed: bool = False


class Record(Codec[R]):
    """Values made by calling ``make`` with the fields in order, and read back from its attributes.

    Bytes between fields are padding: zero when encoded, ignored when decoded. Kernel maps compare keys
    byte by byte, padding included, so a program should clear its keys before filling them.
    """

    def __init__(
        self, make: Callable[..., R], fields: Sequence[RecordField], size: int, *, alignment: int = 1
    ) -> None:
        self.make = make
        self.fields = tuple(fields)
        self.size = size
        self.alignment = alignment
        self._names = tuple(field.name for field in fields)
        read = attrgetter(*self._names) if self._names else (lambda value: ())
        self._read: Callable[[R], tuple[Any, ...]] = read if len(fields) != 1 else lambda v: (read(v),)
        self._slots = _slots(self.fields)
        self._reads_plain = all(not f.width and f.codec.scalar for f in self.fields)
        self._packs_plain = all(not f.width and f.codec.packs for f in self.fields)
        self._layout = struct.Struct(_layout(self._slots, size))

    def encode(self, value: R) -> bytes:
        try:
            values = self._read(value)
        except AttributeError:
            raise refuse(self, value) from None
        try:
            return self._layout.pack(*(values if self._packs_plain else self._pack(values)))
        except struct.error:
            raise self._culprit(values) from None

    def decode(self, data: Buffer) -> R:
        self._check(data)
        values = self._layout.unpack(data)
        return self.make(*(values if self._reads_plain else self._unpack(values)))

    def decode_many(self, data: Buffer, stride: int | None = None) -> list[R]:
        step = self.size if stride is None else stride
        if step == 0:
            return []
        make = self.make
        rows = struct.iter_unpack(f"{self._layout.format}{step - self.size}x", data)
        if self._reads_plain:
            return [make(*row) for row in rows]
        unpack = self._unpack
        return [make(*unpack(row)) for row in rows]

    def describe(self) -> str:
        return f"{getattr(self.make, '__name__', 'a record')}({', '.join(self._names)})"

    def _pack(self, values: Sequence[Any]) -> Iterable[Any]:
        remaining = iter(values)
        for slot in self._slots:
            codec = slot[0].codec
            if slot[0].width:
                bits = 0
                for field in slot:
                    bits |= _to_bits(field, next(remaining)) << field.shift
                yield bits.to_bytes(codec.size, "little")
            elif codec.packs:
                yield next(remaining)
            else:
                raw = self._encode_field(slot[0], next(remaining))
                yield codec.decode(raw) if codec.scalar else raw

    def _unpack(self, row: Sequence[Any]) -> Iterable[Any]:
        for slot, value in zip(self._slots, row, strict=True):
            if slot[0].width:
                bits = int.from_bytes(value, "little")
                yield from (_from_bits(field, bits) for field in slot)
            else:
                yield value if slot[0].codec.scalar else slot[0].codec.decode(value)

    @staticmethod
    def _encode_field(field: RecordField, value: Any) -> bytes:
        try:
            return field.codec.encode(value)
        except CodecError as error:
            raise CodecError(f"{field.name}: {error}") from None

    def _culprit(self, values: Sequence[Any]) -> CodecError:
        """Return the error that names the field at fault; struct's own says only that one is."""
        for field, value in zip(self.fields, values, strict=True):
            if not field.width:
                try:
                    self._encode_field(field, value)
                except CodecError as error:
                    return error
        return CodecError(f"{tuple(values)!r} is not {self.describe()}")


def dataclass_codec(kind: type[R], *, packed: bool = False) -> Record[R]:
    """Return the codec of a dataclass, laid out as C would (``packed``: without padding).

    Each field's annotation says how it is stored: ``Annotated[int, u16]``, ``Annotated[bytes, Bytes(6)]``,
    a struct code as in ``Annotated[int, "H"]``, another dataclass, ``IPv4Address``, ``bool``...

    >>> @dataclass
    ... class FlowKey:
    ...     source: IPv4Address
    ...     port: Annotated[int, Int(2, byteorder="big")]
    >>> dataclass_codec(FlowKey).size
    8
    """
    # choose.py needs this module for nested dataclasses.
    from packet_tracer.bpf.maps.codecs.choose import codec_of_annotation, hints_of

    hints = hints_of(kind)
    fields: list[RecordField] = []
    end, widest = 0, 1
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if not field.init:
            continue
        codec = codec_of_annotation(hints[field.name], f"{kind.__name__}.{field.name}")
        alignment = 1 if packed else codec.alignment
        start = -(-end // alignment) * alignment
        fields.append(RecordField(field.name, start, codec))
        end, widest = start + codec.size, max(widest, alignment)
    return Record(kind, fields, -(-end // widest) * widest, alignment=widest)


def _slots(fields: Sequence[RecordField]) -> list[list[RecordField]]:
    """Group neighbouring bitfields that lie in the same bytes; everything else stands alone."""
    slots: list[list[RecordField]] = []
    for field in fields:
        last = slots[-1][0] if slots else None
        if field.width and last and last.width and last.offset == field.offset:
            slots[-1].append(field)
        else:
            slots.append([field])
    return slots


def _layout(slots: Sequence[Sequence[RecordField]], size: int) -> str:
    parts, end = ["="], 0
    for slot in slots:
        field = slot[0]
        if field.offset < end:
            raise CodecError(f"field {field.name} at byte {field.offset} overlaps the one before it")
        parts.append(f"{field.offset - end}x{field.codec.format}")
        end = field.offset + field.codec.size
    if end > size:
        raise CodecError(f"the fields need {end} bytes, the record has {size}")
    return "".join(parts) + f"{size - end}x"


def _to_bits(field: RecordField, value: Any) -> int:
    low = -(1 << field.width - 1) if field.signed else 0
    if not isinstance(value, int) or not low <= value < low + (1 << field.width):
        raise CodecError(f"{field.name}: {value!r} does not fit in {field.width} bits")
    return value & (1 << field.width) - 1


def _from_bits(field: RecordField, bits: int) -> int:
    value = bits >> field.shift & (1 << field.width) - 1
    return value - (1 << field.width) if field.signed and value >> field.width - 1 else value
