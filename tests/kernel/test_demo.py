"""`ptrace demo`: what it shows is what happened, in time, and nothing of it stays."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest

from packet_tracer.netns import interfaces
from tests.kernel.capturing import answered_echo_is_consumed, has_drop_reasons, netfilter_drop
from tests.kernel.cli import PATIENCE, PTRACE, alone, namespaces_of, until


@pytest.fixture(scope="module")
def shown() -> str:
    before = interfaces()
    started = time.monotonic()
    process = subprocess.Popen(
        [*PTRACE, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone()
    )
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert err == ""
    took = time.monotonic() - started
    started = time.monotonic()
    subprocess.run([*PTRACE, "--help"], stdout=subprocess.DEVNULL, check=True)
    assert took < max(10, 50 * (time.monotonic() - started))  # long on an emulated machine
    assert namespaces_of(process.pid) == []
    assert interfaces() == before
    return out


def scene(shown: str, title: str) -> str:
    return next(part for part in shown.split("== ") if part.startswith(title))


def test_no_colours_but_on_a_terminal(shown: str) -> None:
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("title", "reason"),
    [
        ("a TCP port where nobody listens", "NO_SOCKET"),
        ("a UDP port that is closed", "NO_SOCKET"),
        ("a UDP port that the router", "NETFILTER_DROP"),
        ("the same port over TCP and IPv6", "NETFILTER_DROP"),
    ],
)
def test_every_drop_with_its_reason_and_place(shown: str, title: str, reason: str) -> None:
    if not has_drop_reasons():
        reason = "without a reason"
    drops = re.findall(
        r"DROPPED: (\S+|without a reason) in (\S+)(?: \[nf_tables\])?$", scene(shown, title), re.MULTILINE
    )
    assert [found for found, _ in drops] == [reason]
    assert re.fullmatch(r"\w+\+0x[0-9a-f]+", drops[0][1])


@pytest.mark.parametrize(
    "title", ["ping over IPv4", "ping over IPv6", "a question and an answer over UDP, IPv4"]
)
def test_what_arrives_is_not_called_dropped(shown: str, title: str) -> None:
    text = scene(shown, title)
    if not answered_echo_is_consumed():
        reason = "NOT_SPECIFIED" if has_drop_reasons() else "without a reason"
        text = re.sub(rf"DROPPED: {reason} in icmpv6_rcv\+\w+", "", text)
    assert "DROPPED" not in text
    for place in ("client c0", "router r0", "router r1", "server s0"):
        assert place in text


def test_a_packet_is_one_through_three_namespaces(shown: str) -> None:
    first = scene(shown, "ping over IPv4").split("packet ")[1]
    places = re.findall(r"us  (\w+ \w+)", first)
    assert places == ["client c0", "router r0", "router r1", "server s0"]
    assert "192.0.2.2 > 198.51.100.2: icmp" in first


def test_the_last_line_counts(shown: str) -> None:
    last = shown.splitlines()[-1]
    found = re.fullmatch(
        r"(\d+) packets, (\d+) events, (\d+) packets dropped, 0 events lost; (\d+\.\d) s", last
    )
    assert found, last
    assert int(found[1]) == len(re.findall(r"^packet \d+:", shown, re.MULTILINE))
    assert int(found[3]) == shown.count("DROPPED: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [0.0, 0.3, 0.8])
def test_interrupted_it_leaves_nothing(number: int, after: float) -> None:
    process = subprocess.Popen([*PTRACE, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: namespaces_of(process.pid) or process.poll() is not None, "no namespace was made")
        time.sleep(after)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode in (0, 130)  # 0: it was done already
    assert err == ""
    assert namespaces_of(process.pid) == []


def test_two_at_once() -> None:
    both = [
        subprocess.Popen([*PTRACE, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=2 * PATIENCE) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    for out, _ in outputs:
        assert len(re.findall(rf"DROPPED: .*{netfilter_drop()}", out)) == 2


def test_colours_when_asked_for() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "packet_tracer", "demo", "--color"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.stdout.count("\x1b[1;31mDROPPED: ") == result.stdout.count("DROPPED: ")
