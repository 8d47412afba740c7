"""Kernel functions as probes: each backend sees exactly what was sent, however the packet is handed over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from packet_tracer import lab
from packet_tracer.bpf import link as links
from packet_tracer.bpf.btf import Btf, Kind
from packet_tracer.capture import Tracer
from packet_tracer.errors import NotSupportedError, UsageError
from packet_tracer.events import Event
from packet_tracer.events._layout import Hook
from packet_tracer.lab import Lab, Node
from packet_tracer.lab.commands import run
from packet_tracer.netns import entered
from packet_tracer.probes.function_backends import FunctionAttacher, may_trace_functions
from packet_tracer.probes.function_probes import BACKENDS, Backend, number
from packet_tracer.probes.functions import FunctionTable
from packet_tracer.probes.session import ProbeSession
from packet_tracer.probes.setup import KernelSetup
from packet_tracer.probes.stages import stage_of
from tests.kernel.capturing import trace, udp_socket
from tests.kernel.loading import load

COUNT = 3
REDIRECTED = 7104  # tests/bpf/traced.bpf.c


def helpers() -> set[str]:
    """The BPF helpers that this kernel has."""
    return {name.removeprefix("BPF_FUNC_") for name in Btf.vmlinux().enum("bpf_func_id")}


def traced(node: Node, functions: list[str], traffic: Callable[[], object], **options: object) -> list[Event]:
    """Return what functions see of traffic in a node's namespace; nothing may be lost, nothing left out."""
    tracer = Tracer(netns=node.name, functions=functions, **options)  # type: ignore[arg-type]
    try:
        events = trace(tracer, traffic)
    except NotSupportedError as error:
        pytest.skip(str(error))
    assert not tracer.skipped
    for counters in tracer.stats().values():
        assert (counters.kept, counters.lost_ring) == (counters.seen, 0)
    return events


def test_sees_what_was_sent(network: Lab, backend: Backend) -> None:
    """As first and as third argument, and not what other namespaces handle."""
    functions = ["ip_rcv", "ip_output"]
    events = traced(network.server, functions, lambda: lab.ping(network.route, count=COUNT), backend=backend)
    seen = Counter((event.probe, event.packet.icmp_type) for event in events)
    assert seen == {("ip_rcv", 8): COUNT, ("ip_output", 0): COUNT}
    numbers = [event.packet.icmp_sequence for event in events if event.probe == "ip_rcv"]
    assert numbers == list(range(1, COUNT + 1))
    assert len({event.packet_id for event in events}) == 2 * COUNT
    assert {event.hook for event in events} == {Hook.FUNCTION}


def test_const_skb(network: Lab, backend: Backend) -> None:
    """tcp_ack() takes a `const struct sk_buff *` as its second argument."""
    events = traced(network.server, ["tcp_ack"], lambda: lab.http(network.route), backend=backend)
    assert events
    assert {event.packet.destination_port for event in events} == {80}


def test_returned_skb(network: Lab, backend: Backend) -> None:
    """__ip_make_skb() takes no packet and returns one: echo requests of a raw socket, and replies."""
    events = traced(
        network.server,
        ["__ip_make_skb"],
        lambda: lab.ping(network.route, count=COUNT),
        backend=backend,
    )
    assert [event.packet.icmp_type for event in events] == [0] * COUNT
    assert {event.hook for event in events} == {Hook.FUNCTION_RETURN}


def test_pointer_to_skb(network: Lab, backend: Backend) -> None:
    """vlan_do_receive() takes a `struct sk_buff **`; a trampoline hands it over since Linux 5.17."""
    try:
        tracer = Tracer(netns=network.router.name, functions="vlan_do_receive", backend=backend)
    except UsageError as error:
        pytest.skip(f"no VLAN devices: {error}")
    if backend == "fentry" and "get_func_arg" not in helpers():
        with pytest.raises(NotSupportedError, match=r"fentry: .*vlan_do_receive"):
            tracer.start()
        return
    try:
        events = trace(tracer, lambda: lab.vlan_tagged(network, vlan=77, count=COUNT))
    except NotSupportedError as error:
        pytest.skip(str(error))
    assert [event.packet.destination_port for event in events] == [7] * COUNT
    assert {event.packet.vlan and event.packet.vlan.id for event in events} == {77}


