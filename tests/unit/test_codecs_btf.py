"""Codecs derived from BTF, over types made up here; and values written as JSON."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.bpf import btf
from packet_tracer.bpf.btf import Kind, Member
from packet_tracer.bpf.maps.codecs import Bytes, PrefixCodec, Record, Text, ipv4, ipv4_prefix, u16, u32
from packet_tracer.bpf.maps.codecs.btf import BtfCodecs, EnumCodec, UnionValue
from packet_tracer.bpf.maps.codecs.plain import example, parse, plain
from packet_tracer.bpf.maps.errors import CodecError


class Types:
    """A BTF made of a list of types, whose ids count from 1."""

    def __init__(self, *types: btf.BtfType) -> None:
        self._types = {each.id: each for each in types}

    def type(self, type_id: int) -> btf.BtfType:
        return self._types.get(type_id) or btf.BtfType(0, Kind.VOID, "void")

    def size_of(self, type_id: int) -> int:
        return int(getattr(self._types[type_id], "size", 8))


U32, S16, CHAR, BOOL, U64, U8 = range(1, 7)
BASE = (
    btf.Int(U32, Kind.INT, "unsigned int", 4, 32, False),
    btf.Int(S16, Kind.INT, "short", 2, 16, True),
    btf.Int(CHAR, Kind.INT, "char", 1, 8, True),
    btf.Int(BOOL, Kind.INT, "_Bool", 1, 8, False),
    btf.Int(U64, Kind.INT, "unsigned long long", 8, 64, False),
    btf.Int(U8, Kind.INT, "unsigned char", 1, 8, False),
)


def codec(*more: btf.BtfType) -> Any:
    """Return the codec of the last of the types."""
    return BtfCodecs(Types(*BASE, *more)).codec(more[-1].id)


def members(*each: tuple[str, int, int]) -> tuple[Member, ...]:
    return tuple(Member(name, type_id, 8 * offset, 0) for name, type_id, offset in each)


def test_a_struct_is_a_dataclass_of_its_name() -> None:
    made = codec(
        btf.Array(10, Kind.ARRAY, "", CHAR, 6),
        btf.Reference(11, Kind.TYPEDEF, "port_t", S16),
        btf.Reference(12, Kind.POINTER, "", 0),
        btf.Struct(
            13,
            Kind.STRUCT,
            "thing",
            24,
            members(("name", 10, 0), ("class", 11, 6), ("at", 12, 8), ("ok", BOOL, 16)),
        ),
    )
    value = made.decode(struct.pack("=6shQ?7x", b"abc", -2, 0xFFFF_8000_0000_0000, True))
    assert type(value).__name__ == "thing"
    assert (value.name, value.class_, value.at, value.ok) == (b"abc", -2, 0xFFFF_8000_0000_0000, True)
    assert made.encode(value) == struct.pack("=6shQ?7x", b"abc", -2, 0xFFFF_8000_0000_0000, True)
    assert type(value)() == made.decode(bytes(24))  # all fields default to zero
    assert hash(value) == hash(made.decode(made.encode(value)))
    assert not hasattr(value, "__dict__")


def test_members_of_an_anonymous_struct_are_the_outer_ones() -> None:
    made = codec(
        btf.Struct(10, Kind.STRUCT, "", 8, members(("low", U32, 0), ("high", U32, 4))),
        btf.Struct(11, Kind.STRUCT, "outer", 12, members(("first", U32, 0), ("", 10, 4))),
    )
    value = made.decode(struct.pack("=III", 1, 2, 3))
    assert (value.first, value.low, value.high) == (1, 2, 3)


def test_unions_have_a_property_for_each_member() -> None:
    made = codec(
        btf.Array(10, Kind.ARRAY, "", U8, 4),
        btf.Struct(11, Kind.UNION, "", 8, members(("v4", U32, 0), ("bytes", 10, 0), ("long", U64, 0))),
        btf.Struct(12, Kind.STRUCT, "address", 24, members(("", 11, 0), ("", 11, 8), ("other", 11, 16))),
    )
    value = made.decode(struct.pack("=3Q", 0x04030201, 5, 6))
    assert isinstance(value.anonymous, UnionValue)
    assert (value.anonymous.v4, value.anonymous.bytes, value.anonymous.long) == (
        0x04030201,
        (1, 2, 3, 4),
        0x04030201,
    )
    assert (value.anonymous_2.long, value.other.long) == (5, 6)
    kind = type(value.other)
    assert kind(v4=6) == value.other
    assert "v4=6" in repr(value.other)
    with pytest.raises(CodecError, match="no member v6: v4, bytes, long"):
        kind(v6=1)
    with pytest.raises(CodecError, match="from raw bytes or from one of its members"):
        kind(v4=1, long=2)
    assert made.encode(value) == struct.pack("=3Q", 0x04030201, 5, 6)


def test_enums_have_names_where_there_are_any() -> None:
    made = codec(btf.Enum(10, Kind.ENUM, "verdict", 4, {"DROP": 0, "PASS": 1, "ERROR": -1}))
    assert isinstance(made, EnumCodec)
    assert made.decode(struct.pack("=i", -1)).name == "ERROR"  # type: ignore[attr-defined]
    assert made.decode(struct.pack("=i", 77)) == 77
    assert made.encode("PASS") == made.encode(1) == struct.pack("=i", 1)
    with pytest.raises(CodecError, match="one of DROP, PASS, ERROR"):
        made.encode("MAYBE")


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.data())
def test_bit_fields_lie_where_btf_says(widths: list[int], data: st.DataObject) -> None:
    offset, fields = 0, []
    for index, width in enumerate(widths):
        offset += data.draw(st.integers(0, 9))
        fields.append(Member(f"f{index}", U32, offset, width))
        offset += width
    size = (offset + 7) // 8 + 4
    made = codec(btf.Struct(10, Kind.STRUCT, "bits", size, (*fields, Member("tail", U32, 8 * size - 32, 0))))
    raw = data.draw(st.binary(min_size=size, max_size=size))
    number = int.from_bytes(raw, "little")
    value = made.decode(raw)
    for field in fields:
        assert getattr(value, field.name) == number >> field.bit_offset & (1 << field.bit_size) - 1
    mask = sum(((1 << field.bit_size) - 1) << field.bit_offset for field in fields)
    mask |= 0xFFFFFFFF << 8 * size - 32
    assert made.encode(value) == (number & mask).to_bytes(size, "little")


def test_flexible_arrays_and_data_sections() -> None:
    key = codec(
        btf.Array(10, Kind.ARRAY, "", U8, 0),
        btf.Struct(11, Kind.STRUCT, "lpm_key", 4, members(("length", U32, 0), ("data", 10, 4))),
    )
    assert [field.name for field in key.fields] == ["length"]
    section = codec(
        btf.Reference(10, Kind.VARIABLE, "total", U64),
        btf.Reference(11, Kind.VARIABLE, "flag", BOOL),
        btf.DataSection(
            12, Kind.DATA_SECTION, ".bss", 9,
            (btf.SectionVariable("flag", 11, 8, 1), btf.SectionVariable("total", 10, 0, 8)),
        ),
    )  # fmt: skip
    assert section.decode(struct.pack("=Q?", 5, True)).total == 5


@pytest.mark.parametrize("kind", [Kind.VOID, Kind.FORWARD, Kind.PROTOTYPE])
def test_what_has_no_value_is_refused(kind: Kind) -> None:
    with pytest.raises(CodecError, match="has no value"):
        codec(btf.BtfType(10, kind, "x"))


def _flow() -> Record[Any]:
    made: Record[Any] = codec(
        btf.Array(10, Kind.ARRAY, "", CHAR, 4),
        btf.Struct(11, Kind.STRUCT, "end", 8, members(("address", U32, 0), ("port", S16, 4))),
        btf.Array(12, Kind.ARRAY, "", 11, 2),
        btf.Enum(13, Kind.ENUM, "verdict", 4, {"DROP": 0, "PASS": 1}),
        btf.Struct(14, Kind.UNION, "", 4, members(("v4", U32, 0), ("name", 10, 0))),
        btf.Struct(
            15,
            Kind.STRUCT,
            "flow",
            28,
            members(("ends", 12, 0), ("what", 13, 16), ("", 14, 20), ("name", 10, 24)),
        ),
    )
    return made


@given(st.binary(min_size=28, max_size=28))
def test_what_is_written_as_json_is_read_back(raw: bytes) -> None:
    made = _flow()
    value = made.decode(raw[:24] + raw[24:].translate(bytes(byte & 0x7F for byte in range(256))))
    assert made.decode(parse(made, json.dumps(plain(value)))) == value


@pytest.mark.parametrize(
    ("made", "text", "raw"),
    [
        (u32, "80", b"\x50\0\0\0"),
        (u32, " 0x50 ", b"\x50\0\0\0"),
        (u32, "0x50 0 0 1", b"\x50\0\0\1"),
        (u16, '"0x102"', b"\2\1"),
        (ipv4, "192.0.2.1", b"\xc0\0\2\1"),
        (ipv4, "192 0 2 1", b"\xc0\0\2\1"),
        (ipv4_prefix, "10.0.0.0/8", b"\x08\0\0\0\x0a\0\0\0"),
        (PrefixCodec(2), '[9, "0a80"]', b"\x09\0\0\0\x0a\x80"),
        (Text(4), "eth0", b"eth0"),
        (Text(8), '"80"', b"80\0\0\0\0\0\0"),
        (Bytes(4), "258", b"\2\1\0\0"),
        (Bytes(3), "0a:0b:0c", b"\x0a\x0b\x0c"),
        (Bytes(3), "0a0b0c", b"\x0a\x0b\x0c"),
        (_flow(), "{}", bytes(28)),
        (
            _flow(),
            '{"what": "PASS", "name": "ab", "anonymous": {"name": "xy"}}',
            bytes(16) + b"\1\0\0\0xy\0\0ab\0\0",
        ),
    ],
)
def test_ways_to_write_a_key(made: Any, text: str, raw: bytes) -> None:
    assert parse(made, text) == raw


@pytest.mark.parametrize(
    ("made", "text", "said"),
    [
        (u32, "80 0 0", "'80 0 0' is not an unsigned 32-bit integer; for example 0"),
        (u32, "256 0 0 0", "'256 0 0 0' is not an unsigned 32-bit integer"),
        (u32, "true", "True is not an unsigned 32-bit integer"),
        (Bytes(3), "1", "6 hexadecimal digits, or 3 numbers below 256 such as '0x00 0x00 0x00'"),
        (Bytes(2), "70000", "a number, 4 hexadecimal digits"),
        (_flow(), '{"ends": [1, 2]}', 'for example \'{"ends": \\[{"address": 0, "port": 0}'),
        (_flow(), '{"ends": [{}]}', "is not 2 times end"),
        (_flow(), '{"anonymous": {"v6": 1}}', "v4 or name"),
        (_flow(), "[]", r"\[\] is not flow\(ends, what, anonymous, name\)"),
    ],
)
def test_what_is_wrong_is_refused_with_an_example(made: Any, text: str, said: str) -> None:
    with pytest.raises(CodecError, match=said):
        parse(made, text)


@pytest.mark.parametrize("made", [u32, ipv4, ipv4_prefix, Text(4), _flow()])
def test_examples_are_accepted(made: Any) -> None:
    assert parse(made, example(made).strip("'")) == bytes(made.size)
