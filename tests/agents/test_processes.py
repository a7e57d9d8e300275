"""Workers end with their parent, however that ends, and what comes from outside has its exit code."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.work import processes
from agents.work.processes import Interrupted, child_environment, run_tasks, termination_as_interrupt
from engine.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")
PROGRAM = """
import dataclasses, os, sys, time
from agents import cli
from agents.work import processes

def work(k):
    os.write(1, b"working\\n")  # at once: two processes write
    time.sleep(600)

@dataclasses.dataclass(frozen=True)
class Sleeping:
    def run(self):
        list(processes.run_tasks(work, range(4), 2))

if __name__ == "__main__":
    processes.start_method = lambda: sys.argv[1]
    processes.default_workers = lambda: 2
    cli._parse = lambda name, arguments: Sleeping()
    sys.exit(cli.main(["simulate"]))
"""


def family(mark: str) -> set[int]:
    """Living processes that were started with this mark in their environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found |= {int(entry.name)} if state != "Z" else set()
        except OSError:
            continue
    return found


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., "tuple[subprocess.Popen[str], str]"]:
    """Starts a command with two busy workers; gives it and the mark of its family."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def started(method: str, *before: str) -> "tuple[subprocess.Popen[str], str]":
        mark = f"LLMSCHED_TEST={tmp_path}-{time.monotonic_ns()}"
        name, _, value = mark.partition("=")
        process = subprocess.Popen(
            [*before, sys.executable, str(program), method],
            env=os.environ | {"PYTHONPATH": str(ROOT), name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["working\n"] * 2
        return process, mark

    return started


Start = Callable[..., "tuple[subprocess.Popen[str], str]"]


@needs_proc
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGTERM, 143, "llmsched: terminated (SIGTERM)\n"),
        (signal.SIGHUP, 129, "llmsched: terminated (SIGHUP)\n"),
        (signal.SIGINT, 130, "llmsched: interrupted\n"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_no_worker_outlives_its_parent(start: Start, method: str, number: int, code: int, says: str) -> None:
    process, mark = start(method)
    assert len(family(mark)) >= 3
    process.send_signal(number)
    # What workers hold, such as standard output, is free again, too: this would wait for it.
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    # After a kill Python's own tracker may say what it cleans up.
    assert err == says or number == signal.SIGKILL
    assert within(10.0, lambda: not family(mark))


@needs_proc
def test_a_signal_to_the_whole_group_means_the_same(start: Start) -> None:
    process, mark = start("fork")
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "llmsched: terminated (SIGTERM)\n")
    assert within(10.0, lambda: not family(mark))


@needs_proc
def test_without_the_kernels_help_workers_watch_their_parent(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on systems other than Linux."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("\ndef work", "\nprocesses._die_with = lambda parent: None\ndef work"))
    process, mark = start("fork")
    process.kill()
    process.communicate(timeout=60)
    assert within(10.0, lambda: not family(mark))


def test_nohup_stays_nohup(start: Start) -> None:
    process, _ = start("fork", "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@needs_proc
def test_a_command_that_another_starts_ends_with_it(tmp_path: Path) -> None:
    child = (
        "import time; from agents.work.processes import end_with_parent\n"
        "end_with_parent(); print('up', flush=True); time.sleep(99)"
    )
    parent = (
        "import subprocess, sys; from agents.work.processes import child_environment\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], env=child_environment())"
    )
    mark = f"LLMSCHED_TEST={tmp_path}"
    environment = child_environment() | {"LLMSCHED_TEST": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate(timeout=30)
    assert within(10.0, lambda: not family(mark))


def _same(task: int) -> int:
    return task


def test_no_more_processes_than_tasks_or_two_for_each_core(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "default_workers", lambda: 2)
    monkeypatch.setattr(processes, "_said", set())
    assert [processes._number_of_processes(5000, tasks) for tasks in (3, 100, 100)] == [3, 4, 4]
    assert capsys.readouterr().err == "llmsched: workers: 5000 asked for, 4 used (two for each core)\n"
    assert processes._number_of_processes(4, 100) == 4
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="workers: expected a whole number >= 1, got 0"):
        list(run_tasks(_same, [1], workers=0))


def _in_a_finaliser(number: int) -> None:
    class Last:
        def __del__(self) -> None:
            signal.raise_signal(number)

    Last()


def _in_a_callback_of_c(number: int) -> None:
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(number))()


def _in_a_handler_of_everything(number: int) -> None:
    with contextlib.suppress(BaseException):
        signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("drop", [_in_a_finaliser, _in_a_callback_of_c, _in_a_handler_of_everything])
@pytest.mark.parametrize("goes_on", [False, True])
def test_a_signal_whose_exception_was_dropped_comes_again(
    drop: Callable[[int], None], number: int, goes_on: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    ends: list[bool] = []

    def work() -> None:
        with termination_as_interrupt():
            drop(number)
            for _ in range(100 if goes_on else 0):
                time.sleep(0.05)
            ends.append(True)

    with pytest.raises(Interrupted) as told:
        work()
    assert told.value.exit_code == 128 + number
    assert ends == [True] * (not goes_on)
    assert capfd.readouterr().err == ""


def test_a_second_sigterm_does_not_disturb_the_cleaning_up() -> None:
    ends: list[bool] = []

    def work() -> None:
        with termination_as_interrupt():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGHUP)
                ends.append(True)

    with pytest.raises(Interrupted):
        work()
    assert ends == [True]
