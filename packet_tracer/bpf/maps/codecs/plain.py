"""From what people type, and what JSON has, to a codec's values; and an example of what to type."""

from __future__ import annotations

import dataclasses
import json
import re
from enum import IntEnum
from typing import Any

from packet_tracer.bpf.maps.codecs.addresses import PrefixCodec
from packet_tracer.bpf.maps.codecs.base import Codec, refuse
from packet_tracer.bpf.maps.codecs.btf import EnumCodec, UnionCodec, UnionValue
from packet_tracer.bpf.maps.codecs.records import Record
from packet_tracer.bpf.maps.codecs.scalars import ArrayOf, Bytes, Int
from packet_tracer.bpf.maps.errors import CodecError

_BYTES = re.compile(r"(?:0x[0-9a-fA-F]{1,2}|\d{1,3})(?:\s+(?:0x[0-9a-fA-F]{1,2}|\d{1,3}))*")

_HEX_NUMBER = re.compile(r"0x[0-9a-fA-F]+")


def parse(codec: Codec[Any], text: str) -> bytes:
    """Return the bytes that ``text`` stands for: JSON, a bare word, or bytes as bpftool takes them.

    Bytes are as many decimal or hexadecimal numbers as the codec has bytes: ``0x50 0 0 0``. Raises
    CodecError, which says what ``text`` should look like.
    """
    text = text.strip()
    if len(text.split()) == codec.size > 1 and _BYTES.fullmatch(text):
        numbers = [int(word, 0) if word[:2] == "0x" else int(word) for word in text.split()]
        if max(numbers) < 256:
            return bytes(numbers)
    try:
        value = json.loads(text)
    except ValueError:
        value = int(text, 16) if _HEX_NUMBER.fullmatch(text) else text
    try:
        return codec.encode(build(codec, value))
    except CodecError as error:
        raise CodecError(f"{error}; for example {example(codec)}") from None


def build(codec: Codec[Any], value: Any) -> Any:
    """Return the codec's value for one of JSON's: objects for structs and unions, arrays, numbers, text.

    Fields that an object leaves out are zero. Raises CodecError.
    """
    if isinstance(codec, Record) and isinstance(value, dict):
        return _record(codec, value)
    if isinstance(codec, UnionCodec) and isinstance(value, dict) and len(value) == 1:
        ((name, inner),) = value.items()
        if name not in codec.kind._members:
            raise refuse(codec, value)
        return codec.kind(**{name: build(codec.kind._members[name], inner)})
    if isinstance(codec, ArrayOf) and isinstance(value, list):
        return tuple(build(codec.element, one) for one in value)
    if isinstance(codec, Bytes):
        return _raw(codec, value)
    if isinstance(codec, PrefixCodec) and isinstance(value, list) and len(value) == 2:
        return value[0], bytes.fromhex(str(value[1]))
    if (
        isinstance(codec, (Int, EnumCodec))
        and isinstance(value, str)
        and re.fullmatch(r"0x[0-9a-fA-F]+", value)
    ):
        return int(value, 16)
    if isinstance(value, bool) and isinstance(codec, Int):
        raise refuse(codec, value)
    if isinstance(value, (dict, list)):
        raise refuse(codec, value)
    return value


def _record(codec: Record[Any], value: dict[str, Any]) -> Any:
    names = {field.name for field in codec.fields}
    unknown = value.keys() - names
    if unknown:
        raise CodecError(f"there is no field {', '.join(sorted(unknown))}: {codec.describe()}")
    zeros = codec.decode(bytes(codec.size))
    changes = {}
    for field in codec.fields:
        if field.name in value:
            given = value[field.name]
            changes[field.name] = given if field.width else build(field.codec, given)
    return dataclasses.replace(zeros, **changes)


def _raw(codec: Bytes, value: Any) -> bytes:
    """Take bytes of no known type as a number in the machine's byte order, or as hexadecimal digits."""
    if isinstance(value, int) and not isinstance(value, bool) and codec.size in (1, 2, 4, 8):
        return Int(codec.size, signed=value < 0).encode(value)
    if isinstance(value, str) and re.fullmatch(r"(?:[0-9a-fA-F]{2}[: ]?)+", value):
        raw = bytes.fromhex(value.replace(":", " "))
        if len(raw) == codec.size:
            return raw
    raise refuse(codec, value)


def plain(value: Any) -> Any:
    """Return what :func:`build` takes for a value: what JSON has."""
    if isinstance(value, IntEnum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, UnionValue):
        first = next(iter(value._members))
        return {first: plain(getattr(value, first))}
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace") if value.isascii() else value.hex()
    return value if isinstance(value, (int, float, str)) else str(value)


def example(codec: Codec[Any]) -> str:
    """Return what a value could be written as: ``0``, ``'{"port": 0}'``, ``"0.0.0.0/0"``."""
    if isinstance(codec, Bytes):
        number = "a number, " if codec.size in (1, 2, 4, 8) else ""
        word = "hexadecimal digits" if codec.size == 1 else f"{2 * codec.size} hexadecimal digits"
        return (
            f"{number}{word}, or {codec.size} numbers below 256 such as '{' '.join(['0x00'] * codec.size)}'"
        )
    if isinstance(codec, PrefixCodec):
        return f"'[length, \"{'00' * (codec.size - 4)}\"]'"
    zero = plain(codec.decode(bytes(codec.size)))
    return f"'{json.dumps(zero)}'" if isinstance(zero, (dict, list)) else json.dumps(zero)
