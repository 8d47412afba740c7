"""Nothing stays attached, whatever ends a capture; and captures at the same time leave each other alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from packet_tracer import lab
from packet_tracer.bpf.errors import AttachError, ProgramLoadError
from packet_tracer.bpf.program import PreparedProgram, Program
from packet_tracer.capture import Tracer
from packet_tracer.lab import Lab
from packet_tracer.probes import session as sessions
from tests.kernel.capturing import skip_without_netfilter_links, trace
from tests.kernel.cli import PATIENCE, PTRACE, until
from tests.kernel.loading import gone, link_exists, map_exists, program_exists

PROBES = ["netif_receive_skb", "net_dev_xmit", "xdp", "tc:ingress"]


class Held(NamedTuple):
    """What a process holds of the kernel's BPF, by id."""

    programs: frozenset[int]
    links: frozenset[int]
    maps: frozenset[int]

    def gone(self) -> bool:
        """Whether the kernel has none of it any more, within two seconds."""
        return (
            gone(link_exists, self.links)
            and gone(program_exists, self.programs)
            and gone(map_exists, self.maps)
        )


def held(pid: int) -> Held:
    """Return what a process holds, as its open files tell (proc(5), fdinfo)."""
    found: dict[str, set[int]] = {"prog_id": set(), "link_id": set(), "map_id": set()}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = path.read_text()
        except OSError:
            continue
        for name, number in re.findall(r"^(prog_id|link_id|map_id):\s*(\d+)$", text, re.M):
            found[name].add(int(number))
    return Held(*(frozenset(found[name]) for name in ("prog_id", "link_id", "map_id")))


#: A capture in a process of its own: it says when it is attached, and does then what it is told.
SCRIPT = """
import json, sys, time
from packet_tracer.capture import Tracer
settings, then = json.loads(sys.argv[1]), sys.argv[2]
with Tracer(**settings) as tracer:
    print("attached", flush=True)
    if then == "read":
        for event in tracer:
            pass
    sys.stdin.readline()
    if then == "raise":
        raise RuntimeError("on purpose")
"""


def started(network: Lab, then: str, probes: list[str]) -> subprocess.Popen[str]:
    """Start it and wait until it is attached."""
    settings = {"netns": network.router.name, "interface": "r0", "probes": probes}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(settings), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "attached\n", process.communicate()
    return process


def attached(pid: int) -> Held:
    """Return what a process holds, of which there must be something."""
    found = held(pid)
    assert len(found.links) >= 4
    assert len(found.programs) >= 4
    assert found.maps
    assert all(map(link_exists, found.links))
    assert all(map(program_exists, found.programs))
    return found


