"""Progress bars: on a terminal's stderr only, one at a time, gone at the end; nothing of them anywhere else."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from agents.work.progress import bars

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--workload poisson:lengths=lognormal:5,1,3,1,2000 --num-requests 30 --seeds 2 --rates 4,8 --policies sarathi,slai"
)

WORK = """
import sys, time
from agents.work.progress import bars
with bars({shown}) as bar:
    bar("getting ready", 0, 0)
    for k in range(5):
        bar("cells", k + 1, 5)
        print("to stdout", k)
    bar.log("a line that stays [red]")
    note = bar.counting("generations", 2)
    note("first")
    note("second")
"""


def _on_a_terminal(command: list[str], **environment: str) -> tuple[str, str]:
    """(stdout, what the terminal of stderr got) of a process."""
    master, slave = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"} | environment
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=env, text=True)
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    out, _ = process.communicate(timeout=120)
    os.close(master)
    assert process.returncode == 0, (out, seen)
    return out, seen.decode()


def test_stages_are_shown_on_the_terminal_of_stderr_and_stdout_stays_clean() -> None:
    out, seen = _on_a_terminal([sys.executable, "-c", WORK.format(shown=True)])
    assert out.splitlines() == [f"to stdout {k}" for k in range(5)]
    for word in ("getting ready", "cells", "5/5", "a line that stays [red]", "generations", "2/2", "second"):
        assert word in seen


def test_a_wish_not_to_see_bars_is_granted_and_lines_stay() -> None:
    out, seen = _on_a_terminal([sys.executable, "-c", WORK.format(shown=False)])
    assert out.count("to stdout") == 5
    assert seen.split("\r\n") == ["a line that stays [red]", "first", "second", ""]


def test_no_bar_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as bar:
        bar("cells", 1, 2)
        bar.log("a line")
    assert capsys.readouterr() == ("", "a line\n")


def test_every_stage_of_an_evaluation_has_its_bar(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agents.cli", "evaluate", *SMALL.split(), "--workers", "1", "--out", str(tmp_path)]
    out, seen = _on_a_terminal(command)
    for stage in ("cells", "a minute of each policy", "behaviour", "plots"):
        assert stage in seen
    assert "Difference to sarathi" in out
    assert "8/8" in seen
    out, seen = _on_a_terminal([*command, "--no-progress"])
    assert seen == ""
