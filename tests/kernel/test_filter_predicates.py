"""The filters beside the expression keep and reject in the kernel what they say."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from packet_tracer import lab
from packet_tracer.bpf.btf import Btf
from packet_tracer.bpf.enums import MapType
from packet_tracer.bpf.maps import RawMap
from packet_tracer.capture import Tracer
from packet_tracer.events import Event
from packet_tracer.filter.addresses import AddressSet
from packet_tracer.filter.predicates import Predicates, cgroup_id
from packet_tracer.lab import Lab
from tests.kernel.capturing import netfilter_links_lacking, trace

PROBES = ["netif_receive_skb", "net_dev_queue", "tc:*", "xdp", "kfree_skb"]


@pytest.fixture(scope="module")
def probes(network: Lab) -> list[str]:
    """All kinds that this kernel has."""
    return PROBES + ["netfilter:*"] * (not netfilter_links_lacking(network.router))


def traffic(network: Lab) -> None:
    for version in (4, 6):
        lab.ping(network.route, version=version, count=2)
        lab.udp_exchange(network.route, version=version, port=53, count=2)
    lab.http(network.route, port=8080, body=3000)
    lab.dropped(network.route, count=2)


def seen(network: Lab, predicates: Predicates, probes: list[str]) -> list[Event]:
    tracer = Tracer(netns=network.router.name, interface=["r0", "r1"], probes=probes, predicates=predicates)
    return trace(tracer, lambda: traffic(network))


@pytest.fixture(scope="module")
def everything(network: Lab, probes: list[str]) -> list[Event]:
    return seen(network, Predicates(), probes)


def test_length(network: Lab, everything: list[Event], probes: list[str]) -> None:
    low, high = 90, 400
    found = seen(network, Predicates(length=(low, high)), probes)
    assert found
    assert all(low <= event.packet.length <= high for event in found)
    expected = {event.probe for event in everything if low <= event.packet.length <= high}
    assert {event.probe for event in found} == expected


@pytest.mark.parametrize("prefixes", [["192.0.2.0/24"], ["2001:db8::/32"]])
def test_addresses(network: Lab, everything: list[Event], probes: list[str], prefixes: list[str]) -> None:
    version = 6 if ":" in prefixes[0] else 4
    found = seen(network, Predicates(addresses=AddressSet.parse(prefixes)), probes)
    assert found
    assert {event.packet.source.version for event in found if event.packet.source} == {version}
    families = {
        event.probe
        for event in everything
        if event.packet.source and event.packet.source.version == version and event.packet.l4_protocol == 17
    }
    assert families
    assert families <= {event.probe for event in found}


def test_addresses_of_nobody(network: Lab, probes: list[str]) -> None:
    assert seen(network, Predicates(addresses=AddressSet.parse(["10.0.0.0/8", "fd00::/8"])), probes) == []


def test_one_address_of_either_side(network: Lab, everything: list[Event], probes: list[str]) -> None:
    server = next(event.packet.destination for event in everything if event.packet.destination_port == 8080)
    found = seen(network, Predicates(addresses=AddressSet.parse([str(server)])), probes)
    sides = {(event.packet.source == server, event.packet.destination == server) for event in found}
    assert sides >= {(True, False), (False, True)}
    assert all(any(side) for side in sides)


def test_a_drop_reason(network: Lab, everything: list[Event], probes: list[str]) -> None:
    drops = {event.drop_reason for event in everything if event.drop_reason}
    if not drops:
        pytest.skip("this kernel tells no drop reasons: c504e5c2f964 (v5.17)")
    numbers = Btf.vmlinux().enum("skb_drop_reason")
    wanted = "NETFILTER_DROP"
    assert wanted in drops
    found = seen(network, Predicates(drop_reasons=(numbers[f"SKB_DROP_REASON_{wanted}"],)), probes)
    assert {event.drop_reason for event in found} == {wanted}
    assert {event.probe for event in found} == {"kfree_skb"}


def test_the_process_that_runs(network: Lab) -> None:
    """What leaves a socket runs in its process, here this one; a process that is nobody sees nothing."""
    with open("/proc/self/comm", encoding="ascii") as file:
        comm = file.read().strip()

    def sent(predicates: Predicates) -> list[Event]:
        tracer = Tracer(netns=network.client.name, probes=["net_dev_queue"], predicates=predicates)
        return trace(tracer, lambda: lab.udp_exchange(network.route, port=53, count=3))

    own = [event for event in sent(Predicates(pids=(os.getpid(),))) if event.tgid == os.getpid()]
    assert own
    assert sent(Predicates(pids=(4_000_000,))) == []
    assert {event.comm for event in sent(Predicates(comms=(comm, "nobody")))} == {comm}
    assert sent(Predicates(comms=("nobody",))) == []


def test_the_cgroup_of_the_socket(network: Lab) -> None:
    with open("/proc/self/cgroup", encoding="ascii") as file:
        paths = [line.split(":", 2)[2].strip() for line in file if line.startswith("0::")]
    root = cgroup_id("/")
    own = cgroup_id(paths[0]) if paths else root

    def sent(*ids: int) -> list[Event]:
        tracer = Tracer(
            netns=network.client.name, probes=["net_dev_queue"], predicates=Predicates(cgroups=ids)
        )
        return trace(tracer, lambda: lab.udp_exchange(network.route, port=53, count=3))

    assert sent(own)
    assert sent(root)  # what is below counts too
    assert sent(1 << 50) == []


def process_time_of(work: Callable[[], object]) -> float:
    """Return the processor's time that it takes, in seconds."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def test_a_hundred_thousand_prefixes_load_in_less_than_a_second() -> None:
    """On an emulated machine before Python's own ipaddress has read them, which takes half as long again."""
    lines = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32" for n in range(90_000)]
    lines += [f"2001:db8:{n:x}::/48" for n in range(10_000)]
    begin = time.process_time()
    found = AddressSet.parse(lines)
    no_preallocation = 1
    tries = {
        name: RawMap.create(MapType.LPM_TRIE, key, 1, entries, flags=no_preallocation, name=name)
        for (name, entries), key in zip(found.sizes().items(), (8, 20), strict=True)
    }
    try:
        found.fill(tries)
        took = time.process_time() - begin
        assert took < 1 or took < process_time_of(lambda: [ip_network(line) for line in lines])
        assert tries["addresses4"].lookup(b"\x20\0\0\0\x0a\0\x01\x02") == b"\1"
        assert tries["addresses4"].lookup(b"\x20\0\0\0\x0b\0\x01\x02") is None
    finally:
        for table in tries.values():
            table.close()
