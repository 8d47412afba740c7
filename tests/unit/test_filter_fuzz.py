"""The fuzz target runs for a while and finds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TARGET = Path(__file__).parents[1] / "fuzz" / "filter_fuzz.py"
SECONDS = int(os.environ.get("PTRACE_FUZZ_SECONDS", "20"))


def test_the_filter_answers_as_libpcap_whatever_it_is_given(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install atheris")
    done = subprocess.run(
        [sys.executable, str(TARGET), f"-max_total_time={SECONDS}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS + 100,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done " in done.stderr
