"""PERF_EVENT_ARRAY: a perf buffer per CPU, which programs write samples to."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.library import CData, possible_cpus
from packet_tracer.bpf.maps.generic import create_fd
from packet_tracer.bpf.maps.objects import ObjectArray

if TYPE_CHECKING:
    from typing_extensions import Self


class Sample(NamedTuple):
    """What a program wrote with ``bpf_perf_event_output``, padded by the kernel to 8 n + 4 bytes."""

    cpu: int
    data: bytes


class PerfReader:
    """Reads the perf buffers of all CPUs; a context manager. One thread may read at a time.

    ``lost`` counts samples that the kernel had no room for, ``truncated`` those this process had none for.
    """

    def __init__(self, map: PerfEventArray, pages: int) -> None:  # noqa: A002
        self._perf: CData = lib.ptrace_perf_new(map.fd, pages)
        if not self._perf:
            raise map.error("opening perf buffers", ffi.errno)
        self._map = map

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the buffers out of the map and free them; a second call does nothing."""
        perf, self._perf = self._perf, None
        if perf is not None:
            lib.ptrace_perf_free(perf)

    def _open(self) -> CData:
        if self._perf is None:
            raise ValueError("PerfReader is closed")
        return self._perf

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are samples (for select, or asyncio)."""
        return lib.ptrace_perf_fileno(self._open())

    def read(self, timeout: float = 0.0) -> list[Sample]:
        """Return the samples there are, waiting ``timeout`` seconds at most for the first."""
        perf = self._open()
        result = lib.ptrace_perf_poll(perf, int(timeout * 1000))
        if result < 0 and result != -errno.EINTR:
            raise self._map.error("reading", -result)
        raw = bytes(ffi.buffer(perf.data, perf.used)) if perf.used else b""
        samples, offset = [], 0
        while offset < len(raw):
            cpu, size = struct.unpack_from("=II", raw, offset)
            samples.append(Sample(cpu, raw[offset + 8 : offset + 8 + size]))
            offset += 8 + (size + 7) // 8 * 8
        return samples

    @property
    def lost(self) -> int:
        """Samples lost so far for want of room in a buffer."""
        return int(self._open().lost)

    @property
    def truncated(self) -> int:
        """Samples lost so far for want of memory in this process."""
        return int(self._open().truncated)


class PerfEventArray(ObjectArray):
    """PERF_EVENT_ARRAY: perf events by index, one per CPU as a rule (Linux 4.3). Only useful to a program.

    :meth:`reader` opens a buffer for each CPU and puts it in; ``events[0] = fd`` puts in a perf event of your
    own (a hardware counter, say). The kernel does not tell what is in it. New programs should prefer a
    :class:`~packet_tracer.bpf.maps.ringbufs.RingBuf`: it keeps order across CPUs and wastes less memory.

    Thread safety: every method may be called from any thread at once; a reader by one at a time.

    >>> with PerfEventArray.create() as events, events.reader(pages=4) as reader:
    ...     reader.read(), reader.lost
    ([], 0)
    """

    TYPE: ClassVar[MapType] = MapType.PERF_EVENT_ARRAY

    @classmethod
    def create(cls, *, max_entries: int | None = None, name: str = "", flags: int = 0) -> Self:
        """Create a map, for every possible CPU unless told."""
        slots = possible_cpus() if max_entries is None else max_entries
        return cls(create_fd(MapType.PERF_EVENT_ARRAY, 4, 4, slots, flags, name))

    def reader(self, *, pages: int = 64) -> PerfReader:
        """Open a buffer of ``pages`` (a power of two) for each online CPU, in place of what was there."""
        return PerfReader(self, pages)
