"""The lab comes up, carries every kind of traffic, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from packet_tracer import lab
from packet_tracer.errors import NotSupportedError, PtraceError, UsageError
from packet_tracer.lab import commands, topology
from packet_tracer.netns import InterfaceNames, Netns, current, entered, interfaces, resolve

ROOT = Path(__file__).parents[2]

HOLD = """
import sys, time
from packet_tracer import lab
print("ready", flush=True)
with lab.Lab() as network:
    print(*(node.name for node in network.nodes), flush=True)
    time.sleep(30)
"""


def namespaces_of(pid: int) -> list[str]:
    directory = Path("/run/netns")
    return sorted(path.name for path in directory.glob(f"ptrace-{pid}-*")) if directory.exists() else []


@pytest.fixture(scope="module")
def network() -> Iterator[lab.Lab]:
    with lab.Lab() as built:
        yield built


def test_it_is_quick_and_leaves_nothing() -> None:
    before, own = set(namespaces_of(os.getpid())), interfaces()
    started = time.monotonic()
    with lab.Lab() as network:
        took = time.monotonic() - started
        assert len(set(namespaces_of(os.getpid())) - before) == 3
        assert {node.role for node in network.nodes} == {"client", "router", "server"}
        assert interfaces() == own
    assert set(namespaces_of(os.getpid())) == before
    assert interfaces() == own
    started = time.monotonic()
    commands.ip([])
    one_command = time.monotonic() - started  # long on an emulated machine
    assert took < max(1.0, 100 * one_command)


def test_two_at_once_do_not_meet(network: lab.Lab) -> None:
    with lab.Lab() as other:
        assert {node.netns.inode for node in network.nodes}.isdisjoint(
            node.netns.inode for node in other.nodes
        )
        assert lab.ping(other.route) == lab.ping(network.route) == 1


@pytest.mark.parametrize("version", [4, 6])
def test_traffic(network: lab.Lab, version: topology.Version) -> None:
    route = network.route
    assert lab.http(route, version=version, body=3000) > 3000
    assert lab.bulk(route, version=version, size=300_000) == 300_000
    assert lab.ping(route, version=version, count=3) == 3
    assert lab.udp_exchange(route, version=version, count=2) == 2
    assert lab.fragments(route, version=version, size=4000) == 4000
    assert lab.refused(route, version=version)
    assert lab.closed_udp(route, version=version)


def counters(node: lab.Node, interface: str) -> dict[str, int]:
    with entered(node.netns), open("/proc/thread-self/net/dev") as file:
        line = next(line for line in file if line.strip().startswith(f"{interface}:"))
    values = line.partition(":")[2].split()
    return {"received": int(values[1]), "sent": int(values[9])}


def test_nothing_is_on_the_wire_unasked() -> None:
    with lab.Lab() as network:
        listeners = []
        for node in network.nodes:
            with entered(node.netns):
                listeners.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        time.sleep(0.5)
        heard = []
        for listener in listeners:
            with listener:
                listener.setblocking(False)
                with suppress(BlockingIOError):
                    heard.append(listener.recv(2000).hex())
        assert heard == []


@pytest.mark.parametrize("version", [4, 6])
def test_the_rule_drops_and_nothing_else_is_on_the_wire(network: lab.Lab, version: topology.Version) -> None:
    before, beyond = counters(network.router, "r0"), counters(network.router, "r1")
    assert lab.dropped(network.route, version=version, count=5) == 5
    assert lab.dropped(network.route, version=version, protocol="tcp", wait=0.1) == 1
    after = counters(network.router, "r0")
    assert after["received"] - before["received"] == 6
    assert after["sent"] == before["sent"]
    assert counters(network.router, "r1") == beyond


def test_count_is_bounded(network: lab.Lab) -> None:
    with pytest.raises(ValueError, match="count"):
        lab.ping(network.route, count=1_000_000)


def test_mtu_and_offloads() -> None:
    with lab.Lab(mtu=9000, offloads=False) as network:
        before = counters(network.client, "c0")
        assert lab.ping(network.route, size=8900) == 1
        assert counters(network.client, "c0")["sent"] - before["sent"] == 1
        before = counters(network.client, "c0")
        assert lab.bulk(network.route, size=90_000) == 90_000
        assert counters(network.client, "c0")["sent"] - before["sent"] >= 10  # no packet above the MTU
        network.set_mtu(1500)
        before = counters(network.client, "c0")
        assert lab.ping(network.route, size=2000) == 1
        assert counters(network.client, "c0")["sent"] - before["sent"] == 2


@pytest.mark.parametrize("version", [4, 6])
def test_tagged_frames(network: lab.Lab, version: topology.Version) -> None:
    before = counters(network.router, "r0")
    with entered(network.router.netns):
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with listener:
        listener.settimeout(2)
        assert lab.vlan_tagged(network, vlan=77, version=version, count=2) == 2
        assert counters(network.router, "r0")["received"] - before["received"] == 2
        assert len(listener.recv(2000)) >= 60 - 14


def test_vlan_device() -> None:
    with lab.Lab() as network:
        try:
            route = network.add_vlan(7)
        except NotSupportedError as error:
            pytest.skip(f"no VLAN devices: {error}")
        assert lab.ping(route) == lab.ping(route, version=6) == 1


def test_an_exception_leaves_nothing() -> None:
    before = namespaces_of(os.getpid())
    with pytest.raises(ZeroDivisionError), lab.Lab():
        raise ZeroDivisionError
    assert namespaces_of(os.getpid()) == before


def test_a_failure_while_building_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_RULES", "this is not nftables")
    before = namespaces_of(os.getpid())
    with pytest.raises(PtraceError, match="nft"), lab.Lab():
        pass
    assert namespaces_of(os.getpid()) == before


@pytest.mark.parametrize("delay", [None, 0.0, 0.01, 0.02, 0.03])
def test_interrupted(delay: float | None) -> None:
    """SIGINT at the lab's side and the child processes', as Ctrl-C sends it; also while it is being built."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        if delay is None:
            assert len(process.stdout.readline().split()) == 3
            assert len(namespaces_of(process.pid)) == 3
        else:
            time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        error = process.stderr.read()
        assert process.wait(10) != 0
        assert "KeyboardInterrupt" in error
    assert namespaces_of(process.pid) == []


