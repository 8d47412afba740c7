"""Where to look: names of namespaces and interfaces as users give them, resolved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from packet_tracer import netns as namespaces
from packet_tracer.filter.predicates import Predicates
from packet_tracer.netns import Netns
from packet_tracer.probes.setup import AttachPoint

Texts = str | Iterable[str] | None
ALL_BITS = 0xFFFFFFFF


def texts(value: Texts) -> tuple[str, ...]:
    """Return the texts that one text, several or None are."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


class Scope(NamedTuple):
    """The ``namespaces`` to look at, () for all, and the interfaces in them, () for any."""

    namespaces: tuple[Netns, ...]
    points: tuple[AttachPoint, ...]

    @classmethod
    def resolve(cls, netns: Texts, interface: Texts) -> Scope:
        """Find what is named. With interfaces and no namespace it is the caller's; ``any`` and ``all`` are no
        limit. Raises UsageError for what does not exist, listing what there is.
        """
        names = tuple(name for name in texts(interface) if name != "any")
        where = _resolve(texts(netns), bool(names))
        return cls(where, _points(names, where or (namespaces.current(),)))

    def predicates(self, others: Predicates | None, mark: int | tuple[int, int] | None) -> Predicates:
        """Return ``others`` with this scope and a mark (a value, or value and mask) added."""
        value, mask = mark if isinstance(mark, tuple) else (mark or 0, ALL_BITS if mark is not None else 0)
        return replace(
            others or Predicates(),
            netns=tuple(sorted({found.inode for found in self.namespaces})),
            interfaces=tuple((point.netns.inode, point.ifindex) for point in self.points),
            mark=value,
            mark_mask=mask,
        )


def _resolve(names: tuple[str, ...], have_interface: bool) -> tuple[Netns, ...]:
    """Return the namespaces to look at, () for all."""
    if not names:
        return (namespaces.current(),) if have_interface else ()
    found = [namespaces.resolve(name) for name in names]
    return () if None in found else tuple(netns for netns in found if netns is not None)


def _points(names: tuple[str, ...], where: tuple[Netns, ...]) -> tuple[AttachPoint, ...]:
    """Return each interface in each of the namespaces that has it; UsageError if one is in none."""
    points = []
    for name in names:
        there = []
        for netns in where:
            for ifindex, known in namespaces.interfaces(netns).items():
                if known == name:
                    there.append(AttachPoint(netns, ifindex, name))
        if not there:
            namespaces.interface_index(name, where[0])  # raises, listing what there is
        points.extend(there)
    return tuple(points)
