"""LPM_TRIE: the longest prefix that matches, as a routing table finds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from packet_tracer.bpf.enums import MapType, UpdateFlags
from packet_tracer.bpf.maps.codecs import Codec, CodecSpec, PrefixCodec, codec_of
from packet_tracer.bpf.maps.codecs.addresses import NetworkCodec
from packet_tracer.bpf.maps.generic import create_fd
from packet_tracer.bpf.maps.hashes import NO_PREALLOC
from packet_tracer.bpf.maps.keyed import KeyedMap

if TYPE_CHECKING:
    from typing_extensions import Self

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")


class LpmTrie(KeyedMap[K, V]):
    """LPM_TRIE: values by prefix, found by the longest prefix that matches (Linux 4.11). Needs no program.

    Keys are :mod:`ipaddress` networks, or :class:`Prefix` over any bytes. ``trie[key]`` is the value of the
    longest prefix that covers ``key`` (a network, or an address for its full length): not necessarily that
    of ``key`` itself; hence it is not a ``dict``. Setting and deleting are exact.

    Iteration is a snapshot, longer prefixes first among those that nest (by batch from Linux 5.13 on).
    Thread safety: every method may be called from any thread at once.

    >>> with LpmTrie.create(key=IPv4Network, value=u32, max_entries=8) as routes:
    ...     routes[IPv4Network("10.0.0.0/8")] = 1
    ...     routes[IPv4Network("10.1.0.0/16")] = 2
    ...     routes[IPv4Address("10.1.2.3")], routes[IPv4Address("10.2.2.3")], IPv4Address("1.1.1.1") in routes
    (2, 1, False)
    """

    TYPE: ClassVar[MapType] = MapType.LPM_TRIE

    @classmethod
    def create(
        cls, *, key: CodecSpec[K], value: CodecSpec[V], max_entries: int, name: str = "", flags: int = 0
    ) -> Self:
        """Create a map with ``key`` ``IPv4Network``, ``IPv6Network`` or ``PrefixCodec(bytes)``."""
        key_codec, value_codec = codec_of(key), codec_of(value)
        fd = create_fd(
            MapType.LPM_TRIE, key_codec.size, value_codec.size, max_entries, flags | NO_PREALLOC, name
        )
        return cls(fd, key_codec, value_codec)

    def __getitem__(self, key: K | IPv4Address | IPv6Address) -> V:
        """Return the value of the longest prefix that covers ``key``; KeyError where none does."""
        return self._get(cast("K", key))

    def __setitem__(self, key: K, value: V) -> None:
        """Set the value of a prefix; MapFull."""
        self._set(key, value)

    def __delitem__(self, key: K) -> None:
        """Remove exactly this prefix; KeyError."""
        self._delete(key)

    def __contains__(self, key: object) -> bool:
        """Whether any prefix covers ``key``."""
        return self._lookup(self.key_codec.encode(cast("K", key))) is not None

    def get(self, key: K | IPv4Address | IPv6Address, default: D | None = None) -> V | D | None:
        """As ``trie[key]``, with a default instead of KeyError."""
        found = self._lookup(self.key_codec.encode(cast("K", key)))
        return default if found is None else self.value_codec.decode(found)

    def items(self) -> list[tuple[K, V]]:
        """Return prefixes and their values; raises IterationAborted."""
        # A prefix deleted between two batches sends the kernel back to the start: the dict removes repeats.
        keys, values = self._read_all()
        return list(dict(zip(keys, values, strict=True)).items())

    def __iter__(self) -> Iterator[K]:
        return iter([key for key, _ in self.items()])

    def __len__(self) -> int:
        """Number of prefixes, by counting them."""
        return len(self.items())

    def update_many(self, items: Mapping[K, V] | Iterable[tuple[K, V]]) -> None:
        """Set many prefixes with few system calls (Linux 5.13; one by one before it); MapFull."""
        self._update_many(items, UpdateFlags.ANY)

    def delete_many(self, keys: Iterable[K]) -> int:
        """Remove many prefixes; return how many were there."""
        return self._delete_many(keys)

    @cached_property
    def key_codec(self) -> Codec[K]:
        """Networks where the keys are as long as those of addresses, else :class:`Prefix`."""
        return address_key(self.key_size)

    @property
    def prefix_bits(self) -> int:
        """The longest prefix there can be."""
        return 8 * (self.key_size - 4)


def address_key(key_size: int) -> Codec[Any]:
    """Return the codec of the keys of a trie whose BTF says no more than their size."""
    kinds: dict[int, Codec[Any]] = {8: NetworkCodec(IPv4Network, 4), 20: NetworkCodec(IPv6Network, 16)}
    return kinds.get(key_size) or PrefixCodec(key_size - 4)
