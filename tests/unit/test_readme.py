"""What the documentation tells to type exists: commands, options, files, exit statuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/capture.md"]


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of every command."""
    from packet_tracer.cli.app import COMMANDS

    found = {}
    for command in COMMANDS:
        text = subprocess.run(
            [sys.executable, "-m", "packet_tracer", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found[command] = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str, options: dict[str, set[str]]) -> None:
    text = (ROOT / page).read_text()
    written = re.findall(r"ptrace (\w+)((?: (?:-{1,2}[a-zA-Z][\w-]*|'[^'|`]*'|[\w.:/*'-]+))*)", text)
    commands = [(command, words) for command, words in written if command in options]
    assert commands or page == "CONTRIBUTING.md"
    for command, words in commands:
        unquoted = re.sub(r"'[^']*'", "", words)
        for option in re.findall(r"(?<!\S)--?[a-zA-Z][\w-]*", unquoted):
            assert option in options[command], f"{page}: ptrace {command} has no {option}"


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    linked = [(ROOT / page).parent / name for name in re.findall(r"\]\((?!http|#)([^)]+)\)", text)]
    named = [ROOT / name for name in re.findall(r"`((?:bpf_src|packet_tracer|tests)/[\w./]*)`", text)]
    for path in linked + named:
        assert path.exists(), f"{page} names {path.relative_to(ROOT)}"


def test_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "sudo python3 build.py run" in text
    assert "sudo python3 build.py test" in text


def test_exit_statuses_are_those_of_the_program() -> None:
    from packet_tracer import errors
    from packet_tracer.cli.run import EXIT_INTERRUPTED

    written = {
        int(code) for code in re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    }
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert written == codes | {EXIT_INTERRUPTED}


def test_the_default_memory_is_the_one_told() -> None:
    from packet_tracer.capture import DEFAULT_BACKLOG_BYTES, DEFAULT_RING_BYTES

    told = (ROOT / "docs/capture.md").read_text()
    assert f"({DEFAULT_RING_BYTES >> 20}M for all together" in told
    assert f"{DEFAULT_BACKLOG_BYTES >> 20}M, or a quarter of the memory that is free" in told
    text = subprocess.run(
        [sys.executable, "-m", "packet_tracer", "capture", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    shown = " ".join(text.split())
    assert f"[default: {DEFAULT_RING_BYTES >> 20}M]" in shown
    assert f"Default: {DEFAULT_BACKLOG_BYTES >> 20}M, or a quarter of what is free" in shown
