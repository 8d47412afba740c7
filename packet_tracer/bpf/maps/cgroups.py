"""CGROUP_ARRAY, and the cgroup storages tied to attached programs: CGROUP_STORAGE, PERCPU_CGROUP_STORAGE."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps.codecs import Buffer, Codec, CodecSpec, codec_of, u64
from packet_tracer.bpf.maps.codecs.base import refuse
from packet_tracer.bpf.maps.generic import create_fd
from packet_tracer.bpf.maps.keyed import KeyedMap
from packet_tracer.bpf.maps.objects import ObjectArray
from packet_tracer.bpf.maps.percpu import PerCpuCodec, PerCpuValues
from packet_tracer.bpf.maps.storage import Handle

if TYPE_CHECKING:
    from typing_extensions import Self

V = TypeVar("V")
D = TypeVar("D")


class CgroupArray(ObjectArray):
    """CGROUP_ARRAY: cgroups by index, for ``bpf_current_task_under_cgroup`` and the like (Linux 4.8).

    Only useful to a program. A slot takes a descriptor of a cgroup's directory, or its path; EBADF for a
    cgroup of the first version. The kernel does not tell what is in it.

    Thread safety: every method may be called from any thread at once.

    >>> with CgroupArray.create(max_entries=2) as groups, cgroup_directory() as directory:
    ...     groups[0] = directory
    ...     del groups[0]
    """

    TYPE: ClassVar[MapType] = MapType.CGROUP_ARRAY

    @classmethod
    def create(cls, *, max_entries: int, name: str = "", flags: int = 0) -> Self:
        """Create a map with empty slots."""
        return cls(create_fd(MapType.CGROUP_ARRAY, 4, 4, max_entries, flags, name))

    def __setitem__(self, index: int, cgroup: Handle | Path | str) -> None:
        """Put a cgroup into a slot, by its directory."""
        if not isinstance(cgroup, (Path, str)):
            super().__setitem__(index, cgroup)
            return
        fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            super().__setitem__(index, fd)
        finally:
            os.close(fd)


class CgroupKey(NamedTuple):
    """Key of a cgroup storage: the cgroup's id (inode number of its directory), and the attach type."""

    cgroup_id: int
    attach_type: int = 0


class CgroupKeyCodec(Codec[CgroupKey]):
    """``struct bpf_cgroup_storage_key`` (16 bytes), or the id alone (8 bytes) for storage shared by types."""

    alignment = 8

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, value: CgroupKey) -> bytes:
        try:
            return struct.pack("=QI4x", *value)[: self.size]
        except (struct.error, TypeError):
            raise refuse(self, value) from None

    def decode(self, data: Buffer) -> CgroupKey:
        self._check(data)
        return CgroupKey(*struct.unpack("=QI4x", bytes(data).ljust(16, b"\0")))

    def describe(self) -> str:
        return "a CgroupKey(cgroup_id, attach_type)"


class CgroupStorageBase(KeyedMap[CgroupKey, V]):
    """What the storages of attached programs share.

    Attaching a program that uses the map makes an entry, of zeros, detaching removes it: from here entries
    are read and changed, not made (KeyError) or removed.

    Thread safety: every method may be called from any thread at once.
    """

    def __init__(self, fd: int, value: CodecSpec[V] | None = None) -> None:
        super().__init__(fd, None, value)
        self.__dict__["key_codec"] = CgroupKeyCodec(self.key_size)

    @classmethod
    def create(cls, *, value: CodecSpec[Any], per_attach_type: bool = True, name: str = "") -> Self:
        """Create a map; entries by cgroup and attach type, or by cgroup alone (Linux 5.9)."""
        assert cls.TYPE is not None
        codec = codec_of(value)
        key_size = 16 if per_attach_type else u64.size
        return cls(create_fd(cls.TYPE, key_size, codec.size, 0, 0, name), codec)

    def __getitem__(self, key: CgroupKey) -> V:
        """Return the value of an attachment; KeyError where there is none."""
        return self._get(key)

    def __setitem__(self, key: CgroupKey, value: V) -> None:
        """Set the value of an attachment; KeyError where there is none."""
        if self._set(key, value, flags=2):  # BPF_EXIST: what the kernel does anyway
            raise KeyError(key)

    def __contains__(self, key: CgroupKey) -> bool:
        return self._lookup(self.key_codec.encode(key)) is not None

    def items(self) -> list[tuple[CgroupKey, V]]:
        """Return all attachments and their values."""
        keys, values = self._read_all()
        return list(zip(keys, values, strict=True))


class CgroupStorage(CgroupStorageBase[V]):
    """CGROUP_STORAGE: a value per cgroup that a program is attached to (Linux 4.19).

    Needs an attached program. Superseded by :class:`~packet_tracer.bpf.maps.storage.CgrpStorage`.

    >>> with CgroupStorage.create(value=u64) as counts:
    ...     counts.items()
    []
    """

    TYPE: ClassVar[MapType] = MapType.CGROUP_STORAGE


class PerCpuCgroupStorage(CgroupStorageBase[PerCpuValues[V]], Generic[V]):
    """PERCPU_CGROUP_STORAGE: a value per CPU and cgroup that a program is attached to (Linux 4.20).

    Needs an attached program. Superseded by :class:`~packet_tracer.bpf.maps.storage.CgrpStorage`.

    >>> with PerCpuCgroupStorage.create(value=u64) as counts:
    ...     counts.items()
    []
    """

    TYPE: ClassVar[MapType] = MapType.PERCPU_CGROUP_STORAGE

    def _wrap_value(self, codec: Codec[Any]) -> Codec[PerCpuValues[V]]:
        return PerCpuCodec(codec)
