"""STRUCT_OPS: a congestion control in BPF is selectable by its name, and used."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packet_tracer import lab
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.maps import Map, StructOps
from packet_tracer.netns import entered
from tests.kernel.maps.support import covers, load_maps, raises_errno

NAME = "ptrace_test"
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


@pytest.fixture
def network() -> Iterator[lab.Lab]:
    with lab.Lab() as built:
        yield built


@covers(MapType.STRUCT_OPS)
def test_a_congestion_control_is_selectable_and_used(network: lab.Lab) -> None:
    with load_maps("struct_ops") as loaded:
        table: Any = loaded.maps["ptrace_cc"]
        assert isinstance(table, StructOps)
        assert table.state == "init"
        assert NAME not in AVAILABLE.read_text().split()
        with entered(network.client.netns):
            with table.register():
                assert table.state == "in use"
                assert NAME in AVAILABLE.read_text().split()
                with socket.create_server(("127.0.0.1", 0)) as listener:
                    client = socket.socket()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, NAME.encode())
                    client.connect(listener.getsockname())
                    server = listener.accept()[0]
                with client, server:
                    chosen = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                    assert chosen.rstrip(b"\0").decode() == NAME
                    for _ in range(20):
                        client.sendall(b"x" * 1000)
                        assert server.recv(2000)
            assert NAME not in AVAILABLE.read_text().split()
            with socket.socket() as late, pytest.raises(OSError, match="No such file"):
                late.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, NAME.encode())
        acknowledged: Any = loaded.maps[".bss"]
        assert acknowledged[0].acknowledged > 0


@covers(MapType.STRUCT_OPS)
def test_only_its_object_can_register_it() -> None:
    with load_maps("struct_ops") as loaded, Map.from_id(loaded.maps["ptrace_cc"].id) as same:
        assert isinstance(same, StructOps)
        error = raises_errno(MapError, errno.EINVAL, same.register)
        assert "load_all()" in str(error)
        assert not hasattr(same, "create")
