"""Ring buffers: RINGBUF from programs to here, USER_RINGBUF from here to programs."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.library import CData, options
from packet_tracer.bpf.maps.errors import MapFull
from packet_tracer.bpf.maps.generic import Map, create_fd

if TYPE_CHECKING:
    from typing_extensions import Self

    from packet_tracer.bpf.ring import RingBuffer


class RingBuf(Map):
    """RINGBUF: records from programs, in order across CPUs (Linux 5.8). Only useful with a program.

    :meth:`reader` reads it; several of them, one per CPU, are read together by
    :class:`packet_tracer.bpf.ring.RingBuffer`. Nothing counts records that did not fit but the program.

    Thread safety: one reader at a time.

    >>> with RingBuf.create(size_bytes=65536) as ring, ring.reader() as reader:
    ...     reader.read(0).count
    0
    """

    TYPE: ClassVar[MapType] = MapType.RINGBUF

    @classmethod
    def create(cls, *, size_bytes: int, name: str = "", flags: int = 0, numa_node: int | None = None) -> Self:
        """Create a ring of ``size_bytes``: a power of two, and of whole pages (EINVAL)."""
        return cls(create_fd(MapType.RINGBUF, 0, 0, size_bytes, flags, name, numa_node=numa_node))

    def reader(self, *, max_record: int = 65536) -> RingBuffer:
        """Return a reader of this ring alone, in the ring's own order. Records are 8 bytes or longer."""
        from packet_tracer.bpf.ring import RingBuffer  # it needs this package

        return RingBuffer([self], timestamp_offset=0, window_ns=0, max_record=max_record)


class UserRingBuffer(Map):
    """USER_RINGBUF: records from here to a program, which takes them with ``bpf_user_ringbuf_drain``
    (Linux 6.1). Only useful to a program.

    Thread safety: none; one thread may write at a time.

    >>> with UserRingBuffer.create(size_bytes=4096) as ring:
    ...     ring.submit(b"eight by")
    ...     with ring.reserve(16) as record:
    ...         record[:5] = b"hello"
    """

    TYPE: ClassVar[MapType] = MapType.USER_RINGBUF

    def __init__(self, fd: int) -> None:
        self._writer: CData = None
        super().__init__(fd)

    @classmethod
    def create(cls, *, size_bytes: int, name: str = "", flags: int = 0) -> Self:
        """Create a ring of ``size_bytes``: a power of two, and of whole pages (EINVAL)."""
        return cls(create_fd(MapType.USER_RINGBUF, 0, 0, size_bytes, flags, name))

    @contextmanager
    def reserve(self, size: int, timeout: float | None = None) -> Iterator[memoryview]:
        """Reserve a record to be filled in the ``with`` block; leaving it submits, an exception discards.

        Raises MapFull where there is no room (within ``timeout`` seconds, where a program drains meanwhile),
        MapError E2BIG for a record that never fits.
        """
        writer = self._open_writer()
        if timeout is None:
            record = lib.user_ring_buffer__reserve(writer, size)
        else:
            record = lib.user_ring_buffer__reserve_blocking(writer, size, int(timeout * 1000))
        if not record:
            if ffi.errno in (errno.ENOSPC, errno.EAGAIN):
                reason = f"no room for {size} bytes until a program drains it"
                raise MapFull("reservation", self.name, self.type_name, errno=ffi.errno, reason=reason)
            raise self.error("reservation", ffi.errno)
        view = memoryview(ffi.buffer(record, size))
        try:
            yield view
        except BaseException:
            view.release()
            lib.user_ring_buffer__discard(writer, record)
            raise
        view.release()
        lib.user_ring_buffer__submit(writer, record)

    def submit(self, data: bytes, timeout: float | None = None) -> None:
        """Write a record; errors as for :meth:`reserve`."""
        with self.reserve(len(data), timeout) as record:
            record[:] = data

    def close(self) -> None:
        """Unmap the ring and close the map."""
        writer, self._writer = self._writer, None
        if writer is not None:
            lib.user_ring_buffer__free(writer)
        super().close()

    def _open_writer(self) -> CData:
        if self._writer is None:
            writer = lib.user_ring_buffer__new(self.fd, options("user_ring_buffer_opts"))
            if not writer:
                raise self.error("mapping", ffi.errno)
            self._writer = writer
        return self._writer
