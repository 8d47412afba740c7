"""Codecs: what goes in comes out, sizes are C's, and what does not fit is refused by name."""

from __future__ import annotations

import ctypes
import dataclasses
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packet_tracer.bpf.maps.codecs import (
    ArrayOf,
    Bytes,
    Codec,
    CStructure,
    Float,
    Int,
    Prefix,
    PrefixCodec,
    Record,
    RecordField,
    StructFormat,
    Text,
    boolean,
    codec_of,
    dataclass_codec,
    i32,
    ipv4,
    ipv4_prefix,
    ipv6,
    ipv6_prefix,
    u8,
    u16,
    u32,
    u64,
)
from packet_tracer.bpf.maps.errors import CodecError


class CPoint(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint8), ("y", ctypes.c_uint64))


@dataclass
class Inner:
    a: Annotated[int, u8]
    b: Annotated[int, u32]


@dataclass
class FlowKey:
    source: IPv4Address
    port: Annotated[int, Int(2, byteorder="big")]
    flag: bool
    mac: Annotated[bytes, "6s"]
    inner: Inner
    count: Annotated[int, "q"]


INTS = [Int(s, signed=g, byteorder=o) for s in (1, 2, 4, 8, 16) for g in (0, 1) for o in ("little", "big")]


def in_range(codec: Int) -> st.SearchStrategy[int]:
    bits = 8 * codec.size
    return (
        st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
        if codec.signed
        else st.integers(0, (1 << bits) - 1)
    )


@st.composite
def codec_and_values(draw: st.DrawFn) -> tuple[Codec[Any], list[Any]]:
    """Any codec of one thing, with values that it holds."""
    choice = draw(st.integers(0, 10))
    if choice == 0:
        codec: Codec[Any] = draw(st.sampled_from(INTS))
        values: st.SearchStrategy[Any] = in_range(codec)  # type: ignore[arg-type]
    elif choice == 1:
        codec = Bytes(draw(st.integers(1, 40)))
        values = st.binary(min_size=codec.size, max_size=codec.size)
    elif choice == 2:
        codec = Text(draw(st.integers(1, 40)))
        values = st.binary(max_size=codec.size).map(lambda raw: raw.rstrip(b"\0"))
    elif choice == 3:
        codec, values = boolean, st.booleans()
    elif choice == 4:
        codec, values = Float(8), st.floats(allow_nan=False)
    elif choice == 5:
        codec, values = ipv4, st.ip_addresses(v=4)
    elif choice == 6:
        codec, values = ipv6, st.ip_addresses(v=6)
    elif choice == 7:
        codec, values = StructFormat("=HQ"), st.tuples(in_range(u16), in_range(u64))
    elif choice == 8:
        codec = PrefixCodec(6)
        values = st.builds(Prefix, st.integers(0, 48), st.binary(min_size=6, max_size=6))
    elif choice == 9:
        codec = ArrayOf(Int(2, signed=True), 3)
        values = st.tuples(*[in_range(Int(2, signed=True))] * 3)
    else:
        codec = dataclass_codec(FlowKey)
        values = st.builds(
            FlowKey,
            source=st.ip_addresses(v=4),
            port=in_range(u16),
            flag=st.booleans(),
            mac=st.binary(min_size=6, max_size=6),
            inner=st.builds(Inner, a=in_range(u8), b=in_range(u32)),
            count=in_range(Int(8, signed=True)),
        )
    return codec, draw(st.lists(values, max_size=6))


@given(codec_and_values(), st.integers(0, 9))
def test_round_trip_one_by_one_and_in_bulk(pair: tuple[Codec[Any], list[Any]], padding: int) -> None:
    codec, values = pair
    raw = [codec.encode(value) for value in values]
    assert all(len(one) == codec.size for one in raw)
    assert [codec.decode(one) for one in raw] == values
    assert codec.encode_many(values) == b"".join(raw)
    assert codec.decode_many(b"".join(raw)) == values
    spaced = b"".join(one + b"\xff" * padding for one in raw)
    assert codec.decode_many(memoryview(spaced), codec.size + padding) == values


@given(codec_and_values())
def test_a_buffer_of_the_wrong_size_is_refused(pair: tuple[Codec[Any], list[Any]]) -> None:
    codec, _ = pair
    for size in (codec.size - 1, codec.size + 1):
        with pytest.raises(CodecError):
            codec.decode(bytes(size))


