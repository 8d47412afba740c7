"""Programs and maps of an opened object, still to be changed before they go to the kernel."""

from __future__ import annotations

import errno

from packet_tracer.bpf._libbpf import ffi, lib
from packet_tracer.bpf.enums import MapType, name_of
from packet_tracer.bpf.errors import MapError, describe
from packet_tracer.bpf.library import CData, text
from packet_tracer.bpf.maps import Map
from packet_tracer.bpf.program import section_target
from packet_tracer.errors import BpfError


class ProgramSpec:
    """A program of an opened object."""

    def __init__(self, handle: CData) -> None:
        self._handle = handle
        self.name = text(lib.bpf_program__name(handle))
        self.section = text(lib.bpf_program__section_name(handle))
        self.target = section_target(self.section)
        self.target_was_set = False

    def __repr__(self) -> str:
        return f"<ProgramSpec {self.name!r} {self.section}>"

    @property
    def type(self) -> int:
        """``enum bpf_prog_type``, by the section's name unless set."""
        return lib.bpf_program__type(self._handle)

    def set_type(self, value: int) -> None:
        """Set :attr:`type`."""
        _check(lib.bpf_program__set_type(self._handle, value), f"type of program {self.name}")

    @property
    def expected_attach_type(self) -> int:
        """``enum bpf_attach_type``, by the section's name unless set."""
        return lib.bpf_program__expected_attach_type(self._handle)

    @expected_attach_type.setter
    def expected_attach_type(self, value: int) -> None:
        result = lib.bpf_program__set_expected_attach_type(self._handle, value)
        _check(result, f"attach type of program {self.name}")

    @property
    def autoload(self) -> bool:
        """Whether the program is to be prepared and loaded; off for sections that start with ``?``."""
        return lib.bpf_program__autoload(self._handle)

    @autoload.setter
    def autoload(self, value: bool) -> None:
        _check(lib.bpf_program__set_autoload(self._handle, value), f"autoload of program {self.name}")

    def set_attach_target(self, name: str) -> None:
        """Name the kernel function a tracing program is for: ``name`` or ``module:name``."""
        self.target = name
        self.target_was_set = True

    def _apply_target(self) -> None:
        """Tell libbpf: only where it loads by itself, because it parses the kernel's BTF anew for each."""
        result = lib.bpf_program__set_attach_target(self._handle, 0, (self.target or "").encode())
        _check(result, f"target of program {self.name}")


class MapSpec:
    """A map of an opened object. Setters raise MapError once the object is prepared."""

    def __init__(self, handle: CData, section: str | None) -> None:
        self._handle = handle
        self.name = section or text(lib.bpf_map__name(handle))
        # libbpf forgets these when it creates a map of a type that the kernel takes no BTF for.
        self.type_ids = self.btf_key_type_id, self.btf_value_type_id

    def __repr__(self) -> str:
        return f"<MapSpec {self.name!r} {name_of(MapType, self.type)}>"

    def _check(self, result: int, what: str) -> None:
        if result < 0:
            raise MapError(f"setting {what}", self.name, name_of(MapType, self.type), errno=-result)

    @property
    def type(self) -> int:
        """``enum bpf_map_type``."""
        return lib.bpf_map__type(self._handle)

    def set_type(self, value: int) -> None:
        """Set :attr:`type`."""
        self._check(lib.bpf_map__set_type(self._handle, value), "the type")

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return lib.bpf_map__key_size(self._handle)

    @key_size.setter
    def key_size(self, value: int) -> None:
        self._check(lib.bpf_map__set_key_size(self._handle, value), "the key size")

    @property
    def value_size(self) -> int:
        """Bytes of a value."""
        return lib.bpf_map__value_size(self._handle)

    @value_size.setter
    def value_size(self, value: int) -> None:
        self._check(lib.bpf_map__set_value_size(self._handle, value), "the value size")

    @property
    def max_entries(self) -> int:
        """Elements at most; of a ring buffer its bytes, a power of two and a multiple of the page size."""
        return lib.bpf_map__max_entries(self._handle)

    @max_entries.setter
    def max_entries(self, value: int) -> None:
        self._check(lib.bpf_map__set_max_entries(self._handle, value), "the number of entries")

    @property
    def flags(self) -> int:
        """``BPF_F_*``: :class:`packet_tracer.bpf.enums.MapFlags`."""
        return lib.bpf_map__map_flags(self._handle)

    @flags.setter
    def flags(self, value: int) -> None:
        self._check(lib.bpf_map__set_map_flags(self._handle, value), "the flags")

    @property
    def autocreate(self) -> bool:
        """Whether the map is to be created; a program that uses one that is not can't be loaded."""
        return lib.bpf_map__autocreate(self._handle)

    @autocreate.setter
    def autocreate(self, value: bool) -> None:
        self._check(lib.bpf_map__set_autocreate(self._handle, value), "autocreate")

    @property
    def btf_key_type_id(self) -> int:
        """Id of the key's type in the object's BTF, 0 where it has none."""
        return lib.bpf_map__btf_key_type_id(self._handle)

    @property
    def btf_value_type_id(self) -> int:
        """Id of the value's type in the object's BTF, 0 where it has none."""
        return lib.bpf_map__btf_value_type_id(self._handle)

    @property
    def initial_value(self) -> memoryview:
        """The bytes a data section starts with, writable until prepared. ValueError where it has none."""
        size = ffi.new("size_t *")
        pointer = lib.bpf_map__initial_value(self._handle, size)
        if not pointer:
            raise ValueError(f"map {self.name} has no initial value")
        return memoryview(ffi.buffer(pointer, size[0])).cast("B")

    def set_inner(self, template: Map) -> None:
        """Give a map of maps the template of its inner maps; it may be closed once the object is prepared."""
        self._check(lib.bpf_map__set_inner_map_fd(self._handle, template.fd), "the inner map")

    def reuse(self, existing: Map) -> None:
        """Use a map that exists instead of creating one: how several objects share one. It keeps its owner.

        Raises MapError EINVAL where the map is not of the type and sizes that the object says.
        """
        # libbpf would take over whatever the existing map has.
        mine = self.type, self.key_size, self.value_size
        if (existing.type, existing.key_size, existing.value_size) != mine:
            raise MapError("sharing", self.name, name_of(MapType, self.type), errno=errno.EINVAL)
        self._check(lib.bpf_map__reuse_fd(self._handle, existing.fd), "the map to share")


def _check(result: int, what: str) -> None:
    if result < 0:
        raise BpfError(f"the {what} can't be set: {describe(-result)}", errno=-result)
