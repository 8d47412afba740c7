"""STACK_TRACE: call stacks that programs collected."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps.codecs import u32
from packet_tracer.bpf.maps.generic import create_fd
from packet_tracer.bpf.maps.keyed import KeyedMap

if TYPE_CHECKING:
    from typing_extensions import Self

STACK_BUILD_ID = 1 << 5  # BPF_F_STACK_BUILD_ID

_BUILD_ID = struct.Struct("=i20sQ")  # struct bpf_stack_build_id


class Frame(NamedTuple):
    """A frame of a stack: the address, and what it is called (None where nobody knows).

    In a map of build ids (user stacks) ``build_id`` says which file and ``address`` is the offset in it;
    where the kernel could not tell, ``build_id`` is None and ``address`` a plain one.
    """

    address: int
    symbol: str | None = None
    build_id: bytes | None = None


class StackTrace(KeyedMap[int, bytes]):
    """STACK_TRACE: stacks by the id that ``bpf_get_stackid`` returned (Linux 4.6).

    Only a program can fill it; from here stacks are read and removed. Ids are hashes of the stack: with
    BPF_F_REUSE_STACKID an id may come to stand for another stack.

    Thread safety: every method may be called from any thread at once.

    >>> with StackTrace.create(max_entries=16, depth=20) as stacks:
    ...     stacks.depth, list(stacks), 5 in stacks
    (20, [], False)
    """

    TYPE: ClassVar[MapType] = MapType.STACK_TRACE

    def __init__(self, fd: int) -> None:
        super().__init__(fd, u32)

    @classmethod
    def create(cls, *, max_entries: int, depth: int = 127, name: str = "", flags: int = 0) -> Self:
        """Create a map for stacks of at most ``depth`` frames (127 unless the sysctl says more)."""
        frame_size = _BUILD_ID.size if flags & STACK_BUILD_ID else 8
        return cls(create_fd(MapType.STACK_TRACE, 4, depth * frame_size, max_entries, flags, name))

    @property
    def depth(self) -> int:
        """The most frames a stack here can have."""
        return self.value_size // (_BUILD_ID.size if self.flags & STACK_BUILD_ID else 8)

    def __getitem__(self, stack_id: int) -> tuple[int, ...]:
        """Return the addresses of a stack, innermost first; KeyError where there is no such stack."""
        return tuple(frame.address for frame in self.frames(stack_id))

    def __contains__(self, stack_id: object) -> bool:
        return isinstance(stack_id, int) and self._lookup(u32.encode(stack_id)) is not None

    def __delitem__(self, stack_id: int) -> None:
        self._delete(stack_id)

    def __iter__(self) -> Iterator[int]:
        """Yield the ids of the stacks there are."""
        return iter([u32.decode(key) for key in self._walk_keys()])

    def __len__(self) -> int:
        """Number of stacks, by counting them."""
        return len(self._walk_keys())

    def frames(self, stack_id: int, name: Callable[[int], str | None] | None = None) -> list[Frame]:
        """Return a stack's frames, innermost first; KeyError.

        ``name`` says what a kernel address is called, ``"nf_hook_slow+0x42"``, or None.
        """
        raw = self._lookup(u32.encode(stack_id))
        if raw is None:
            raise KeyError(stack_id)
        if self.flags & STACK_BUILD_ID:
            return _with_build_ids(raw)
        addresses = (address for (address,) in struct.iter_unpack("=Q", raw))
        return [Frame(address, name(address) if name else None) for address in addresses if address]


def _with_build_ids(raw: bytearray) -> list[Frame]:
    frames = []
    for status, build_id, offset in _BUILD_ID.iter_unpack(raw):
        if status == 1:  # BPF_STACK_BUILD_ID_VALID
            frames.append(Frame(offset, None, build_id))
        elif status == 2:  # BPF_STACK_BUILD_ID_IP
            frames.append(Frame(offset))
    return frames
