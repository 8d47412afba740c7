"""The kernel side of one capture: its objects configured and loaded, its programs attached, its maps at hand.

Each family of hooks is an object of its own (``bpf_src/*.bpf.c``); the objects of a capture share one set
of maps. All that this module attaches is held by file descriptors, so the kernel takes it away whatever
ends the process.
"""

from __future__ import annotations

import platform
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from packet_tracer import netns as namespaces
from packet_tracer.bpf import link as links
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import ProgramLoadError
from packet_tracer.bpf.library import possible_cpus
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.maps import Map, RawMap
from packet_tracer.bpf.object import BpfObject, OpenedObject, PreparedObject
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.errors import NotSupportedError, UsageError
from packet_tracer.events._layout import (
    COUNTERS_FIELDS,
    COUNTERS_FORMAT,
    SNAPLEN_MAX,
    Hook,
    ProbeId,
)
from packet_tracer.filter.expression import Filter
from packet_tracer.filter.patch import patch
from packet_tracer.netns import Netns
from packet_tracer.probes.catalogue import PROBES, Probe
from packet_tracer.probes.memory import UNKNOWN, PageMapping, page_mapping

#: Maps that all objects of a capture have in common (bpf_src/maps.bpf.h, tracking.bpf.h).
_SHARED_MAPS = ("rings", "counters", "packets", "tracking")
_END_PROBES = (ProbeId.KFREE_SKB, ProbeId.CONSUME_SKB)
#: Before everything else in a hook, so that a packet is seen whatever becomes of it there. The very first
#: and the very last priority are the kernel's own (84601d6ee68a).
_NETFILTER_PRIORITY = -(1 << 31) + 1
_SMALLEST_RING = 1 << 16


@dataclass(frozen=True, slots=True)
class AttachPoint:
    """An interface that XDP and TC programs are attached to."""

    netns: Netns
    ifindex: int
    name: str


@dataclass(frozen=True, slots=True)
class KernelSetup:
    """All that decides what the kernel side does. Sizes are in bytes; ``rodata`` holds the filters'
    variables.
    ``filter`` is the packet filter.
    """

    probes: tuple[Probe, ...]
    points: tuple[AttachPoint, ...] = ()
    netns: tuple[Netns, ...] = ()
    snaplen: int = 96
    ring_bytes: int = 64 << 20
    count_rejected: bool = False
    rodata: Mapping[str, int | bytes] = field(default_factory=dict)
    filter: Filter | None = None


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


