"""`llmsched ab` over HTTP and of the results of vLLM's benchmark; what cannot be measured is one line."""

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.vllm.cell_files import CellFiles, Sent
from agents.vllm.completions import connected
from agents.vllm.plan import PLAIN, Plan
from agents.vllm.results import read_cells
from agents.vllm.serve import OURS, command

pytest.importorskip("aiohttp", reason="aiohttp (llmsched[vllm]) is not installed")

PLAN = Plan(policies=("any",), rates=(50.0,), num_requests=12, model="tiny", lengths="lognormal:3.5,0.5,1.8,0.5,400")


class Server:
    """Streams as vLLM does, a token after each `gap_s`; fails after so many requests, and if it is ill says so."""

    def __init__(self, gap_s: float, fails_after: int = 10**6, is_ill: bool = True) -> None:
        self.gap_s, self.fails_after, self.is_ill = gap_s, fails_after, is_ill
        self.asked: list[dict[str, Any]] = []
        self.clients: set[Any] = set()
        self._loop, self._is_up = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._is_up.wait(20.0)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        from aiohttp import web

        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._is_up.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _health(self, _: Any) -> Any:
        from aiohttp import web

        return web.Response(status=503 if len(self.asked) >= self.fails_after and self.is_ill else 200)

    async def _models(self, _: Any) -> Any:
        from aiohttp import web

        return web.json_response({"data": [{"id": "m"}]})

    async def _completions(self, request: Any) -> Any:
        from aiohttp import web

        asked = await request.json()
        self.asked.append(asked)
        self.clients.add(request.transport.get_extra_info("peername"))
        if len(self.asked) > self.fails_after:
            return web.Response(status=500, text="engine is dead")
        response = web.StreamResponse()
        await response.prepare(request)
        for there in range(1, asked["max_tokens"] + 1):
            await asyncio.sleep(self.gap_s)
            event = {"choices": [{"text": ""}], "usage": {"completion_tokens": there}}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        last = {"choices": [], "usage": {"completion_tokens": asked["max_tokens"]}}
        await response.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())
        return response


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Servers that a test starts."""
    started: list[Server] = []
    yield started
    for one in started:
        one.stop()


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    file = tmp_path / "plan.json"
    told = {"policies": ["any"], "rates": [50.0], "num_requests": 12, "model": "tiny", "lengths": PLAN.lengths}
    file.write_text(json.dumps(told))
    return file


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], expected: str) -> None:
    """The command ends with 2 and one line."""
    assert main(["ab", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert expected in said


def test_servers_get_the_same_requests_when_they_are_due(
    servers: list[Server], plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers += [Server(0.001), Server(0.03)]
    urls = [server.url for server in servers]
    out, figures = tmp_path / "out", tmp_path / "ab.json"
    assert main(["ab", "--urls", *urls, "--plan", str(plan_file), "--out", str(out), "--json", str(figures)]) == 0
    assert "more than http" in capsys.readouterr().out
    prompts = [[one["prompt"] for one in server.asked] for server in servers]
    assert sorted(prompts[0]) == sorted(prompts[1])
    requests = PLAN.requests(PLAN.cells()[0])
    tiers = [one["vllm_xargs"]["tier"] for one in servers[0].asked]
    assert sorted(tiers[4:]) == sorted(requests.tier.tolist())  # four to warm up
    cells = read_cells(out)
    assert [cell.cell.policy for cell in cells] == urls
    assert [len(gaps) + 1 for gaps in cells[0].served.gaps] == requests.output.tolist()
    found = {one["metric"]: one for one in json.loads(figures.read_text())["differences"]}
    assert found["mean_ttft_s"]["low"] > 0.0


def test_connection_that_was_idle_is_not_used_again(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    async def two(apart_s: float) -> int:
        async with connected(servers[0].url) as server:
            servers[0].clients.clear()
            for wait_s in (apart_s, 0.0):
                assert sum([tokens async for tokens in server.send([7], Sent(0.0, 1, 3, 0))]) == 3
                await asyncio.sleep(wait_s)
        return len(servers[0].clients)

    servers.append(Server(0.0))
    assert asyncio.run(two(0.0)) == 1
    monkeypatch.setattr("agents.vllm.completions.KEEP_S", 0.1)
    assert asyncio.run(two(0.3)) == 2


def test_cells_that_are_there_are_not_served_again(servers: list[Server], plan_file: Path, tmp_path: Path) -> None:
    servers.append(Server(0.0))
    for _ in range(2):
        assert main(["ab", "--urls", servers[0].url, "--plan", str(plan_file), "--out", str(tmp_path / "out")]) == 0
    assert len(servers[0].asked) == 4 + PLAN.num_requests


def test_server_that_is_gone_is_one_line(
    servers: list[Server], plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--plan", str(plan_file), "--out", str(tmp_path / "out")]
    refused(["--urls", "http://127.0.0.1:1", *told], capsys, "http://127.0.0.1:1/v1/models: expected a server")
    servers.append(Server(0.0, fails_after=9))
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps(json.loads(plan_file.read_text()) | {"rates": [4.0]}))
    late = ["--plan", str(slow), "--out", str(tmp_path / "late")]
    refused(["--urls", servers[0].url, *late], capsys, "expected a server that answers, got status 503")
    assert len(servers[0].asked) < 4 + PLAN.num_requests  # what was due later is not sent
    servers.append(Server(0.0, fails_after=0, is_ill=False))
    refused(["--urls", servers[1].url, *told], capsys, "engine is dead")
    servers.append(Server(0.0, fails_after=4, is_ill=False))
    refused(["--urls", servers[2].url, *told], capsys, "expected tokens, got none (RuntimeError: status 500: engine is")
    assert CellFiles(tmp_path / "out").heads() == []


@pytest.mark.parametrize("said", [{"data": []}, {"models": ["m"]}, [1]])
def test_server_of_another_kind_is_one_line(
    said: Any,
    servers: list[Server],
    plan_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def models(self: Server, request: Any) -> Any:
        from aiohttp import web

        return web.json_response(said)

    monkeypatch.setattr(Server, "_models", models)
    servers.append(Server(0.0))
    told = ["--urls", servers[0].url, "--plan", str(plan_file), "--out", str(tmp_path / "out")]
    refused(told, capsys, "/v1/models: expected the models of a server with OpenAI's API, got ")


def test_finished_cells_stay_when_a_server_goes(
    servers: list[Server], plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, told = tmp_path / "out", json.loads(plan_file.read_text()) | {"seeds": [0, 1]}
    plan_file.write_text(json.dumps(told))
    servers.append(Server(0.0, fails_after=2 * 4 + PLAN.num_requests + 3))
    arguments = ["--plan", str(plan_file), "--out", str(out)]
    refused(["--urls", servers[0].url, *arguments], capsys, "expected a server that answers, got status 503")
    assert [cell.cell.seed for cell in read_cells(out)] == [0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_requests": 13}, "num_requests: expected 12 as for the cells that are there, got 13"),
        ({"engine": {"max_num_seqs": 8}}, "engine: expected {} as for the cells that are there"),
        ({"margin": 0.1}, "margin: expected"),
    ],
)
def test_cells_of_another_plan_are_one_line(
    changes: dict[str, Any], expected: str, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = CellFiles(tmp_path / "out")
    url = "http://127.0.0.1:1"
    files.write_meta(replace(PLAN, policies=(url,)), {})
    plan_file.write_text(json.dumps(json.loads(plan_file.read_text()) | changes))
    refused(["--urls", url, "--plan", str(plan_file), "--out", str(files.folder)], capsys, expected)


def test_what_is_no_ab_is_one_line(plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    told = ["--urls", "http://127.0.0.1:1", "--plan", str(plan_file), "--out", str(out)]
    out.mkdir()
    (out / "requests.jsonl.gz").write_bytes(gzip.compress(b"x" * 100)[:-9])
    refused(told, capsys, "requests.jsonl.gz: cannot read")
    (out / "requests.jsonl.gz").unlink()
    (out / "meta.json").write_text('{"format": "llmsched-run/1"}')
    refused(told, capsys, "expected format 'llmsched-ab/1' and a plan, got 'llmsched-run/1'")
    refused([str(out)], capsys, "expected format 'llmsched-ab/1' and a plan, got 'llmsched-run/1'")
    refused([*told[:2], *told[1:]], capsys, "urls: expected each once")


def test_vllm_that_does_not_start_is_one_line(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--server", "vllm", "--policies", "plain", "--out", str(tmp_path / "out")]
    refused([*told, "--vllm", str(tmp_path / "none")], capsys, "expected a command")
    fake = tmp_path / "vllm"
    lines = [
        "(API pid=1) WARNING 11-27 [a.py:1] errors like `OSError: too many files`",
        '(Core pid=2) ERROR 11-27 [b.py:2]     raise RuntimeError(f"no {what}")',
        "(Core pid=2) ERROR 11-27 [b.py:2] RuntimeError: no device",
        "RuntimeError: see above",
    ]
    fake.write_text("#!/bin/sh\n" + "".join(f"echo '{line}' >&2\n" for line in lines) + "exit 3\n")
    fake.chmod(0o755)
    refused([*told, "--vllm", str(fake)], capsys, "exit code 3: RuntimeError: no device")
    refused([*told, "--vllm", str(fake), "--policies", "no-such"], capsys, "no-such")


def test_command_of_a_server() -> None:
    plan = Plan(policies=(PLAIN,), rates=(1.0,), engine={"max_num_seqs": 64, "enforce_eager": True})
    words = command("vllm", plan, Path("folder"), 8000, True)
    assert words[:3] == ["vllm", "serve", "folder"]
    text = " ".join(words)
    for part in (f"--scheduler-cls {OURS}", "--max-num-seqs 64", "--enforce-eager", "--no-enable-prefix-caching"):
        assert part in text
    assert OURS not in command("vllm", plan, Path("folder"), 8000, False)


def bench_result(ttft: float) -> dict[str, Any]:
    """As vLLM 0.32 writes it."""
    return {
        "total_input_tokens": 60,
        "input_lens": [10, 20, 30],
        "output_lens": [3, 2, 1],
        "ttfts": [ttft, ttft, ttft],
        "itls": [[0.01, 0.2], [0.03], []],
        "start_times": [100.0, 100.5, 101.0],
        "errors": ["", "", ""],
    }


def test_results_of_the_benchmark_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "stock.json", tmp_path / "ours.json"]
    for file, ttft in zip(files, (0.4, 0.1), strict=True):
        file.write_text(json.dumps(bench_result(ttft)))
    out = tmp_path / "ab.json"
    told = ["--results", *map(str, files), "--json", str(out)]
    assert main(["ab", *told, "--slo", "ttft:0.3", "tbt:0.1"]) == 0
    stock, ours = (cell["measured"] for cell in json.loads(out.read_text())["cells"])
    assert (stock["median_ttft_s"], ours["median_ttft_s"]) == pytest.approx((0.4, 0.1))
    assert (stock["slo_met"], ours["slo_met"]) == pytest.approx((0.0, 2 / 3))  # one gap of 0.2 s
    assert stock["makespan_s"] == pytest.approx(1.0 + 0.4)
    assert main(["ab", *told]) == 0
    assert json.loads(out.read_text())["cells"][0]["measured"]["slo_met"] is None
    assert "SLO" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"total_input_tokens": None}, ""),
        ({"ttfts": None}, "expected ttfts"),
        ({"itls": [[0.1], [0.1]]}, "itls: expected a list with a value for each request"),
        ({"ttfts": [0.1, "x", 0.1]}, "request 1: ttfts"),
        ({"itls": [[0.1], 3, []]}, "request 1: itls: expected a list"),
        ({"input_lens": [10, 20, 31]}, "expected the requests of"),
    ],
)
def test_results_of_another_kind_are_one_line(
    changes: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, other = tmp_path / "good.json", tmp_path / "other.json"
    good.write_text(json.dumps(bench_result(0.1)))
    found = bench_result(0.1) | changes
    other.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    refused(["--results", str(good), str(other)], capsys, expected or "expected a result of vllm bench serve")


@pytest.mark.parametrize("told", [[], ["--server", "vllm", "--urls", "http://a"], ["folder", "--results", "a.json"]])
def test_one_thing_is_compared(told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(told, capsys, "expected one of FOLDERs")
