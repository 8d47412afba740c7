"""Entries of maps as text and JSON, the way bpftool prints them (tools/bpf/bpftool/map.c, btf_dumper.c).

With BTF: keys and values by their C types. Without: hexadecimal bytes. JSON has both. Members without a name
have the name ``""``, more than once if need be, so this writes JSON as it goes instead of building objects.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable

from packet_tracer.bpf import btf as types
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.maps.generic import Map


class JsonWriter:
    """Writes JSON, on one line or indented by four as bpftool does. ``plain``: numbers also as C has them."""

    def __init__(self, *, pretty: bool) -> None:
        self.plain = pretty
        self._parts: list[str] = []
        self._separator = ""
        self._depth = 0

    def text(self) -> str:
        """Return what was written."""
        return "".join(self._parts)

    def start(self, bracket: str) -> None:
        """Begin an object or array."""
        self._parts += [self._separator, bracket]
        self._separator = ""
        self._depth += 1

    def end(self, bracket: str) -> None:
        """End an object or array."""
        self._depth -= 1
        if self._separator:
            self._line()
        self._parts.append(bracket)
        self._separator = ","

    def name(self, name: str) -> None:
        """Begin a member of an object."""
        self._parts.append(self._separator)
        self._line()
        self._parts += [json.dumps(name), ": " if self.plain else ":"]
        self._separator = ""

    def value(self, text: str) -> None:
        """Write a value that is JSON already."""
        self._parts += [self._separator, text]
        self._separator = ","

    def _line(self) -> None:
        if self.plain:
            self._parts.append("\n" + "    " * self._depth)


class EntryPrinter:
    """Prints the entries of one map. ``types`` are those of the map's BTF, None for bytes only."""

    def __init__(self, map: Map, btf: Btf | None) -> None:  # noqa: A002
        self._map = map
        known = btf is not None and map.btf_value_type_id
        self._key = TypePrinter(btf, map.btf_key_type_id) if btf and known and map.btf_key_type_id else None
        self._value = TypePrinter(btf, map.btf_value_type_id) if btf and known else None
        self._per_cpu = map.per_cpu
        self._stride = (map.value_size + 7) // 8 * 8

    @property
    def typed(self) -> bool:
        """Whether text shows C types; else bytes."""
        return self._value is not None

    def json(self, writer: JsonWriter, key: bytes, value: bytes) -> None:
        """Write an entry as bytes, and by its types where there are any."""
        writer.start("{")
        self._members(writer, key, value, _hexadecimal, _hexadecimal)
        if self._value is not None:
            writer.name("formatted")
            self.formatted(writer, key, value)
        writer.end("}")

    def formatted(self, writer: JsonWriter, key: bytes, value: bytes) -> None:
        """Write an entry by its types."""
        writer.start("{")
        write_key = self._key.write if self._key is not None else None
        write_value = self._value.write if self._value is not None else None
        self._members(writer, key, value, write_key, write_value)
        writer.end("}")

    def _members(
        self,
        writer: JsonWriter,
        key: bytes,
        value: bytes,
        write_key: Callable[[JsonWriter, bytes], None] | None,
        write_value: Callable[[JsonWriter, bytes], None] | None,
    ) -> None:
        if write_key is not None:
            writer.name("key")
            write_key(writer, key)
        if write_value is None:
            return
        if not self._per_cpu:
            writer.name("value")
            write_value(writer, value)
            return
        writer.name("values")
        writer.start("[")
        for cpu, one in enumerate(self._by_cpu(value)):
            writer.start("{")
            writer.name("cpu")
            writer.value(str(cpu))
            writer.name("value")
            write_value(writer, one)
            writer.end("}")
        writer.end("]")

    def _by_cpu(self, value: bytes) -> list[bytes]:
        starts = range(0, len(value), self._stride)
        return [value[start : start + self._map.value_size] for start in starts]

    def hexadecimal(self, key: bytes, value: bytes) -> str:
        """Return an entry as lines of bytes."""
        if self._per_cpu:
            separator = "\n" if self._map.value_size > 16 else " "
            lines = [f"key:\n{hex_lines(key)}"] if key else []
            values = enumerate(self._by_cpu(value))
            lines += [f"value (CPU {cpu:02}):{separator}{hex_lines(one)}" for cpu, one in values]
            return "\n".join(lines)
        long = len(key) > 16 or len(value) > 16
        separator = "\n" if long else " "
        parts = [
            f"{what}:{separator}{hex_lines(raw)}" for what, raw in (("key", key), ("value", value)) if raw
        ]
        return ("  " if len(key) + len(value) <= 24 and not long else "\n").join(parts)