@contextmanager
def redirecting(network: Lab) -> Iterator[None]:
    """By XDP the router sends UDP datagrams to a port to its other link, where the receiver has XDP too."""
    with ExitStack() as stack:
        target = network.router.ifindex("r1")
        loaded = stack.enter_context(load("traced", ["traced_xdp", "traced_untyped"], target_ifindex=target))
        for node, interface, name in (
            (network.router, "r0", "traced_xdp"),
            (network.server, "s0", "traced_untyped"),
        ):
            with entered(node.netns):
                program = loaded.programs[name]
                stack.enter_context(links.attach_xdp(program, node.ifindex(interface), mode="native"))
        yield


def redirected(network: Lab) -> None:
    with udp_socket(network.client, (network.route.server_addresses[4], REDIRECTED)) as sender:
        for _ in range(COUNT):
            sender.send(b"redirected")
            time.sleep(0.002)


def test_xdp_buffers(network: Lab, backend: Backend) -> None:
    """xdp_do_redirect() takes an xdp_buff, dev_xdp_enqueue() the frame made of it (a buff before 5.18)."""
    with redirecting(network):
        events = traced(
            network.router,
            ["xdp_do_redirect", "dev_xdp_enqueue"],
            lambda: redirected(network),
            backend=backend,
            filter=f"udp dst port {REDIRECTED}",
            snaplen=64,
        )
    seen = Counter(event.probe for event in events)
    assert seen == {"xdp_do_redirect": COUNT, "dev_xdp_enqueue": COUNT}
    for event in events:
        assert event.hook == Hook.FUNCTION
        assert (event.netns.inode, event.interface) == (network.router.netns.inode, "r0")
        assert (event.length, event.packet.destination_port) == (14 + 20 + 8 + 10, REDIRECTED)
        assert event.data.endswith(b"redirected")
        assert event.mark is None
    ids = [event.packet_id for event in events if event.probe == "xdp_do_redirect"]
    assert len(set(ids)) == COUNT
    assert [event.packet_id for event in events if event.probe == "dev_xdp_enqueue"] == ids


@pytest.mark.requires("fentry")
@pytest.mark.parametrize("follow", [None, False])
def test_follows_what_matched_once(network: Lab, follow: bool | None) -> None:
    """With a filter that is the default: the address it matched by is gone after the router's prerouting."""
    port, translated = 7001, 7002
    rule = f"udp dport {port} dnat to 198.51.100.2:{translated}"
    chain = f"chain prerouting {{ type nat hook prerouting priority dstnat; {rule}; }}"
    rules = f"table ip follow {{ {chain}; }}"
    run(["nft", "-f", "-"], rules, network.router.netns)

    def traffic() -> None:
        with udp_socket(network.server) as receiver:
            receiver.bind(("198.51.100.2", translated))
            receiver.settimeout(2)
            with udp_socket(network.client, ("198.51.100.2", port)) as sender:
                sender.send(b"followed")
            assert receiver.recv(100) == b"followed"

    try:
        events = traced(
            network.router, ["ip_rcv", "ip_output"], traffic, filter=f"udp dst port {port}", follow=follow
        )
    finally:
        run(["nft", "delete", "table", "ip", "follow"], "", network.router.netns)
    seen = [(event.probe, event.packet.destination_port) for event in events]
    assert seen == [("ip_rcv", port)] + [("ip_output", translated)] * (follow is None)
    assert len({event.packet_id for event in events}) == 1


def test_refused_function_is_left_out_and_named(network: Lab, backend: Backend) -> None:
    (real,) = FunctionTable.read().select(["ip_rcv"])
    # By name a variable, by type a function without arguments, whose code is gone.
    gone = Btf.vmlinux().find("start_kernel", Kind.FUNCTION)
    data = real._replace(name="jiffies", address=0, btf_id=gone)
    setup = KernelSetup(
        probes=(), functions=number([real, data]), backend=backend, netns=(network.server.netns,)
    )
    try:
        with ProbeSession(setup) as session:
            assert list(session.skipped) == ["jiffies"]
            assert session.skipped["jiffies"]
            assert any(note.startswith(f"1 functions by {backend}, 1 left out") for note in session.notes)
    except NotSupportedError as error:
        pytest.skip(str(error))


