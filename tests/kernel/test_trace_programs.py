"""BPF programs of others: what XDP and tc programs are given and what they say, and which packet it is.

A capture for each mode of XDP sees all traffic: attaching takes longer than all of it. On the client's way to
the server a packet meets an XDP and a tc program at the router and an XDP program at the server; each port
has its own fate there (tests/bpf/traced.bpf.c).
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Literal

import pytest

from packet_tracer.bpf import link as links
from packet_tracer.bpf.program import Program
from packet_tracer.capture import Tracer
from packet_tracer.errors import NotSupportedError, UsageError
from packet_tracer.events import Event
from packet_tracer.events._layout import Hook
from packet_tracer.formats.text import Text
from packet_tracer.lab import Lab, Node
from packet_tracer.netns import entered
from packet_tracer.probes.program_probes import choose_programs
from tests.kernel.capturing import running, udp_socket
from tests.kernel.cli import ptrace
from tests.kernel.loading import load, open_object

COUNT = 3
PASSED, DROPPED, REWRITTEN, SENT_BACK, REDIRECTED, SHOT, TC_REDIRECTED, REWRITTEN_TO = range(7100, 7108)
LONG_NAME = "a_name_longer_than_the_kernel_keeps"

Mode = Literal["native", "generic"]


@dataclass(slots=True)
class Recording:
    """What a capture saw, and the names of the traced programs: at client, router and server, and tc."""

    events: list[Event]
    client: str
    router: str
    server: str
    tc: str
    lines: str
    mode: Mode

    def of(self, port: int) -> dict[int, list[Event]]:
        """Return the events of the datagrams sent to a port, by their numbers."""
        found: dict[int, list[Event]] = defaultdict(list)
        for event in self.events:
            at = event.data.find(b"id##")
            if at >= 0 and int.from_bytes(event.data[at + 4 : at + 6], "big") == port:
                found[event.data[at + 6]].append(event)
        assert sorted(found) == list(range(COUNT)), f"port {port}"
        return found

    def ways(self, port: int) -> list[list[tuple[str, str | None]]]:
        """Return the probes and verdicts that each of a port's datagrams met; its id must be one."""
        numbered = self.of(port)
        ids = [{event.packet_id for event in events} for events in numbered.values()]
        assert [len(each) for each in ids] == [1] * COUNT, f"port {port}: an id for each"
        assert len(set().union(*ids)) == COUNT
        return [[(event.probe, event.verdict) for event in numbered[number]] for number in range(COUNT)]

    def run(self, name: str, verdict: str) -> list[tuple[str, str | None]]:
        """Return the two events of a program's run."""
        return [(name, None), (f"{name} returns", verdict)]


def id_of(program: Program) -> str:
    return f"#{program.id}"


@contextmanager
def programs(network: Lab, mode: Mode) -> Iterator[dict[str, Program]]:
    """The programs of others, attached: by place."""
    target = network.router.ifindex("r1")
    with ExitStack() as stack:
        names = ["traced_xdp", "traced_tc", "traced_untyped", LONG_NAME]
        loaded = stack.enter_context(load("traced", names, target_ifindex=target)).programs
        places: list[tuple[str, Node, str, Program]] = [
            ("client", network.client, "c0", loaded[LONG_NAME]),
            ("router", network.router, "r0", loaded["traced_xdp"]),
            ("server", network.server, "s0", loaded["traced_untyped"]),
        ]
        for _, node, interface, program in places:
            with entered(node.netns):
                stack.enter_context(links.attach_xdp(program, node.ifindex(interface), mode=mode))
        with entered(network.router.netns):
            stack.enter_context(
                links.attach_tcx(loaded["traced_tc"], network.router.ifindex("r0"), "ingress")
            )
        yield {place: program for place, _, _, program in places} | {"tc": loaded["traced_tc"]}


