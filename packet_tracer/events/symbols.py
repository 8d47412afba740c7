"""Kernel symbols: which function an address lies in, from /proc/kallsyms (proc(5))."""

from __future__ import annotations

import re
import time
from array import array
from bisect import bisect_right
from pathlib import Path

KALLSYMS = Path("/proc/kallsyms")

#: Text symbols; a module's name follows in brackets. A name may hold nearly anything (Rust, other languages).
_TEXT = re.compile(rb"^([0-9a-f]{1,16}) [tTwW] ([^\s\t]+)(?:\t\[([^\]\n]*)\])?$", re.MULTILINE)
_LARGEST_OFFSET = 1 << 20  # a function is not longer than this; beyond it lies something else


class Symbols:
    """Names of kernel addresses. The file (10 MB) is read at the first question, in about 0.1 s.

    Programs and modules may be loaded later, so an address that is not found lets the file be read
    again, at most every ``interval`` seconds. Where the kernel hides its addresses (``kptr_restrict``,
    no CAP_SYSLOG) every name is None.
    """

    def __init__(self, path: Path = KALLSYMS, *, interval: float = 5.0) -> None:
        self._path = path
        self._interval = interval
        self._read_at = float("-inf")
        self._addresses = array("Q")
        self._names: list[bytes] = []
        self._cache: dict[int, str] = {}

    def name(self, address: int) -> str | None:
        """Return ``nf_hook_slow+0x42``, ``nft_do_chain+0x10 [nf_tables]``; None if it is not known."""
        if address in self._cache:
            return self._cache[address]
        if not address:
            return None
        found = self._find(address)
        if found is None and time.monotonic() - self._read_at >= self._interval:
            self._read()
            found = self._find(address)
        if found is not None:
            if len(self._cache) > 65536:
                self._cache.clear()
            self._cache[address] = found
        return found

    def function(self, address: int) -> str | None:
        """Return the function alone: ``nf_hook_slow``."""
        name = self.name(address)
        return name.partition("+")[0].partition(" ")[0] if name is not None else None

    def _find(self, address: int) -> str | None:
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return None
        offset = address - self._addresses[index]
        if offset > _LARGEST_OFFSET:
            return None
        name, _, module = self._names[index].decode("utf-8", "replace").partition("\t")
        where = f"{name}+{offset:#x}" if offset else name
        return f"{where} [{module}]" if module else where

    def _read(self) -> None:
        self._read_at = time.monotonic()
        self._cache.clear()
        try:
            data = self._path.read_bytes()
        except OSError:
            return
        entries = sorted(
            (int(address, 16), name + b"\t" + module if module else name)
            for address, name, module in _TEXT.findall(data)
        )
        if not entries or entries[-1][0] == 0:  # hidden: all addresses are zero
            return
        self._addresses = array("Q", [address for address, _ in entries])
        self._names = [name for _, name in entries]
