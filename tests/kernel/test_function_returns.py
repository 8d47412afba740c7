"""What functions return: by each backend that can tell, of the packet that they were called with."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from packet_tracer import lab
from packet_tracer.errors import PtraceError
from packet_tracer.events import Event
from packet_tracer.events._layout import Hook
from packet_tracer.lab import Lab
from packet_tracer.lab.commands import run
from packet_tracer.probes.function_probes import Backend
from tests.kernel.capturing import udp_socket
from tests.kernel.test_function_capture import COUNT, REDIRECTED, redirected, redirecting, traced


def entries(events: list[Event]) -> list[Event]:
    return [event for event in events if event.hook == Hook.FUNCTION]


def returns(events: list[Event]) -> list[Event]:
    return [event for event in events if event.hook == Hook.FUNCTION_RETURN]


def test_returns(network: Lab, returning_backend: Backend) -> None:
    """A return carries the packet of its call, what was returned, and the time inside."""

    def traffic() -> None:
        lab.ping(network.route, count=1)
        lab.dropped(network.route, count=1)

    functions = ["ip_rcv", "nf_hook_slow"]
    events = traced(network.router, functions, traffic, returns=True, backend=returning_backend)
    ends = returns(events)
    assert Counter(f"{one.probe} returns" for one in entries(events)) == Counter(one.probe for one in ends)
    assert Counter(one.packet_id for one in entries(events)) == Counter(one.packet_id for one in ends)
    for end in ends:
        assert end.duration_ns
        assert end.packet.source is not None
    # Ints: -EPERM, and not 4294967295. nf_hook_slow() says 1 where a packet may go on.
    values = [end.return_value for end in ends if end.probe == "ip_rcv returns"]
    assert values[:2] == [0, 0]
    hooks = [end.return_value for end in ends if end.probe == "nf_hook_slow returns"]
    assert set(hooks) == {1, -errno.EPERM}
    assert values[2:] == [-errno.EPERM]


def test_of_functions_that_take_xdp_buffers(network: Lab, returning_backend: Backend) -> None:
    with redirecting(network):
        events = traced(
            network.router,
            ["xdp_do_redirect"],
            lambda: redirected(network),
            filter=f"udp dst port {REDIRECTED}",
            returns=True,
            backend=returning_backend,
        )
    assert [event.probe for event in events] == ["xdp_do_redirect", "xdp_do_redirect returns"] * COUNT
    for event in returns(events):
        assert (event.return_value, event.packet.destination_port) == (0, REDIRECTED)
        assert event.duration_ns


@contextmanager
def device_upon_device(network: Lab) -> Iterator[str]:
    """A VLAN device upon the client's link; yields the address of a neighbour behind it."""
    address = "203.0.113.2"
    commands = (
        "link add link c0 name c0.77 type vlan id 77",
        "address add 203.0.113.1/24 dev c0.77",
        "link set c0.77 up",
        f"neighbour add {address} lladdr 02:00:00:00:01:01 dev c0.77",
    )
    try:
        run(["ip", *commands[0].split()], "", network.client.netns)
    except PtraceError as error:
        pytest.skip(f"no VLAN devices: {error}")
    try:
        for command in commands[1:]:
            run(["ip", *command.split()], "", network.client.netns)
        yield address
    finally:
        run(["ip", "link", "delete", "c0.77"], "", network.client.netns)


def test_a_call_inside_of_a_call(network: Lab, returning_backend: Backend) -> None:
    """A device upon another one queues the same skb again before the first call has returned."""
    with device_upon_device(network) as address, udp_socket(network.client, (address, 7)) as sender:
        events = traced(
            network.client,
            ["__dev_queue_xmit"],
            lambda: sender.send(b"in and in again"),
            filter="udp port 7",
            returns=True,
            backend=returning_backend,
        )
    seen = [(event.probe, event.interface) for event in events]
    name = "__dev_queue_xmit"
    assert seen == [(name, "c0.77"), (name, "c0"), (f"{name} returns", "c0"), (f"{name} returns", "c0.77")]
    inner, outer = returns(events)
    assert 0 < inner.duration_ns < outer.duration_ns
    assert len({event.packet_id for event in events}) == 1


def test_what_does_not_match_does_not_return(network: Lab, returning_backend: Backend) -> None:
    events = traced(
        network.router,
        ["ip_rcv", "ip_output"],
        lambda: lab.ping(network.route, count=COUNT),
        filter="icmp[icmptype] == icmp-echoreply",
        returns=True,
        backend=returning_backend,
    )
    assert Counter(event.probe for event in events) == {
        "ip_rcv": COUNT,
        "ip_rcv returns": COUNT,
        "ip_output": COUNT,
        "ip_output returns": COUNT,
    }
    assert {event.packet.icmp_type for event in events} == {0}


def test_many_functions(network: Lab, returning_backend: Backend) -> None:
    """Each call that had an event has its return, on both CPUs, in the right order."""
    functions = ["ip_rcv*", "ip_local*", "ip_forward*", "ip_output", "ip_finish_output*", "udp_*rcv*"]

    def traffic() -> None:
        lab.ping(network.route, count=COUNT)
        lab.udp_exchange(network.route)
        lab.http(network.route)

    events = traced(network.router, functions, traffic, returns=True, backend=returning_backend)
    assert len({event.probe for event in entries(events)}) >= 5
    assert Counter((f"{one.probe} returns", one.packet_id) for one in entries(events)) == Counter(
        (one.probe, one.packet_id) for one in returns(events)
    )
