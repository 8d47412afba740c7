"""What a record does not say by itself: names that belong to a session or to the running kernel."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from packet_tracer.events.drop_reasons import DropReasons
from packet_tracer.events.symbols import Symbols
from packet_tracer.netns import InterfaceNames, Netns


class FixedNames(InterfaceNames):
    """Names given once, for records of another host or another time: nothing is looked up here."""

    def __init__(
        self,
        interfaces: Mapping[tuple[int, int], str] | None = None,
        namespaces: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__()
        self._interfaces = dict(interfaces or {})
        self._namespaces = dict(namespaces or {})

    @property
    def own_inode(self) -> int:
        """None of the namespaces is the tracer's own."""
        return 0

    def refresh(self) -> None:
        """There is nothing to read again."""

    def add(self, netns: Netns) -> None:
        """Name a namespace, without looking into it."""
        if netns.name is not None:
            self._namespaces[netns.inode] = netns.name

    def interface_name(self, netns_inode: int, ifindex: int) -> str | None:
        """Return the interface's name as given."""
        return self._interfaces.get((netns_inode, ifindex))

    def netns_name(self, inode: int) -> str | None:
        """Return the namespace's name as given."""
        return self._namespaces.get(inode)


@dataclass(slots=True)
class Context:
    """What decodes a session's records; by default those of a capture that runs here and now.

    ``probes`` names probe ids. ``wall_clock_offset_ns`` is added to a record's CLOCK_MONOTONIC for the
    time of day. ``netns_labels`` go before the names of ``interface_names`` (a lab's roles).
    """

    probes: Mapping[int, str] = field(default_factory=dict)
    wall_clock_offset_ns: int = 0
    interface_names: InterfaceNames = field(default_factory=InterfaceNames)
    drop_reasons: DropReasons = field(default_factory=DropReasons.of_this_kernel)
    symbols: Symbols = field(default_factory=Symbols)
    netns_labels: Mapping[int, str] = field(default_factory=dict)

    def probe_name(self, probe_id: int) -> str:
        """Return a probe's name; ``probe 99`` for one that is not known."""
        return self.probes.get(probe_id) or f"probe {probe_id}"

    def interface_name(self, netns_inode: int, ifindex: int) -> str | None:
        """Return an interface's name, None if it is not known or there is none (ifindex 0)."""
        return self.interface_names.interface_name(netns_inode, ifindex) if ifindex else None

    def netns_name(self, inode: int) -> str | None:
        """Return what a namespace is called, None for the tracer's own and where it is not known."""
        return self.netns_labels.get(inode) or (self.interface_names.netns_name(inode) if inode else None)

    def netns_label(self, inode: int) -> str | None:
        """Return what output calls a namespace: its name or number, None for the tracer's own or none."""
        own = self.interface_names.own_inode
        return self.netns_name(inode) or (str(inode) if inode and inode != own else None)


def wall_clock_offset_ns(samples: int = 5) -> int:
    """Return CLOCK_REALTIME minus CLOCK_MONOTONIC, in nanoseconds, from the tightest of a few readings."""
    best: tuple[int, int] | None = None
    for _ in range(samples):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        reading = (after - before, wall - (before + after) // 2)
        best = reading if best is None else min(best, reading)
    assert best is not None
    return best[1]
