"""The back end on a real Ray cluster of two nodes on this machine: same results, a node killed, errors, Ctrl-C."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.extras import missing
from tests.agents.learning.training import SMALL
from tests.agents.test_processes import family, needs_proc, within

ROOT = Path(__file__).resolve().parents[2]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""What lets in to the cluster of these tests."""
NODE = "--num-cpus=1 --object-store-memory=80000000 --disable-usage-stats --node-ip-address=127.0.0.1 --block"
LINE = "evaluate --policies sarathi,slai,vllm --rates 1.4,1.8 --seeds 2 --num-requests 6000 --no-plots --no-behaviour"
OWN = """
from pathlib import Path
from engine import Policy

class Faulty(Policy):
    name = "faulty"
    def plan(self, view, memory, plan):
        with Path("called").open("a") as file:
            file.write("x")
        raise ValueError("not today")
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing("ray") is not None, reason="Ray is not installed (extra: ray)"),
    needs_proc,
]


def processes_of(mark: str) -> dict[int, str]:
    """Command lines of the living processes with this mark and of their children, which Ray gives other titles."""
    family_of, found = family(mark), {}
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if {int(entry.name), parent} & family_of:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):
            continue
    return found


def at_work(mark: str) -> set[int]:
    """Processes of a node that run our tasks."""
    return {pid for pid, line in processes_of(mark).items() if line.startswith("ray::_run_one")}


def are_gone(processes: set[int]) -> bool:
    """Whether none of them lives any more."""
    return not any(Path(f"/proc/{pid}/exe").is_symlink() and os.path.exists(f"/proc/{pid}/exe") for pid in processes)


class Cluster:
    """Two nodes of one core each, as `ray start` begins them on two machines."""

    def __init__(self) -> None:
        # Paths of sockets are short.
        self.folder = tempfile.mkdtemp(prefix="lr", dir="/tmp")
        self.marks = [f"LLMSCHED_TEST={self.folder}-{k}" for k in range(2)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.started: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Start both."""
        self._start(0, "--head", f"--port={self.address.partition(':')[2]}", "--include-dashboard=false")
        assert within(120.0, lambda: self._is_up(0)), "the head does not come up"
        self._start(1, f"--address={self.address}")
        assert within(120.0, lambda: self._is_up(1)), "the second node does not come up"

    def _start(self, node: int, *flags: str) -> None:
        name, _, value = self.marks[node].partition("=")
        environment = os.environ | TOKEN | {"RAY_TMPDIR": self.folder, name: value, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *flags, *NODE.split()]
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.started.append(subprocess.Popen(command, env=environment, start_new_session=True, **quiet))

    def _is_up(self, node: int) -> bool:
        """The raylet starts its agents last."""
        return any(line.startswith("ray::RuntimeEnvAgent") for line in processes_of(self.marks[node]).values())

    def kill_second(self) -> None:
        """What a power cut does to a machine."""
        for pid, line in processes_of(self.marks[1]).items():
            if "/raylet/raylet " in line:
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        left = {pid for mark in self.marks for pid in processes_of(mark)}
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()
        assert within(20.0, lambda: are_gone(left))
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    found = Cluster()
    try:
        found.begin()
        yield found
    finally:
        found.end()


def begin(line: str, folder: Path, environment: Mapping[str, str] = TOKEN) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "agents.cli", *line.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and standard error."""
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def cells(folder: Path) -> int:
    """Finished cells."""
    path = folder / "cells.jsonl"
    return max(0, len(path.read_text().splitlines()) - 1) if path.exists() else 0


def result(folder: Path) -> dict[str, Any]:
    """A result but for the times of decisions."""
    data: dict[str, Any] = json.loads((folder / "result.json").read_text())
    del data["windows"]
    return data


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The twelve cells of one process."""
    folder = tmp_path_factory.mktemp("expected")
    assert finish(begin(f"{LINE} --workers 1 --out out", folder)) == (0, "")
    return result(folder / "out")


