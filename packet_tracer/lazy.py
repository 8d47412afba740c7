"""A package's names, loaded when they are first used: so that importing it costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping


def attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """Return a ``__getattr__`` for a package: ``modules`` tells in which of its modules each name is."""

    def load(name: str) -> object:
        module = modules.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(f"{package}.{module}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
