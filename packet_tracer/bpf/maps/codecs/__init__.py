"""Codecs: how the bytes of a map's keys and values become Python values, and back.

Ready-made: ``u8`` ... ``u64``, ``i8`` ... ``i64`` and ``boolean``; :class:`Bytes`; :class:`Text`;
:data:`ipv4`, :data:`ipv6` and the prefixes :data:`ipv4_prefix`, :data:`ipv6_prefix` for LPM tries.
:func:`codec_of` turns what a caller passes as ``key=`` or ``value=`` into one of them.
"""

from __future__ import annotations

from packet_tracer.bpf.maps.codecs.addresses import (
    Prefix,
    PrefixCodec,
    ipv4,
    ipv4_prefix,
    ipv6,
    ipv6_prefix,
)
from packet_tracer.bpf.maps.codecs.base import Buffer, Codec
from packet_tracer.bpf.maps.codecs.choose import CodecSpec, codec_of
from packet_tracer.bpf.maps.codecs.records import Record, RecordField, dataclass_codec
from packet_tracer.bpf.maps.codecs.scalars import (
    ArrayOf,
    Bytes,
    Float,
    Int,
    Text,
    boolean,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)
from packet_tracer.bpf.maps.codecs.structs import CStructure, StructFormat

__all__ = [
    "ArrayOf",
    "Buffer",
    "Bytes",
    "CStructure",
    "Codec",
    "CodecSpec",
    "Float",
    "Int",
    "Prefix",
    "PrefixCodec",
    "Record",
    "RecordField",
    "StructFormat",
    "Text",
    "boolean",
    "codec_of",
    "dataclass_codec",
    "f32",
    "f64",
    "i8",
    "i16",
    "i32",
    "i64",
    "ipv4",
    "ipv4_prefix",
    "ipv6",
    "ipv6_prefix",
    "u8",
    "u16",
    "u32",
    "u64",
]
