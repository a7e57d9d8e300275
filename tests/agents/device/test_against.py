"""A run of a real server beside its simulation: what a simulation logs is simulated alike, and a real run closely."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import baselines
from agents.cli import main
from agents.device.against import replay, with_limits
from baselines import VLLMV1
from engine.config import EngineConfig
from engine.demand.server_run import LOGGED, read_run
from engine.demand.workload import Workload
from engine.device.latency import load_profile, profile_names
from engine.errors import InputError
from engine.runs.record import Record
from engine.runs.simulate import simulate

EPOCH, BOOTED = 1_787_267_980.25, 27_536.5
"""When the first request came, on the clocks of the front end and of the engine (s)."""
LIMITS: dict[str, int | str] = {
    **{"num_blocks": 260, "max_num_seqs": 16, "max_batched_tokens": 512, "max_model_len": 4096},
    "prefix_cache": "own",
}
PROFILE = "rtx6000ada-mistral-7b"
SHARED = Path(os.environ.get("LLMSCHED_DATA", Path(__file__).parents[4] / "shared" / "data")) / "llmservingsim"
REAL, REAL_PROFILE = SHARED / "rtx4090-llama-3.1-8b" / "run-requests.jsonl", "rtx4090-llama-3.1-8b"


@pytest.fixture(scope="module")
def record() -> Record:
    """A server with little memory, so that requests are evicted."""
    workload = Workload(rate=8.0, num_requests=40, lengths="lognormal:6,0.5,5,0.8,2000")
    policy = with_limits("vllm_v1", LIMITS)
    return simulate(
        policy, workload.generate(3), load_profile(PROFILE), EngineConfig().replace(**LIMITS), log_steps=True
    )


def rows_of(record: Record) -> list[dict[str, Any]]:
    """What the server would have logged of its requests."""
    ledger, start = record.ledger, float(record.requests.arrival[0])
    stamps = {"queued_ts": record.requests.arrival, "scheduled_ts": ledger["first_scheduled"]}
    stamps |= {"first_token_ts": ledger["first_token"], "last_token_ts": ledger["completed"]}
    return [
        {
            "input_toks": int(record.requests.prompt[k]),
            "output_toks": int(record.requests.output[k]),
            "arrival_time": EPOCH + float(record.requests.arrival[k]) - start,
            **{name: BOOTED + float(values[k]) - start for name, values in stamps.items()},
        }
        for k in range(len(record.requests))
    ]


def write_run(rows: list[dict[str, Any]], folder: Path, meta: Any = None, log: str | None = None) -> Path:
    """The files of a run."""
    path = folder / "run-requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if meta is not None:
        (folder / "run-meta.json").write_text(json.dumps(meta))
    if log is not None:
        (folder / "run-timeseries.csv").write_text(log)
    return path


META = {
    "model": "some/model",
    "vllm_version": "0.19.0",
    "kv_cache": {"num_gpu_blocks": 260, "block_size": 16},
    "engine_kwargs": {"max_num_seqs": 16, "max_num_batched_tokens": 512, "max_model_len": 4096},
}


def test_what_was_simulated_is_simulated_alike(record: Record, tmp_path: Path) -> None:
    assert record.request["evictions"].sum() > 0
    assert record.row["reused_tokens"][0] > 0
    run = read_run(write_run(rows_of(record), tmp_path, META))
    assert run.limits == LIMITS | {"block_size": 16}
    policy = with_limits("vllm_v1", run.limits)
    result = replay(run, policy, load_profile(PROFILE), EngineConfig().replace(**run.limits))
    assert result.makespan_s.relative == pytest.approx(0.0, abs=1e-6)
    assert set(result.times_s) == {"ttft", "tpot", "e2e", "queueing"}
    for pairs in result.times_s.values():
        for pair in pairs.values():
            assert pair.simulated == pytest.approx(pair.measured, abs=1e-5)
    assert result.evictions.simulated == record.request["evictions"].sum()
    assert all(series.measured is None for series in result.seconds.values())


def test_the_log_of_a_simulation_is_simulated_alike(record: Record, tmp_path: Path) -> None:
    rows = rows_of(record)
    without = replay(
        read_run(write_run(rows, tmp_path, META)), with_limits("vllm_v1", LIMITS), load_profile(PROFILE),
        EngineConfig().replace(**LIMITS),
    )  # fmt: skip
    columns = [without.seconds[name].simulated for name in LOGGED]
    booted_before = 37.0
    lines = [f"{booted_before + t},{','.join(map(str, row))},3" for t, *row in zip(without.t_s, *columns, strict=True)]
    log = "\n".join([f"t,{','.join(LOGGED.values())},preempted", *lines]) + "\n"
    run = read_run(write_run(rows, tmp_path, META, log))
    result = replay(run, with_limits("vllm_v1", LIMITS), load_profile(PROFILE), EngineConfig().replace(**LIMITS))
    assert result.t_s == without.t_s
    assert result.evictions.measured == 3 * len(lines)
    for name, series in result.seconds.items():
        assert series.mean_difference() == pytest.approx(0.0, abs=1e-9), name
    assert sum(result.seconds["output"].simulated) == pytest.approx(record.requests.output.sum())
    assert sum(result.seconds["prompt"].simulated) == pytest.approx(record.requests.prompt.sum())


def test_every_token_is_emitted_once_and_the_first_when_the_ledger_says(record: Record) -> None:
    steps = record.steps
    assert steps is not None
    tokens = steps.emitted
    assert tokens.sum() == record.requests.output.sum()
    ended = steps.start_s + steps.duration_s
    for first in record.ledger["first_token"]:
        (iteration,) = np.flatnonzero(ended == first)
        assert tokens[iteration] >= 1


def test_a_policy_has_the_limits_of_the_server_unless_its_spec_says_others() -> None:
    limits = {"max_batched_tokens": 8192, "max_num_seqs": 64}
    assert with_limits("vllm_v1", limits) == VLLMV1(max_num_batched_tokens=8192, max_num_seqs=64)
    assert with_limits("vllm_v1:token_budget=100", limits) == VLLMV1(max_num_batched_tokens=100, max_num_seqs=64)
    assert with_limits("vllm_v1:tuned", limits) == VLLMV1(max_num_batched_tokens=512, max_num_seqs=64, watermark=0.01)
    assert with_limits("srtf", limits) == baselines.make("srtf:token_budget=8192,batch_cap=64")
    assert with_limits("srtf", {}) == baselines.make("srtf")


def run_rows() -> list[dict[str, Any]]:
    keys = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
    return [
        {"input_toks": 20, "output_toks": 5, "arrival_time": EPOCH + k, **{key: BOOTED + k + at for at, key in
         enumerate(keys)}}
        for k in range(4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"vllm_version": "0.19.0"}, "own"),
        ({"vllm_version": "0.19.0", "kv_cache": {"enable_prefix_caching": False}}, "none"),
        ({"vllm_version": "0.19.0", "engine_kwargs": {"enable_prefix_caching": False}}, "none"),
        ({"engine_kwargs": {"enable_prefix_caching": True}}, "own"),
        ({"model": "some/model"}, None),
    ],
)
def test_a_run_of_vllm_has_a_prefix_cache_unless_it_says_otherwise(meta: Any, expected: Any, tmp_path: Path) -> None:
    assert read_run(write_run(run_rows(), tmp_path, meta)).limits.get("prefix_cache") == expected


@pytest.mark.parametrize("said", [True, False])
def test_a_run_says_whether_it_planned_ahead(said: bool, tmp_path: Path) -> None:
    meta = {"resolved_config": {"scheduler_config": {"async_scheduling": said}}}
    assert read_run(write_run(run_rows(), tmp_path, meta)).limits == {"async_scheduling": said}


def test_clocks_are_made_one_and_what_did_not_finish_is_left_out(tmp_path: Path) -> None:
    rows = run_rows()
    rows[1]["queued_ts"] += 0.5
    rows[2] |= {"first_token_ts": 0.0, "last_token_ts": None}
    rows[3]["output_toks"] = 0
    run = read_run(write_run([rows[1], rows[0], *rows[2:]], tmp_path))
    assert run.unfinished == 2
    assert run.line.tolist() == [2, 1]
    assert run.arrival.tolist() == [0.0, 1.0]
    assert run.scheduled == pytest.approx([1.0, 2.0])
    assert run.last_token == pytest.approx([3.0, 4.0])


def changed(index: int, **changes: Any) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda rows: rows[index].update(changes)


BAD_RUNS: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "a missing column": (lambda rows: rows[2].pop("first_token_ts"), "line 3: expected keys input_toks"),
    "a stamp that goes back": (changed(1, first_token_ts=BOOTED), "line 2: expected first_token_ts >= scheduled_ts"),
    "a clock that goes back": (changed(2, arrival_time=EPOCH - 5), "line 1: expected queued_ts in the order of"),
    "nobody finished": (
        lambda rows: [row.update(last_token_ts=None) for row in rows], "expected at least one request that finished",
    ),
    "lengths beyond the limits": (changed(3, input_toks=30_000), "line 4: expected input_toks + output_toks <= "),
    "no number": (changed(0, input_toks="many"), "line 1: input_toks: expected a whole number >= 0, got 'many'"),
    "no request": (lambda rows: rows.clear(), "expected at least one request that finished, got an empty file"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_RUNS)
def test_a_bad_run_is_one_line(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = BAD_RUNS[fault]
    rows = run_rows()
    change(rows)
    refused(capsys, f"validate --against {write_run(rows, tmp_path)}", words)


def refused(capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    assert main(line.split()) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--policy nosuch", "policy: expected one of"),
        ("--policies slai", "policies: expected none beside --against, got slai"),
        ("--trace t.csv", "trace: expected none beside --against"),
        ("--semantics reference", "semantics: expected none beside --against"),
        ("--engine.num-blocks 1", "run-requests.jsonl, line 1: expected input_toks + output_toks <= 16"),
        ("--profile nosuch", "profile: expected one of"),
    ],
)
def test_options_that_do_not_fit_a_run(
    options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, f"validate --against {write_run(run_rows(), tmp_path)} {options}", words)


def test_options_of_a_run_need_one(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "validate --plot x.png", "plot: expected --against beside it, got x.png")


@pytest.mark.parametrize(
    ("meta", "log", "words"),
    [
        ({"kv_cache": {"num_gpu_blocks": 0}}, None, "run-meta.json: kv_cache.num_gpu_blocks: expected a whole number"),
        (
            {"kv_cache": {"enable_prefix_caching": "on"}},
            None,
            "kv_cache: enable_prefix_caching: expected true or false",
        ),
        ({"kv_cache": 5}, None, "run-meta.json: kv_cache: expected a mapping, got 5"),
        (None, "t,running\n1,2\n", "run-timeseries.csv, line 1: expected the columns t, prompt_throughput"),
        (None, f"t,{','.join(LOGGED.values())}\n2,1,1,1,1\n1,1,1,1,1\n", "line 3: expected t to rise from > 0, got 1"),
        (None, f"t,{','.join(LOGGED.values())}\n2,1,x,1,1\n", "line 2: gen_throughput: expected a number >= 0, got"),
        (None, f"t,{','.join(LOGGED.values())}\n", "expected at least one row of data, got none"),
    ],
)
def test_what_lies_beside_a_run_is_checked(meta: Any, log: str | None, words: str, tmp_path: Path) -> None:
    path = write_run(run_rows(), tmp_path, meta, log)
    with pytest.raises(InputError) as refusal:
        read_run(path)
    assert words in str(refusal.value)


def test_the_command_prints_both_sides_and_writes_them(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plot = write_run(rows_of(record), tmp_path, META), tmp_path / "plot.png"
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    options = f"--profile {PROFILE} --json {tmp_path}/result.json --plot {plot} --report {tmp_path}/report.html"
    assert main(f"validate --against {path} {options}".split()) == 0
    out = capsys.readouterr().out
    assert "40 requests (some/model, vLLM 0.19.0)" in out
    assert "260 KV blocks of 16 tokens, at most 16 requests and 512 tokens in a batch" in out
    assert out.count("(+0.0%)") + out.count("(-0.0%)") >= 20
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["times_s"]["ttft"]["p50"]["relative"] == pytest.approx(0.0, abs=1e-5)
    assert result["limits"]["num_blocks"] == 260
    assert "no log of its seconds" in out
    assert "states no limits" not in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert '<td class="text">TTFT</td>' in page
    assert "data:image/png;base64," in page
    assert "260 KV blocks of 16 tokens" in page


@pytest.mark.skipif(not REAL.is_file(), reason=f"the run is not part of the project: {REAL} (LLMSCHED_DATA)")
def test_a_real_run_is_read_whole() -> None:
    run = read_run(REAL)
    assert (len(run.arrival), run.unfinished) == (300, 0)
    assert run.limits["num_blocks"] == 2588
    assert run.log is not None
    with REAL.with_name("run-timeseries.csv").open() as file:
        logged = list(csv.DictReader(file))
    assert run.log.t.tolist() == [float(row["t"]) for row in logged]
    assert run.log.values["output"].sum() == run.output.sum()
    assert run.log.values["prompt"].sum() == run.prompt.sum()


@pytest.mark.skipif(not REAL.is_file(), reason=f"the run is not part of the project: {REAL} (LLMSCHED_DATA)")
@pytest.mark.skipif(REAL_PROFILE not in profile_names(), reason=f"no profile {REAL_PROFILE} ships")
def test_a_real_run_is_simulated_closely() -> None:
    """docs/results/validate.md has the figures."""
    run = read_run(REAL)
    result = replay(
        run, with_limits("vllm_v1", run.limits), load_profile(REAL_PROFILE), EngineConfig().replace(**run.limits)
    )
    assert abs(result.makespan_s.relative or 1.0) < 0.03
    for name in ("ttft", "tpot", "e2e"):
        assert abs(result.times_s[name]["mean"].relative or 1.0) < 0.03, name
        assert abs(result.times_s[name]["p50"].relative or 1.0) < 0.03, name
