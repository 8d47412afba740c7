"""Many elements with one system call (bpf(2), BPF_MAP_*_BATCH, Linux 5.6), over bytes.

What the kernel leaves to its callers, and this module takes care of:

- The last look-up returns ENOENT *and* valid entries.
- The cursor between two look-ups is ``max(key_size, 4)`` bytes; it is a bucket number, or the last key.
- ENOSPC means that one hash bucket has more entries than the buffers take.
- A deletion stops at the first key that is not there; the count says where.

A type without an operation answers ENOTSUPP (524), a kernel before 5.6 EINVAL: :class:`NoBatch` tells the
caller to go element by element.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.library import options
from packet_tracer.bpf.maps.errors import UNSUPPORTED_ERRNOS, IterationAborted, MapFull
from packet_tracer.bpf.maps.generic import Map

_BUFFER_BYTES = 4 << 20
_FEWEST = 64
#: The kernel copies element by element; more at a time gains nothing and delays signals.
_WRITES = 1 << 16


class NoBatch(Exception):
    """This type of map, or this kernel, has no such batch operation."""


def read(map: Map, *, delete: bool = False) -> Iterator[tuple[memoryview, memoryview]]:  # noqa: A002
    """Yield keys and values, each one after another, batch by batch, to the map's end.

    With ``delete`` they are removed in the same step; each hash bucket is read and emptied under its lock.
    Raises NoBatch before the first batch; MapError; IterationAborted when the end does not come.
    """
    call = lib.bpf_map_lookup_and_delete_batch if delete else lib.bpf_map_lookup_batch
    what = "drain" if delete else "reading"
    value_size = map.value_buffer_size
    entry_size = map.key_size + value_size
    capacity = min(max(map.max_entries, _FEWEST), max(_BUFFER_BYTES // entry_size, _FEWEST))
    limit = 2 * map.max_entries + capacity
    opts, count = options("bpf_map_batch_opts"), ffi.new("__u32 *")
    here, following = ffi.NULL, bytearray(max(map.key_size, 4))
    total = 0
    while True:
        keys, values = bytearray(capacity * map.key_size), bytearray(capacity * value_size)
        count[0] = capacity
        out, raw_keys, raw_values = (ffi.from_buffer(each) for each in (following, keys, values))
        result = call(map.fd, here, out, raw_keys, raw_values, count, opts)
        if result == -errno.ENOSPC and capacity <= map.max_entries + _FEWEST:
            capacity *= 2
            continue
        if result < 0 and result != -errno.ENOENT:
            if total == 0 and here == ffi.NULL and _absent(-result):
                raise NoBatch
            raise map.error(what, -result)
        read_now = count[0]
        total += read_now
        if read_now:
            yield memoryview(keys)[: read_now * map.key_size], memoryview(values)[: read_now * value_size]
        if result == -errno.ENOENT:
            return
        if total > limit and not delete:
            raise IterationAborted(what, map.name, map.type_name, None)
        here, following = out, bytearray(len(following))


def update(map: Map, keys: bytes, values: bytes, count: int, flags: int) -> None:  # noqa: A002
    """Set ``count`` elements. Raises NoBatch; MapFull and MapError, which say how many were set."""
    value_size, opts = map.value_buffer_size, options("bpf_map_batch_opts", elem_flags=flags)
    raw_keys, raw_values, number = ffi.from_buffer(keys), ffi.from_buffer(values), ffi.new("__u32 *")
    done = 0
    while done < count:
        number[0] = min(count - done, _WRITES)
        result = lib.bpf_map_update_batch(
            map.fd, raw_keys + done * map.key_size, raw_values + done * value_size, number, opts
        )
        if result < 0:
            if done == 0 and _absent(-result) and number[0] in (0, min(count, _WRITES)):
                raise NoBatch
            done += number[0]
            raise full_or_error(map, "update", -result, f"after {done} of {count} elements")
        done += number[0]


def delete(map: Map, keys: bytes, count: int) -> int:  # noqa: A002
    """Remove ``count`` keys and return how many were there. Raises NoBatch; MapError."""
    opts, raw_keys, number = options("bpf_map_batch_opts"), ffi.from_buffer(keys), ffi.new("__u32 *")
    position = deleted = 0
    while position < count:
        number[0] = min(count - position, _WRITES)
        result = lib.bpf_map_delete_batch(map.fd, raw_keys + position * map.key_size, number, opts)
        if result < 0 and result != -errno.ENOENT:
            if position == 0 and _absent(-result):
                raise NoBatch
            raise map.error("deletion", -result, f"after {deleted} of {count} elements")
        deleted += number[0]
        position += number[0] + (result == -errno.ENOENT)
    return deleted


def full_or_error(map: Map, operation: str, number: int, reason: str = "") -> Exception:  # noqa: A002
    """Return MapFull where the errno of an update says so (a trie says ENOSPC), else the map's error."""
    if number in (errno.E2BIG, errno.ENOSPC):
        words = f"it holds {map.max_entries} entries at most{', ' + reason if reason else ''}"
        return MapFull(operation, map.name, map.type_name, errno=number, reason=words)
    return map.error(operation, number, reason)


def _absent(number: int) -> bool:
    return number in UNSUPPORTED_ERRNOS or number == errno.EINVAL
