"""What the filter's kernel tests share: programs with a filter in them, and how to ask one about a packet."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from packet_tracer.bpf.object import BpfObject, PreparedObject
from packet_tracer.bpf.program import PreparedProgram
from packet_tracer.errors import BpfError
from packet_tracer.filter import Filter, FilterError, LinkType
from packet_tracer.filter.analysis import reads_metadata
from packet_tracer.filter.expression import compile_filter
from packet_tracer.filter.patch import patch
from packet_tracer.filter.typed import typed_memory
from tests.filter_corpus import expressions

OBJECTS = Path(__file__).parents[2] / "build" / "tests"
#: As in filter_probe.bpf.c: how many packets there may be, room of one.
BATCH, ROOM = 256, 2048
#: The verifier walks through each: so it takes far less, and more runs of a program cost little.
_PACKETS_IN_A_RUN = 16


@cache
def filters() -> Sequence[Filter]:
    """Return every expression of the corpus that libpcap takes."""
    made = []
    for expression in expressions():
        try:
            made.append(compile_filter(expression))
        except FilterError:
            continue
    return made


def answerable(link_type: LinkType) -> list[Filter]:
    """Return those whose answer depends on the bytes alone, each program once: libpcap knows it."""
    made = {}
    for filter_ in filters():
        program = filter_.classic(link_type)
        if not any(map(reads_metadata, program)):
            made.setdefault(program, filter_)
    return list(made.values())


@contextmanager
def prepared(name: str, **constants: int | bytes) -> Iterator[PreparedObject]:
    """Prepare build/tests/NAME.bpf.o; the maps of a capture, which it does not use, are not made."""
    with ExitStack() as stack:
        opened = stack.enter_context(BpfObject.open(OBJECTS / f"{name}.bpf.o"))
        for unused in ("rings", "counters"):
            opened.maps[unused].autocreate = False
        opened.set_rodata(**{"filter_enabled": 1, **constants})
        yield stack.enter_context(opened.prepare())


def runnable(program: PreparedProgram, packets: Iterable[bytes], count: int) -> list[bytes]:
    """Return the first `count` packets that it takes for a test run, not those cut off in a header."""
    taken: list[bytes] = []
    with program.load() as loaded:
        for packet in packets:
            if len(taken) == count:
                return taken
            try:
                loaded.test_run(packet)
            except BpfError as error:
                if error.errno != errno.EINVAL:
                    raise
                continue
            taken.append(packet)
    raise AssertionError(f"only {len(taken)} of the corpus")


def answers(program: PreparedProgram, filter_: Filter, packets: Iterable[bytes]) -> list[bool]:
    """Put a filter into an XDP or TC program and return what it answers for each packet."""
    with program.load(**patch(program, filter_).arguments()) as loaded:
        return [bool(loaded.test_run(packet).return_value) for packet in packets]


@contextmanager
def probe_programs(**constants: int | bytes) -> Iterator[ProbePrograms]:
    """Prepare filter_probe.bpf.o."""
    with prepared("filter_probe", packets_in_a_run=_PACKETS_IN_A_RUN, **constants) as object_:
        yield ProbePrograms(object_)


class ProbePrograms:
    """filter_probe.bpf.c: many packets in one run, read as probes read them."""

    def __init__(self, object_: PreparedObject) -> None:
        self._object = object_
        self._program = object_.programs["probe"]
        self._count = 0

    def put(self, packets: Sequence[bytes], metadata: int = 0) -> None:
        """Set the packets that the next questions are about."""
        assert len(packets) <= BATCH
        table = self._object.maps["packets"].raw
        for index, packet in enumerate(packets):
            head = struct.pack("=IIQ", len(packet), len(packet), metadata)
            # What lies behind a packet must not matter.
            table.update(struct.pack("=I", index), head + packet + b"\xa5" * (ROOM - len(packet)))
        self._count = len(packets)

    def answers(self, filter_: Filter, *, in_place: bool = True) -> list[bool]:
        """Return what a filter answers for each packet; `in_place`: reading memory so, if the kernel can."""
        question = self._object.maps[".bss"].raw  # of filter_probe.bpf.c: first, count, answers
        key, unanswered = bytes(4), b"\xff" * 4 * BATCH
        question.update(key, struct.pack("=II", 0, self._count) + unanswered)
        code = patch(self._program, filter_, memory=typed_memory() if in_place else None)
        with self._program.load(**code.arguments()) as loaded:
            for first in range(0, self._count, _PACKETS_IN_A_RUN):
                answered = question.lookup(key)
                assert answered is not None
                question.update(key, struct.pack("=I", first) + answered[4:])
                loaded.test_run()
        answered = question.lookup(key)
        assert answered is not None
        found = struct.unpack_from(f"={self._count}I", answered, 8)
        assert set(found) <= {0, 1}
        return [bool(one) for one in found]
