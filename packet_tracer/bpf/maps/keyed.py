"""The engine of all maps with elements: codecs chosen and checked once, single and bulk operations.

Its operations are protected: each type's class makes public those that the type has.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.btf import Btf
from packet_tracer.bpf.enums import UpdateFlags
from packet_tracer.bpf.maps import batch
from packet_tracer.bpf.maps.codecs import Codec, CodecSpec, codec_of
from packet_tracer.bpf.maps.codecs.btf import BtfCodecs
from packet_tracer.bpf.maps.errors import UNSUPPORTED_ERRNOS, CodecError, IterationAborted
from packet_tracer.bpf.maps.generic import Map
from packet_tracer.bpf.maps.types import codec_of_type, map_codec

K = TypeVar("K")
V = TypeVar("V")

#: Entries that a map without a limit of its own is walked for.
_UNKNOWN_SIZE = 1 << 16


class KeyedMap(Map, Generic[K, V]):
    """A map with elements. ``key`` and ``value`` say how they are laid out; without them the map's BTF does,
    and where it has none they are :class:`bytes`. Raises CodecError where a size is not the map's.
    """

    def __init__(self, fd: int, key: CodecSpec[K] | None = None, value: CodecSpec[V] | None = None) -> None:
        super().__init__(fd)
        try:
            if key is not None:
                self.__dict__["key_codec"] = self._checked("key", codec_of(key), self.key_size)
            if value is not None:
                codec = self._checked("value", codec_of(value), self.value_size)
                self.__dict__["value_codec"] = self._wrap_value(codec)
        except CodecError:
            self.close()
            raise
        self._value_bytes = max(self.value_buffer_size, 1)

    @cached_property
    def key_codec(self) -> Codec[K]:
        """How keys are laid out."""
        return cast("Codec[K]", map_codec(self, self.btf_key_type_id, self.key_size))

    @cached_property
    def value_codec(self) -> Codec[V]:
        """How values are laid out; a per-CPU map's takes one value per possible CPU."""
        return self._wrap_value(map_codec(self, self.btf_value_type_id, self.value_size))

    def describe(self, btf: Btf, key_type_id: int, value_type_id: int) -> None:
        """Take codecs from an object's types, unless the kernel has the map's types or they were given."""
        if self.btf_id:
            return
        # At once: the types are gone when the object is.
        codecs = BtfCodecs(btf)
        for name, type_id, size in (
            ("key_codec", key_type_id, self.key_size),
            ("value_codec", value_type_id, self.value_size),
        ):
            if type_id and name not in self.__dict__:
                codec = codec_of_type(codecs, type_id, size)
                self.__dict__[name] = self._wrap_value(codec) if name == "value_codec" else codec

    def _wrap_value(self, codec: Codec[Any]) -> Codec[V]:
        """Return the codec of what user space reads for one value: per-CPU maps override this."""
        return codec

    def _checked(self, what: str, codec: Codec[Any], size: int) -> Codec[Any]:
        if codec.size != size:
            name = self.name or self.id
            raise CodecError(f"a {what} of map {name} is {size} bytes, {codec.describe()} is {codec.size}")
        return codec

    def _lookup(self, raw_key: bytes, flags: int = 0) -> bytearray | None:
        value = bytearray(self._value_bytes)
        result = lib.bpf_map_lookup_elem_flags(self.fd, raw_key, ffi.from_buffer(value), flags)
        if result < 0:
            if result == -errno.ENOENT:
                return None
            raise self.error("lookup", -result)
        return value

    def _get(self, key: K) -> V:
        """Return a value or raise KeyError."""
        value = self._lookup(self.key_codec.encode(key))
        if value is None:
            raise KeyError(key)
        return self.value_codec.decode(value)

    def _set(self, key: K, value: V, flags: int = UpdateFlags.ANY) -> int:
        """Set a value; return 0, EEXIST or ENOENT, which the flags can bring about."""
        raw_key, raw_value = self.key_codec.encode(key), self.value_codec.encode(value)
        return self._update(raw_key, raw_value, flags)

    def _update(self, raw_key: bytes, raw_value: bytes, flags: int = 0) -> int:
        result = lib.bpf_map_update_elem(self.fd, raw_key, raw_value, flags)
        if result < 0:
            if result == -errno.EEXIST and flags & UpdateFlags.NOEXIST:
                return errno.EEXIST
            if result == -errno.ENOENT and flags & UpdateFlags.EXIST:
                return errno.ENOENT
            raise batch.full_or_error(self, "update", -result)
        return 0

    def _delete(self, key: K) -> None:
        """Remove a key or raise KeyError."""
        result = lib.bpf_map_delete_elem(self.fd, self.key_codec.encode(key))
        if result == -errno.ENOENT:
            raise KeyError(key)
        if result < 0:
            raise self.error("deletion", -result)

    def _take(self, key: K) -> V:
        """Remove a key and return its value, in one step where the kernel can; KeyError."""
        raw_key, value = self.key_codec.encode(key), bytearray(self._value_bytes)
        result = lib.bpf_map_lookup_and_delete_elem(self.fd, raw_key, ffi.from_buffer(value))
        # Hashes have it since 3e87f192b405 (v5.14); before it they answer ENOTSUPP.
        if -result in UNSUPPORTED_ERRNOS:
            taken = self._get(key)
            self._delete(key)
            return taken
        if result == -errno.ENOENT:
            raise KeyError(key)
        if result < 0:
            raise self.error("lookup and delete", -result)
        return self.value_codec.decode(value)

    def _read_all(self) -> tuple[list[K], list[V]]:
        """Return all keys and, in the same order, all values: a batch at a time, else one by one.

        Entries that come or go meanwhile may or may not be among them. Raises IterationAborted.
        """
        keys: list[K] = []
        values: list[V] = []
        try:
            for raw_keys, raw_values in batch.read(self):
                keys += self.key_codec.decode_many(raw_keys)
                values += self.value_codec.decode_many(raw_values)
        except batch.NoBatch:
            walked = self._walk()
            keys = [self.key_codec.decode(key) for key in walked]
            values = [self.value_codec.decode(value) for value in walked.values()]
        except IterationAborted as error:
            error.partial = list(zip(keys, values, strict=True))
            raise
        return keys, values

    def _walk(self) -> dict[bytes, bytearray]:
        """Read element by element. A cursor that was deleted starts over: hence a dict, and a bound."""
        found: dict[bytes, bytearray] = {}
        for key in self._walk_keys():
            value = self._lookup(key)
            if value is not None:
                found[key] = value
        return found

    def _walk_keys(self) -> list[bytes]:
        keys: dict[bytes, None] = {}
        key = ffi.NULL
        for _ in range(2 * (self.max_entries or _UNKNOWN_SIZE) + 2):
            following = bytearray(max(self.key_size, 1))
            result = lib.bpf_map_get_next_key(self.fd, key, ffi.from_buffer(following))
            if result == -errno.ENOENT:
                return list(keys)
            if result < 0:
                raise self.error("iteration", -result)
            key = bytes(following)
            keys[key] = None
        partial = [self.key_codec.decode(raw) for raw in keys]
        raise IterationAborted("iteration", self.name, self.type_name, partial)

    def _drain(self) -> list[tuple[K, V]]:
        """Remove and return everything: hash buckets under their locks, else element by element."""
        pairs: list[tuple[K, V]] = []
        try:
            for raw_keys, raw_values in batch.read(self, delete=True):
                keys, values = self.key_codec.decode_many(raw_keys), self.value_codec.decode_many(raw_values)
                pairs += zip(keys, values, strict=True)
        except batch.NoBatch:
            for raw_key in self._walk_keys():
                key = self.key_codec.decode(raw_key)
                try:
                    pairs.append((key, self._take(key)))
                except KeyError:  # somebody else removed it
                    continue
        return pairs

    def _update_many(self, items: Mapping[K, V] | Iterable[tuple[K, V]], flags: int) -> None:
        pairs = list(items.items() if isinstance(items, Mapping) else items)
        raw_keys = self.key_codec.encode_many([key for key, _ in pairs])
        raw_values = self.value_codec.encode_many([value for _, value in pairs])
        try:
            batch.update(self, raw_keys, raw_values, len(pairs), flags)
        except batch.NoBatch:
            size = self.value_buffer_size
            for index in range(len(pairs)):
                raw_key = raw_keys[index * self.key_size : (index + 1) * self.key_size]
                number = self._update(raw_key, raw_values[index * size : (index + 1) * size], flags)
                if number:
                    raise self.error("update", number, f"after {index} of {len(pairs)} elements") from None

    def _delete_many(self, keys: Iterable[K]) -> int:
        wanted = list(keys)
        try:
            return batch.delete(self, self.key_codec.encode_many(wanted), len(wanted))
        except batch.NoBatch:
            deleted = 0
            for key in wanted:
                try:
                    self._delete(key)
                except KeyError:
                    continue
                deleted += 1
            return deleted