@given(st.sampled_from(INTS), st.integers())
def test_an_integer_fits_or_is_refused_as_int_to_bytes_says(codec: Int, value: int) -> None:
    try:
        expected = value.to_bytes(codec.size, codec.byteorder, signed=codec.signed)
    except OverflowError:
        with pytest.raises(CodecError, match="integer"):
            codec.encode(value)
        with pytest.raises(CodecError, match="integer"):
            codec.encode_many([value])
    else:
        assert codec.encode(value) == expected


@given(st.integers(0, 32), st.ip_addresses(v=4), st.integers(0, 128), st.ip_addresses(v=6))
def test_prefixes_as_the_kernel_lays_them_out(
    length4: int, address4: IPv4Address, length6: int, address6: IPv6Address
) -> None:
    net4 = IPv4Network((address4, length4), strict=False)
    net6 = IPv6Network((address6, length6), strict=False)
    assert ipv4_prefix.encode(net4) == struct.pack("=I4s", length4, net4.network_address.packed)
    assert ipv6_prefix.encode(net6) == struct.pack("=I16s", length6, net6.network_address.packed)
    assert ipv4_prefix.decode(struct.pack("=I4s", length4, address4.packed)) == net4  # host bits dropped
    assert ipv6_prefix.decode(ipv6_prefix.encode(net6)) == net6
    assert ipv4_prefix.encode(address4) == struct.pack("=I4s", 32, address4.packed)
    assert ipv4_prefix.encode(str(net4)) == ipv4_prefix.encode(net4)


def test_a_dataclass_is_laid_out_as_ctypes_lays_out_the_same_struct() -> None:
    class CInner(ctypes.Structure):
        _fields_ = (("a", ctypes.c_uint8), ("b", ctypes.c_uint32))

    class CFlowKey(ctypes.Structure):
        _fields_ = (
            ("source", ctypes.c_uint32),
            ("port", ctypes.c_uint16),
            ("flag", ctypes.c_bool),
            ("mac", ctypes.c_uint8 * 6),
            ("inner", CInner),
            ("count", ctypes.c_int64),
        )

    codec = dataclass_codec(FlowKey)
    assert codec.size == ctypes.sizeof(CFlowKey)
    assert codec.alignment == ctypes.alignment(CFlowKey)
    for field in codec.fields:
        assert field.offset == getattr(CFlowKey, field.name).offset, field.name
    assert dataclass_codec(FlowKey, packed=True).size == 4 + 2 + 1 + 6 + 8 + 8


def test_padding_is_zero_when_encoded_and_ignored_when_decoded() -> None:
    codec = dataclass_codec(Inner)
    assert codec.encode(Inner(1, 2)) == struct.pack("=B3xI", 1, 2)
    assert codec.decode(b"\1\xff\xff\xff" + struct.pack("=I", 2)) == Inner(1, 2)


@given(st.data())
def test_bitfields_agree_with_ctypes(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(1, 31), min_size=1, max_size=4).filter(lambda w: sum(w) <= 32))
    signed = data.draw(st.booleans())
    kind = ctypes.c_int32 if signed else ctypes.c_uint32
    names = [f"f{i}" for i in range(len(widths))]

    class CBits(ctypes.Structure):
        _fields_ = [(n, kind, w) for n, w in zip(names, widths, strict=True)]

    fields, shift = [], 0
    for name, width in zip(names, widths, strict=True):
        fields.append(RecordField(name, 0, Bytes(4), shift, width, signed))
        shift += width
    made = dataclasses.make_dataclass("Bits", names)
    codec: Record[Any] = Record(made, fields, 4)
    raw = data.draw(st.binary(min_size=4, max_size=4))
    theirs = CBits.from_buffer_copy(raw)
    ours = codec.decode(raw)
    assert [getattr(ours, n) for n in names] == [getattr(theirs, n) for n in names]
    used = int.from_bytes(raw, "little") & (1 << shift) - 1
    assert codec.encode(ours) == used.to_bytes(4, "little")


def test_a_field_that_does_not_fit_is_named() -> None:
    codec = dataclass_codec(FlowKey)
    good = FlowKey(IPv4Address("1.2.3.4"), 1, True, b"123456", Inner(1, 2), 3)
    for field, bad in (("port", 65536), ("mac", b"123"), ("mac", b"1234567"), ("count", 1 << 63)):
        with pytest.raises(CodecError, match=f"^{field}: "):
            codec.encode(dataclasses.replace(good, **{field: bad}))
    with pytest.raises(CodecError, match=r"^inner: a: 256 is not an unsigned 8-bit integer"):
        codec.encode(dataclasses.replace(good, inner=Inner(256, 0)))
    with pytest.raises(CodecError, match="FlowKey"):
        codec.encode("nonsense")  # type: ignore[arg-type]
    with pytest.raises(CodecError, match="f: 4 does not fit in 2 bits"):
        Record(_one, [RecordField("f", 0, Bytes(1), 0, 2)], 1).encode(_one(4))


