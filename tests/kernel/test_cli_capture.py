"""`ptrace capture` from outside: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import os
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from packet_tracer import lab
from packet_tracer.netns import entered
from tests.kernel.capturing import has_drop_reasons, netfilter_drop
from tests.kernel.cli import PATIENCE, PTRACE, alone, capturing, ptrace, until


@pytest.fixture(scope="module")
def network() -> Iterator[lab.Lab]:
    with lab.Lab() as built:
        yield built


def test_a_drop_is_told_with_its_reason(network: lab.Lab, tmp_path: Path) -> None:
    with capturing(
        tmp_path, "--netns", network.router.name, "--profile", "drops", "--format", "json"
    ) as running:
        lab.dropped(network.route, count=3)
        until(lambda: running.seen.count(netfilter_drop()) == 3, running.said)
        assert running.end() == 0
    assert [event["probe"] for event in running.events] == ["kfree_skb"] * 3
    reason = "NETFILTER_DROP" if has_drop_reasons() else None
    assert {event["drop_reason"] for event in running.events} == {reason}
    assert all(event["drop_location"] for event in running.events)
    assert running.objects[-1]["type"] == "end"
    assert re.search(r"^ptrace: 3 events of 3 packets in \d+\.\d s, none lost; ", running.said, re.MULTILINE)


def test_text_is_one_line_an_event(network: lab.Lab, tmp_path: Path) -> None:
    with capturing(tmp_path, "--netns", network.router.name, "--profile", "drops") as running:
        lab.dropped(network.route, version=6)
        until(lambda: running.seen.endswith("\n"), running.said)
        assert running.end() == 0
    assert running.seen.count("\n") == 1
    for part in ("kfree_skb", netfilter_drop(), "2001:db8:1::2", "2001:db8:2::2", "r0"):
        assert part in running.seen
    assert "\x1b" not in running.seen


@pytest.mark.parametrize("count", [1, 7, 100])
def test_count_is_exact_within_a_batch_too(network: lab.Lab, tmp_path: Path, count: int) -> None:
    arguments = ("--netns", network.client.name, "--format", "json", "-c", str(count))
    probes = ("--probe", "net_dev_queue", "--probe", "netif_receive_skb")
    with capturing(tmp_path, *arguments, *probes) as running:
        lab.udp_exchange(network.route, count=50)
        assert running.wait() == 0
    assert len(running.events) == count
    assert f"ptrace: {count} event" in running.said


@pytest.mark.parametrize(("text", "seconds"), [("700ms", 0.7), ("1", 1.0)])
def test_duration_ends_it(network: lab.Lab, tmp_path: Path, text: str, seconds: float) -> None:
    capture = ("--netns", network.client.name, "--probe", "net_dev_queue")
    with capturing(tmp_path, *capture, "--duration", text) as running:
        started = time.monotonic()
        assert running.wait() == 0
        took = time.monotonic() - started
    found = re.search(r"in (\d+\.\d) s", running.said)
    assert found
    assert float(found[1]) >= seconds - 0.1
    late = max(float(found[1]) - seconds - 2, took - seconds - 3)
    if late >= 0:  # in an emulated machine, where to end takes seconds
        with capturing(tmp_path / "signal", *capture) as running:
            started = time.monotonic()
            assert running.end() == 0
        assert late < time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_all_that_was_seen(network: lab.Lab, tmp_path: Path, number: int) -> None:
    with capturing(
        tmp_path, "--netns", network.client.name, "--probe", "net_dev_queue", "--format", "json"
    ) as running:
        lab.udp_exchange(network.route, count=5)
        assert running.end(number) == 0
    assert len(running.events) == 5
    assert "5 events of 5 packets" in running.said


def test_interfaces_are_attached_to_and_left_alone_again(network: lab.Lab, tmp_path: Path) -> None:
    def links() -> str:
        with entered(network.router.netns):
            return subprocess.run(["ip", "-d", "link"], capture_output=True, text=True, check=True).stdout

    before = links()
    arguments = ("-i", "r0", "--netns", network.router.name, "--probe", "xdp", "--probe", "tc:*", "-v")
    with capturing(tmp_path, *arguments) as running:
        assert "prog/xdp" in links()
        lab.udp_exchange(network.route)
        until(lambda: running.seen.count("\n") >= 3, running.said)
        running.process.kill()  # not even then does anything stay
        running.process.wait(PATIENCE)
        until(lambda: "xdp" not in links(), "XDP is still attached")
    for probe in ("xdp", "tc:ingress", "tc:egress"):
        assert probe in running.seen
    assert links() == before
    assert re.search(r"xdp on r0: (native|generic)", running.said)
    assert re.search(r"tc:egress on r0: (tcx|clsact)", running.said)


def test_only_packets_with_the_mark(network: lab.Lab, tmp_path: Path) -> None:
    def send(mark: int) -> None:
        with entered(network.client.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            end.sendto(b"x", (network.route.server_addresses[4], 82))

    arguments = (
        "--netns",
        network.client.name,
        "--probe",
        "net_dev_queue",
        "--mark",
        "0x10/0xf0",
        "--format",
        "json",
    )
    with capturing(tmp_path, *arguments) as running:
        for mark in (0, 0x20, 0x11, 0x30, 0x10):
            send(mark)
        until(lambda: len(running.events) >= 2, running.said)
        assert running.end() == 0
    assert [event["mark"] for event in running.events] == [0x11, 0x10]


def test_only_packets_that_match_the_expression(network: lab.Lab, tmp_path: Path) -> None:
    arguments = ("--netns", network.client.name, "--probe", "net_dev_queue", "--format", "json")
    with capturing(tmp_path, *arguments, "udp", "dst", "port", "53", "or", "icmp6") as running:
        lab.ping(network.route)
        lab.ping(network.route, version=6)
        lab.udp_exchange(network.route, port=54)
        lab.udp_exchange(network.route)
        until(lambda: len(running.events) >= 2, running.said)
        assert running.end() == 0
    assert [event["l4_protocol_name"] for event in running.events] == ["icmp6", "udp"]
    assert running.events[1]["destination_port"] == 53


def test_only_what_all_filters_beside_the_expression_let_pass(network: lab.Lab, tmp_path: Path) -> None:
    path = tmp_path / "prefixes"
    path.write_text("# the lab's IPv4 networks\n192.0.2.0/24\n198.51.100.0/24\n")
    arguments = (
        "--netns",
        network.router.name,
        "--probe",
        "kfree_skb",
        "--format",
        "json",
        "--pid",
        str(os.getpid()),
    )
    more = ["--addresses", str(path), "--length", "..100"]
    if has_drop_reasons():
        more += ["--drop-reason", "netfilter_drop"]
    with capturing(tmp_path, *arguments, *more) as running:
        lab.dropped(network.route, version=6)
        lab.dropped(network.route)
        lab.dropped(network.route, protocol="tcp")
        until(lambda: len(running.events) >= 2, running.said)
        assert running.end() == 0
    assert [event["l4_protocol_name"] for event in running.events] == ["udp", "tcp"]
    assert {event["source"] for event in running.events} == {"192.0.2.2"}


def test_two_at_once(network: lab.Lab, tmp_path: Path) -> None:
    arguments = ("--netns", network.client.name, "--probe", "net_dev_queue", "--format", "json")
    with capturing(tmp_path / "one", *arguments) as one, capturing(tmp_path / "two", *arguments) as two:
        lab.udp_exchange(network.route, count=3)
        until(lambda: len(one.events) == len(two.events) == 3, one.said + two.said)
        assert one.end() == two.end() == 0


# Output that fails


def test_a_file_has_the_events_and_stdout_has_none(network: lab.Lab, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("of the last capture\n")
    with capturing(
        tmp_path, "--netns", network.router.name, "--profile", "drops", "-w", str(path)
    ) as running:
        lab.dropped(network.route, count=2)
        until(lambda: path.read_text().count('"event"') >= 2, running.said)
        assert running.end() == 0
    assert running.seen == ""
    lines = path.read_text().splitlines()
    assert sum('"type":"event"' in line.replace(" ", "") for line in lines) == 2
    assert '"type":"end"' in lines[-1].replace(" ", "")


def test_a_file_and_text_when_both_are_asked_for(network: lab.Lab, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    arguments = (
        "--netns",
        network.router.name,
        "--profile",
        "drops",
        "-w",
        str(path),
        "--format",
        "text",
        "-c",
        "1",
    )
    with capturing(tmp_path, *arguments) as running:
        lab.dropped(network.route)
        assert running.wait() == 0
    assert running.seen.count(netfilter_drop()) == path.read_text().count(netfilter_drop()) == 1


def test_a_mistake_does_not_cost_the_last_capture(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("of the last capture\n")
    assert ptrace("capture", "-i", "no-such-device", "-w", str(path)).returncode == 2
    assert path.read_text() == "of the last capture\n"


def test_a_reader_that_leaves_ends_it_quietly(network: lab.Lab, tmp_path: Path) -> None:
    read, write = os.pipe()
    with capturing(tmp_path, "--netns", network.client.name, stdout=write) as running:
        os.close(write)
        lab.udp_exchange(network.route)
        assert os.read(read, 1)
        os.close(read)
        lab.udp_exchange(network.route)
        assert running.wait() == 0
    assert "roken" not in running.said
    assert running.said.count("\n") == 2  # that it began, and the totals


def test_a_reader_that_leaves_while_nothing_happens_ends_it_too(network: lab.Lab, tmp_path: Path) -> None:
    read, write = os.pipe()
    with capturing(tmp_path, "--netns", network.server.name, stdout=write) as running:
        os.close(write)
        os.close(read)
        started = time.monotonic()
        assert running.wait() == 0
        assert time.monotonic() - started < 10
    assert running.said.count("\n") == 2


def test_a_full_disk_is_one_line_and_the_totals_are_told(network: lab.Lab, tmp_path: Path) -> None:
    with (
        Path("/dev/full").open("w") as full,
        capturing(tmp_path, "--netns", network.client.name, stdout=full) as running,
    ):
        lab.udp_exchange(network.route)
        assert running.wait() == 1
    assert "ptrace: standard output: No space left on device\n" in running.said
    assert re.search(r"^ptrace: \d+ events? of", running.said, re.MULTILINE)
    assert running.said.count("\n") == 3


def test_a_file_that_may_grow_no_more_ends_with_a_whole_line(network: lab.Lab, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with capturing(
        tmp_path,
        *("--netns", network.client.name, "-w", str(path)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    ) as running:
        lab.udp_exchange(network.route, count=40)
        assert running.wait() == 1
    assert f"ptrace: {path}: File too large\n" in running.said
    text = path.read_text()
    assert 1 < len(text) <= 20_000
    assert text.endswith("}\n")


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    result = ptrace("capture", "-w", str(tmp_path / "no" / "such" / "trace.jsonl"))
    assert result.returncode == 1
    assert result.stderr == f"ptrace: {tmp_path}/no/such/trace.jsonl: No such file or directory\n"


def test_loss_is_told_even_when_quiet(network: lab.Lab, tmp_path: Path) -> None:
    """The reader is stopped while more comes than the smallest rings hold."""
    arguments = ("--netns", network.client.name, "--ring-size", "64K", "-s", "2000", "--format", "json", "-v")
    with capturing(tmp_path, *arguments) as running:
        running.process.send_signal(signal.SIGSTOP)
        lab.udp_exchange(network.route, count=300, request=1000)
        running.process.send_signal(signal.SIGCONT)
        assert running.end() == 0
    found = re.search(r"^ptrace: LOST ([\d,]+) events, the rings were full: (.*)", running.said, re.MULTILINE)
    assert found, running.said
    end = running.objects[-1]
    lost = int(found[1].replace(",", ""))
    assert end["lost"] == lost > 0
    kept = sum(counters["kept"] for counters in end["probes"].values())
    seen = sum(counters["seen"] for counters in end["probes"].values())
    assert kept == len(running.events)
    assert seen == kept + lost


# A terminal


def test_the_status_line_makes_way_for_events(network: lab.Lab) -> None:
    """Stdout and stderr are one terminal, as they are for a user."""
    primary, secondary = pty.openpty()
    command = [*PTRACE, "capture", "--netns", network.router.name, "--profile", "drops", "-c", "3"]
    process = subprocess.Popen(command, stdout=secondary, stderr=secondary, env={**alone(), "TERM": "xterm"})
    os.close(secondary)
    shown = b""
    sent = 0.0
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            if select.select([primary], [], [], 0.1)[0]:
                try:
                    shown += os.read(primary, 65536)
                except OSError:  # EIO: nobody has the other end open any more
                    break
            if b"0 events" in shown and time.monotonic() - sent > 0.5:
                lab.dropped(network.route)
                sent = time.monotonic()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(primary)
    text = shown.decode()
    assert "(ctrl-C ends it)" in text
    assert "\x1b[3" in text.replace("\x1b[K", ""), "events are coloured on a terminal"
    # What stays on the screen: of each line, what follows the last time it was written over.
    stays = [re.sub(r"\x1b\[[0-9;]*m", "", line.split("\r\x1b[K")[-1]) for line in text.split("\r\n")]
    assert sum(netfilter_drop() in line for line in stays) == 3
    assert not [line for line in stays if "ctrl-C" in line]
    assert re.fullmatch(
        r"ptrace: 3 events of 3 packets in \d+\.\d s, none lost; packets told apart by best effort", stays[-2]
    )


def test_messages_as_json(network: lab.Lab, tmp_path: Path) -> None:
    import json

    capture = ("--netns", network.client.name, "--probe", "net_dev_queue", "--duration", "300ms")
    with capturing(tmp_path, *capture, "-v", "--log-format", "json") as running:
        assert running.wait() == 0
    said = [json.loads(line) for line in running.said.splitlines()]
    assert all({"event", "level", "timestamp", "source"} <= set(line) for line in said)
    assert said[-1]["events"] == 0
    assert said[-1]["lost"] == 0
    result = ptrace("capture", "--log-format", "json", "-i", "no-such-device")
    assert result.returncode == 2
    assert json.loads(result.stderr)["level"] == "error"


# Privileges

DROPPED = """
import os, sys
from packet_tracer.cli import main
for arguments in (["capture", "-q", "--duration", "10ms"], ["doctor"], ["demo"]):
    assert main(arguments) == 0
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
for arguments in sys.argv[1:]:
    for stream in (sys.stdout, sys.stderr):
        print("--", file=stream, flush=True)
    assert main(arguments.split()) == 3, arguments
"""


def test_without_privileges_it_is_exit_3_and_one_line() -> None:
    """All that is imported is imported before, because the interpreter itself may be root's alone to read."""
    commands = ["capture", "capture -i lo", "demo", "doctor"]
    result = subprocess.run(
        [sys.executable, "-c", DROPPED, *commands], capture_output=True, text=True, timeout=PATIENCE, cwd="/"
    )
    assert result.returncode == 0, result.stderr
    output = dict(zip(commands, result.stdout.split("--\n")[1:], strict=True))
    errors = dict(zip(commands, result.stderr.split("--\n")[1:], strict=True))
    for command in ("capture", "capture -i lo", "demo"):
        assert errors[command].startswith("ptrace: ")
        assert errors[command].count("\n") == 1
        assert "root" in errors[command]
    for command in ("capture", "capture -i lo"):
        assert "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN" in errors[command]
    assert errors["doctor"] == ""
    wanted = r"capabilities +no +run as root or grant CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"
    assert re.search(wanted, output["doctor"])
