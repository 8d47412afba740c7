"""SOCKMAP, SOCKHASH, REUSEPORT_SOCKARRAY: data really arrives at the socket that the map says."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from packet_tracer import lab
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import ReuseportSockArray, SockHash, SockMap, Unsupported
from packet_tracer.bpf.maps.codecs import u32
from packet_tracer.netns import entered
from tests.kernel.maps.support import covers, load_maps, raises_errno

SO_COOKIE, SO_ATTACH_REUSEPORT_EBPF = 57, 52


def cookie(one: socket.socket) -> int:
    return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


@pytest.fixture(scope="module")
def network() -> Iterator[lab.Lab]:
    with lab.Lab() as built:
        yield built


def connection(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection within the current namespace."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        server = stack.enter_context(listener.accept()[0])
    for end in (client, server):
        end.settimeout(5)
    return client, server


@covers(MapType.SOCKMAP, MapType.SOCKHASH)
@pytest.mark.parametrize(("name", "kind"), [("by_index", SockMap), ("by_key", SockHash)])
def test_data_arrives_at_another_socket(network: lab.Lab, name: str, kind: type[Any]) -> None:
    with load_maps("sockets", f"redirect_{name}", target=1) as loaded, ExitStack() as stack:
        assert isinstance(loaded.maps[name], kind)
        keys = {"key": u32} if kind is SockHash else {}  # the object does not say what its keys are
        sockets: Any = stack.enter_context(kind.from_map(loaded.maps[name], **keys))
        stack.enter_context(entered(network.client.netns))
        sender, receiver = connection(stack)
        _far, target = connection(stack)
        stack.enter_context(sockets.attach(loaded.programs[f"redirect_{name}"]))
        sockets[0] = receiver
        sockets[1] = target
        assert sockets[1] == cookie(target)
        assert sorted(sockets) == [0, 1]
        sender.sendall(b"where to?")
        assert target.recv(100) == b"where to?"
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(100)
        del sockets[0]
        assert 0 not in sockets
        with pytest.raises(KeyError):
            sockets[0]
        with pytest.raises(KeyError):
            del sockets[3]
        # What is in the map no longer is served no longer.
        receiver.settimeout(5)
        sender.sendall(b"to you")
        assert receiver.recv(100) == b"to you"


@covers(MapType.SOCKMAP, MapType.SOCKHASH)
@pytest.mark.parametrize("kind", [SockMap, SockHash])
def test_sockets_leave_when_they_close_and_others_are_refused(network: lab.Lab, kind: type[Any]) -> None:
    arguments = {"key": u32} if kind is SockHash else {}
    with ExitStack() as stack, kind.create(max_entries=2, **arguments) as sockets:
        stack.enter_context(entered(network.client.netns))
        client, _server = connection(stack)
        sockets[1] = client
        assert list(sockets) == [1]
        client.close()
        assert list(sockets) == []
        with socket.socket() as unconnected:
            raises_errno(Unsupported, errno.EOPNOTSUPP, lambda: sockets.__setitem__(0, unconnected))


@covers(MapType.REUSEPORT_SOCKARRAY)
@pytest.mark.parametrize("target", [0, 1])
def test_a_program_picks_the_socket_of_a_group(network: lab.Lab, target: int) -> None:
    with load_maps("sockets", "pick", target=target) as loaded, ExitStack() as stack:
        group: Any = loaded.maps["group"]
        assert isinstance(group, ReuseportSockArray)
        stack.enter_context(entered(network.client.netns))
        members = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2)]
        raises_errno(MapError, errno.EINVAL, lambda: group.__setitem__(0, members[0]))  # not bound yet
        for member in members:
            member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            member.bind(("127.0.0.1", 0 if member is members[0] else members[0].getsockname()[1]))
            member.settimeout(0.2)
        for index, member in enumerate(members):
            group[index] = member
        raises_errno(MapError, errno.EBUSY, lambda: group.__setitem__(2, members[0]))
        assert [group[0], group[1]] == [cookie(member) for member in members]
        assert list(group) == [0, 1]
        members[0].setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, loaded.programs["pick"].fd)
        for _ in range(4):
            with socket.socket(type=socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", members[0].getsockname())
        received = [_count(member) for member in members]
        assert received == ([4, 0] if target == 0 else [0, 4])


def _count(member: socket.socket) -> int:
    count = 0
    while True:
        try:
            member.recv(10)
        except TimeoutError:
            return count
        count += 1