def send(network: Lab) -> None:
    server = network.route.server_addresses[4]
    with ExitStack() as stack:
        for port in range(PASSED, REWRITTEN_TO + 1):
            stack.enter_context(udp_socket(network.server)).bind((server, port))
        for port in range(PASSED, REWRITTEN_TO):
            # Connected: then its datagrams have an IP identification, also with DF.
            sender = stack.enter_context(udp_socket(network.client, (server, port)))
            for number in range(COUNT):
                sender.send(b"id##" + port.to_bytes(2, "big") + bytes([number]) + b"." * 40)
                time.sleep(0.002)


@pytest.fixture(scope="module", params=["native", "generic"])
def recording(request: pytest.FixtureRequest, network: Lab) -> Iterator[Recording]:
    with programs(network, request.param) as others:
        tracer = Tracer(
            trace_programs=[str(program.id) for program in others.values()],
            probes="netif_receive_skb",
            netns=[node.name for node in network.nodes],
            filter=f"udp dst portrange {PASSED}-{REWRITTEN_TO}",
            snaplen=128,
        )
        with running(tracer):
            assert tracer.exact_identity
            assert "4 BPF programs, 0 left out" in tracer.notes
            send(network)
            time.sleep(0.2)
            tracer.stop()
            formatter, events, lines = Text(), [], ""
            for batch in tracer.batches():
                events += list(batch)
                lines += formatter.format(batch)
        for name, counters in tracer.stats().items():
            assert (counters.kept, counters.lost_ring, counters.untracked, counters.missed) == (
                counters.seen,
                0,
                0,
                0,
            ), name
        by_id = {probe.traced.program.id: probe.name for probe in tracer.programs}
        names = {place: by_id[program.id] for place, program in others.items()}
        yield Recording(events, **names, lines=lines, mode=request.param)