def test_stacks(network: Lab, backend: Backend) -> None:
    """Each event has the stack it happened on, by name, and none is lost unsaid."""
    tracer = Tracer(netns=network.server.name, functions="icmp_rcv", backend=backend, stacks=True)
    try:
        with tracer:
            lab.ping(network.route, count=COUNT)
            time.sleep(0.05)
            tracer.stop()
            events = list(tracer.events())
            stacks = [tracer.stack(event.stack_id) for event in events if event.stack_id is not None]
    except NotSupportedError as error:
        pytest.skip(str(error))
    assert len(events) == COUNT
    assert len(stacks) + tracer.stats()["icmp_rcv"].lost_stack == COUNT
    assert len(stacks) == COUNT
    for stack in stacks:
        assert any(frame.startswith(("ip_local_deliver", "ip_protocol_deliver")) for frame in stack), stack


@pytest.mark.requires("kprobe")
def test_the_default_is_the_whole_path(network: Lab) -> None:
    if not may_trace_functions():
        pytest.skip("no kernel function can be traced here: no kprobes (CONFIG_KPROBE_EVENTS), and no fentry")
    with Tracer(netns=network.router.name) as tracer:
        assert tracer.functions, tracer.notes
        lab.ping(network.route, count=1)
        time.sleep(0.05)
        tracer.stop()
        stages = [stage_of(event.probe) for event in tracer.events() if event.packet.icmp_type == 8]
        assert not tracer.skipped
    assert None not in stages
    way = ["device in", "prerouting", "routing", "forward", "postrouting", "qdisc", "driver out"]
    assert [stage for stage in dict.fromkeys(stages) if stage in way] == way


def test_the_path_ends_where_a_packet_waits_for_a_neighbour(network: Lab) -> None:
    if not may_trace_functions():
        pytest.skip("no kernel function can be traced here: no kprobes (CONFIG_KPROBE_EVENTS), and no fentry")
    with (
        udp_socket(network.client, ("198.51.100.99", 7)) as sender,
        Tracer(netns=network.router.name, filter="udp dst port 7") as tracer,
    ):
        sender.send(b"nobody has this address")
        time.sleep(0.1)
        tracer.stop()
        stages = [stage_of(event.probe) for event in tracer.events()]
    assert stages.index("neighbour") > stages.index("postrouting")
    assert "qdisc" not in stages  # it waits; a clone of it, which asks for the address, is freed


def test_the_default_works_without_functions_too(network: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions may be there and be refused when they are attached."""

    def refuse(*_: object) -> list[object]:
        raise NotSupportedError("no kernel function can be traced here")

    monkeypatch.setattr(FunctionAttacher, "attach", refuse)
    with Tracer(netns=network.router.name) as tracer:
        lab.ping(network.route, count=1)
        time.sleep(0.05)
        tracer.stop()
        probes = {event.probe for event in tracer.events()}
        notes = tracer.notes
    assert tracer.functions == ()
    assert any("no kernel function can be traced here" in note for note in notes) == may_trace_functions()
    assert probes == {"netif_receive_skb", "net_dev_queue", "net_dev_start_xmit"}


def test_what_works_or_why_not_is_said(network: Lab) -> None:
    """The kernel this is developed on has none of the three: then the reason of each is named."""
    said: list[str] = []
    refusal = ""
    try:
        with Tracer(netns=network.server.name, functions="ip_rcv") as tracer:
            # Beside them it is said how identity is watched.
            said = [note for note in tracer.notes if " functions by " in note]
    except NotSupportedError as error:
        refusal = str(error)
    if "no kernel function can be traced" in refusal:
        assert all(f"{backend}: " in refusal for backend in BACKENDS)
    else:
        assert said in [[f"1 functions by {backend}, 0 left out"] for backend in BACKENDS]
