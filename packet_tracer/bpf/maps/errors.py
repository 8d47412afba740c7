"""What goes wrong with maps beyond :class:`~packet_tracer.bpf.errors.MapError`, their base.

A missing key is a ``KeyError``, an index out of an array's range an ``IndexError``: those are Python's own.
"""

from __future__ import annotations

import errno as _errno

from packet_tracer.bpf.errors import MapError
from packet_tracer.errors import ENOTSUPP, EXIT_NOT_SUPPORTED, EXIT_USAGE, BpfError


class CodecError(BpfError, ValueError):
    """A value cannot be laid out as a key or value of this map, or bytes cannot be read as one."""

    exit_code = EXIT_USAGE


class MapTypeError(BpfError, TypeError):
    """A map is of another type than the class it was opened as."""

    exit_code = EXIT_USAGE


class MapFull(MapError):
    """The map, queue or stack holds as many entries as it was made for."""


class Unsupported(MapError):
    """Maps of this type do not have this operation, on this kernel at least (ENOTSUPP 524, EOPNOTSUPP 95)."""

    exit_code = EXIT_NOT_SUPPORTED


class IterationAborted(MapError):
    """The map changes faster than it can be walked. What was read is in ``partial``; read again, or drain."""

    def __init__(self, operation: str, map: str, map_type: str, partial: object) -> None:  # noqa: A002
        reason = "the map changes faster than it can be read; try again, or drain() it"
        super().__init__(operation, map, map_type, errno=_errno.EAGAIN, reason=reason)
        self.partial = partial


UNSUPPORTED_ERRNOS = frozenset({ENOTSUPP, _errno.EOPNOTSUPP})


def map_error(operation: str, name: str, map_type: str, number: int, reason: str = "") -> MapError:
    """Return the exception for an errno: :class:`Unsupported` or a plain ``MapError``."""
    if number in UNSUPPORTED_ERRNOS:
        reason = reason or f"{map_type} maps do not have it on this kernel"
        return Unsupported(operation, name, map_type, errno=number, reason=reason)
    return MapError(operation, name, map_type, errno=number, reason=reason)
