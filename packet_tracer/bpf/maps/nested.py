"""Maps of maps: ARRAY_OF_MAPS and HASH_OF_MAPS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps.codecs import CodecSpec, codec_of, i32, u32
from packet_tracer.bpf.maps.generic import Map, create_fd
from packet_tracer.bpf.maps.keyed import KeyedMap
from packet_tracer.bpf.maps.objects import ReadableObjectArray

if TYPE_CHECKING:
    from typing_extensions import Self

K = TypeVar("K")
M = TypeVar("M", bound=Map)

#: How an inner map is opened: from a file descriptor that it takes over.
Opener = Callable[[int], M]


def _open_inner(map_id: int, opener: Opener[M] | None) -> M:
    inner = Map.from_id(map_id)
    return cast("M", inner) if opener is None else opener(inner._release())


class ArrayOfMaps(ReadableObjectArray, Generic[M]):
    """ARRAY_OF_MAPS: maps by index (Linux 4.12). Needs no program to be filled, one to be of use.

    ``maps[1] = inner`` fills a slot, ``maps.inner_id(1)`` is the inner map's id, and ``maps[1]`` opens it: an
    object of its own, to be closed. Inner maps are opened as the class of their type, or by ``inner``, as in
    ``lambda fd: HashMap(fd, u32, u64)``. They must be like the template; an inner ARRAY must have its
    ``max_entries`` too unless made with BPF_F_INNER_MAP (1 << 12, Linux 5.10).

    Thread safety: every method may be called from any thread at once.

    >>> with Array.create(value=u64, max_entries=2) as inner:
    ...     with ArrayOfMaps.create(template=inner, max_entries=4) as outer:
    ...         outer[3] = inner
    ...         with outer[3] as same:
    ...             same.id == inner.id, outer.inner_id(3) == inner.id, 2 in outer
    (True, True, False)
    """

    TYPE: ClassVar[MapType] = MapType.ARRAY_OF_MAPS

    def __init__(self, fd: int, inner: Opener[M] | None = None) -> None:
        super().__init__(fd)
        self._opener = inner

    @classmethod
    def create(
        cls,
        *,
        template: Map,
        max_entries: int,
        inner: Opener[M] | None = None,
        name: str = "",
        flags: int = 0,
    ) -> Self:
        """Create a map with empty slots for maps like ``template``, which may be closed then."""
        return cls(create_fd(MapType.ARRAY_OF_MAPS, 4, 4, max_entries, flags, name, inner=template), inner)

    def __getitem__(self, index: int) -> M:
        """Open the map in a slot; KeyError where it is empty."""
        return _open_inner(self._required(index), self._opener)

    def inner_id(self, index: int) -> int:
        """Return the id of the map in a slot; KeyError where it is empty."""
        return self._required(index)


class HashOfMaps(KeyedMap[K, int], Generic[K, M]):
    """HASH_OF_MAPS: maps by key (Linux 4.12). Needs no program to be filled, one to be of use.

    As :class:`ArrayOfMaps`, by key. ``ids()`` lists the keys and the ids of their maps.

    Thread safety: every method may be called from any thread at once.

    >>> with HashMap.create(key=u32, value=u64, max_entries=8) as inner:
    ...     with HashOfMaps.create(key=u32, template=inner, max_entries=4) as outer:
    ...         outer[443] = inner
    ...         with outer[443] as same:
    ...             outer.ids() == {443: same.id}
    True
    """

    TYPE: ClassVar[MapType] = MapType.HASH_OF_MAPS

    def __init__(self, fd: int, key: CodecSpec[K] | None = None, inner: Opener[M] | None = None) -> None:
        super().__init__(fd, key, u32)
        self._opener = inner

    @classmethod
    def create(
        cls,
        *,
        key: CodecSpec[K],
        template: Map,
        max_entries: int,
        inner: Opener[M] | None = None,
        name: str = "",
        flags: int = 0,
    ) -> Self:
        """Create an empty map for maps like ``template``, which may be closed then."""
        codec = codec_of(key)
        fd = create_fd(MapType.HASH_OF_MAPS, codec.size, 4, max_entries, flags, name, inner=template)
        return cls(fd, codec, inner)

    def __getitem__(self, key: K) -> M:
        """Open the map of a key; KeyError where there is none."""
        return _open_inner(self._get(key), self._opener)

    def __setitem__(self, key: K, inner: Map) -> None:
        """Set the map of a key; MapFull."""
        self._update(self.key_codec.encode(key), i32.encode(inner.fd))

    def __delitem__(self, key: K) -> None:
        self._delete(key)

    def __contains__(self, key: object) -> bool:
        return self._lookup(self.key_codec.encode(cast("Any", key))) is not None

    def __iter__(self) -> Iterator[K]:
        return iter(self.ids())

    def __len__(self) -> int:
        """Number of keys, by counting them."""
        return len(self.ids())

    def ids(self) -> dict[K, int]:
        """Return key -> id of its map, a snapshot."""
        keys, numbers = self._read_all()
        return dict(zip(keys, numbers, strict=True))