def test_leftovers_of_a_killed_process_are_reaped() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        names = process.stdout.readline().split()
        process.kill()
        process.wait()
    try:
        assert set(namespaces_of(process.pid)) == set(names)
    finally:
        reaped = lab.reap()
    assert set(names) <= set(reaped)
    assert namespaces_of(process.pid) == []


def test_reaping_spares_the_living(network: lab.Lab) -> None:
    lab.reap()
    assert {node.name for node in network.nodes} <= set(namespaces_of(os.getpid()))
    assert lab.ping(network.route) == 1


def test_namespace_is_found_by_name_path_and_process(network: lab.Lab) -> None:
    by_name = resolve(network.client.name)
    assert by_name == network.client.netns
    by_path = resolve(f"/run/netns/{network.client.name}")
    assert by_name is not None
    assert by_path is not None
    assert (by_path.inode, by_path.cookie) == (by_name.inode, by_name.cookie)
    assert by_name.cookie != current().cookie or by_name.cookie is None
    own = resolve(f"pid:{os.getpid()}")
    assert own is not None
    assert own.inode == current().inode
    assert resolve("all") is None
    with pytest.raises(UsageError, match=network.client.name):
        resolve("no-such-namespace")
    with entered(network.client.netns):
        assert current().inode == by_name.inode
    assert current().inode == own.inode


def test_a_gone_namespace_is_a_usage_error() -> None:
    with lab.Lab() as network:
        gone = network.client.netns
    with pytest.raises(UsageError, match="no network namespace"), entered(gone):
        pass


def test_interface_names_of_namespaces_without_processes_and_born_later(network: lab.Lab) -> None:
    names = InterfaceNames(interval=0.0)
    names.refresh()
    inode = network.router.netns.inode
    index = network.router.ifindex("r1")
    assert names.interface_name(inode, index) == "r1"
    assert names.netns_name(inode) == network.router.name
    assert names.netns_name(current().inode) is None
    with lab.Lab() as later:
        inode, index = later.server.netns.inode, later.server.ifindex("s0")
        assert names.interface_name(inode, index) == "s0"
        commands.ip(["link add dummy9 type veth peer name dummy8"], later.server.netns)
        born = later.server.ifindex("dummy9")
        assert names.interface_name(inode, born) == "dummy9"
    assert names.interface_name(inode, index) == "s0"  # gone, and still known
    assert names.interface_name(inode, 12345) is None
    assert names.interface_name(1, 1) is None


def test_misses_are_rate_limited(network: lab.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    names = InterfaceNames(interval=60.0)
    names.add(network.client.netns)
    reads: list[Netns] = []

    def read(netns: Netns) -> dict[int, str]:
        reads.append(netns)
        return {}

    monkeypatch.setattr("packet_tracer.netns.interfaces", read)
    for _ in range(100):
        assert names.interface_name(network.client.netns.inode, 4321) is None
    assert len(reads) == 1  # it may have been born after the last look


def test_a_namespace_whose_process_has_gone_is_found_by_another(network: lab.Lab) -> None:
    """The way in was /proc/PID/ns/net of a process that has ended; the namespace lives on."""
    names = InterfaceNames(interval=0.0, max_age=0.0)
    with entered(network.client.netns):
        child = subprocess.Popen(["sleep", "100"])
    found = network.client.netns
    names.add(Netns(found.inode, f"/proc/{child.pid}/ns/net", f"pid:{child.pid}"))
    child.kill()
    child.wait()
    commands.ip(["link add later0 type veth peer name later1"], network.client.netns)
    try:
        assert names.interface_name(found.inode, network.client.ifindex("later0")) == "later0"
        assert names.netns_name(found.inode) == f"pid:{child.pid}"
    finally:
        commands.ip(["link delete later0"], network.client.netns)
