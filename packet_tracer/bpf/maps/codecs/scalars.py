"""Codecs of single things: integers, floats, booleans, bytes, text, and arrays of one codec."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

from packet_tracer.bpf.maps.codecs.base import Buffer, Codec, refuse

T = TypeVar("T")

#: Codes that :mod:`struct` and :meth:`memoryview.cast` agree on, for sizes that C has.
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Int(Codec[int]):
    """An integer of ``size`` bytes, in this machine's byte order unless ``byteorder`` says otherwise.

    ``Int(2, byteorder="big")`` is C's ``__be16``: a port as it stands in a packet.
    """

    def __init__(
        self, size: int, *, signed: bool = False, byteorder: Literal["little", "big"] = sys.byteorder
    ) -> None:
        self.size = size
        self.signed = signed
        self.byteorder = byteorder
        self.alignment = size
        code = _CODES.get(size) if byteorder == sys.byteorder else None
        self.scalar = self.packs = code is not None
        self._code = code and (code.lower() if signed else code)

    @property
    def format(self) -> str:
        return self._code or f"{self.size}s"

    def encode(self, value: int) -> bytes:
        try:
            return int(value.__index__()).to_bytes(self.size, self.byteorder, signed=self.signed)
        except (OverflowError, AttributeError):
            raise refuse(self, value) from None

    def decode(self, data: Buffer) -> int:
        self._check(data)
        return int.from_bytes(data, self.byteorder, signed=self.signed)

    def decode_many(self, data: Buffer, stride: int | None = None) -> list[int]:
        if self._code and stride in (None, self.size):
            values: list[int] = memoryview(data).cast("B").cast(self._code).tolist()  # type: ignore[call-overload]
            return values
        return super().decode_many(data, stride)

    def encode_many(self, values: Iterable[int]) -> bytes:
        if self._code:
            many = values if isinstance(values, (list, tuple)) else list(values)
            try:
                return struct.pack(f"={len(many)}{self._code}", *many)
            except struct.error:
                return super().encode_many(many)  # names the value that does not fit
        return super().encode_many(values)

    def describe(self) -> str:
        return f"{'a signed' if self.signed else 'an unsigned'} {8 * self.size}-bit integer"


class Boolean(Codec[bool]):
    """C's ``bool``: one byte, 0 or 1."""

    size = 1
    scalar = True
    format = "?"

    def encode(self, value: bool) -> bytes:
        if value not in (False, True):
            raise refuse(self, value)
        return b"\1" if value else b"\0"

    def decode(self, data: Buffer) -> bool:
        self._check(data)
        return any(data)

    def describe(self) -> str:
        return "true or false"


class Float(Codec[float]):
    """A C ``float`` (4 bytes) or ``double`` (8 bytes)."""

    scalar = True

    def __init__(self, size: Literal[4, 8]) -> None:
        self.size = self.alignment = size

    @property
    def format(self) -> str:
        return "f" if self.size == 4 else "d"

    def encode(self, value: float) -> bytes:
        try:
            return struct.pack("=" + self.format, value)
        except (struct.error, OverflowError) as error:
            raise refuse(self, value, str(error)) from None

    def decode(self, data: Buffer) -> float:
        self._check(data)
        value: float = struct.unpack("=" + self.format, data)[0]
        return value

    def describe(self) -> str:
        return f"a {8 * self.size}-bit float"


class Bytes(Codec[bytes]):
    """Exactly ``size`` bytes, as they are."""

    scalar = True

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, value: bytes) -> bytes:
        raw = bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else None
        if raw is None or len(raw) != self.size:
            raise refuse(self, value)
        return raw

    def decode(self, data: Buffer) -> bytes:
        self._check(data)
        return bytes(data)


class Text(Codec[bytes]):
    """A C ``char`` array of ``size`` bytes, without the zero bytes at its end.

    The values are :class:`bytes`: what a kernel calls a name need not be UTF-8. Only trailing zeros are
    dropped, so that encoding what was decoded gives back the same bytes: a key found is a key that can
    be looked up. Text passed in is encoded as UTF-8.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, value: bytes | str) -> bytes:
        if not isinstance(value, (bytes, str)):
            raise refuse(self, value)
        raw = value.encode(errors="surrogateescape") if isinstance(value, str) else value
        if len(raw) > self.size:
            raise refuse(self, value)
        return raw.ljust(self.size, b"\0")

    def decode(self, data: Buffer) -> bytes:
        self._check(data)
        return bytes(data).rstrip(b"\0")

    def describe(self) -> str:
        return f"text of at most {self.size} bytes"


class ArrayOf(Codec[tuple[T, ...]]):
    """A C array: ``count`` values of one codec, as a tuple (so that it can be part of a key)."""

    def __init__(self, element: Codec[T], count: int) -> None:
        self.element = element
        self.count = count
        self.size = element.size * count
        self.alignment = element.alignment

    def encode(self, value: Sequence[T]) -> bytes:
        if isinstance(value, (str, bytes)) or len(value) != self.count:
            raise refuse(self, value)
        return self.element.encode_many(value)

    def decode(self, data: Buffer) -> tuple[T, ...]:
        self._check(data)
        return tuple(self.element.decode_many(data))

    def describe(self) -> str:
        return f"{self.count} times {self.element.describe()}"


u8, u16, u32, u64 = Int(1), Int(2), Int(4), Int(8)
i8, i16, i32, i64 = Int(1, signed=True), Int(2, signed=True), Int(4, signed=True), Int(8, signed=True)
f32, f64 = Float(4), Float(8)
boolean = Boolean()
