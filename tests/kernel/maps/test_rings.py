"""RINGBUF and USER_RINGBUF: all that is written arrives, in order."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import MapFull, RingBuf, UserRingBuffer
from tests.kernel.maps.support import covers, load_maps, raises_errno, run


@covers(MapType.RINGBUF)
def test_two_hundred_thousand_records_arrive_in_order() -> None:
    with load_maps("rings") as loaded:
        ring: Any = loaded.maps["ring"]
        assert isinstance(ring, RingBuf)
        expected = 0
        with ring.reader() as reader:
            for first in range(0, 200_000, 1000):
                assert run(loaded.programs["fill"], first, 1000) == 1000
                if first % 20_000:
                    continue
                while batch := reader.read(0):
                    for record in batch:
                        assert struct.unpack("=2Q", record) == (expected, ~expected & (1 << 64) - 1)
                        expected += 1
            while batch := reader.flush():
                for record in batch:
                    assert struct.unpack("=Q8x", record) == (expected,)
                    expected += 1
        assert expected == 200_000


@covers(MapType.RINGBUF)
def test_a_full_ring_refuses_the_program() -> None:
    with load_maps("rings") as loaded, loaded.maps["ring"].reader() as reader:  # type: ignore[attr-defined]
        written = sum(run(loaded.programs["fill"], 0, 1000) for _ in range(60))
        assert written == (1 << 20) // 24  # each record has an 8-byte head
        assert reader.read(1).count + reader.flush().count == written
        assert run(loaded.programs["fill"], 0, 5) == 5


@covers(MapType.RINGBUF)
def test_ring_sizes() -> None:
    for size in (4095, 12288, 100):
        raises_errno(MapError, errno.EINVAL, lambda size=size: RingBuf.create(size_bytes=size))


@covers(MapType.USER_RINGBUF)
def test_a_program_takes_what_was_submitted() -> None:
    with load_maps("user_ring") as loaded:
        ring: Any = loaded.maps["ring"]
        assert isinstance(ring, UserRingBuffer)
        total: Any = loaded.maps[".bss"]
        for number in (10, 11):
            ring.submit(struct.pack("=I", number))
        with ring.reserve(8) as record:
            record[:4] = struct.pack("=I", 12)
        with pytest.raises(ValueError, match="assignment"), ring.reserve(8) as record:
            record[:] = struct.pack("=I", 1000)  # too short: the record is given back, not submitted
        assert run(loaded.programs["drain"]) == 3
        assert total[0].total == 33
        assert run(loaded.programs["drain"]) == 0


@covers(MapType.USER_RINGBUF)
def test_a_full_ring_says_so() -> None:
    with load_maps("user_ring") as loaded:
        ring: Any = loaded.maps["ring"]
        for _ in range(64):  # 4096 bytes of 56 + 8
            ring.submit(bytes(56))
        error = raises_errno(MapFull, errno.ENOSPC, lambda: ring.submit(bytes(56)))
        assert "no room for 56 bytes until a program drains it" in str(error)
        with pytest.raises(MapFull):
            ring.submit(bytes(56), timeout=0.01)
        assert run(loaded.programs["drain"]) == 64
        ring.submit(bytes(56))
        raises_errno(MapError, errno.E2BIG, lambda: ring.submit(bytes(5000)))
