"""BTF made by hand, for tests: types are added one by one and their ids returned."""

from __future__ import annotations

import struct


class Blob:
    """A BTF blob under construction. With ``base`` it is a module's, on top of another."""

    def __init__(self, base: Blob | None = None) -> None:
        self._next_id = base._next_id if base else 1
        self._first_string = base._first_string + len(base._strings) if base else 0
        self._strings = b"" if base else b"\0"
        self._types = b""

    def name(self, text: str) -> int:
        """Add a string and return its offset."""
        offset = self._first_string + len(self._strings)
        self._strings += text.encode() + b"\0"
        return offset

    def add(self, kind: int, name: int | str, count: int, word: int, *rest: int) -> int:
        """Add a type of any kind: ``word`` is its size or what it refers to, ``rest`` follows it."""
        offset = self.name(name) if isinstance(name, str) and name else name or 0
        self._types += struct.pack(f"=III{len(rest)}I", offset, kind << 24 | count, word, *rest)
        self._next_id += 1
        return self._next_id - 1

    def integer(self, name: str, size: int) -> int:
        return self.add(1, name, 0, size, size * 8)

    def pointer(self, target: int) -> int:
        return self.add(2, "", 0, target)

    def struct(self, name: int | str, size: int = 8) -> int:
        return self.add(4, name, 0, size)

    def forward(self, name: str) -> int:
        return self.add(7, name, 0, 0)

    def typedef(self, name: str, target: int) -> int:
        return self.add(8, name, 0, target)

    def const(self, target: int) -> int:
        return self.add(10, "", 0, target)

    def type_tag(self, name: str, target: int) -> int:
        return self.add(18, name, 0, target)

    def prototype(self, returned: int, *parameters: tuple[str, int]) -> int:
        words = [word for name, type_id in parameters for word in (self.name(name) if name else 0, type_id)]
        return self.add(13, "", len(parameters), returned, *words)

    def function(self, name: str | int, returned: int, *parameters: tuple[str, int]) -> int:
        """Add a function and its prototype, and return the function's id."""
        return self.add(12, name, 0, self.prototype(returned, *parameters))

    def bytes(self) -> bytes:
        """Return the blob."""
        header = struct.pack(
            "=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._strings)
        )
        return header + self._types + self._strings
