"""What a capture asks of the kernel side, and what it gets back: plain values."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packet_tracer.errors import NotSupportedError
from packet_tracer.filter.addresses import AddressSet
from packet_tracer.filter.expression import Filter
from packet_tracer.netns import Netns
from packet_tracer.probes.catalogue import Probe
from packet_tracer.probes.function_probes import Backend, FunctionProbe

if TYPE_CHECKING:
    from packet_tracer.probes.program_probes import ProgramProbe

_SMALLEST_RING = 1 << 16


class AttachPoint(NamedTuple):
    """An interface that XDP and TC programs are attached to."""

    netns: Netns
    ifindex: int
    name: str


@dataclass(frozen=True, slots=True)
class KernelSetup:
    """All that decides what the kernel side does. Sizes are in bytes.

    ``rodata`` holds the filters' variables, ``filter`` is the packet filter, ``addresses`` the prefixes that
    packets are limited to. ``functions`` are traced by ``backend`` (None: the best that works), with their
    returns if ``returns``; ``programs`` are BPF programs of others, traced at entry and exit. ``stacks``
    takes kernel stacks; ``follow`` shows what matched once from then on.
    """

    probes: tuple[Probe, ...]
    points: tuple[AttachPoint, ...] = ()
    netns: tuple[Netns, ...] = ()
    snaplen: int = 96
    ring_bytes: int = 64 << 20
    count_rejected: bool = False
    rodata: Mapping[str, int | bytes] = field(default_factory=dict)
    filter: Filter | None = None
    addresses: AddressSet | None = None
    functions: tuple[FunctionProbe, ...] = ()
    backend: Backend | None = None
    returns: bool = False
    programs: tuple[ProgramProbe, ...] = ()
    stacks: bool = False
    follow: bool = False


@dataclass(frozen=True, slots=True)
class Counters:
    """What became of a probe's events, all CPUs together: seen = kept + lost_ring.

    ``rejected`` counts what a filter turned away and is 0 unless it was asked for; ``untracked`` events
    were kept without a packet id. ``missed`` are not among the seen: the kernel left the probe out because it
    was running on that CPU already, for packets of the whole host (since Linux 6.2: 05b24ff9b2cf).
    """

    seen: int = 0
    kept: int = 0
    lost_ring: int = 0
    lost_stack: int = 0
    rejected: int = 0
    untracked: int = 0
    missed: int = 0


class Tracking(NamedTuple):
    """What became of packets' identities: births = deaths + present + forgotten.

    A packet is ``forgotten`` when the table of packets is full and it was unseen for longest: it gets another
    id if it is seen again. Not all ends are seen (a socket that reads frees in silence), so most of those
    that are ``present`` or ``forgotten`` may have ended. Packets on their way meanwhile may be missing.
    """

    births: int
    deaths: int
    present: int

    @property
    def forgotten(self) -> int:
        """How many packets there was no room for any more."""
        return max(self.births - self.deaths - self.present, 0)


def objects_directory() -> Path:
    """Return the directory of the BPF objects of this machine's architecture. NotSupportedError if there
    are none.
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)
    directory = Path(__file__).resolve().parent.parent / "_objects" / machine
    if not directory.is_dir():
        raise NotSupportedError(
            f"no BPF objects for {machine} in this installation; build them with build.py"
        )
    return directory


def ring_size(total: int, rings: int) -> int:
    """Return the size of one of ``rings`` ring buffers that share ``total`` bytes: a power of two, 64 KiB
    at least.
    """
    share = max(total // max(rings, 1), _SMALLEST_RING)
    return 1 << (share.bit_length() - 1)


def online_cpus() -> list[int]:
    """Return the numbers of the CPUs that are online."""
    with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
        text = file.read().strip()
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def clock_offset_ns() -> int:
    """Return what to add to CLOCK_MONOTONIC, which records carry, to get the wall clock: the best of a few
    tries.
    """
    best = None
    for _ in range(5):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, wall - (before + after) // 2)
    assert best is not None
    return best[1]
