"""Hash maps: HASH, LRU_HASH, and per CPU PERCPU_HASH, LRU_PERCPU_HASH."""

from __future__ import annotations

import errno
from collections.abc import (
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    Sequence,
    ValuesView,
)
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, overload

from packet_tracer.bpf.enums import MapType, UpdateFlags
from packet_tracer.bpf.maps.codecs import Codec, CodecSpec, codec_of
from packet_tracer.bpf.maps.errors import IterationAborted
from packet_tracer.bpf.maps.generic import create_fd
from packet_tracer.bpf.maps.keyed import KeyedMap
from packet_tracer.bpf.maps.percpu import PerCpuCodec, PerCpuValues

if TYPE_CHECKING:
    from typing_extensions import Self

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_MISSING: Any = object()

NO_PREALLOC = 1 << 0
NO_COMMON_LRU = 1 << 1


class _Items(ItemsView[K, V]):
    def __init__(self, map: HashBase[K, V]) -> None:  # noqa: A002
        super().__init__(map)
        self._map = map

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return zip(*self._map._read_all(), strict=True)


class _Values(ValuesView[V]):
    def __init__(self, map: HashBase[Any, V]) -> None:  # noqa: A002
        super().__init__(map)
        self._map = map

    def __iter__(self) -> Iterator[V]:
        return iter(self._map._read_all()[1])


