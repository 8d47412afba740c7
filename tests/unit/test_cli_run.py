"""Exceptions become one line and an exit code; help is quick; nothing heavy is imported early."""

from __future__ import annotations

import os
import re
import resource
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from packet_tracer import errors
from packet_tracer.cli import run as cli_run
from packet_tracer.cli.app import COMMANDS

PTRACE = [sys.executable, "-m", "packet_tracer"]


def ptrace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PTRACE, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


def outcome(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def fail(_arguments: object) -> int:
        raise error

    monkeypatch.setattr(cli_run, "_invoke", fail)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        return cli_run.run([])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.PtraceError("it broke"), 1, "ptrace: it broke\n"),
        (errors.UsageError("no such thing"), 2, "ptrace: no such thing\n"),
        (errors.NotPermittedError("run as root"), 3, "ptrace: run as root\n"),
        (errors.NotSupportedError("not here"), 4, "ptrace: not here\n"),
        (OSError(28, "No space left on device", "/tmp/x"), 1, "ptrace: /tmp/x: No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
    ],
)
def test_an_error_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    assert outcome(monkeypatch, error) == code
    assert capsys.readouterr().err == line


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(monkeypatch, ZeroDivisionError("x")) == 1
    said = capsys.readouterr().err
    assert said.startswith("ptrace: internal error: ZeroDivisionError: x")
    assert said.count("\n") == 1


