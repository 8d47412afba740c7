"""The little of ELF that is needed before libbpf sees the file: is it a BPF object, and under which licence.

libbpf says of a damaged file only EINVAL or "internal error"; this says what is wrong with it. See elf(5).
"""

from __future__ import annotations

import struct
import sys

_EM_BPF = 247
_SHT_NOBITS = 8


class ElfError(ValueError):
    """The bytes are not a complete ELF object for BPF of this byte order."""


def sections(data: bytes) -> dict[str, bytes]:
    """Return the contents of a BPF object's sections by name. Raises ElfError with what is wrong."""
    if data[:4] != b"\x7fELF":
        raise ElfError("it is empty" if not data else "it is not an ELF file")
    if len(data) < 64:
        raise ElfError("it is truncated")
    if data[4] != 2:
        raise ElfError("it is a 32-bit file; BPF objects are 64-bit")
    order = "<" if data[5] == 1 else ">"
    if (order == "<") != (sys.byteorder == "little"):
        raise ElfError("it is built for the other byte order (bpfel and bpfeb differ)")
    kind, machine = struct.unpack_from(f"{order}HH", data, 16)
    if machine != _EM_BPF:
        raise ElfError(f"it is built for machine {machine}, not for BPF ({_EM_BPF})")
    if kind != 1:
        raise ElfError("it is not a relocatable object")
    offset = struct.unpack_from(f"{order}Q", data, 40)[0]
    size, count, names_index = struct.unpack_from(f"{order}HHH", data, 58)
    if size != 64 or offset + size * count > len(data) or names_index >= count:
        raise ElfError("it is truncated")
    headers = [struct.unpack_from(f"{order}IIQQQQ", data, offset + size * index) for index in range(count)]
    contents = []
    for _, type_, _, _, start, length in headers:
        if type_ != _SHT_NOBITS and start + length > len(data):
            raise ElfError("it is truncated")
        contents.append(b"" if type_ == _SHT_NOBITS else data[start : start + length])
    names = contents[names_index]
    return {_string(names, header[0]): body for header, body in zip(headers, contents, strict=True)}


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    return table[offset : end if end >= 0 else None].decode(errors="replace")
