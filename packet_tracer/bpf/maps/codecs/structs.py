"""Codecs over the standard library's own layouts: :class:`struct.Struct` and :class:`ctypes.Structure`."""

from __future__ import annotations

import ctypes
import struct
from typing import Any, TypeVar, cast

from packet_tracer.bpf.maps.codecs.base import Buffer, Codec, refuse

C = TypeVar("C", bound="ctypes.Structure | ctypes.Union")


class StructFormat(Codec[tuple[Any, ...]]):
    """What a :class:`struct.Struct` packs: tuples, also when there is a single field."""

    def __init__(self, layout: struct.Struct | str) -> None:
        self._layout = layout if isinstance(layout, struct.Struct) else struct.Struct(layout)
        self.size = self._layout.size

    def encode(self, value: tuple[Any, ...]) -> bytes:
        try:
            return self._layout.pack(*value)
        except (struct.error, TypeError) as error:
            raise refuse(self, value, str(error)) from None

    def decode(self, data: Buffer) -> tuple[Any, ...]:
        self._check(data)
        return self._layout.unpack(data)

    def decode_many(self, data: Buffer, stride: int | None = None) -> list[tuple[Any, ...]]:
        if stride in (None, self.size) and self.size:
            return list(self._layout.iter_unpack(data))
        return super().decode_many(data, stride)

    def describe(self) -> str:
        return f"a tuple that struct packs as {self._layout.format!r}"


class CStructure(Codec[C]):
    """A :class:`ctypes.Structure` or :class:`ctypes.Union`; decoding copies the bytes."""

    def __init__(self, kind: type[C]) -> None:
        self.kind = kind
        self.size = ctypes.sizeof(kind)
        self.alignment = ctypes.alignment(kind)

    def encode(self, value: C) -> bytes:
        if not isinstance(value, self.kind):
            raise refuse(self, value)
        return bytes(value)

    def decode(self, data: Buffer) -> C:
        self._check(data)
        return cast("C", self.kind.from_buffer_copy(data))

    def describe(self) -> str:
        return f"a {self.kind.__name__}"
