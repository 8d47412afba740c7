"""BLOOM_FILTER: a set that may say yes wrongly, never no wrongly."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps.codecs import CodecSpec, codec_of
from packet_tracer.bpf.maps.generic import create_fd
from packet_tracer.bpf.maps.keyed import KeyedMap

if TYPE_CHECKING:
    from typing_extensions import Self

V = TypeVar("V")


class BloomFilter(KeyedMap[None, V]):
    """BLOOM_FILTER: has this value been added? (Linux 5.16). Needs no program; both sides add and ask.

    "Not in it" is certain; "in it" is probable, the less so the more values beyond ``max_entries`` were
    added. Values can't be removed, listed or counted. Thread safety: any thread may add and ask at once.

    >>> with BloomFilter.create(value=u32, max_entries=100) as seen:
    ...     seen.add(5)
    ...     5 in seen
    True
    """

    TYPE: ClassVar[MapType] = MapType.BLOOM_FILTER

    def __init__(self, fd: int, value: CodecSpec[V] | None = None) -> None:
        super().__init__(fd, None, value)

    @classmethod
    def create(
        cls, *, value: CodecSpec[V], max_entries: int, hashes: int = 5, name: str = "", flags: int = 0
    ) -> Self:
        """Create a map for about ``max_entries`` values, with 1 to 15 hash functions (``map_extra``)."""
        codec = codec_of(value)
        fd = create_fd(MapType.BLOOM_FILTER, 0, codec.size, max_entries, flags, name, extra=hashes)
        return cls(fd, codec)

    @property
    def hashes(self) -> int:
        """Number of hash functions; the kernel takes 5 for 0."""
        return (self.extra & 0xF) or 5

    def add(self, value: V) -> None:
        """Add a value."""
        result = lib.bpf_map_update_elem(self.fd, ffi.NULL, self.value_codec.encode(value), 0)
        if result < 0:
            raise self.error("addition", -result)

    def __contains__(self, value: object) -> bool:
        # The kernel reads the value from where it otherwise would write it.
        raw = bytearray(self.value_codec.encode(cast("V", value)))
        result = lib.bpf_map_lookup_elem(self.fd, ffi.NULL, ffi.from_buffer(raw))
        if result < 0 and result != -errno.ENOENT:
            raise self.error("look-up", -result)
        return result == 0
