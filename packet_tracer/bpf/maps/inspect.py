"""The maps of this host: which there are, who holds them, and their entries from the outside.

What ``ptrace maps`` does, without the printing. Everything here needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.btf import Btf
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import batch
from packet_tracer.bpf.maps.arrays import IndexedMap
from packet_tracer.bpf.maps.codecs import Codec, u32
from packet_tracer.bpf.maps.codecs.plain import example, parse
from packet_tracer.bpf.maps.errors import CodecError, Unsupported
from packet_tracer.bpf.maps.generic import Map
from packet_tracer.bpf.maps.info import MapInfo
from packet_tracer.bpf.maps.keyed import KeyedMap
from packet_tracer.bpf.maps.nested import HashOfMaps
from packet_tracer.bpf.maps.objects import ObjectArray
from packet_tracer.bpf.maps.percpu import PerCpuCodec
from packet_tracer.bpf.maps.printing import EntryPrinter
from packet_tracer.bpf.maps.queues import QueueBase
from packet_tracer.bpf.maps.sockets import SockHash
from packet_tracer.bpf.maps.types import map_btf
from packet_tracer.bpf.program import Program
from packet_tracer.errors import BpfError, UsageError


class Process(NamedTuple):
    """A process that holds a map open."""

    pid: int
    comm: str


class ProgramName(NamedTuple):
    """A program that uses a map."""

    id: int
    name: str


@dataclass(slots=True)
class MapUsers:
    """Who keeps a map alive: paths it is pinned at, programs that use it, processes that hold it open."""

    pins: list[str] = field(default_factory=list)
    programs: list[ProgramName] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)


def map_ids() -> Iterator[int]:
    """Yield the ids of all maps of the host."""
    found, number = ffi.new("__u32 *"), 0
    while (result := lib.bpf_map_get_next_id(number, found)) == 0:
        number = found[0]
        yield number
    if result != -2:  # ENOENT: there are no more
        raise MapError("listing", "", "maps of all types", errno=-result)


def list_maps() -> list[tuple[MapInfo, MapUsers]]:
    """Return what is known of all maps of the host, by id, and who uses them.

    Users are read once for all maps; maps that go meanwhile are left out.
    """
    users = all_users()
    found = []
    for number in map_ids():
        with suppress(MapError), Map.from_id(number) as each:
            found.append((each.info(), users.get(number, MapUsers())))
    return found


def find_map(text: str) -> Map:
    """Open a map by id, by the path of its pin, or by name where only one has it.

    Raises UsageError where there is none or several; MapError.
    """
    if text.isdecimal():
        try:
            return Map.from_id(int(text))
        except MapError as error:
            if error.errno == 2:
                raise UsageError(f"no map has id {text}; `ptrace maps list` shows all") from None
            raise
    if "/" in text:
        try:
            return Map.from_pin(text)
        except MapError as error:
            if error.errno == 2:
                raise UsageError(f"nothing is pinned at {text}") from None
            raise
    matching = []
    for number in map_ids():
        with suppress(MapError), Map.from_id(number) as each:
            if each.name == text:
                matching.append(number)
    if not matching:
        raise UsageError(f"no map is named {text}; `ptrace maps list` shows all")
    if len(matching) > 1:
        ids = ", ".join(map(str, matching))
        raise UsageError(f"{len(matching)} maps are named {text}: say which, by id: {ids}")
    return Map.from_id(matching[0])


def users_of(number: int) -> MapUsers:
    """Return who uses the map with this id."""
    return all_users().get(number, MapUsers())


def all_users() -> dict[int, MapUsers]:
    """Return who uses which map, by map id: pins of all BPF file systems in sight, programs, processes."""
    users: dict[int, MapUsers] = {}
    for path, number in _pins():
        users.setdefault(number, MapUsers()).pins.append(path)
    for program, numbers in _programs():
        for number in numbers:
            users.setdefault(number, MapUsers()).programs.append(program)
    for process, held in _processes():
        for number in held:
            users.setdefault(number, MapUsers()).processes.append(process)
    return users


def _pins() -> Iterator[tuple[str, int]]:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    for root in sorted({_unescaped(mount[1]) for mount in mounts if mount[2] == "bpf"}):
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)  # noqa: PTH118
                with suppress(BpfError), Map.from_pin(path) as pinned:  # programs and links are pinned too
                    yield path, pinned.id


def _unescaped(path: str) -> str:
    """Return a path of /proc/mounts with its octal escapes undone."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _programs() -> Iterator[tuple[ProgramName, tuple[int, ...]]]:
    found, number = ffi.new("__u32 *"), 0
    while lib.bpf_prog_get_next_id(number, found) == 0:
        number = found[0]
        with suppress(BpfError), Program.from_id(number) as program:
            yield ProgramName(program.id, program.name), program.info().map_ids


def _processes() -> Iterator[tuple[Process, set[int]]]:
    own = str(os.getpid())
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        if entry.name == own:  # it holds what it looks at
            continue
        numbers = set()
        with suppress(OSError):
            for fd in (entry / "fd").iterdir():
                with suppress(OSError):
                    if str(fd.readlink()) == "anon_inode:bpf-map":
                        text = (entry / "fdinfo" / fd.name).read_text()
                        numbers |= {int(number) for number in re.findall(r"^map_id:\s*(\d+)", text, re.M)}
            if numbers:
                yield Process(int(entry.name), (entry / "comm").read_text().strip()), numbers