def test_two_nodes_give_what_one_process_gives(cluster: Cluster, expected: dict[str, Any], tmp_path: Path) -> None:
    process = begin(f"{LINE} --backend ray --address {cluster.address} --out out", tmp_path)
    seen: set[int] = set()
    while process.poll() is None:
        seen |= {node for node, mark in enumerate(cluster.marks) if at_work(mark)}
        time.sleep(0.2)
    assert finish(process) == (0, "")
    assert seen == {0, 1}
    assert result(tmp_path / "out") == expected
    assert cells(tmp_path / "out") == 12


def test_ctrl_c_leaves_finished_cells_and_no_worker(cluster: Cluster, expected: dict[str, Any], tmp_path: Path) -> None:
    line = f"{LINE} --backend ray --address {cluster.address} --out out"
    process = begin(line, tmp_path)
    assert within(120.0, lambda: cells(tmp_path / "out") >= 2)
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "llmsched: interrupted\n")
    assert within(20.0, lambda: not any(at_work(mark) for mark in cluster.marks))
    assert 2 <= cells(tmp_path / "out") < 12
    assert finish(begin(f"{line} --resume", tmp_path)) == (0, "")
    assert result(tmp_path / "out") == expected


def test_the_error_of_a_policy_is_the_same_line_and_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    line = "evaluate --policies own.py:Faulty --seeds 2 --num-requests 50 --no-plots --out"
    here = finish(begin(f"{line} a --workers 2", tmp_path))
    (tmp_path / "called").unlink()
    there = finish(begin(f"{line} b --backend ray --address {cluster.address} --workers 1", tmp_path))
    assert there == here
    assert here[0] == 2
    assert here[1].count("\n") == 1
    assert "not today" in here[1]
    assert (tmp_path / "called").read_text() == "x"


def test_without_the_token_of_the_cluster_there_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    line = f"evaluate --policies slai --num-requests 9 --backend ray --address {cluster.address} --out out"
    code, said = finish(begin(line, tmp_path, {}))
    assert code == 2
    assert said.splitlines()[-1].startswith(f"llmsched: address: expected a Ray cluster at '{cluster.address}', got: ")


def test_training_with_seeds_is_what_it_is_in_processes(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "small.yml").write_text(SMALL)
    line = "train --hyperparams small.yml --seeds 0,3 --total-timesteps 128 --run-dir"
    assert finish(begin(f"{line} a --workers 1", tmp_path)) == (0, "")
    assert finish(begin(f"{line} b --backend ray --address {cluster.address}", tmp_path)) == (0, "")
    for seed in (0, 3):
        one, other = ((tmp_path / run / f"seed-{seed}/final/weights.safetensors").read_bytes() for run in "ab")
        assert one == other


def test_cells_of_a_killed_node_run_again_elsewhere(cluster: Cluster, expected: dict[str, Any], tmp_path: Path) -> None:
    """The last test: one node is left."""
    process = begin(f"{LINE} --backend ray --address {cluster.address} --out out", tmp_path)
    assert within(120.0, lambda: cells(tmp_path / "out") >= 2 and bool(at_work(cluster.marks[1])))
    workers = at_work(cluster.marks[1])
    cluster.kill_second()
    assert cells(tmp_path / "out") < 11
    assert finish(process) == (0, "")
    assert result(tmp_path / "out") == expected
    assert within(20.0, lambda: are_gone(workers))


def test_a_cluster_of_the_command_ends_with_it(tmp_path: Path) -> None:
    line = "evaluate --policies sarathi --num-requests 50 --seeds 2 --no-plots --no-behaviour --out out"
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    own = {"LLMSCHED_TEST": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": cache}
    process = begin(f"{line} --backend ray --address local", tmp_path, own)
    seen: set[int] = set()
    while process.poll() is None:
        seen |= set(processes_of(f"LLMSCHED_TEST={tmp_path}"))
        time.sleep(0.2)
    assert finish(process) == (0, "")
    assert len(seen) > 5
    assert within(20.0, lambda: are_gone(seen))
    assert not (tmp_path / ".ray").exists()
