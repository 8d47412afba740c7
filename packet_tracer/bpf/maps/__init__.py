"""BPF maps: a class for every type, with typed keys and values.

A map is opened as the class of its type by the kernel's own word, wherever it comes from:
``loaded.maps["flows"]``, :meth:`Map.from_id`, :meth:`Map.from_pin`; most types have ``create`` too. Keys and
values are laid out by :mod:`~packet_tracer.bpf.maps.codecs`, by the map's BTF where nothing is said.

A class is imported when it is first used: most programs need few, and all take 30 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packet_tracer.lazy import attributes

if TYPE_CHECKING:
    from packet_tracer.bpf.maps.arena import Arena
    from packet_tracer.bpf.maps.arrays import Array, PerCpuArray
    from packet_tracer.bpf.maps.bloom import BloomFilter
    from packet_tracer.bpf.maps.cgroups import CgroupArray, CgroupKey, CgroupStorage, PerCpuCgroupStorage
    from packet_tracer.bpf.maps.devices import Cpu, CpuMap, Device, DevMap, DevMapHash, XskMap
    from packet_tracer.bpf.maps.errors import CodecError, IterationAborted, MapFull, MapTypeError, Unsupported
    from packet_tracer.bpf.maps.generic import Map, RawMap
    from packet_tracer.bpf.maps.hashes import HashMap, LruHashMap, LruPerCpuHashMap, PerCpuHashMap
    from packet_tracer.bpf.maps.info import MapInfo
    from packet_tracer.bpf.maps.lpm import LpmTrie
    from packet_tracer.bpf.maps.nested import ArrayOfMaps, HashOfMaps
    from packet_tracer.bpf.maps.percpu import PerCpuValues
    from packet_tracer.bpf.maps.perf import PerfEventArray, PerfReader, Sample
    from packet_tracer.bpf.maps.programs import ProgramArray
    from packet_tracer.bpf.maps.queues import Queue, Stack
    from packet_tracer.bpf.maps.ringbufs import RingBuf, UserRingBuffer
    from packet_tracer.bpf.maps.sockets import ReuseportSockArray, SockHash, SockMap
    from packet_tracer.bpf.maps.stacks import Frame, StackTrace
    from packet_tracer.bpf.maps.storage import CgrpStorage, InodeStorage, SkStorage, TaskStorage
    from packet_tracer.bpf.maps.struct_ops import StructOps

_MODULES = {
    "Arena": "arena",
    "Array": "arrays",
    "ArrayOfMaps": "nested",
    "BloomFilter": "bloom",
    "CgroupArray": "cgroups",
    "CgroupKey": "cgroups",
    "CgroupStorage": "cgroups",
    "CgrpStorage": "storage",
    "CodecError": "errors",
    "Cpu": "devices",
    "CpuMap": "devices",
    "DevMap": "devices",
    "DevMapHash": "devices",
    "Device": "devices",
    "Frame": "stacks",
    "HashMap": "hashes",
    "HashOfMaps": "nested",
    "InodeStorage": "storage",
    "IterationAborted": "errors",
    "LpmTrie": "lpm",
    "LruHashMap": "hashes",
    "LruPerCpuHashMap": "hashes",
    "Map": "generic",
    "MapFull": "errors",
    "MapInfo": "info",
    "MapTypeError": "errors",
    "PerCpuArray": "arrays",
    "PerCpuCgroupStorage": "cgroups",
    "PerCpuHashMap": "hashes",
    "PerCpuValues": "percpu",
    "PerfEventArray": "perf",
    "PerfReader": "perf",
    "ProgramArray": "programs",
    "Queue": "queues",
    "RawMap": "generic",
    "ReuseportSockArray": "sockets",
    "RingBuf": "ringbufs",
    "Sample": "perf",
    "SkStorage": "storage",
    "SockHash": "sockets",
    "SockMap": "sockets",
    "Stack": "queues",
    "StackTrace": "stacks",
    "StructOps": "struct_ops",
    "TaskStorage": "storage",
    "Unsupported": "errors",
    "UserRingBuffer": "ringbufs",
    "XskMap": "devices",
}

__all__ = [
    "Arena",
    "Array",
    "ArrayOfMaps",
    "BloomFilter",
    "CgroupArray",
    "CgroupKey",
    "CgroupStorage",
    "CgrpStorage",
    "CodecError",
    "Cpu",
    "CpuMap",
    "DevMap",
    "DevMapHash",
    "Device",
    "Frame",
    "HashMap",
    "HashOfMaps",
    "InodeStorage",
    "IterationAborted",
    "LpmTrie",
    "LruHashMap",
    "LruPerCpuHashMap",
    "Map",
    "MapFull",
    "MapInfo",
    "MapTypeError",
    "PerCpuArray",
    "PerCpuCgroupStorage",
    "PerCpuHashMap",
    "PerCpuValues",
    "PerfEventArray",
    "PerfReader",
    "ProgramArray",
    "Queue",
    "RawMap",
    "ReuseportSockArray",
    "RingBuf",
    "Sample",
    "SkStorage",
    "SockHash",
    "SockMap",
    "Stack",
    "StackTrace",
    "StructOps",
    "TaskStorage",
    "Unsupported",
    "UserRingBuffer",
    "XskMap",
]

__getattr__ = attributes(__name__, _MODULES)