class Entries:
    """The entries of one map, in bytes, and by what people type.

    Raises Unsupported where maps of the type have no entries that can be looked at.
    """

    def __init__(self, map: Map) -> None:  # noqa: A002
        self.map = map
        self._raw = map.raw

    @cached_property
    def btf(self) -> Btf | None:
        """The map's types, if it has any."""
        return map_btf(self.map)

    @cached_property
    def printer(self) -> EntryPrinter:
        """What prints the entries."""
        return EntryPrinter(self.map, self.btf)

    def all(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values, by batch where the kernel has it. Raises IterationAborted."""
        if self.map.key_size == 0 or self.map.type in _NOT_LISTED:
            raise Unsupported(
                "dump", self.map.name, self.map.type_name, errno=524, reason="its entries can't be listed"
            )
        size, value_size = self.map.key_size, self.map.value_buffer_size
        try:
            for keys, values in batch.read(self.map):
                for index in range(len(keys) // size):
                    value = values[index * value_size : (index + 1) * value_size]
                    yield bytes(keys[index * size : (index + 1) * size]), bytes(value)
        except batch.NoBatch:
            yield from self._raw.items()

    def get(self, key: str | None) -> tuple[bytes, bytes]:
        """Return the entry of a key; of a queue or stack, without a key, the next value (which stays).

        Raises UsageError where there is none, CodecError for a key of the wrong form.
        """
        if isinstance(self.map, QueueBase):
            if key is not None:
                raise UsageError(f"{self.map.type_name} {self._name} has no keys")
            value = self.map.raw.lookup(b"")
            if value is None:
                raise UsageError(f"{self.map.type_name} {self._name} is empty")
            return b"", value
        raw_key = self._key(key)
        value = self._raw.lookup(raw_key)
        if value is None:
            raise UsageError(f"map {self._name} has no entry {key}")
        return raw_key, value

    def set(self, key: str | None, value: str) -> None:
        """Set the value of a key; push it on a queue or stack. A per-CPU value is set for all CPUs alike."""
        if isinstance(self.map, (ObjectArray, HashOfMaps, SockHash)):
            what = f"{self.map.type_name} {self._name} holds programs, maps, sockets or the like"
            raise UsageError(f"{what}, which only a process that has them open can put in")
        raw_value = self._parse("value", self.value_codec, value)
        if self.map.per_cpu:
            padded = raw_value.ljust((len(raw_value) + 7) // 8 * 8, b"\0")
            raw_value = padded * (self.map.value_buffer_size // len(padded))
        if self.map.key_size == 0 and key is not None:
            raise UsageError(f"{self.map.type_name} {self._name} has no keys: give the value alone")
        self._raw.update(b"" if self.map.key_size == 0 else self._key(key), raw_value)

    def delete(self, key: str) -> None:
        """Remove a key; UsageError where it is not there."""
        if not self._raw.delete(self._key(key)):
            raise UsageError(f"map {self._name} has no entry {key}")

    @property
    def value_codec(self) -> Codec[Any]:
        """How one value is laid out: of a per-CPU map, one CPU's."""
        codec = self._keyed().value_codec
        return codec.element if isinstance(codec, PerCpuCodec) else codec

    def _key(self, text: str | None) -> bytes:
        if text is None:
            raise UsageError(f"map {self._name} needs a key, for example {example(self._keyed().key_codec)}")
        raw = self._parse("key", self._keyed().key_codec, text)
        if isinstance(self.map, IndexedMap) and u32.decode(raw) >= self.map.max_entries:
            raise UsageError(f"map {self._name} has the keys 0 to {self.map.max_entries - 1}, not {text}")
        return raw

    def _parse(self, what: str, codec: Codec[Any], text: str) -> bytes:
        try:
            return parse(codec, text)
        except CodecError as error:
            raise CodecError(f"wrong {what} for map {self._name}: {error}") from None

    def _keyed(self) -> KeyedMap[Any, Any]:
        if not isinstance(self.map, KeyedMap):
            raise Unsupported(
                "access", self.map.name, self.map.type_name, errno=524, reason="it has no entries"
            )
        return self.map

    @property
    def _name(self) -> str:
        return self.map.name or str(self.map.id)


_NOT_LISTED = frozenset(
    {
        MapType.SK_STORAGE,
        MapType.TASK_STORAGE,
        MapType.INODE_STORAGE,
        MapType.CGRP_STORAGE,
        MapType.PERF_EVENT_ARRAY,
        MapType.CGROUP_ARRAY,
        MapType.XSKMAP,
    }
)


def description(info: MapInfo, users: MapUsers) -> Mapping[str, Any]:
    """Return what is known of a map as JSON has it: bpftool's names, and who uses it."""
    described: dict[str, Any] = {"id": info.id, "type": info.type}
    if info.name:
        described["name"] = info.name
    described |= {
        "flags": info.flags,
        "bytes_key": info.key_size,
        "bytes_value": info.value_size,
        "max_entries": info.max_entries,
    }
    if info.memory_bytes is not None:
        described["bytes_memlock"] = info.memory_bytes
    described["frozen"] = int(info.frozen)
    if info.btf_id:
        described["btf_id"] = info.btf_id
    described["pinned"] = users.pins
    described["programs"] = [program._asdict() for program in users.programs]
    described["pids"] = [process._asdict() for process in users.processes]
    return described