def test_debugging_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PTRACE_DEBUG", "1")
    assert outcome(monkeypatch, errors.UsageError("no such thing")) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_message_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(monkeypatch, errors.UsageError("no interface '\x1b[2Jx\r\n'")) == 2
    assert capsys.readouterr().err == "ptrace: no interface '\\x1b[2Jx\\r\\n'\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["captur"], "Did you mean 'capture'"),
        (["capture", "--nope"], "--nope"),
        (["capture", "-c", "0"], "'-c'"),
        (["capture", "-c", "many"], "'-c'"),
        (["capture", "--duration", "soon"], "'soon' is not a duration"),
        (["capture", "--ring-size", "big"], "'big' is not a size"),
        (["capture", "--mark", "0x100/0xff"], "bits outside its mask"),
        (["capture", "--format", "xml"], "xml"),
        (["capture", "-w", "trace.pcap"], "trace.pcap"),
        (["capture", "-w", "-", "--format", "text"], "stdout"),
        (["capture", "tcp", "port", "port"], "filter 'tcp port port': "),
        (["capture", "-d", "tcp", "port", "port"], "filter 'tcp port port': "),
        (["capture", "--filter-inner", "tcp port port"], "filter 'tcp port port': "),
        (["capture", "--tunnel", "subway", "tcp"], "subway"),
        (["capture", "-F", "/dev/null"], "no filter expression in it"),
        (["capture", "-F", "/dev/null", "tcp"], "one of them is enough"),
        (["capture", "--profile", "nope"], "no profile 'nope'; there are: path"),
        (["capture", "--probe", "kfree"], "is kfree_skb meant?"),
        (["capture", "-i", "no-such-device"], "there are: "),
        (["capture", "--netns", "no-such-netns"], "no network namespace 'no-such-netns'"),
        (["capture", "-s", "70000"], "70000"),
        (["capture", "--length", "9..1"], "no packet has a length of 9..1"),
        (["capture", "--drop-reason", "netfilter_dropp"], "is NETFILTER_DROP meant?"),
        (["capture", "--cgroup", "/no/such/cgroup"], "no cgroup '/no/such/cgroup'"),
        (["capture", "--addresses", "/no/such/file"], "/no/such/file: No such file"),
        (["capture", "--comm", "x" * 16], "the kernel keeps 15 bytes"),
        (["capture", "--pid", "0"], "--pid"),
        (["capture", "--probe", "kfree_skb", "--returns"], "are about functions: say --profile path"),
        (["capture", "--backend", "tracepoint", "--functions", "ip_rcv"], "traces no functions"),
        (["capture", "--backend", "tracepoint", "--returns"], "are about functions"),
        (["capture", "--functions", "nothing_*"], "nothing_*: no function"),
        (["capture", "--functions", "*", "--backend", "magic"], "magic"),
        (["probes", "nothing*"], "no probe matches 'nothing*'"),
        (["probes", "--functions", "nothing_*"], "nothing_*: no function"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str], said: str) -> None:
    result = ptrace(*arguments)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert result.stderr.startswith("ptrace: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_what_an_expression_is_compiled_to(tmp_path: Path) -> None:
    classic = ptrace("capture", "-d", "udp", "port", "53")
    assert classic.returncode == 0
    assert re.match(r"\(000\) ldh +\[12\]\n", classic.stdout)
    assert classic.stdout.endswith("(019) ret      #0\n")
    path = tmp_path / "expression"
    path.write_text("udp\n  port 53\n")
    assert ptrace("capture", "-d", "-F", str(path)).stdout == classic.stdout
    extended = ptrace("capture", "-dd", "udp", "port", "53")
    assert extended.stdout.startswith("pcap_filter:\n   0: ")
    assert "exit" in extended.stdout


def test_version_names_what_matters() -> None:
    result = ptrace("--version")
    assert result.returncode == 0
    assert re.fullmatch(
        rf"packet-tracer \d+\.\d+\.\d+, libbpf \d+\.\d+, Linux {re.escape(os.uname().release)}\n",
        result.stdout,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = ptrace(command, "--help")
    assert result.returncode == 0
    assert f"Usage: ptrace {command}" in result.stdout


def test_nothing_heavy_is_imported_for_help() -> None:
    code = """
import sys
from packet_tracer.cli import main
assert main(["capture", "--help"]) == 0
heavy = {"structlog", "rich", "numpy", "scapy", "asyncio", "packet_tracer.bpf", "packet_tracer.capture",
         "packet_tracer.events", "packet_tracer.lab"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stderr == "[]\n"


def test_the_package_gives_its_names_when_asked() -> None:
    code = """
import sys
import packet_tracer, packet_tracer.cli
assert not [name for name in sys.modules if name.startswith("packet_tracer.") and "events" in name]
from packet_tracer import Tracer
from packet_tracer.capture import Tracer as same
assert Tracer is same
assert set(packet_tracer.__all__) <= set(dir(packet_tracer))
for name in packet_tracer.__all__:
    getattr(packet_tracer, name)
try:
    packet_tracer.Nothing
except AttributeError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "module 'packet_tracer' has no attribute 'Nothing'\n", result.stderr


def test_help_is_quick() -> None:
    """Under 1.5 times what `import typer` alone takes: medians of runs in turn, which meet the same noise."""

    def seconds(command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bare, helped = [], []
    for _ in range(9):
        bare.append(seconds([sys.executable, "-c", "import typer"]))
        helped.append(seconds([*PTRACE, "--help"]))
    assert statistics.median(helped) < 1.5 * statistics.median(bare)


def test_a_reader_that_leaves_is_no_error() -> None:
    """Like `ptrace probes | head -1`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        result = subprocess.run(
            [*PTRACE, "--help"], stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*PTRACE, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert result.returncode == 1
    assert result.stderr == "ptrace: No space left on device\n"


def test_completion_is_offered() -> None:
    result = ptrace(
        "capture", "--p", _PTRACE_COMPLETE="complete_bash", COMP_WORDS="ptrace capture --p", COMP_CWORD="2"
    )
    assert {"--probe", "--profile"} <= set(result.stdout.split())
    result = ptrace(
        _PTRACE_COMPLETE="complete_bash", COMP_WORDS="ptrace capture --probe netfilter:ipv4:f", COMP_CWORD="3"
    )
    assert result.stdout.split() == ["netfilter:ipv4:forward"]