class TypePrinter:
    """Prints values of one BTF type."""

    def __init__(self, btf: Btf, type_id: int) -> None:
        self._btf = btf
        self._type_id = type_id
        self._known: dict[int, types.BtfType] = {}

    def write(self, writer: JsonWriter, data: bytes) -> None:
        """Write the value that these bytes hold."""
        self._write(writer, self._type_id, data, 0, 0)

    def _type(self, type_id: int) -> types.BtfType:
        if type_id not in self._known:
            self._known[type_id] = self._btf.type(type_id)
        return self._known[type_id]

    def _write(self, writer: JsonWriter, type_id: int, data: bytes, offset: int, width: int) -> None:
        """Write the value at a bit offset; ``width`` is that of a bit-field, else 0."""
        described = self._type(type_id)
        start = offset // 8
        if isinstance(described, types.Int):
            _int(writer, described, data, offset, width)
        elif isinstance(described, types.Struct):
            writer.start("{")
            for member in described.members:
                writer.name(member.name)
                self._write(writer, member.type_id, data, offset + member.bit_offset, member.bit_size)
            writer.end("}")
        elif isinstance(described, types.Array):
            self._array(writer, described, data, start)
        elif isinstance(described, types.Enum):
            _enum(writer, described, data[start : start + described.size])
        elif isinstance(described, types.DataSection):
            writer.start("{")
            writer.name(described.name)
            writer.start("[")
            for variable in described.variables:
                self._write(writer, variable.type_id, data, 8 * variable.offset, 0)
            writer.end("]")
            writer.end("}")
        elif described.kind is Kind.POINTER:
            (number,) = struct.unpack_from("=Q", data, start)
            writer.value(f"{number:#x}" if writer.plain else str(number))
        elif described.kind is Kind.VARIABLE and isinstance(described, types.Reference):
            writer.start("{")
            writer.name(described.name)
            self._write(writer, described.type_id, data, offset, 0)
            writer.end("}")
        elif isinstance(described, types.Reference) and described.type_id:
            self._write(writer, described.type_id, data, offset, width)
        elif described.kind is Kind.FLOAT and self._btf.size_of(type_id) in (4, 8):
            size = self._btf.size_of(type_id)
            writer.value(json.dumps(struct.unpack_from("=f" if size == 4 else "=d", data, start)[0]))
        else:
            writer.value('"(unknown)"')

    def _array(self, writer: JsonWriter, array: types.Array, data: bytes, start: int) -> None:
        size = self._btf.size_of(array.type_id)
        raw = data[start : start + size * array.count]
        text, end, _ = raw.partition(b"\0")
        if end and self._is_char(array.type_id) and all(0x1F < byte < 0x7F for byte in text):
            writer.value(json.dumps(text.decode("ascii")))
            return
        writer.start("[")
        for index in range(array.count):
            self._write(writer, array.type_id, data, 8 * (start + index * size), 0)
        writer.end("]")

    def _is_char(self, type_id: int) -> bool:
        described = self._type(type_id)
        while isinstance(described, types.Reference) and described.kind in _QUALIFIERS:
            described = self._type(described.type_id)
        return described.kind is Kind.INT and described.name == "char"


_QUALIFIERS = (Kind.CONST, Kind.VOLATILE, Kind.RESTRICT)


def _int(writer: JsonWriter, described: types.Int, data: bytes, offset: int, width: int) -> None:
    bits = width or described.bits
    if width or offset % 8 or bits not in (8, 16, 32, 64):
        number = int.from_bytes(data[offset // 8 : -(-(offset + bits) // 8)], sys.byteorder)
        number = number >> offset % 8 & (1 << bits) - 1
        writer.value(f"{number:#x}" if writer.plain else f'"{number:#x}"')
        return
    raw = data[offset // 8 : offset // 8 + described.size]
    if described.name in ("_Bool", "bool"):
        writer.value("true" if any(raw) else "false")
        return
    writer.value(str(int.from_bytes(raw, sys.byteorder, signed=described.signed)))


def _enum(writer: JsonWriter, described: types.Enum, raw: bytes) -> None:
    signed = any(value < 0 for value in described.values.values())
    number = int.from_bytes(raw, sys.byteorder, signed=signed)
    names = [name for name, value in described.values.items() if value == number]
    writer.value(json.dumps(names[0]) if names else str(number))


def _hexadecimal(writer: JsonWriter, data: bytes) -> None:
    writer.start("[")
    for byte in data:
        writer.value(f'"0x{byte:02x}"')
    writer.end("]")


def hex_lines(data: bytes) -> str:
    """Return bytes in hexadecimal, sixteen a line, with a gap in the middle."""
    lines = (data[start : start + 16] for start in range(0, len(data), 16))
    return "\n".join("  ".join(part.hex(" ") for part in (line[:8], line[8:]) if part) for line in lines)
