"""The kernel side of one capture: its programs loaded and attached, its counters and rings at hand.

Each family of hooks is an object of its own (``bpf_src/*.bpf.c``). All that this module attaches is held by
file descriptors, so the kernel takes it away whatever ends the process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from packet_tracer import netns as namespaces
from packet_tracer.bpf import link as links
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.errors import ProgramLoadError
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.maps import Map, RawMap, batch
from packet_tracer.bpf.parallel import load_together
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.errors import UsageError
from packet_tracer.events._layout import COUNTERS_FIELDS, COUNTERS_FORMAT, SNAPLEN_MAX, Hook, ProbeId
from packet_tracer.filter.patch import load_filtered
from packet_tracer.probes.catalogue import PROBES, Probe
from packet_tracer.probes.function_backends import FunctionAttacher
from packet_tracer.probes.function_probes import Backend
from packet_tracer.probes.identity import IdentityWatch
from packet_tracer.probes.memory import UNKNOWN, page_mapping
from packet_tracer.probes.objects import CaptureObjects
from packet_tracer.probes.setup import Counters, KernelSetup, Tracking

if TYPE_CHECKING:
    from packet_tracer.probes.program_probes import ProgramAttacher

_END_PROBES = (ProbeId.KFREE_SKB, ProbeId.CONSUME_SKB)
#: Before everything else in a hook, so that a packet is seen whatever becomes of it there. The very first and
#: the very last priority are the kernel's own (84601d6ee68a).
_NETFILTER_PRIORITY = -(1 << 31) + 1
#: PARSE_BYTES in bpf_src/parse.bpf.h: with no more than this a record has the smallest room.
_SMALL_SNAPLEN = 128


class ProbeSession:
    """Loads and attaches what a :class:`KernelSetup` asks for; a context manager that takes it all away
    again.

    ``notes`` tells how it attached (native or generic XDP, TCX or clsact, the backend of functions),
    ``skipped`` why functions were left out, ``exact_identity`` whether all ends of a packet's buffer are
    seen.
    """

    def __init__(self, setup: KernelSetup) -> None:
        if not 0 <= setup.snaplen <= SNAPLEN_MAX:
            raise UsageError(f"a snaplen of {setup.snaplen} is out of range: 0 to {SNAPLEN_MAX} bytes")
        self.setup = setup
        self.links: list[Link] = []
        self.programs: dict[str, Program] = {}
        self.notes: list[str] = []
        self._stack = ExitStack()
        self._objects = CaptureObjects(setup, self._stack)
        self._functions = FunctionAttacher(
            self._prepare_with_walk, self._objects.maps, setup.filter, setup.returns
        )
        self._programs = self._program_attacher() if setup.programs else None

    @property
    def rings(self) -> list[RawMap]:
        """The ring buffers to read, one per online CPU."""
        return self._objects.rings

    @property
    def maps(self) -> dict[str, Map]:
        """The maps of all objects, by name."""
        return self._objects.maps

    @property
    def exact_identity(self) -> bool:
        """Whether a packet's id is exact; else it is by best effort, see docs/identity.md."""
        return self._objects.exact_identity

    @property
    def backend(self) -> Backend | None:
        """What functions are traced by, None without functions."""
        return self._functions.backend

    @property
    def skipped(self) -> dict[str, str]:
        """Functions and BPF programs that were left out, with the reason."""
        of_programs = self._programs.skipped if self._programs else {}
        return self._functions.skipped | of_programs

    def __enter__(self) -> ProbeSession:
        try:
            watch = IdentityWatch(self._objects, self._stack)
            if self.setup.functions or self.setup.programs:
                self._objects.exact_identity = watch.attach()
                self.notes.append(f"identity: {watch.means or 'by best effort'}")
            if self.setup.programs or any(probe.hook == Hook.XDP for probe in self.setup.probes):
                watch.attach_behind_xdp()
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
        """Take all that emits events off its hooks; maps, counters and what lies in the rings stay readable.

        What watches over identity is left to :meth:`close`: the last events need not wait for it.
        """
        attached, self.links = self.links, []
        links.close_all(attached)

    # Loading

    def _program_attacher(self) -> ProgramAttacher:
        from packet_tracer.probes.program_probes import ProgramAttacher  # few trace programs: 3 ms

        return ProgramAttacher(self._prepare_with_walk, self.setup.filter)

    def _prepare_with_walk(self, name: str, programs: Sequence[str]) -> dict[str, PreparedProgram]:
        """Prepare programs that walk a packet's pages by themselves, if the snaplen asks for more than
        headers.

        The walk is most of the verifier's work, seconds on some kernels, and headers lie in the linear part.
        What is left out for it is told: the record's BYTES_MISSING.
        """
        small = self.setup.snaplen <= _SMALL_SNAPLEN
        pages = page_mapping(self._objects.directory) if self.setup.filter or not small else UNKNOWN
        return self._objects.prepare(name, programs, pages, linear_only=small)

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
        of_functions = self.setup.functions or self.setup.programs
        if self.exact_identity or (
            not of_functions and all(probe.probe_id in _END_PROBES for probe in chosen)
        ):
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
        directory = self._objects.directory
        if name in ("tracepoints", "netfilter"):
            try:
                if Btf.vmlinux().get("bpf_dynptr_from_skb", Kind.FUNCTION) is not None:
                    # A filter reads without it, so where pages lie it has to know by itself.
                    pages = page_mapping(directory) if self.setup.filter else UNKNOWN
                    self._load_programs(self._objects.prepare(name, programs, pages, dynptr=True))
                    return
            except ProgramLoadError:
                # The function is there, but not for this type of program: tp_btf got it in v6.11.
                pass
        if name in ("tc", "xdp"):
            self._load_programs(self._objects.prepare(name, programs, UNKNOWN))
        else:
            self._load_programs(self._prepare_with_walk(name, programs))

    def _load_programs(self, prepared: dict[str, PreparedProgram]) -> None:
        with ExitStack() as undo:
            loaded = load_together(
                {name: partial(load_filtered, each, self.setup.filter) for name, each in prepared.items()}
            )
            for program in loaded.values():
                undo.enter_context(program)
            self.programs.update(loaded)
            self._stack.push(undo.pop_all())

    # Attaching

    def _attach(self) -> None:
        for probe in self._attached_probes():
            for name in self._program_names(probe):
                self.links.extend(self._attach_program(probe, self.programs[name]))
        if self.setup.functions:
            attached = self._functions.attach(self.setup.functions, self.setup.backend, self._stack)
            self.links.extend(attached)
            count = len(self.setup.functions) - len(self._functions.skipped)
            left_out = len(self._functions.skipped)
            self.notes.append(f"{count} functions by {self._functions.backend}, {left_out} left out")
        if self._programs:
            self.links.extend(self._programs.attach(self.setup.programs, self._stack))
            left_out = len(self._programs.skipped)
            self.notes.append(f"{len(self.setup.programs) - left_out} BPF programs, {left_out} left out")

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
                    self.notes.append(f"xdp on {point.name}: {xdp.mode}")
                    yield xdp
                else:
                    direction: Literal["ingress", "egress"]
                    direction = "ingress" if probe.probe_id == ProbeId.TC_INGRESS else "egress"
                    link = links.attach_tcx(program, point.ifindex, direction)
                    self.notes.append(f"{probe.name} on {point.name}: {link.kind}")
                    yield link

    # Counters

    def counters(self) -> dict[int, Counters]:
        """Return the counters of every probe in use, by probe id; a function's return has its own."""
        read = self._read_counters()
        found = {
            probe.probe_id: replace(read[probe.probe_id], missed=self._missed(probe))
            for probe in self._attached_probes()
        }
        for function in self.setup.functions:
            found[function.probe_id] = read[function.probe_id]
            if self.setup.returns and function.argument is not None:
                found[function.probe_id + 1] = read[function.probe_id + 1]
        for traced in self.setup.programs:
            assert self._programs is not None
            for probe_id in (traced.probe_id, traced.probe_id + 1):
                found[probe_id] = replace(read[probe_id], missed=self._programs.missed(probe_id))
        return found

    def _read_counters(self) -> list[Counters]:
        """Return all counters, by probe id: of thousands of functions in one system call, most are zero."""
        table = self.maps["counters"]
        try:
            values = b"".join(values for _, values in batch.read(table))
        except batch.NoBatch:  # before Linux 5.13
            keys = range(table.max_entries)
            values = b"".join(table.raw.lookup(struct.pack("=I", key)) or b"" for key in keys)
        size = table.value_buffer_size
        return [_total(values[at : at + size]) for at in range(0, len(values), size)]

    def tracking(self) -> Tracking:
        """Return how many packets got an id, and how many of them are remembered still: counts the table."""
        births = deaths = 0
        for row in struct.iter_unpack("=QQQ", self.maps["tracking"].raw.lookup(bytes(4)) or b""):
            births, deaths = births + row[0], deaths + row[1]
        return Tracking(births, deaths, len(list(self.maps["packets"].raw.keys())))

    def missed_by_functions(self) -> int:
        """Return how often the kernel left a function's program out, because it ran on that CPU already.

        All functions together: one program may serve them all. Counted since Linux 5.12 by trampolines
        (9ed9e9ba2337), since 6.7 by kprobes and kprobe-multi (dd8657894c11, f915fcb38553).
        """
        return sum(program.info().recursion_misses for program in self._functions.programs)

    def _missed(self, probe: Probe) -> int:
        if probe.hook != Hook.TRACEPOINT:
            return 0  # the kernel lets these run inside of themselves
        return sum(self.programs[name].info().recursion_misses for name in self._program_names(probe))


_NOTHING = Counters(*[0] * len(COUNTERS_FIELDS))


def _total(value: bytes) -> Counters:
    """Return the sum of one probe's counters over all CPUs."""
    if value.count(0) == len(value):
        return _NOTHING
    return Counters(*map(sum, zip(*struct.iter_unpack(COUNTERS_FORMAT, value), strict=True)))