class HashBase(KeyedMap[K, V], MutableMapping[K, V]):
    """What all hashes share: a ``MutableMapping``.

    Iterating (keys, ``values()``, ``items()``) first takes a snapshot, through batch look-ups where the
    kernel has them (Linux 5.6): deleting while iterating is safe, and entries that come or go while the
    snapshot is taken may or may not be in it. ``len()`` has to count, so it costs a snapshot too.

    Thread safety: every method may be called from any thread at once; each element operation is atomic
    in the kernel. ``pop`` is one step from Linux 5.14 on.
    """

    def __getitem__(self, key: K) -> V:
        return self._get(key)

    def __setitem__(self, key: K, value: V) -> None:
        """Set a value; raises MapFull, never evicts (the LRU types do)."""
        self._set(key, value)

    def __delitem__(self, key: K) -> None:
        self._delete(key)

    def __contains__(self, key: object) -> bool:
        return self._lookup(self.key_codec.encode(cast("K", key))) is not None

    def __iter__(self) -> Iterator[K]:
        return iter(self._read_all()[0])

    def __len__(self) -> int:
        return len(self._read_all()[0])

    def keys(self) -> KeysView[K]:
        """Return a view of the keys."""
        return KeysView(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values; iterating it takes a snapshot."""
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        """Return a view of keys and values; iterating it takes a snapshot.

        Raises IterationAborted, with what was read, where the map changes faster than it can be read.
        """
        return _Items(self)

    @overload
    def pop(self, key: K) -> V: ...
    @overload
    def pop(self, key: K, default: V) -> V: ...
    @overload
    def pop(self, key: K, default: D) -> V | D: ...
    def pop(self, key: K, default: Any = _MISSING) -> Any:
        """Remove a key and return its value, in one step from Linux 5.14 on; KeyError without a default."""
        try:
            return self._take(key)
        except KeyError:
            if default is _MISSING:
                raise
            return default

    def insert(self, key: K, value: V) -> bool:
        """Set a value only where there is none yet (BPF_NOEXIST); return whether it was set."""
        return self._set(key, value, UpdateFlags.NOEXIST) == 0

    def replace(self, key: K, value: V) -> None:
        """Set a value only where there is one already (BPF_EXIST); KeyError."""
        if self._set(key, value, UpdateFlags.EXIST) == errno.ENOENT:
            raise KeyError(key)

    def setdefault(self, key: K, default: V = None) -> V:  # type: ignore[assignment]
        """Return the value of a key, set to ``default`` first where it has none."""
        return default if self.insert(key, default) else self._get(key)

    def update_many(self, items: Mapping[K, V] | Iterable[tuple[K, V]]) -> None:
        """Set many values with few system calls (Linux 5.6; one by one before it).

        Raises MapFull, which says how many were set; those stay.
        """
        self._update_many(items, UpdateFlags.ANY)

    def delete_many(self, keys: Iterable[K]) -> int:
        """Remove many keys with few system calls; return how many were there."""
        return self._delete_many(keys)

    def drain(self) -> list[tuple[K, V]]:
        """Remove and return everything. Each bucket is read and emptied under its lock (Linux 5.6): nothing
        that a program adds meanwhile is lost, it is either returned or still there. Before 5.6, and where
        the type has no such batch, it goes element by element.
        """
        return self._drain()

    def clear(self) -> None:
        """Remove everything; raises IterationAborted where a program adds as fast as it is removed."""
        for _ in range(16):
            keys, _values = self._read_all()
            if not keys:
                return
            self._delete_many(keys)
        raise IterationAborted("clearing", self.name, self.type_name, None)

    @classmethod
    def _create(
        cls,
        key: CodecSpec[Any],
        value: CodecSpec[Any],
        max_entries: int,
        name: str,
        flags: int,
        numa_node: int | None,
    ) -> Self:
        assert cls.TYPE is not None
        key_codec, value_codec = codec_of(key), codec_of(value)
        fd = create_fd(
            cls.TYPE, key_codec.size, value_codec.size, max_entries, flags, name, numa_node=numa_node
        )
        return cls(fd, key_codec, value_codec)


class HashMap(HashBase[K, V]):
    """HASH: a hash of at most ``max_entries`` (Linux 3.19). Needs no program; both sides read and write.

    >>> with HashMap.create(key=u32, value=u64, max_entries=16) as counts:
    ...     counts[80] = 7
    ...     counts.update_many({443: 1, 22: 2})
    ...     sorted(counts.items()), counts.pop(80), 80 in counts
    ([(22, 2), (80, 7), (443, 1)], 7, False)
    """

    TYPE: ClassVar[MapType] = MapType.HASH

    @classmethod
    def create(
        cls,
        *,
        key: CodecSpec[K],
        value: CodecSpec[V],
        max_entries: int,
        name: str = "",
        preallocate: bool = True,
        flags: int = 0,
        numa_node: int | None = None,
    ) -> Self:
        """Create a map. Without ``preallocate`` entries take memory only as they come (BPF_F_NO_PREALLOC)."""
        flags |= 0 if preallocate else NO_PREALLOC
        return cls._create(key, value, max_entries, name, flags, numa_node)


class LruHashMap(HashBase[K, V]):
    """LRU_HASH: a hash that makes room by itself (Linux 4.10). Needs no program.

    A full map evicts entries not used lately, some at a time and per CPU: fewer than ``max_entries`` may
    be there, and which goes is approximate. Setting a value never raises MapFull.

    >>> with LruHashMap.create(key=u32, value=u64, max_entries=64) as recent:
    ...     for number in range(1000):
    ...         recent[number] = number
    ...     len(recent) <= 64, 999 in recent
    (True, True)
    """

    TYPE: ClassVar[MapType] = MapType.LRU_HASH

    @classmethod
    def create(
        cls,
        *,
        key: CodecSpec[K],
        value: CodecSpec[V],
        max_entries: int,
        name: str = "",
        common_lru: bool = True,
        flags: int = 0,
        numa_node: int | None = None,
    ) -> Self:
        """Create a map. Without ``common_lru`` each CPU has its own list (BPF_F_NO_COMMON_LRU)."""
        flags |= 0 if common_lru else NO_COMMON_LRU
        return cls._create(key, value, max_entries, name, flags, numa_node)


class PerCpuHashBase(HashBase[K, PerCpuValues[V]], Generic[K, V]):
    """What per-CPU hashes share: each value is a :class:`PerCpuValues`, one per possible CPU.

    Programs write the value of the CPU they run on, without locks; ``counts[key].sum()`` adds them up.
    Values written are sequences of exactly one per possible CPU, as ``PerCpuValues.same(0)``.
    """

    def _wrap_value(self, codec: Codec[Any]) -> Codec[PerCpuValues[V]]:
        return PerCpuCodec(codec)

    def __setitem__(self, key: K, value: Sequence[V]) -> None:
        super().__setitem__(key, PerCpuValues(value))

    def update_many(self, items: Mapping[K, Sequence[V]] | Iterable[tuple[K, Sequence[V]]]) -> None:
        """Set many values with few system calls (Linux 5.6); MapFull."""
        pairs = items.items() if isinstance(items, Mapping) else items
        super().update_many((key, PerCpuValues(value)) for key, value in pairs)

    def totals(self) -> dict[K, V]:
        """Return the sum over all CPUs for each key, of one snapshot."""
        return {key: values.sum() for key, values in self.items()}


class PerCpuHashMap(PerCpuHashBase[K, V]):
    """PERCPU_HASH: a hash with one value per CPU (Linux 4.6; batches 5.6). Needs no program.

    >>> with PerCpuHashMap.create(key=u32, value=u64, max_entries=16) as bytes_by_port:
    ...     bytes_by_port[80] = PerCpuValues.same(5)
    ...     bytes_by_port[80].sum() == 5 * possible_cpus()
    True
    """

    TYPE: ClassVar[MapType] = MapType.PERCPU_HASH

    @classmethod
    def create(
        cls,
        *,
        key: CodecSpec[K],
        value: CodecSpec[V],
        max_entries: int,
        name: str = "",
        preallocate: bool = True,
        flags: int = 0,
    ) -> Self:
        """Create a map; ``value`` is one CPU's value."""
        flags |= 0 if preallocate else NO_PREALLOC
        return cls._create(key, value, max_entries, name, flags, None)


class LruPerCpuHashMap(PerCpuHashBase[K, V]):
    """LRU_PERCPU_HASH: one value per CPU, and it makes room by itself (Linux 4.10). Needs no program.

    >>> with LruPerCpuHashMap.create(key=u32, value=u64, max_entries=64) as recent:
    ...     recent.update_many((n, PerCpuValues.same(n)) for n in range(1000))
    ...     len(recent) <= 64, recent[999].sum() == 999 * possible_cpus()
    (True, True)
    """

    TYPE: ClassVar[MapType] = MapType.LRU_PERCPU_HASH

    @classmethod
    def create(
        cls,
        *,
        key: CodecSpec[K],
        value: CodecSpec[V],
        max_entries: int,
        name: str = "",
        common_lru: bool = True,
        flags: int = 0,
    ) -> Self:
        """Create a map; ``value`` is one CPU's value."""
        flags |= 0 if common_lru else NO_COMMON_LRU
        return cls._create(key, value, max_entries, name, flags, None)
