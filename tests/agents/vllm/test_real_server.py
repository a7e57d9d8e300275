"""A real `vllm serve`: it is killed in the middle of an A/B, and its clients go away; where vLLM is installed."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from agents.vllm import serve as servers
from agents.vllm.cell_files import CellFiles, Sent
from agents.vllm.completions import connected
from agents.vllm.plan import Plan
from agents.vllm.settings import Settings
from agents.vllm.versions import installed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(installed() is None, reason="vLLM is not installed")]

ROOT = Path(__file__).resolve().parents[3]
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
CELL_S = 6
PLAN = Plan(
    policies=("slackfit",),
    rates=(5.0,),
    seeds=(0, 1),
    num_requests=5 * CELL_S,
    model="tiny",
    engine={"enforce_eager": True, "max_num_seqs": 64, "max_model_len": 1024},
    lengths="lognormal:4,0.5,4,0.5,700",
)


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores, no network."""
    for name, value in (CPU | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)


def until(is_so: Callable[[], Any], within_s: float = 300.0) -> Any:
    """Wait for something; returns it."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if found := is_so():
            return found
        time.sleep(0.1)
    raise AssertionError(f"expected it within {within_s:g} s")


@contextmanager
def ab(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """`llmsched ab` with PLAN, while the block runs."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps(vars(PLAN)))
    words = [sys.executable, "-c", "import sys; from agents.cli import main; sys.exit(main(sys.argv[1:]))", "ab"]
    words += [*arguments, "--plan", str(plan), "--out", str(folder / "out")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    with process:
        yield process
        process.kill()


def family(process: int) -> list[Any]:
    """The processes that one has started, and those that these have."""
    psutil = import_module("psutil")  # comes with vLLM
    return list(psutil.Process(process).children(recursive=True))


def are_gone(processes: list[Any]) -> bool:
    psutil = import_module("psutil")
    return all(not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in processes)


def ends_with_one_line(process: "subprocess.Popen[str]", out: Path) -> None:
    """An A/B whose server is gone ends at once, with its first cell kept."""
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2, said
    assert said.startswith("llmsched: http://127.0.0.1:")
    assert "expected a server" in said
    assert said.count("\n") == 1
    assert [head["seed"] for head in CellFiles(out).heads()] == [0]


@pytest.mark.parametrize("victim", ["vllm serve", "EngineCore"])
def test_ab_whose_server_is_killed_is_one_line(tmp_path: Path, victim: str) -> None:
    with ab(tmp_path, "--server", "vllm") as process:
        until(CellFiles(tmp_path / "out").heads)
        time.sleep(CELL_S / 2)
        started = family(process.pid)
        [one] = [one for one in started if victim in " ".join(one.cmdline())]
        one.kill()
        ends_with_one_line(process, tmp_path / "out")
        assert len(started) > 2
        assert until(lambda: are_gone(started), 10.0)


def test_replay_whose_engine_is_killed_is_one_line(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    plan.write_text(json.dumps(vars(PLAN)))
    words = [sys.executable, "-m", "agents.vllm", "replay", str(plan), str(out)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        until(CellFiles(out).heads)
        time.sleep(CELL_S / 2)
        [one] = [one for one in family(process.pid) if "EngineCore" in " ".join(one.cmdline())]
        one.kill()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 2, said
    assert "llmsched: python -m agents.vllm replay: expected an engine that lives, got EngineDeadError\n" in said
    assert [head["seed"] for head in CellFiles(out).heads()] == [0]


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """A server with our scheduler; its address."""
    settings, port = folder / "settings.json", servers.free_port()
    Settings(policy="slackfit", counters=str(folder / "counters.json")).write(settings)
    words = servers.command(servers.executable(), PLAN, PLAN.model_folder(folder), port, True)
    with servers.running(words, port, settings, folder / "server.log") as url:
        yield url


def test_server_of_somebody_else_that_is_killed_is_one_line(tmp_path: Path) -> None:
    with running(tmp_path) as url, ab(tmp_path, "--urls", url) as process:
        until(CellFiles(tmp_path / "out").heads)
        time.sleep(CELL_S / 2)
        [server] = [one for one in family(os.getpid()) if one.name().startswith("vllm")]
        server.kill()
        ends_with_one_line(process, tmp_path / "out")


async def _leave(url: str, count: int) -> None:
    """So many clients go away at once in the middle of their answers; then one stays to the end."""
    async with connected(url) as server:
        streams = [server.send([7] * (20 + k), Sent(0.0, 20 + k, 500, k % 2)) for k in range(count)]
        assert min(await asyncio.gather(*(anext(stream) for stream in streams))) > 0
        await asyncio.gather(*(stream.aclose() for stream in streams))
        assert sum([tokens async for tokens in server.send([7] * 20, Sent(0.0, 20, 30, 0))]) == 30


def test_clients_that_go_away_leave_nothing_behind(tmp_path: Path) -> None:
    with running(tmp_path) as url:
        for _ in range(3):
            asyncio.run(_leave(url, 50))
        with closing(urllib.request.urlopen(f"{url}/metrics")) as answer:
            told = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    for what in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert [float(value) for name, value in told.items() if name.startswith(f"vllm:{what}{{")] == [0.0]
    found = json.loads((tmp_path / "counters.json").read_text())
    assert found["decided"] > 100
    assert [found[name] for name in ("fallbacks", "passed", "stalled", "held_ran", "over_budget", "rebuilt")] == [0] * 6