@pytest.mark.requires("fentry")
class TestRecording:
    def test_a_passed_packet_is_one_from_program_to_program(self, recording: Recording) -> None:
        """From an skb to an XDP buffer and back, twice, whatever buffers it is copied to on the way."""
        arrived = [("netif_receive_skb", None)]
        expected = [
            *recording.run(recording.router, "XDP_PASS"),
            *recording.run(recording.tc, "TC_ACT_OK"),
            *recording.run(recording.server, "XDP_PASS"),
        ]
        for way in recording.ways(PASSED):
            assert [step for step in way if step not in arrived] == expected
            assert way.count(arrived[0]) == 2

    def test_what_an_event_tells(self, recording: Recording, network: Lab) -> None:
        for events in recording.of(PASSED).values():
            entry, exit_ = (event for event in events if event.probe.startswith(recording.router))
            assert (entry.hook, exit_.hook) == (Hook.PROGRAM, Hook.PROGRAM_RETURN)
            assert exit_.duration_ns
            assert 0 < exit_.duration_ns < exit_.monotonic_ns - entry.monotonic_ns
            assert (exit_.return_value, entry.return_value) == (2, None)
            for event in (entry, exit_):
                assert (event.netns.inode, event.interface) == (network.router.netns.inode, "r0")
                assert (event.direction, event.mark, event.mtu) == ("ingress", None, 1500)
                assert event.packet.destination_port == PASSED
                assert event.length == 14 + 20 + 8 + 47
                assert event.data[12:14] == b"\x08\x00"
            (tc, _) = (event for event in events if event.probe.startswith(recording.tc))
            assert (tc.direction, tc.mark, tc.length) == ("ingress", 0, entry.length)
        line = next(line for line in recording.lines.splitlines() if f"{recording.router} returns" in line)
        assert " = 2 after " in line
        assert line.endswith("  XDP_PASS")

    def test_names(self, recording: Recording) -> None:
        """In full, from the program's own BTF, and with the id: a name need not be the only one."""
        assert recording.client.startswith(f"xdp:{LONG_NAME}#")
        assert recording.tc.startswith("tc:traced_tc#")

    def test_dropped(self, recording: Recording) -> None:
        """Nobody behind it sees the packet."""
        for way in recording.ways(DROPPED):
            assert [step for step in way if step[0] != "netif_receive_skb"] == recording.run(
                recording.router, "XDP_DROP"
            )

    def test_rewritten(self, recording: Recording) -> None:
        """The exit shows the packet as it was left, and it stays the same packet."""
        for way in recording.ways(REWRITTEN):
            assert recording.run(recording.server, "XDP_PASS")[0] in way
        for events in recording.of(REWRITTEN).values():
            entry, exit_ = (event for event in events if event.probe.startswith(recording.router))
            assert entry.packet.destination_port == REWRITTEN
            assert exit_.packet.destination_port == REWRITTEN_TO
            server = [event for event in events if event.probe.startswith(recording.server)]
            assert {event.packet.destination_port for event in server} == {REWRITTEN_TO}

    def test_sent_back(self, recording: Recording, network: Lab) -> None:
        """XDP_TX: in native mode the skb that the buffer was taken from ends, and another is made of it."""
        for way in recording.ways(SENT_BACK):
            steps = [step for step in way if step[0] != "netif_receive_skb"]
            assert steps == recording.run(recording.router, "XDP_TX") + recording.run(
                recording.client, "XDP_PASS"
            )
        for events in recording.of(SENT_BACK).values():
            assert events[-1].netns.inode == network.client.netns.inode

    def test_redirected(self, recording: Recording) -> None:
        """bpf_redirect() to the router's other link, past its own stack."""
        for way in recording.ways(REDIRECTED):
            steps = [step for step in way if step[0] != "netif_receive_skb"]
            assert steps == recording.run(recording.router, "XDP_REDIRECT") + recording.run(
                recording.server, "XDP_PASS"
            )

    def test_shot_by_tc(self, recording: Recording) -> None:
        for way in recording.ways(SHOT):
            assert way[-2:] == recording.run(recording.tc, "TC_ACT_SHOT")

    def test_redirected_by_tc(self, recording: Recording, network: Lab) -> None:
        """Generic XDP leaves out what was redirected (skb_is_redirected()): of tc, on newer kernels."""
        at_server = recording.run(recording.server, "XDP_PASS")
        for way in recording.ways(TC_REDIRECTED):
            steps = [step for step in way if step[0] != "netif_receive_skb"]
            assert steps[2:4] == recording.run(recording.tc, "TC_ACT_REDIRECT")
            assert steps[4:] == at_server or (recording.mode == "generic" and not steps[4:])
        for events in recording.of(TC_REDIRECTED).values():
            assert events[-1].netns.inode == network.server.netns.inode

    def test_nothing_else_was_given_an_id_twice(self, recording: Recording) -> None:
        numbers = defaultdict(set)
        for event in recording.events:
            at = event.data.find(b"id##")
            numbers[event.packet_id].add(event.data[at : at + 7])
        assert {len(found) for found in numbers.values()} == {1}


# Which programs


@pytest.fixture
def untraced(network: Lab) -> Iterator[dict[str, Program]]:
    with load("traced", ["traced_xdp", "traced_tc", LONG_NAME]) as loaded:
        yield dict(loaded.programs)


@contextmanager
def started(tracer: Tracer) -> Iterator[bool]:
    """Whether this kernel can trace programs; where it can't, that it says so in one line."""
    refusal = ""
    try:
        tracer.start()
    except NotSupportedError as error:
        refusal = str(error)
    with closing(tracer):
        assert refusal in ("", "this kernel lets no BPF program be traced (fentry and fexit: EPERM)")
        yield not refusal


def chosen(*patterns: str) -> set[int]:
    return {one.program.id for one in choose_programs(patterns)}


