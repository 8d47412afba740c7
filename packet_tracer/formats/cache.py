"""Texts that are made once for many events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class TextCache(dict[tuple[Any, ...], T], Generic[T]):
    """Made texts by the members they were made from; what is missing is made.

    It holds at least the ``capacity`` texts used last, at most twice as many. At :meth:`age` it forgets all
    that is older than ``lifetime`` seconds: interfaces are renamed, and a name not known yet may be
    known later.
    """

    def __init__(
        self, make: Callable[[tuple[Any, ...]], T], *, capacity: int = 8192, lifetime: float = 1.0
    ) -> None:
        super().__init__()
        self._make = make
        self._capacity = capacity
        self._lifetime = lifetime
        self._born = time.monotonic()
        self._older: dict[tuple[Any, ...], T] = {}

    def __missing__(self, key: tuple[Any, ...]) -> T:
        if len(self) >= self._capacity:
            self._older = dict(self)
            self.clear()
        made = self._older.get(key)
        if made is None:
            made = self._make(key)
        self[key] = made
        return made

    def forget(self) -> None:
        """Forget everything."""
        self.clear()
        self._older.clear()

    def age(self) -> None:
        """Forget everything if it is old. Called once for each batch."""
        now = time.monotonic()
        if now - self._born > self._lifetime:
            self.forget()
            self._born = now
