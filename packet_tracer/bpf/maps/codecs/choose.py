"""From what a caller writes as ``key=`` or ``value=`` to a codec."""

from __future__ import annotations

import ctypes
import dataclasses
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Any, TypeAlias, TypeVar, cast, get_args, get_origin, get_type_hints

from packet_tracer.bpf.maps.codecs.addresses import ipv4, ipv4_prefix, ipv6, ipv6_prefix
from packet_tracer.bpf.maps.codecs.base import Codec
from packet_tracer.bpf.maps.codecs.records import dataclass_codec
from packet_tracer.bpf.maps.codecs.scalars import Bytes, Float, Int, boolean
from packet_tracer.bpf.maps.codecs.structs import CStructure, StructFormat
from packet_tracer.bpf.maps.errors import CodecError

T = TypeVar("T")

#: What ``key=`` and ``value=`` accept: a codec, or a type that has one: a dataclass, a ctypes structure, an
#: :mod:`ipaddress` class, ``bool``. A :class:`struct.Struct` is wrapped as :class:`StructFormat`.
CodecSpec: TypeAlias = "Codec[T] | type[T] | struct.Struct"

_TYPES: dict[type[Any], Codec[Any]] = {
    IPv4Address: ipv4,
    IPv6Address: ipv6,
    IPv4Network: ipv4_prefix,
    IPv6Network: ipv6_prefix,
    bool: boolean,
}
_INTEGERS = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "l": 8, "L": 8, "q": 8, "Q": 8}


def codec_of(spec: CodecSpec[T]) -> Codec[T]:
    """Return the codec that ``spec`` stands for; :class:`CodecError` says what is accepted.

    ``int`` alone is refused: it does not say how wide. Write ``u32`` or ``Int(4, signed=True)``.
    """
    found = _find(spec)
    if found is None:
        hint = " (write u32, u64, Int(4, signed=True)...)" if spec is int else ""
        hint = " (write Bytes(size))" if spec is bytes else hint
        raise CodecError(f"{spec!r} does not say how a value is laid out{hint}")
    return cast("Codec[T]", found)


def codec_of_annotation(annotation: Any, where: str) -> Codec[Any]:
    """Return the codec of a dataclass field's annotation (``where`` names the field in errors)."""
    extras: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *rest = get_args(annotation)
        extras = tuple(rest)
    for extra in extras:
        codec = _of_code(extra) if isinstance(extra, str) else _find(extra)
        if codec is not None:
            return codec
    found = _find(annotation)
    if found is None:
        raise CodecError(f"{where}: say how it is stored, as in Annotated[int, u32]; got {annotation!r}")
    return found


def hints_of(kind: type[Any]) -> dict[str, Any]:
    """Return a dataclass's resolved annotations, with their ``Annotated`` extras."""
    if not dataclasses.is_dataclass(kind):
        raise CodecError(f"{kind!r} is not a dataclass")
    try:
        return get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise CodecError(f"{kind.__name__}: cannot resolve its annotations: {error}") from None


def _find(spec: Any) -> Codec[Any] | None:
    if isinstance(spec, Codec):
        return spec
    if isinstance(spec, struct.Struct):
        return StructFormat(spec)
    if not isinstance(spec, type):
        return None
    if issubclass(spec, (ctypes.Structure, ctypes.Union)):
        return CStructure(spec)
    if dataclasses.is_dataclass(spec):
        return dataclass_codec(spec)
    return _TYPES.get(spec)


def _of_code(code: str) -> Codec[Any]:
    """Return the codec of a struct code: ``"H"``, ``">H"``, ``"6s"``, ``"d"``, ``"?"``."""
    order, letter = (code[0], code[1:]) if code[:1] in ("<", ">", "!", "=", "@") else ("=", code)
    if letter in _INTEGERS:
        size, signed = _INTEGERS[letter], letter.islower()
        if order in (">", "!"):
            return Int(size, signed=signed, byteorder="big")
        return Int(size, signed=signed, byteorder="little") if order == "<" else Int(size, signed=signed)
    if letter in ("f", "d") and order in ("=", "@"):
        return Float(4 if letter == "f" else 8)
    if letter == "?":
        return boolean
    if letter.endswith("s") and letter[:-1].isdigit():
        return Bytes(int(letter[:-1]))
    raise CodecError(f"struct code {code!r} is not one value: use B H I Q, b h i q, f, d, ? or 16s")
