"""The kernel side of a counter: its programs and the maps that they count in (bpf_src/count.bpf.c)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from packet_tracer.bpf import link as links
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.bpf.link import Link
from packet_tracer.bpf.maps import LruPerCpuHashMap, Map
from packet_tracer.bpf.object import BpfObject, OpenedObject
from packet_tracer.bpf.program import Program
from packet_tracer.errors import NotSupportedError
from packet_tracer.events._layout import (
    COUNT_FORMAT,
    COUNT_KEY_FIELDS,
    COUNT_KEY_SIZE,
    COUNT_TOTALS_FIELDS,
    COUNT_TOTALS_FORMAT,
    CountBy,
)
from packet_tracer.filter.addresses import AddressSet
from packet_tracer.filter.expression import Filter
from packet_tracer.filter.patch import load_filtered
from packet_tracer.probes.memory import UNKNOWN, page_mapping
from packet_tracer.probes.setup import objects_directory

Direction = Literal["in", "out", "both"]

_PROGRAMS: Mapping[Direction, tuple[str, ...]] = {
    "in": ("count_received",),
    "out": ("count_sent",),
    "both": ("count_received", "count_sent"),
}
_DROPS = ("count_dropped",)
#: Part of what filters are made of, of no use here.
_UNUSED_MAPS = ("rings", "counters")

#: The member of ptrace_count_key that the keys of a kind of rows end before; the others take all of it.
_KEY_ENDS = {
    CountBy.NETNS: "protocol",
    CountBy.DROP_REASON: "protocol",
    CountBy.PROTOCOL: "source_port",
    CountBy.PORT: "source",
    CountBy.ADDRESS: "destination",
}


def key_size(by: CountBy) -> int:
    """Return the bytes of a key of this kind of rows: as few as do, for hashing them is what costs."""
    offsets = {member.name: member.offset for member in COUNT_KEY_FIELDS}
    return offsets[_KEY_ENDS[by]] if by in _KEY_ENDS else COUNT_KEY_SIZE


@dataclass(frozen=True, slots=True)
class CountSetup:
    """What to count, and by what; ``rodata`` holds the filters' variables, ``entries`` is the number of rows
    there is room for.
    """

    by: CountBy
    direction: Direction
    entries: int
    rodata: Mapping[str, int | bytes] = field(default_factory=dict)
    filter: Filter | None = None
    addresses: AddressSet | None = None

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the programs that count so."""
        return _DROPS if self.by == CountBy.DROP_REASON else _PROGRAMS[self.direction]


class RawTotals(NamedTuple):
    """struct ptrace_count_totals, of all CPUs."""

    packets: int
    bytes: int
    added: int
    inserted: int
    failed: int


assert RawTotals._fields == tuple(member.name for member in COUNT_TOTALS_FIELDS)


class CountSession:
    """Counts as a :class:`CountSetup` says; a context manager that takes it all away again.

    All is held by file descriptors, so the kernel takes it away whatever ends the process.
    """

    def __init__(self, setup: CountSetup) -> None:
        self.setup = setup
        self.programs: dict[str, Program] = {}
        self._links: list[Link] = []
        self._maps: Mapping[str, Map] = {}
        self._stack = ExitStack()

    def __enter__(self) -> CountSession:
        try:
            self._load()
            for program in self.programs.values():
                self._links.append(links.attach_tracing(program))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def detach(self) -> None:
        """Stop counting; what was counted stays readable."""
        attached, self._links = self._links, []
        links.close_all(attached)

    def close(self) -> None:
        """Detach, and free the kernel's memory. A second call does nothing."""
        self.detach()
        self._stack.close()

    def _load(self) -> None:
        setup = self.setup
        if setup.by == CountBy.DROP_REASON and Btf.vmlinux().get("skb_drop_reason", Kind.ENUM) is None:
            # c504e5c2f964 (v5.17)
            raise NotSupportedError("this kernel gives no reasons for drops; Linux 5.17 does")
        directory = objects_directory()
        with ExitStack() as undo:
            opened = undo.enter_context(BpfObject.open(directory / "count.bpf.o"))
            self._configure(opened)
            prepared = undo.enter_context(opened.prepare())
            if setup.addresses:
                setup.addresses.fill(dict(prepared.maps))
            for name, program in prepared.programs.items():
                self.programs[name] = undo.enter_context(load_filtered(program, self.setup.filter))
            self._maps = prepared.maps
            self._stack = undo.pop_all()

    def _configure(self, opened: OpenedObject) -> None:
        setup = self.setup
        for program in opened.programs.values():
            program.autoload = program.name in setup.programs
        for name in _UNUSED_MAPS:
            opened.maps[name].autocreate = False
        for name, entries in (setup.addresses.sizes() if setup.addresses else {}).items():
            opened.maps[name].max_entries = entries
        opened.maps["rows"].key_size = key_size(setup.by)
        opened.maps["rows"].max_entries = setup.entries
        looking = setup.filter or setup.by not in (CountBy.NETNS, CountBy.DROP_REASON)
        pages = page_mapping(objects_directory()) if looking else UNKNOWN
        opened.set_rodata(
            count_by=setup.by,
            count_skip_loopback=int(setup.direction == "both"),
            config_page_base=pages.base,
            config_page_struct_bytes=pages.struct_bytes,
            config_page_shift=pages.shift,
            **(setup.filter.rodata() if setup.filter else {}),
            **setup.rodata,
        )

    # Reading

    def rows(self) -> list[tuple[bytes, int, int]]:
        """Return each row's key (:func:`key_size` bytes), packets and bytes, all CPUs together."""
        table = self._maps["rows"]
        assert isinstance(table, LruPerCpuHashMap)
        found = []
        for key, values in table.items():
            counts = list(struct.iter_unpack(COUNT_FORMAT, b"".join(values)))
            found.append((key, sum(count[0] for count in counts), sum(count[1] for count in counts)))
        return found

    def totals(self) -> RawTotals:
        """Return what was counted at all."""
        values = self._maps["totals"].raw.lookup(bytes(4)) or b""
        columns = zip(*struct.iter_unpack(COUNT_TOTALS_FORMAT, values), strict=True)
        return RawTotals(*map(sum, columns))

    def missed(self) -> int:
        """Return how often the kernel left a program out because it was running on that CPU already."""
        return sum(program.info().recursion_misses for program in self.programs.values())