@pytest.mark.parametrize("how", ["end", "exception", "SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_however_it_ends(network: Lab, how: str) -> None:
    probes = PROBES if how in ("end", "exception", "SIGINT") else held_by_links(network)
    process = started(network, {"exception": "raise", "SIGINT": "read"}.get(how, "wait"), probes)
    found = attached(process.pid)
    if how.startswith("SIG"):
        process.send_signal(getattr(signal, how))
        said = process.communicate(timeout=PATIENCE)[1]
    else:
        said = process.communicate("\n", timeout=PATIENCE)[1]
    assert (process.returncode == 0) == (how == "end"), said
    assert found.gone()


def test_when_its_parent_is_killed(network: Lab, tmp_path: Path) -> None:
    """`ptrace capture` with its output in a pipe of a parent that is shot: the pipe breaks, and it ends."""
    command = [*PTRACE, "capture", "--netns", network.router.name, "-i", "r0"]
    command += [word for probe in PROBES for word in ("--probe", probe)]
    log = tmp_path / "stderr"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys\n"
            "child = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE, stderr=open(sys.argv[1], 'w'))\n"
            "print(child.pid, flush=True)\n"
            "child.stdout.read()\n",
            str(log),
            *command,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    until(lambda: "tracing" in log.read_text(), "it did not begin")
    found = attached(pid)
    parent.kill()
    parent.communicate(timeout=PATIENCE)
    lab.ping(network.route, count=2)  # with something to say, it learns that nobody listens
    until(lambda: not alive(pid), "it outlived its reader")
    assert found.gone()


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def held_by_links(network: Lab) -> list[str]:
    """Return the probes that the kernel takes away with the process.

    Below Linux 6.6 (e420bed02507) TC has no links: there a filter is the interface's, and outlives a process
    that is killed.
    """
    with Tracer(netns=network.router.name, interface="r0", probes="tc:ingress") as tracer:
        clsact = any("clsact" in note for note in tracer.notes)
    return [probe for probe in PROBES if not (clsact and probe.startswith("tc:"))]


@pytest.mark.requires("tcx")
def test_tc_is_held_by_a_link_where_there_are(network: Lab) -> None:
    if "tc:ingress" not in held_by_links(network):
        pytest.skip("this kernel has no TCX links (e420bed02507, v6.6)")


def own() -> Held:
    return held(os.getpid())


REFUSED = [*PROBES, "consume_skb", "kfree_skb"]


@pytest.mark.parametrize("after", range(1, 6))
def test_a_refusal_half_way_through_loading(
    network: Lab, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nth program is refused: those before it are gone again, and so are the maps."""
    load, count = PreparedProgram.load, 0

    def refuse(self: PreparedProgram, **arguments: object) -> Program:
        nonlocal count
        count += 1
        if count > after:
            raise ProgramLoadError(self.name, section=self.section, target=None, errno=22, log="")
        return load(self, **arguments)  # type: ignore[arg-type]

    before = own()
    monkeypatch.setattr(PreparedProgram, "load", refuse)
    with pytest.raises(ProgramLoadError):
        Tracer(netns=network.router.name, interface="r0", probes=REFUSED).start()
    assert count > after
    assert own() == before


@pytest.mark.parametrize("after", range(5))
def test_a_refusal_half_way_through_attaching(
    network: Lab, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach, count = sessions.ProbeSession._attach_program, 0

    def refuse(self: sessions.ProbeSession, *arguments: object) -> object:
        nonlocal count
        count += 1
        if count > after:
            raise AttachError("tp_btf", "nowhere", errno=16)
        links = list(attach(self, *arguments))  # type: ignore[arg-type]
        ids.update(link.id for link in links if link.id is not None)
        return links

    before, ids = own(), set[int]()
    monkeypatch.setattr(sessions.ProbeSession, "_attach_program", refuse)
    tracer = Tracer(netns=network.router.name, interface="r0", probes=REFUSED)
    with pytest.raises(AttachError):
        tracer.start()
    assert count == after + 1
    assert own() == before
    assert gone(link_exists, ids)
    # What failed can be tried again.
    monkeypatch.undo()
    with tracer:
        lab.ping(network.route)
    assert tracer.stats()["netif_receive_skb"].seen > 0
    assert own() == before


def test_a_reader_that_cannot_be_made(network: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    before = own()
    monkeypatch.setattr("packet_tracer.capture.RingBuffer", refuse)
    with pytest.raises(MemoryError):
        Tracer(netns=network.router.name, interface="r0", probes=REFUSED).start()
    assert own() == before


def test_files_and_memory_are_given_back(network: Lab) -> None:
    """Many captures in one process: no descriptor, no memory map of a ring stays."""

    def capture() -> None:
        with Tracer(netns=network.router.name, interface="r0", probes=REFUSED) as tracer:
            lab.ping(network.route)
            tracer.stop()
            assert list(tracer)

    def used() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(list(Path("/proc/self/fd").iterdir())), maps.count("bpf-map")

    capture()
    before = used()
    for _ in range(3):
        capture()
    assert used() == before


# Several at once


def test_two_captures_at_once_are_each_complete(network: Lab) -> None:
    probes = ["netif_receive_skb", "net_dev_xmit", "tc:ingress", "tc:egress", "consume_skb"]
    settings = {"netns": network.router.name, "interface": "r0", "probes": probes}
    first, second = Tracer(**settings), Tracer(**settings)  # type: ignore[arg-type]
    with first:
        alone = 3
        lab.ping(network.route, count=alone)
        with second:
            both = 5
            lab.ping(network.route, count=both)
            second.stop()
            of_second = list(second.events())
        lab.ping(network.route, count=alone)
        first.stop()
        of_first = list(first.events())
    for events, count in ((of_first, 2 * alone + both), (of_second, both)):
        for probe, echo in (
            ("netif_receive_skb", 8),
            ("tc:ingress", 8),
            ("net_dev_xmit", 0),
            ("tc:egress", 0),
        ):
            seen = [each for each in events if each.probe == probe and each.packet.icmp_type == echo]
            assert len(seen) == count, probe
    # Each gives ids of its own; what both saw of a packet is the same.
    moments = {event.data for event in of_first}
    assert {event.data for event in of_second} <= moments


def test_a_second_xdp_capture_is_refused_in_one_line(network: Lab) -> None:
    first = Tracer(netns=network.router.name, interface="r0", probes="xdp")
    with first:
        lab.ping(network.route, count=3)
        second = Tracer(netns=network.router.name, interface="r0", probes=["xdp", "netif_receive_skb"])
        before = own()
        with pytest.raises(AttachError, match="another XDP program is attached there") as refused:
            second.start()
        assert "\n" not in str(refused.value)
        assert own() == before
        lab.ping(network.route, count=4)
        first.stop()
        events = list(first.events())
    assert sum(event.packet.icmp_type == 8 for event in events) == 7
    assert first.stats()["xdp"].lost_ring == 0


@pytest.mark.requires("netfilter-link")
def test_two_netfilter_captures_at_once(network: Lab) -> None:
    """At one hook programs must differ in priority: the second goes behind the first."""
    settings = {"netns": network.router.name, "probes": "netfilter:ipv4:*"}
    skip_without_netfilter_links(network.router)
    first, second = Tracer(**settings), Tracer(**settings)  # type: ignore[arg-type]
    with first:
        of_second = trace(second, lambda: lab.ping(network.route, count=3))
        first.stop()
        of_first = list(first.events())
    for events in (of_first, of_second):
        seen = [event for event in events if event.probe == "netfilter:ipv4:forward"]
        assert len(seen) == 6
