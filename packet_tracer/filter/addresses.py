"""Sets of addresses: thousands of prefixes that the kernel looks a packet's addresses up in."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packet_tracer.bpf.maps import Map, batch
from packet_tracer.errors import UsageError

_LENGTH = struct.Struct("=I")
_KEY4_BYTES, _KEY6_BYTES = 8, 20


@dataclass(frozen=True, slots=True)
class AddressSet:
    """Prefixes as keys of the kernel's tries (struct bpf_lpm_trie_key): a length, then the address.

    ``keys4`` holds 8 bytes for each IPv4 prefix, ``keys6`` 20 for each IPv6 one.
    """

    keys4: bytes
    keys6: bytes

    @property
    def count(self) -> int:
        """Number of prefixes."""
        return len(self.keys4) // _KEY4_BYTES + len(self.keys6) // _KEY6_BYTES

    @classmethod
    def parse(cls, lines: Iterable[str], *, source: str = "addresses") -> AddressSet:
        """Read one address or prefix (``10.0.0.0/8``, ``fd00::1``) a line; ``#`` begins a comment.

        Bits behind the prefix do not matter. Raises UsageError that names ``source`` and the line.
        """
        keys4, keys6 = set[bytes](), set[bytes]()
        for number, line in enumerate(lines, 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            try:
                address, slash, length = text.partition("/")
                family, bits, keys = (
                    (socket.AF_INET6, 128, keys6) if ":" in address else (socket.AF_INET, 32, keys4)
                )
                raw = socket.inet_pton(family, address)
                prefix = int(length) if slash else bits
                if not 0 <= prefix <= bits:
                    raise ValueError(f"a prefix length of {prefix}")
            except (OSError, ValueError):
                raise UsageError(f"{source}:{number}: {text!r} is no address and no prefix") from None
            keys.add(_LENGTH.pack(prefix) + raw)
        return cls(b"".join(keys4), b"".join(keys6))

    @classmethod
    def read(cls, path: str) -> AddressSet:
        """Read a file of prefixes. Raises UsageError for one that is empty or has something else in it."""
        try:
            with Path(path).open(encoding="utf-8", errors="replace") as file:
                found = cls.parse(file, source=path)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        if not found.count:
            raise UsageError(f"{path}: there is no address in it")
        return found

    def sizes(self) -> dict[str, int]:
        """Return how many entries the maps of bpf_src/addresses.bpf.h must have, by name."""
        return {
            "addresses4": max(len(self.keys4) // _KEY4_BYTES, 1),
            "addresses6": max(len(self.keys6) // _KEY6_BYTES, 1),
        }

    def fill(self, maps: Mapping[str, Map]) -> None:
        """Put the prefixes into the maps. Raises MapError."""
        for name, keys, size in (
            ("addresses4", self.keys4, _KEY4_BYTES),
            ("addresses6", self.keys6, _KEY6_BYTES),
        ):
            count = len(keys) // size
            if not count:
                continue
            table = maps[name]
            try:
                batch.update(table, keys, b"\1" * count, count, 0)
            except batch.NoBatch:
                for start in range(0, len(keys), size):
                    table.raw.update(keys[start : start + size], b"\1")