@dataclass
class _one:  # noqa: N801
    f: int


def test_fields_may_not_overlap_or_leave_the_record() -> None:
    with pytest.raises(CodecError, match="overlaps"):
        Record(Inner, [RecordField("a", 0, u32), RecordField("b", 2, u32)], 8)
    with pytest.raises(CodecError, match="need 8 bytes, the record has 6"):
        Record(Inner, [RecordField("a", 0, u32), RecordField("b", 4, u32)], 6)


def test_text_keeps_inner_zeros_so_that_a_key_found_can_be_looked_up() -> None:
    text = Text(8)
    assert text.decode(b"eth0\0\0\0\0") == b"eth0"
    assert text.decode(b"a\0b\0\0\0\0\0") == b"a\0b"
    assert text.encode("eth0") == b"eth0\0\0\0\0"
    with pytest.raises(CodecError, match="text of at most 8 bytes"):
        text.encode("123456789")


def test_ctypes_structures_are_copied() -> None:
    codec = CStructure(CPoint)
    raw = bytearray(codec.encode(CPoint(1, 2)))
    point = codec.decode(raw)
    raw[0] = 9
    assert (point.x, point.y, codec.size) == (1, 2, 16)
    with pytest.raises(CodecError, match="a CPoint"):
        codec.encode(ctypes.c_int(1))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("spec", "kind", "size"),
    [
        (u32, Int, 4),
        (struct.Struct("=IH"), StructFormat, 6),
        (CPoint, CStructure, 16),
        (FlowKey, Record, 32),
        (IPv4Address, type(ipv4), 4),
        (IPv6Network, type(ipv6_prefix), 20),
        (bool, type(boolean), 1),
    ],
)
def test_what_key_and_value_accept(spec: Any, kind: type[Any], size: int) -> None:
    codec = codec_of(spec)
    assert isinstance(codec, kind)
    assert codec.size == size


@pytest.mark.parametrize(
    ("spec", "advice"), [(int, "u32"), (bytes, "Bytes"), (str, "laid out"), (3, "laid out")]
)
def test_what_does_not_say_its_size_is_refused_with_advice(spec: Any, advice: str) -> None:
    with pytest.raises(CodecError, match=advice):
        codec_of(spec)


def test_a_dataclass_without_a_size_is_refused_by_field() -> None:
    @dataclass
    class Vague:
        port: int

    with pytest.raises(CodecError, match=r"Vague\.port.*Annotated"):
        dataclass_codec(Vague)


@pytest.mark.parametrize(
    ("code", "raw", "value"),
    [
        (">H", b"\1\2", 0x0102),
        ("!i", b"\xff\xff\xff\xfe", -2),
        ("<I", b"\1\0\0\0", 1),
        ("=d", struct.pack("=d", 1.5), 1.5),
        ("?", b"\1", True),
        ("3s", b"abc", b"abc"),
        ("Q", (7).to_bytes(8, sys.byteorder), 7),
    ],
)
def test_struct_codes_as_annotations(code: str, raw: bytes, value: object) -> None:
    kind = dataclasses.make_dataclass("Coded", [("f", Annotated[object, code])])
    codec = dataclass_codec(kind)
    assert codec.decode(raw) == kind(value)
    assert codec.encode(kind(value)) == raw


def test_a_struct_code_of_several_values_is_refused() -> None:
    with pytest.raises(CodecError, match="not one value"):
        dataclass_codec(dataclasses.make_dataclass("Coded", [("f", Annotated[object, "HH"])]))


def test_the_refusals_of_scalars() -> None:
    for codec, bad in (
        (boolean, 2),
        (ipv4, "::1"),
        (ipv4, IPv6Address("::1")),
        (ipv4_prefix, "300.0.0.0/8"),
        (PrefixCodec(2), Prefix(17, b"ab")),
        (ArrayOf(u8, 2), (1,)),
        (ArrayOf(u8, 2), (1, 256)),
        (StructFormat("=H"), (1, 2)),
        (i32, "1"),
        (Float(4), 1e300),
        (Bytes(2), "ab"),
        (Text(2), 3),
    ):
        with pytest.raises(CodecError):
            codec.encode(bad)  # type: ignore[attr-defined]
