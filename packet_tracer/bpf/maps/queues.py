"""QUEUE and STACK: values without keys, first in first out or last in first out."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import MapType, UpdateFlags
from packet_tracer.bpf.maps.batch import full_or_error
from packet_tracer.bpf.maps.codecs import CodecSpec, codec_of
from packet_tracer.bpf.maps.generic import create_fd
from packet_tracer.bpf.maps.keyed import KeyedMap

if TYPE_CHECKING:
    from typing_extensions import Self

V = TypeVar("V")


class QueueBase(KeyedMap[None, V]):
    """What queues and stacks share. Neither can be counted or looked through, only emptied.

    Thread safety: every method may be called from any thread at once; each is atomic in the kernel.
    """

    def __init__(self, fd: int, value: CodecSpec[V] | None = None) -> None:
        super().__init__(fd, None, value)

    @classmethod
    def create(cls, *, value: CodecSpec[V], max_entries: int, name: str = "", flags: int = 0) -> Self:
        """Create a map that holds ``max_entries`` values."""
        assert cls.TYPE is not None
        codec = codec_of(value)
        return cls(create_fd(cls.TYPE, 0, codec.size, max_entries, flags, name), codec)

    def push(self, value: V, *, replace_oldest: bool = False) -> None:
        """Add a value. A full map raises MapFull, or with ``replace_oldest`` drops its oldest value."""
        flags = UpdateFlags.EXIST if replace_oldest else UpdateFlags.ANY
        result = lib.bpf_map_update_elem(self.fd, ffi.NULL, self.value_codec.encode(value), flags)
        if result < 0:
            raise full_or_error(self, "push", -result)

    def push_many(self, values: Iterable[V]) -> None:
        """Add values in their order; MapFull leaves those that fitted."""
        for value in values:
            self.push(value)

    def peek(self) -> V | None:
        """Return the value that :meth:`pop` would, and leave it there; None where the map is empty."""
        return self._next("peek", lib.bpf_map_lookup_elem)

    def pop(self) -> V | None:
        """Remove and return the next value; None where the map is empty."""
        return self._next("pop", lib.bpf_map_lookup_and_delete_elem)

    def drain(self) -> list[V]:
        """Remove and return the values there are, in the order of :meth:`pop`.

        At most ``max_entries``, however fast a program adds more.
        """
        values: list[V] = []
        while len(values) < self.max_entries and (value := self.pop()) is not None:
            values.append(value)
        return values

    def _next(self, operation: str, call: Any) -> V | None:
        value = bytearray(self._value_bytes)
        result = call(self.fd, ffi.NULL, ffi.from_buffer(value))
        if result == -errno.ENOENT:
            return None
        if result < 0:
            raise self.error(operation, -result)
        return self.value_codec.decode(value)


class Queue(QueueBase[V]):
    """QUEUE: first in, first out (Linux 4.20). Needs no program; both sides push and pop.

    >>> with Queue.create(value=u32, max_entries=2) as queue:
    ...     queue.push(1)
    ...     queue.push(2)
    ...     queue.push(3, replace_oldest=True)
    ...     queue.peek(), queue.pop(), queue.pop(), queue.pop()
    (2, 2, 3, None)
    """

    TYPE: ClassVar[MapType] = MapType.QUEUE


class Stack(QueueBase[V]):
    """STACK: last in, first out (Linux 4.20). Needs no program; both sides push and pop.

    >>> with Stack.create(value=u32, max_entries=3) as stack:
    ...     stack.push_many([1, 2, 3])
    ...     stack.drain()
    [3, 2, 1]
    """

    TYPE: ClassVar[MapType] = MapType.STACK