def objects_directory() -> Path:
    """Return the directory of the BPF objects of this machine's architecture. NotSupportedError if there
    are none.
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
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


def _online_cpus() -> list[int]:
    with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
        text = file.read().strip()
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


class ProbeSession:
    """Loads and attaches what a :class:`KernelSetup` asks for; a context manager that takes it all away
    again.

    ``rings`` are the ring buffers to read, one per online CPU. ``skipped`` tells which parts of probes this
    kernel has not, each with the reason.
    """

    def __init__(self, setup: KernelSetup) -> None:
        if not 0 <= setup.snaplen <= SNAPLEN_MAX:
            raise UsageError(f"a snaplen of {setup.snaplen} is out of range: 0 to {SNAPLEN_MAX} bytes")
        self.setup = setup
        self.rings: list[Map] = []
        self.maps: dict[str, Map] = {}
        self.links: list[Link] = []
        self.programs: dict[str, Program] = {}
        self.modes: list[str] = []
        self._objects = objects_directory()
        self._stack = ExitStack()

    def __enter__(self) -> ProbeSession:
        try:
            self._load()
            self._attach()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach everything and free the kernel's memory. A second call does nothing."""
        self.detach()
        self._stack.close()

    def detach(self) -> None:
        """Take all programs off their hooks; maps, counters and what lies in the rings stay readable."""
        attached, self.links = self.links, []
        links.close_all(attached)

    # Loading

    def _load(self) -> None:
        wanted: dict[str, list[str]] = {}
        for probe in self._attached_probes():
            programs = wanted.setdefault(probe.object, [])
            programs.extend(name for name in self._program_names(probe) if name not in programs)
        for name, programs in wanted.items():
            self._load_object(name, programs)

    def _attached_probes(self) -> list[Probe]:
        """Return the chosen probes, and those that tell where a packet's life ends, for its identity's
        sake.
        """
        chosen = list(self.setup.probes)
        if all(probe.probe_id in _END_PROBES for probe in chosen):
            return chosen
        missing = [probe for probe in PROBES if probe.probe_id in _END_PROBES and probe not in chosen]
        return chosen + missing

    def _program_names(self, probe: Probe) -> Sequence[str]:
        # Drop reasons came with c504e5c2f964 (v5.17); before it the tracepoint has one argument less.
        if probe.probe_id == ProbeId.KFREE_SKB and Btf.vmlinux().get("skb_drop_reason", Kind.ENUM) is None:
            return ("kfree_skb_without_reason",)
        return probe.programs

    def _load_object(self, name: str, programs: list[str]) -> None:
        """Load some programs of an object: with the kernel's own walk over an skb where it is allowed, else
        with ours.
        """
        if name == "tracepoints" or name == "netfilter":
            try:
                if Btf.vmlinux().get("bpf_dynptr_from_skb", Kind.FUNCTION) is not None:
                    # A filter reads without it, so where pages lie it has to know by itself.
                    pages = page_mapping(self._objects) if self.setup.filter else UNKNOWN
                    self._load_programs(name, programs, pages, dynptr=True)
                    return
            except ProgramLoadError:
                # The function is there, but not for this type of program: tp_btf got it in v6.11.
                pass
        mapping = UNKNOWN if name in ("tc", "xdp") else page_mapping(self._objects)
        self._load_programs(name, programs, mapping, dynptr=False)

    def _load_programs(self, name: str, programs: list[str], pages: PageMapping, *, dynptr: bool) -> None:
        with ExitStack() as undo:
            opened = undo.enter_context(BpfObject.open(self._objects / f"{name}.bpf.o"))
            for program in opened.programs.values():
                program.autoload = program.name in programs
            self._configure(opened, pages, dynptr=dynptr)
            prepared = undo.enter_context(opened.prepare())
            loaded = {
                program: undo.enter_context(self._load_program(prepared.programs[program]))
                for program in programs
            }
            self._adopt(prepared, undo)
            self.programs.update(loaded)
            self._stack.push(undo.pop_all())

    def _load_program(self, prepared: PreparedProgram) -> Program:
        if self.setup.filter is None:
            return prepared.load()
        patched = patch(prepared, self.setup.filter)
        return prepared.load(
            instructions=patched.instructions, func_info=patched.func_info, line_info=patched.line_info
        )

    def _configure(self, opened: OpenedObject, pages: PageMapping, *, dynptr: bool) -> None:
        emitting = sum(1 << probe.probe_id for probe in self.setup.probes)
        opened.set_rodata(
            config_snaplen=self.setup.snaplen,
            config_wakeup_bytes=self._ring_size // 4,
            config_emitting=emitting,
            config_count_rejected=int(self.setup.count_rejected),
            config_skb_dynptr=int(dynptr),
            config_page_base=pages.base,
            config_page_struct_bytes=pages.struct_bytes,
            config_page_shift=pages.shift,
            filter_enabled=int(self.setup.filter is not None),
            filter_reads_metadata=int(self.setup.filter is not None and self.setup.filter.reads_metadata),
            **self.setup.rodata,
        )
        for name in _SHARED_MAPS:
            if name in self.maps:
                opened.maps[name].reuse(self.maps[name])
        if "rings" not in self.maps:
            opened.maps["rings"].max_entries = possible_cpus()

    @property
    def _ring_size(self) -> int:
        return ring_size(self.setup.ring_bytes, len(_online_cpus()))

    def _adopt(self, prepared: PreparedObject, undo: ExitStack) -> None:
        """Keep the maps of the first object for all others, and put the rings in place."""
        for name in _SHARED_MAPS:
            self.maps.setdefault(name, prepared.maps[name])
        if self.rings:
            return
        for _ in _online_cpus():
            ring = RawMap.create(MapType.RINGBUF, 0, 0, self._ring_size, name="ring")
            self.rings.append(undo.enter_context(ring))
        by_cpu = dict(zip(_online_cpus(), self.rings, strict=True))
        for cpu in range(possible_cpus()):
            # A CPU that comes online during the capture shares another's ring.
            chosen = by_cpu.get(cpu, self.rings[cpu % len(self.rings)])
            self.maps["rings"].raw.update(struct.pack("=I", cpu), struct.pack("=I", chosen.fd))

    # Attaching

    def _attach(self) -> None:
        for probe in self._attached_probes():
            for name in self._program_names(probe):
                self.links.extend(self._attach_program(probe, self.programs[name]))

    def _attach_program(self, probe: Probe, program: Program) -> Iterable[Link]:
        if probe.hook == Hook.TRACEPOINT:
            yield links.attach_tracing(program)
        elif probe.hook == Hook.NETFILTER:
            assert probe.argument is not None
            family, hook = probe.argument
            for netns in self.setup.netns:
                with namespaces.entered(netns):
                    yield links.attach_netfilter(program, family, hook, _NETFILTER_PRIORITY, tries=64)
        else:
            yield from self._attach_to_interfaces(probe, program)

    def _attach_to_interfaces(self, probe: Probe, program: Program) -> Iterable[Link]:
        for point in self.setup.points:
            with namespaces.entered(point.netns):
                if probe.hook == Hook.XDP:
                    xdp = links.attach_xdp(program, point.ifindex)
                    self.modes.append(f"xdp on {point.name}: {xdp.mode}")
                    yield xdp
                else:
                    direction: Literal["ingress", "egress"]
                    direction = "ingress" if probe.probe_id == ProbeId.TC_INGRESS else "egress"
                    link = links.attach_tcx(program, point.ifindex, direction)
                    self.modes.append(f"{probe.name} on {point.name}: {link.kind}")
                    yield link

    # Counters

    def counters(self) -> dict[int, Counters]:
        """Return the counters of every probe in use, by probe id."""
        found = {}
        for probe in self._attached_probes():
            found[probe.probe_id] = self._read_counters(probe)
        return found

    def _read_counters(self, probe: Probe) -> Counters:
        values = self.maps["counters"].raw.lookup(struct.pack("=I", probe.probe_id))
        totals = [0] * len(COUNTERS_FIELDS)
        for row in struct.iter_unpack(COUNTERS_FORMAT, values or b""):
            totals = [total + value for total, value in zip(totals, row, strict=True)]
        return replace(Counters(*totals), missed=self._missed(probe))

    def _missed(self, probe: Probe) -> int:
        if probe.hook != Hook.TRACEPOINT:
            return 0  # the kernel lets these run inside of themselves
        return sum(self.programs[name].info().recursion_misses for name in self._program_names(probe))


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
