"""DEVMAP, DEVMAP_HASH, CPUMAP, XSKMAP: packets really go where the map says."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest

from packet_tracer import lab
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.errors import MapError
from packet_tracer.bpf.link import attach_xdp
from packet_tracer.bpf.maps import Cpu, CpuMap, Device, DevMap, DevMapHash, Unsupported, XskMap
from packet_tracer.netns import entered
from tests.kernel.maps.support import PACKET, covers, load_maps, raises_errno, xdp_socket

XDP_TX, XDP_REDIRECT = 3, 4
ETH_P_TEST = 0x88B5  # for local experiments (IEEE 802)


@covers(MapType.DEVMAP, MapType.DEVMAP_HASH)
@pytest.mark.parametrize(("name", "kind"), [("devices", DevMap), ("devices_by_key", DevMapHash)])
def test_a_frame_is_redirected_to_another_interface(name: str, kind: type[Any]) -> None:
    """The router's first interface receives a frame that no protocol knows; the server sees it."""
    with lab.Lab() as network, load_maps("devices", f"to_{name}", "pass", slot=2) as loaded:
        devices: Any = loaded.maps[name]
        assert isinstance(devices, kind)
        program = loaded.programs[f"to_{name}"]
        assert program.test_run(PACKET).return_value == XDP_TX  # nothing there: the program's own default
        towards_client, towards_server = (network.router.ifindex(each) for each in network.router.interfaces)
        with entered(network.router.netns):
            devices[2] = towards_server
            assert devices[2] == Device(towards_server)
            assert list(devices) == [2]
        assert program.test_run(PACKET).return_value == XDP_REDIRECT
        with entered(network.server.netns):
            receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_TEST))
            receiver.bind((network.server.interfaces[0], ETH_P_TEST))
            receiver.settimeout(5)
            # veth takes redirected frames only where its peer runs XDP too.
            peer = attach_xdp(loaded.programs["pass"], network.server.ifindex(network.server.interfaces[0]))
        with entered(network.client.netns):
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sender.bind((network.client.interfaces[0], 0))
        with entered(network.router.netns):
            link = attach_xdp(program, towards_client)
        frame = b"\xff" * 6 + b"\2\0\0\0\0\1" + ETH_P_TEST.to_bytes(2, "big") + b"redirected".ljust(46, b"!")
        with receiver, sender, peer, link:
            sender.send(frame)
            assert receiver.recv(2048) == frame
        del devices[2]
        assert 2 not in devices
        assert program.test_run(PACKET).return_value == XDP_TX


@covers(MapType.DEVMAP, MapType.DEVMAP_HASH)
@pytest.mark.parametrize("kind", [DevMap, DevMapHash])
def test_interfaces_that_are_not_there_are_refused(kind: type[Any]) -> None:
    with kind.create(max_entries=2) as devices:
        raises_errno(MapError, errno.EINVAL, lambda: devices.__setitem__(0, 999_999))
        with pytest.raises(KeyError):
            devices[0]
        devices[1] = 1
        assert devices[1] == Device(1, None)
    with kind.create(max_entries=2, value_size=4) as old:
        old[0] = 1
        assert old[0] == Device(1, None)
        error = raises_errno(MapError, errno.EINVAL, lambda: old.set(1, 1, program=5))
        assert "no room for a program" in str(error)


@covers(MapType.DEVMAP)
def test_slots_of_a_devmap_are_an_array() -> None:
    with DevMap.create(max_entries=2) as devices:
        assert len(devices) == 2
        with pytest.raises(IndexError):
            devices[2]


@covers(MapType.CPUMAP)
def test_a_packet_goes_to_a_cpu_that_has_a_queue() -> None:
    with load_maps("devices", "to_cpus", slot=0) as loaded:
        cpus: Any = loaded.maps["cpus"]
        assert isinstance(cpus, CpuMap)
        program = loaded.programs["to_cpus"]
        assert program.test_run(PACKET).return_value == XDP_TX
        cpus[0] = 192
        assert cpus[0] == Cpu(192)
        assert list(cpus) == [0]
        assert program.test_run(PACKET).return_value == XDP_REDIRECT
        del cpus[0]
        assert program.test_run(PACKET).return_value == XDP_TX
        with pytest.raises(KeyError):
            cpus[0]
        raises_errno(MapError, errno.EOVERFLOW, lambda: cpus.__setitem__(0, 16385))


@covers(MapType.CPUMAP)
def test_a_frame_arrives_by_way_of_another_cpu() -> None:
    with lab.Lab() as network, load_maps("devices", "to_cpus", slot=0) as loaded:
        loaded.maps["cpus"][0] = 64  # type: ignore[index]
        with entered(network.server.netns):
            receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_TEST))
            receiver.bind((network.server.interfaces[0], ETH_P_TEST))
            receiver.settimeout(5)
            link = attach_xdp(
                loaded.programs["to_cpus"], network.server.ifindex(network.server.interfaces[0])
            )
        with entered(network.router.netns):
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sender.bind((network.router.interfaces[1], 0))
        frame = b"\xff" * 6 + b"\2\0\0\0\0\1" + ETH_P_TEST.to_bytes(2, "big") + b"by cpu 0".ljust(46, b"!")
        with receiver, sender, link:
            sender.send(frame)
            assert receiver.recv(2048) == frame


@covers(MapType.XSKMAP)
def test_a_packet_goes_to_a_queue_that_has_a_socket() -> None:
    with load_maps("devices", "to_queues", slot=1) as loaded:
        queues: Any = loaded.maps["queues"]
        assert isinstance(queues, XskMap)
        program = loaded.programs["to_queues"]
        assert program.test_run(PACKET).return_value == XDP_TX
        with xdp_socket() as receiver:
            queues[1] = receiver
            assert program.test_run(PACKET).return_value == XDP_REDIRECT
            del queues[1]
            assert program.test_run(PACKET).return_value == XDP_TX
            queues[1] = receiver
        # The socket is closed, and with it the slot empty.
        assert program.test_run(PACKET).return_value == XDP_TX
        with socket.socket() as other:
            raises_errno(Unsupported, errno.EOPNOTSUPP, lambda: queues.__setitem__(1, other))
        assert not hasattr(queues, "__getitem__")
        error = raises_errno(Unsupported, errno.EOPNOTSUPP, lambda: queues.raw.lookup(struct.pack("=I", 1)))
        assert "xskmap maps do not have it on this kernel" in str(error)
