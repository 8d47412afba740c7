"""Which class stands for which type of map, and opening a map as the class the kernel says it is."""

from __future__ import annotations

from typing import Any

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps import (
    arena,
    arrays,
    bloom,
    cgroups,
    devices,
    hashes,
    lpm,
    nested,
    perf,
    programs,
    queues,
    ringbufs,
    sockets,
    stacks,
    storage,
    struct_ops,
)
from packet_tracer.bpf.maps.generic import Map, RawMap

_CLASSES: tuple[type[Map], ...] = (
    hashes.HashMap,
    arrays.Array,
    programs.ProgramArray,
    perf.PerfEventArray,
    hashes.PerCpuHashMap,
    arrays.PerCpuArray,
    stacks.StackTrace,
    cgroups.CgroupArray,
    hashes.LruHashMap,
    hashes.LruPerCpuHashMap,
    lpm.LpmTrie,
    nested.ArrayOfMaps,
    nested.HashOfMaps,
    devices.DevMap,
    sockets.SockMap,
    devices.CpuMap,
    devices.XskMap,
    sockets.SockHash,
    cgroups.CgroupStorage,
    sockets.ReuseportSockArray,
    cgroups.PerCpuCgroupStorage,
    queues.Queue,
    queues.Stack,
    storage.SkStorage,
    devices.DevMapHash,
    struct_ops.StructOps,
    ringbufs.RingBuf,
    storage.InodeStorage,
    storage.TaskStorage,
    bloom.BloomFilter,
    ringbufs.UserRingBuffer,
    storage.CgrpStorage,
    arena.Arena,
)

#: The class of each type. Types that are not in here are opened as :class:`RawMap`.
CLASSES: dict[MapType, type[Map]] = {cls.TYPE: cls for cls in _CLASSES if cls.TYPE is not None}


def wrap(fd: int, **codecs: Any) -> Map:
    """Take over a map's descriptor and return an object of the class for its type, as the kernel names it."""
    found = RawMap(fd)
    try:
        kind = CLASSES.get(MapType(found.type))
    except ValueError:
        kind = None
    return found if kind is None else kind._open(found._release(), **codecs)
