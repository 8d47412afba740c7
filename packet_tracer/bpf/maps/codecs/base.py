"""The codec protocol: a size, ``encode`` and ``decode``; and the bulk forms built on them."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeAlias, TypeVar

from packet_tracer.bpf.maps.errors import CodecError

T = TypeVar("T")
Buffer: TypeAlias = "bytes | bytearray | memoryview"


class Codec(ABC, Generic[T]):
    """How one value of type ``T`` is laid out in ``size`` bytes, in this machine's byte order.

    A codec of your own needs ``size``, :meth:`encode` and :meth:`decode`. ``alignment`` is what C would
    align the type to; it matters only for fields of records. ``format`` is the :mod:`struct` code of the
    bytes, ``scalar`` says that what this code unpacks to *is* the value, so that records and bulk reads
    need not call :meth:`decode`, and ``packs`` that it refuses what :meth:`encode` refuses.
    """

    size: int
    alignment: int = 1
    scalar: bool = False
    packs: bool = False

    @property
    def format(self) -> str:
        """The :mod:`struct` code of one value, without byte order: ``"I"``, or ``"16s"``."""
        return f"{self.size}s"

    @abstractmethod
    def encode(self, value: T) -> bytes:
        """Return the ``size`` bytes of ``value``; raises :class:`CodecError` for what does not fit."""

    @abstractmethod
    def decode(self, data: Buffer) -> T:
        """Return the value that these ``size`` bytes hold."""

    def decode_many(self, data: Buffer, stride: int | None = None) -> list[T]:
        """Return the values that lie ``stride`` (default ``size``) bytes apart in ``data``."""
        step = self.size if stride is None else stride
        view = memoryview(data)
        if step == 0:
            return []
        unpacked = struct.iter_unpack(f"={self.format}{step - self.size}x", view)
        if self.scalar:
            return [value for (value,) in unpacked]
        decode = self.decode
        return [decode(raw) for (raw,) in unpacked]

    def encode_many(self, values: Iterable[T]) -> bytes:
        """Return the bytes of the values, one after another."""
        return b"".join(map(self.encode, values))

    def describe(self) -> str:
        """Return what a value should look like, for messages: ``"a 32-bit unsigned integer"``."""
        return f"{self.size} bytes"

    def _check(self, data: Buffer) -> None:
        if len(data) != self.size:
            raise CodecError(f"{self.describe()} is {self.size} bytes, not {len(data)}")


def refuse(codec: Codec[T], value: object, reason: str = "") -> CodecError:
    """Return the error for a value that ``codec`` cannot lay out."""
    return CodecError(f"{value!r} is not {codec.describe()}{': ' + reason if reason else ''}")
