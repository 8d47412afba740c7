"""Objects: a compiled BPF file on its way into the kernel.

Three states, three types, each a context manager that frees what it holds and hands it on when the next state
is made of it::

    with BpfObject.open(path) as opened:
        opened.set_rodata(snaplen=96)
        with opened.prepare() as prepared:          # maps exist, types fitted to this kernel
            with prepared.load() as loaded:         # programs verified and in the kernel
                attach_tracing(loaded.programs["on_kfree_skb"])
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.btf import Btf, DataSection, Kind
from packet_tracer.bpf.elf import ElfError, sections
from packet_tracer.bpf.errors import (
    ObjectOpenError,
    ObjectPrepareError,
    ProgramLoadError,
    describe,
    libbpf_reason,
)
from packet_tracer.bpf.library import CData, clear_messages, messages, options, text
from packet_tracer.bpf.maps import Map
from packet_tracer.bpf.parallel import load_together
from packet_tracer.bpf.program import PreparedProgram, Program, prepared_program
from packet_tracer.bpf.spec import MapSpec, ProgramSpec
from packet_tracer.errors import UsageError

_FAILED_MAP = re.compile(r"map '([^']+)': failed to create")
_FAILED_PROGRAM = re.compile(
    r"prog '([^']+)': (?:BPF program load failed|failed to (?:load|prepare)|missing)"
)
_LOAD_LOG_SIZE = 1 << 20


class BpfObject:
    """The way in: :meth:`open`."""

    @staticmethod
    def open(source: Path | bytes, *, name: str | None = None) -> OpenedObject:
        """Read a compiled object from a file or from its bytes; ``name`` is what errors call it.

        Nothing reaches the kernel yet, and no privilege is needed. Raises ObjectOpenError for a file that is
        missing, truncated, not BPF, of the other byte order, or without BTF.
        """
        label = name or (source.name if isinstance(source, Path) else "object")
        try:
            data = source.read_bytes() if isinstance(source, Path) else source
        except OSError as error:
            number = error.errno or 0
            raise ObjectOpenError(str(source), describe(number), errno=number) from None
        try:
            contents = sections(data)
        except ElfError as error:
            raise ObjectOpenError(label, str(error), errno=errno.EINVAL) from None
        if ".BTF" not in contents:
            raise ObjectOpenError(label, "it has no BTF; compile it with clang -g", errno=errno.EINVAL)
        label_c = ffi.new("char[]", re.sub(r"\W|\.bpf\.o$", "_", label).encode())
        clear_messages()
        handle = lib.bpf_object__open_mem(
            data, len(data), options("bpf_object_open_opts", object_name=label_c)
        )
        if not handle:
            number, said = ffi.errno, messages()
            reason = libbpf_reason(said) or describe(number)
            raise ObjectOpenError(label, reason, errno=number, libbpf=said)
        license_ = contents.get("license", b"").split(b"\0")[0].decode(errors="replace")
        return OpenedObject(handle, label, license_)


class OpenedObject:
    """An object read but not in the kernel: here its maps and constants are set.

    ``programs`` and ``maps`` are by name, data sections by their section (``.rodata``); ``btf`` has the
    object's types.
    """

    def __init__(self, handle: CData, name: str, license_: str) -> None:
        self._handle = handle
        self.name = name
        self.license = license_
        self.btf = Btf(lib.bpf_object__btf(handle), name=name, owner=self)
        self.programs: Mapping[str, ProgramSpec] = MappingProxyType(
            {spec.name: spec for spec in map(ProgramSpec, _each(lib.bpf_object__next_program, handle))}
        )
        self._sections = self._data_sections()
        internal = {
            lib.bpf_object__find_map_by_name(handle, section.encode()): section for section in self._sections
        }
        specs = (MapSpec(each, internal.get(each)) for each in _each(lib.bpf_object__next_map, handle))
        self.maps: Mapping[str, MapSpec] = MappingProxyType({spec.name: spec for spec in specs})

    def __enter__(self) -> OpenedObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the object, unless a later state has taken it over."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.bpf_object__close(handle)

    def _live(self) -> CData:
        if self._handle is None:
            raise ValueError(f"{self.name} is closed or was prepared already")
        return self._handle

    def _data_sections(self) -> dict[str, DataSection]:
        found = (self.btf.type(index) for index in self.btf.index(Kind.DATA_SECTION).values())
        return {each.name: each for each in found if isinstance(each, DataSection)}

    def set_rodata(self, **values: int | bytes) -> None:
        """Set ``const volatile`` variables by name: the verifier takes them for constants and prunes by them.

        An int must fit the variable; bytes fill an array from its start, the rest is zeroed. Raises
        UsageError that names a variable which is not there or which the value does not fit.
        """
        self._set(".rodata", values)

    def set_data(self, **values: int | bytes) -> None:
        """Set the initial value of global variables (``.data``, ``.bss``) by name, as :meth:`set_rodata`."""
        self._set((".data", ".bss"), values)

    def _set(self, prefix: str | tuple[str, ...], values: Mapping[str, int | bytes]) -> None:
        self._live()
        variables = {
            variable.name: (section, variable.offset, variable.size)
            for section, content in self._sections.items()
            if section.startswith(prefix)
            for variable in content.variables
        }
        for name, value in values.items():
            if name not in variables:
                kind = "constant" if prefix == ".rodata" else "variable"
                raise UsageError(
                    f"{self.name} has no {kind} {name}; it has {', '.join(sorted(variables)) or 'none'}"
                )
            section, offset, size = variables[name]
            try:
                if isinstance(value, int):
                    value = int(value).to_bytes(size, sys.byteorder, signed=value < 0)
            except OverflowError:
                raise UsageError(
                    f"{value!r} does not fit {name} of {self.name}, which has {size} bytes"
                ) from None
            if len(value) > size:
                raise UsageError(
                    f"{len(value)} bytes do not fit {name} of {self.name}, which has {size} bytes"
                )
            memory = self.maps[section].initial_value
            memory[offset : offset + size] = value.ljust(size, b"\0")

    def prepare(self, maps: type[Map] = Map) -> PreparedObject:
        """Create the maps and fit the programs to this kernel's types (CO-RE); nothing is verified yet.

        ``maps`` is the class that maps are opened as: by default each as its type's own, with codecs;
        ``RawMap`` spares the time to import and choose them. Takes over this object. Raises
        ObjectPrepareError; ``map`` names a map that can't be created.
        """
        handle = self._live()
        clear_messages()
        result = lib.bpf_object__prepare(handle)
        if result < 0:
            self._raise_prepare(-result)
        return PreparedObject(self, maps)

    def _raise_prepare(self, number: int) -> None:
        said = messages()
        self.close()
        failed = _FAILED_MAP.search(said)
        raise ObjectPrepareError(self.name, errno=number, libbpf=said, map=failed[1] if failed else None)

    def load_all(self) -> LoadedObject:
        """Have libbpf itself do all there is to do, in one step, and keep the object as it made it.

        For what needs libbpf's own loading: struct_ops, arenas, program arrays the object fills. Takes
        over this object. Raises ObjectPrepareError and ProgramLoadError.
        """
        handle = self._live()
        log = ffi.new("char[]", _LOAD_LOG_SIZE)
        for spec in self.programs.values():
            lib.bpf_program__set_log_buf(spec._handle, log, _LOAD_LOG_SIZE)
            if spec.target_was_set:
                spec._apply_target()
        clear_messages()
        result = lib.bpf_object__load(handle)
        if result < 0:
            failed = _FAILED_PROGRAM.search(messages())
            if failed and failed[1] in self.programs:
                said, section = text(log), self.programs[failed[1]].section
                reason = "" if said else libbpf_reason(messages())
                self.close()
                raise ProgramLoadError(failed[1], section=section, errno=-result, log=said, reason=reason)
            self._raise_prepare(-result)
        self._handle = None
        programs = {
            name: Program.from_fd(lib.bpf_program__fd(spec._handle))
            for name, spec in self.programs.items()
            if lib.bpf_program__fd(spec._handle) >= 0
        }
        for name, program in programs.items():
            program.section = self.programs[name].section
            program.expected_attach_type = self.programs[name].expected_attach_type
        maps = open_maps(self.maps.values(), self.btf)
        for name, each in maps.items():
            each.bind(self.maps[name]._handle)
        return LoadedObject(self.name, programs, maps, handle)


class PreparedObject:
    """An object whose maps exist in the kernel and whose programs fit it: here programs can still be patched.

    ``programs`` are those with ``autoload``; ``maps`` are closed with it or handed on by :meth:`load`.
    """

    def __init__(self, opened: OpenedObject, maps: type[Map]) -> None:
        self._handle, opened._handle = opened._handle, None
        self.name = opened.name
        self.maps: Mapping[str, Map] = MappingProxyType(open_maps(opened.maps.values(), opened.btf, maps))
        btf_fd = lib.bpf_object__btf_fd(self._handle)
        self.programs: Mapping[str, PreparedProgram] = MappingProxyType(
            {
                spec.name: prepared_program(
                    spec._handle, opened.btf, license_=opened.license, target=spec.target, btf_fd=btf_fd
                )
                for spec in opened.programs.values()
                if spec.autoload
            }
        )

    def __enter__(self) -> PreparedObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the maps and free the object, unless :meth:`load` has handed them on."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.bpf_object__close(handle)
            close_all(self.maps.values())

    def _live(self) -> CData:
        if self._handle is None:
            raise ValueError(f"{self.name} is closed or was loaded already")
        return self._handle

    def load(self) -> LoadedObject:
        """Load every program as it is. Takes over this object; ProgramLoadError where one is refused."""
        self._live()
        return self.finish(load_together({name: each.load for name, each in self.programs.items()}))

    def finish(self, programs: Mapping[str, Program]) -> LoadedObject:
        """Hand over to a loaded object with programs that were loaded one by one; it owns them from then on.

        What libbpf needed to prepare (its copy of the kernel's types) is freed.
        """
        lib.bpf_object__close(self._live())
        self._handle = None
        return LoadedObject(self.name, programs, self.maps)


class LoadedObject:
    """An object in the kernel: its programs and maps, closed together, programs first."""

    def __init__(
        self, name: str, programs: Mapping[str, Program], maps: Mapping[str, Map], handle: CData = None
    ) -> None:
        self._handle = handle
        self.name = name
        self.programs: Mapping[str, Program] = MappingProxyType(dict(programs))
        self.maps: Mapping[str, Map] = MappingProxyType(dict(maps))

    def __enter__(self) -> LoadedObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close programs and maps. What a link or a pin holds lives on."""
        close_all([*self.programs.values(), *self.maps.values()])
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.bpf_object__close(handle)

    def libbpf_map(self, name: str) -> CData:
        """Return libbpf's own ``struct bpf_map *``, which only :meth:`OpenedObject.load_all` keeps."""
        if self._handle is None:
            raise ValueError(f"{self.name} was not loaded by libbpf or is closed")
        found = lib.bpf_object__find_map_by_name(self._handle, name.encode())
        if not found:
            raise KeyError(name)
        return found

    def memory(self, name: str) -> memoryview:
        """Return the live memory of a mapped map (data section, arena) of an object loaded by libbpf.

        It must not be used once the object is closed.
        """
        size = ffi.new("size_t *")
        pointer = lib.bpf_map__initial_value(self.libbpf_map(name), size)
        if not pointer:
            raise KeyError(name)
        return memoryview(ffi.buffer(pointer, size[0]))


def open_maps(specs: Iterable[MapSpec], btf: Btf, kind: type[Map] = Map) -> dict[str, Map]:
    """Return maps over duplicates of libbpf's file descriptors, so that each has one owner."""
    maps = {}
    for spec in specs:
        fd = lib.bpf_map__fd(spec._handle)
        if spec.autocreate and fd >= 0:
            maps[spec.name] = kind.from_fd(fd)
            maps[spec.name].describe(btf, *spec.type_ids)
    return maps


def close_all(owners: Iterable[Program | Map]) -> None:
    """Close in reverse order, all of them even when one raises."""
    with ExitStack() as stack:
        for owner in owners:
            stack.callback(owner.close)


def _each(following: CData, handle: CData) -> Iterable[CData]:
    each = following(handle, ffi.NULL)
    while each:
        yield each
        each = following(handle, each)
