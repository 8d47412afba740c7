"""Maps of sockets: SOCKMAP, SOCKHASH, REUSEPORT_SOCKARRAY."""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from packet_tracer.bpf._libbpf import lib
from packet_tracer.bpf.enums import AttachType, MapType
from packet_tracer.bpf.errors import AttachError, MapError
from packet_tracer.bpf.maps.codecs import CodecSpec, codec_of
from packet_tracer.bpf.maps.generic import Map, create_fd
from packet_tracer.bpf.maps.keyed import KeyedMap
from packet_tracer.bpf.maps.objects import ReadableObjectArray
from packet_tracer.bpf.maps.storage import Handle, fd_of
from packet_tracer.bpf.program import Program

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

K = TypeVar("K")


class SocketProgram:
    """A program attached to a map of sockets; a context manager that detaches it."""

    def __init__(self, program: Program, target: Map, attach_type: int) -> None:
        result = lib.bpf_prog_attach(program.fd, target.fd, attach_type, 0)
        if result < 0:
            raise AttachError("sockmap", target.name, errno=-result)
        self._attached: tuple[Program, Map, int] | None = (program, target, attach_type)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach; a second call does nothing."""
        attached, self._attached = self._attached, None
        if attached is not None:
            program, target, attach_type = attached
            result = lib.bpf_prog_detach2(program.fd, target.fd, attach_type)
            if result < 0:
                raise AttachError("sockmap", target.name, errno=-result)


def _attach(target: Map, program: Program, attach_type: int | None) -> SocketProgram:
    kind = program.expected_attach_type if attach_type is None else attach_type
    return SocketProgram(program, target, AttachType.SK_SKB_STREAM_VERDICT if kind is None else kind)


class SockMap(ReadableObjectArray):
    """SOCKMAP: sockets by index, whose data programs parse and redirect (Linux 4.14).

    Only useful with a program: **attach it first**; sockets put in before it are not served. Connected TCP,
    bound UDP (5.8) and Unix stream sockets (5.15) are taken, others refused (EOPNOTSUPP). A slot empties
    itself when its socket closes. ``sockets[0]`` is a socket's cookie (SO_COOKIE), where values are 8 bytes.

    Thread safety: every method may be called from any thread at once.

    >>> with SockMap.create(max_entries=2) as sockets, connection() as (client, server):
    ...     sockets[0] = client
    ...     list(sockets), 1 in sockets
    ([0], False)
    """

    TYPE: ClassVar[MapType] = MapType.SOCKMAP

    @classmethod
    def create(cls, *, max_entries: int, name: str = "", flags: int = 0) -> Self:
        """Create a map with empty slots."""
        return cls(create_fd(MapType.SOCKMAP, 4, 8, max_entries, flags, name))

    def __setitem__(self, index: int, socket: Handle) -> None:
        """Put a socket into a slot; Unsupported where its state or protocol is not taken."""
        raw = struct.pack("=q" if self.value_size == 8 else "=i", fd_of(socket))
        self._update(struct.pack("=I", self._index(index)), raw)

    def __getitem__(self, index: int) -> int:
        """Return the cookie of the socket in a slot; KeyError where it is empty."""
        return self._required(index)

    def __delitem__(self, index: int) -> None:
        """Empty a slot; KeyError where it is empty."""
        try:
            super().__delitem__(index)
        except MapError as error:
            if error.errno == errno.EINVAL:  # what the kernel says of an empty slot here, not ENOENT
                raise KeyError(index) from None
            raise

    def attach(self, program: Program, attach_type: int | None = None) -> SocketProgram:
        """Attach an ``sk_skb`` or ``sk_msg`` program, at the type it was loaded for or at another."""
        return _attach(self, program, attach_type)


class SockHash(KeyedMap[K, int]):
    """SOCKHASH: sockets by key, whose data programs parse and redirect (Linux 4.18).

    Only useful with a program. As :class:`SockMap`, by key.

    Thread safety: every method may be called from any thread at once.

    >>> with SockHash.create(key=u32, max_entries=2) as sockets, connection() as (client, server):
    ...     sockets[7] = client
    ...     list(sockets), 8 in sockets
    ([7], False)
    """

    TYPE: ClassVar[MapType] = MapType.SOCKHASH

    def __init__(self, fd: int, key: CodecSpec[K] | None = None) -> None:
        super().__init__(fd, key)

    @classmethod
    def create(cls, *, key: CodecSpec[K], max_entries: int, name: str = "", flags: int = 0) -> Self:
        """Create an empty map."""
        codec = codec_of(key)
        return cls(create_fd(MapType.SOCKHASH, codec.size, 8, max_entries, flags, name), codec)

    def __getitem__(self, key: K) -> int:
        """Return the cookie of a key's socket; KeyError."""
        found = self._lookup(self.key_codec.encode(key))
        if found is None:
            raise KeyError(key)
        return int.from_bytes(found, sys.byteorder)

    def __setitem__(self, key: K, socket: Handle) -> None:
        """Set a key's socket; MapFull, Unsupported."""
        raw = struct.pack("=q" if self.value_size == 8 else "=i", fd_of(socket))
        self._update(self.key_codec.encode(key), raw)

    def __delitem__(self, key: K) -> None:
        self._delete(key)

    def __contains__(self, key: object) -> bool:
        return self._lookup(self.key_codec.encode(cast("Any", key))) is not None

    def __iter__(self) -> Iterator[K]:
        return iter([self.key_codec.decode(key) for key in self._walk_keys()])

    def __len__(self) -> int:
        """Number of keys, by counting them."""
        return len(self._walk_keys())

    def attach(self, program: Program, attach_type: int | None = None) -> SocketProgram:
        """Attach an ``sk_skb`` or ``sk_msg`` program, at the type it was loaded for or at another."""
        return _attach(self, program, attach_type)


class ReuseportSockArray(ReadableObjectArray):
    """REUSEPORT_SOCKARRAY: which socket of a reuseport group gets a packet (Linux 4.19).

    Only useful to an ``sk_reuseport`` program. Sockets need SO_REUSEPORT and must be bound (UDP) or
    listening (TCP): EINVAL; each can be in one such map once: EBUSY. ``sockets[0]`` is a socket's cookie.

    Thread safety: every method may be called from any thread at once.

    >>> with ReuseportSockArray.create(max_entries=2) as group, reuseport_socket() as receiver:
    ...     group[1] = receiver
    ...     list(group)
    [1]
    """

    TYPE: ClassVar[MapType] = MapType.REUSEPORT_SOCKARRAY

    @classmethod
    def create(cls, *, max_entries: int, name: str = "", flags: int = 0) -> Self:
        """Create a map with empty slots."""
        return cls(create_fd(MapType.REUSEPORT_SOCKARRAY, 4, 8, max_entries, flags, name))

    def __setitem__(self, index: int, socket: Handle) -> None:
        """Put a socket into a slot."""
        raw = struct.pack("=q" if self.value_size == 8 else "=i", fd_of(socket))
        self._update(struct.pack("=I", self._index(index)), raw)

    def __getitem__(self, index: int) -> int:
        """Return the cookie of the socket in a slot; KeyError where it is empty."""
        return self._required(index)
