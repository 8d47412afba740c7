"""Values of per-CPU maps: one per possible CPU, and what they come to together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from packet_tracer.bpf.library import possible_cpus
from packet_tracer.bpf.maps.codecs.base import Buffer, Codec, refuse

V = TypeVar("V")


class PerCpuValues(tuple[V, ...]):
    """One value per possible CPU, by CPU number; a CPU that is not there has zeros."""

    __slots__ = ()

    @classmethod
    def same(cls, value: V) -> PerCpuValues[V]:
        """Return ``value`` for every possible CPU."""
        return cls([value] * possible_cpus())

    def sum(self) -> V:
        """Return the total: of numbers, or field by field of tuples and dataclasses of numbers."""
        return total(self)


def total(values: Sequence[V]) -> V:
    """Return the sum of numbers, or the field-wise sum of tuples and dataclasses of numbers."""
    result: V = _add(values)
    return result


def _add(values: Sequence[Any]) -> Any:
    first = values[0]
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        kind: Any = type(first)
        return kind(*(_add([getattr(value, name) for value in values]) for name in names))
    if isinstance(first, tuple):
        return tuple(_add(column) for column in zip(*values, strict=True))
    if not isinstance(first, (int, float)):
        raise TypeError(f"{type(first).__name__} values cannot be added up")
    return sum(values)


class PerCpuCodec(Codec[PerCpuValues[V]]):
    """One value per possible CPU, each padded to 8 bytes (``bpf_map_value_size`` of kernel/bpf/syscall.c)."""

    def __init__(self, element: Codec[V]) -> None:
        self.element = element
        self.cpus = possible_cpus()
        self.stride = (element.size + 7) // 8 * 8
        self.size = self.stride * self.cpus
        self.alignment = 8

    def encode(self, value: Sequence[V]) -> bytes:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) != self.cpus:
            raise refuse(self, value)
        padding = bytes(self.stride - self.element.size)
        return b"".join(self.element.encode(one) + padding for one in value)

    def decode(self, data: Buffer) -> PerCpuValues[V]:
        self._check(data)
        return PerCpuValues(self.element.decode_many(data, self.stride))

    def decode_many(self, data: Buffer, stride: int | None = None) -> list[PerCpuValues[V]]:
        if stride not in (None, self.size):
            return super().decode_many(data, stride)
        values = iter(self.element.decode_many(data, self.stride))
        # The same iterator as often as there are CPUs: rows of that many values.
        return list(map(PerCpuValues, zip(*[values] * self.cpus, strict=True)))

    def describe(self) -> str:
        return f"one value for each of {self.cpus} possible CPUs, each {self.element.describe()}"