def test_which_are_chosen(untraced: dict[str, Program]) -> None:
    """By kind, id, the function's name, the kernel's shorter one, a glob, and what output calls it."""
    xdp, tc, long = (untraced[name].id for name in ("traced_xdp", "traced_tc", LONG_NAME))
    assert {xdp, long} <= chosen("xdp")
    assert tc not in chosen("xdp")
    assert tc in chosen("tc")
    assert chosen(str(xdp)) == {xdp}
    for name in (LONG_NAME, LONG_NAME[:15], "a_name_l*", f"xdp:{LONG_NAME}#{long}"):
        assert chosen(name) >= {long}
        assert xdp not in chosen(name)
    assert chosen(f"xdp:*#{xdp}", str(tc)) == {xdp, tc}


def test_what_is_not_there_is_said_with_what_there_is(untraced: dict[str, Program]) -> None:
    xdp = untraced["traced_xdp"]
    with pytest.raises(UsageError, match=rf"called 'nothing_like_it'; .*xdp:traced_xdp#{xdp.id}"):
        Tracer(trace_programs="nothing_like_it")
    with pytest.raises(UsageError, match=r"there is no program 4294967290 on this host; "):
        Tracer(trace_programs="4294967290")
    with load("loader", ["on_egress"]) as loaded:
        other = loaded.programs["on_egress"].id
        with pytest.raises(UsageError, match=rf"program {other} is of type cgroup_skb: only XDP and tc"):
            Tracer(trace_programs=str(other))
    done = ptrace("capture", "--trace-programs", "nothing_like_it")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")


def test_without_btf_it_is_left_out_and_named(network: Lab, untraced: dict[str, Program]) -> None:
    with open_object("traced") as opened:
        for spec in opened.programs.values():
            spec.autoload = spec.name == "traced_xdp"
        with (
            opened.prepare() as prepared,
            prepared.programs["traced_xdp"]._replace(btf_fd=-1).load(name="bare") as bare,
        ):
            (one,) = choose_programs([str(bare.id)])
            assert one.name == f"xdp:bare#{bare.id}"
            assert "without BTF" in one.refusal
            with pytest.raises(
                NotSupportedError, match=f"xdp:bare#{bare.id} can't be traced: .* without BTF"
            ):
                Tracer(trace_programs=str(bare.id)).start()
            both = Tracer(trace_programs=[str(bare.id), str(untraced["traced_xdp"].id)])
            with started(both) as works:
                if works:
                    assert list(both.skipped) == [one.name]
                    assert "1 BPF programs, 1 left out" in both.notes


def test_listing(untraced: dict[str, Program]) -> None:
    done = ptrace("probes", "--programs", "--format", "json")
    assert done.returncode == 0, done.stderr
    listed = {one["id"]: one for one in map(json.loads, done.stdout.splitlines())}
    for name, program in untraced.items():
        one = listed[program.id]
        assert (one["type"], one["name"]) == ("tc" if name == "traced_tc" else "xdp", name)
        assert one["traceable"] == (not one["detail"])
    text = ptrace("probes", "--programs", str(untraced["traced_tc"].id)).stdout.splitlines()
    assert text[0].split() == ["ID", "TYPE", "NAME", "CAN", "BE", "TRACED"]
    assert text[1].split()[:3] == [str(untraced["traced_tc"].id), "tc", "traced_tc"]


def test_it_works_or_one_line_says_why_not(network: Lab, untraced: dict[str, Program]) -> None:
    """Our own programs are no programs of others: the xdp probe is loaded after they were chosen."""
    tracer = Tracer(
        trace_programs=[str(program.id) for program in untraced.values()],
        probes="xdp",
        netns=network.router.name,
        interface="r1",
    )
    wanted = {program.id for program in untraced.values()}
    assert {probe.traced.program.id for probe in tracer.programs} == wanted
    with started(tracer) as works:
        if works:
            assert "3 BPF programs, 0 left out" in tracer.notes
            assert any(note.startswith("xdp on r1: ") for note in tracer.notes)
