"""The BPF objects of one capture: opened, configured alike, with one set of maps between them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.library import possible_cpus
from packet_tracer.bpf.maps import Map, RawMap
from packet_tracer.bpf.object import BpfObject, OpenedObject, PreparedObject
from packet_tracer.bpf.parallel import load_together
from packet_tracer.bpf.program import PreparedProgram
from packet_tracer.events._layout import ProbeId
from packet_tracer.probes.memory import PageMapping
from packet_tracer.probes.setup import KernelSetup, objects_directory, online_cpus, ring_size

#: Maps that all objects of a capture have in common, as far as they have them (bpf_src/maps.bpf.h,
#: tracking.bpf.h, emit.bpf.h).
_SHARED_MAPS = (
    "rings",
    "counters",
    "packets",
    "any_packets",
    "released",
    "tracking",
    "handovers",
    "stacks",
    "addresses4",
    "addresses6",
    "function_cookies",
)

#: The objects that watch over packets' identity. They emit nothing, so nothing is there to configure.
IDENTITY = "identity"
IDENTITY_SESSION = "identity_session"


class CaptureObjects:
    """Opens objects for a :class:`KernelSetup`; ``stack`` owns all that is opened.

    ``maps`` are the shared ones by name, ``rings`` the ring buffers, one per online CPU.
    """

    def __init__(self, setup: KernelSetup, stack: ExitStack) -> None:
        self.setup = setup
        self.directory = objects_directory()
        self.maps: dict[str, Map] = {}
        self.rings: list[RawMap] = []
        #: Whether the functions are watched that make a packet's identity exact.
        self.exact_identity = False
        self._stack = stack

    def prepare(
        self,
        name: str,
        programs: Sequence[str],
        pages: PageMapping,
        *,
        dynptr: bool = False,
        linear_only: bool = False,
    ) -> dict[str, PreparedProgram]:
        """Open ``name``.bpf.o and return some of its programs, by name, ready to be patched and loaded.

        ``pages`` tells where a page's bytes lie, ``dynptr`` whether the kernel's own walk over an skb may be
        used, ``linear_only`` leaves out what lies in pages. Raises ObjectOpenError and ObjectPrepareError.
        """
        with ExitStack() as undo:
            opened = undo.enter_context(BpfObject.open(self.directory / f"{name}.bpf.o"))
            for program in opened.programs.values():
                program.autoload = program.name in programs
            if name not in (IDENTITY, IDENTITY_SESSION):
                self._configure(opened, pages, dynptr=dynptr, linear_only=linear_only)
            self._share_maps(opened)
            prepared = undo.enter_context(opened.prepare(RawMap))
            self._adopt(prepared, undo)
            self._stack.push(undo.pop_all())
        return dict(prepared.programs)

    def _configure(
        self, opened: OpenedObject, pages: PageMapping, *, dynptr: bool, linear_only: bool
    ) -> None:
        setup = self.setup
        filters = {**(setup.filter.rodata() if setup.filter else {}), **setup.rodata}
        opened.set_rodata(
            config_snaplen=setup.snaplen,
            config_wakeup_bytes=self._ring_size // 4,
            config_emitting=sum(1 << probe.probe_id for probe in setup.probes),
            config_count_rejected=int(setup.count_rejected),
            config_skb_dynptr=int(dynptr),
            config_linear_only=int(linear_only),
            config_page_base=pages.base,
            config_page_struct_bytes=pages.struct_bytes,
            config_page_shift=pages.shift,
            config_stacks=int(setup.stacks),
            config_follow=int(setup.follow),
            config_exact_identity=int(self.exact_identity),
            config_gro_probe=next(
                (each.probe_id for each in setup.functions if each.function.name in _TO_GRO), 0
            ),
            **filters,
            filter_first=int(_decides_first(filters)),
        )

    def _share_maps(self, opened: OpenedObject) -> None:
        for name in _SHARED_MAPS:
            if name in self.maps and name in opened.maps:
                opened.maps[name].reuse(self.maps[name])
        for name, entries in (self.setup.addresses.sizes() if self.setup.addresses else {}).items():
            if name in opened.maps and name not in self.maps:
                opened.maps[name].max_entries = entries
        if "rings" not in self.maps:
            opened.maps["rings"].max_entries = possible_cpus()
            opened.maps["counters"].max_entries = ProbeId.FUNCTION + 2 * (
                len(self.setup.functions) + len(self.setup.programs)
            )
        if "function_cookies" in opened.maps and "function_cookies" not in self.maps:
            opened.maps["function_cookies"].max_entries = max(len(self.setup.functions), 1)
        if "stacks" in opened.maps and "stacks" not in self.maps and not self.setup.stacks:
            opened.maps["stacks"].max_entries = 1

    @property
    def _ring_size(self) -> int:
        return ring_size(self.setup.ring_bytes, len(online_cpus()))

    def _adopt(self, prepared: PreparedObject, undo: ExitStack) -> None:
        """Keep the maps of the first object that has them for all others, and put the rings in place."""
        new = [name for name in _SHARED_MAPS if name in prepared.maps and name not in self.maps]
        self.maps.update({name: prepared.maps[name] for name in new})
        if self.setup.addresses and "addresses4" in new:
            self.setup.addresses.fill(self.maps)
        if self.rings:
            return
        create = partial(RawMap.create, MapType.RINGBUF, 0, 0, self._ring_size, name="ring")
        by_cpu = load_together(dict.fromkeys(online_cpus(), create))
        self.rings += [undo.enter_context(ring) for ring in by_cpu.values()]
        for cpu in range(possible_cpus()):
            # A CPU that comes online during the capture shares another's ring.
            chosen = by_cpu.get(cpu, self.rings[cpu % len(self.rings)])
            self.maps["rings"].raw.update(struct.pack("=I", cpu), struct.pack("=I", chosen.fd))


#: What drivers give an skb to, until Linux 6.13 and since.
_TO_GRO = ("napi_gro_receive", "gro_receive_skb")


def _decides_first(filters: Mapping[str, int | bytes]) -> bool:
    """Return whether the expression comes before everything else: it asks for bytes alone, and there is no
    filter that costs less.
    """
    others = (
        "filter_reads_metadata",
        "filter_inner",
        "filter_netns_count",
        "filter_interface_count",
        "filter_mark_mask",
        "filter_length",
        "filter_drop_reason_count",
        "filter_addresses",
    )
    return bool(filters.get("filter_enabled")) and not any(filters.get(name) for name in others)
