import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.evaluation.comparison import paired, summary
from agents.evaluation.evaluate import Evaluation, evaluate
from agents.evaluation.result import Cell, Comparison
from agents.evaluation.statistics import Interval
from agents.options import SourceOptions
from agents.policies import resolve, split_policies
from agents.source import Source
from agents.work.cells import CellFile
from agents.work.files import json_text
from agents.work.processes import run_tasks
from engine.config import EngineConfig
from engine.demand.traces import read_trace
from engine.device.latency import load_profile
from engine.errors import InputError

WORKLOAD = "poisson:lengths=lognormal:5,1,3,1,2000"


def evaluation(**changes: Any) -> Evaluation:
    setup = Evaluation(
        policies=("sarathi", "slai"),
        source=Source(None, WORKLOAD, True, 60),
        loads=(4.0, 8.0),
        seeds=2,
        reference="sarathi",
        profile=load_profile("rtx6000ada-mistral-7b"),
        config=EngineConfig(),
    )
    return replace(setup, **changes)


def without_timing(result: Comparison) -> str:
    return json_text(replace(result, windows=None))


def test_the_result_does_not_depend_on_the_number_of_workers() -> None:
    alone = evaluate(evaluation(), workers=1, with_windows=False)
    assert without_timing(evaluate(evaluation(), workers=2, with_windows=False)) == without_timing(alone)
    assert [(cell.load, cell.seed, cell.policy) for cell in alone.cells] == [
        (load, seed, policy) for load in (4.0, 8.0) for seed in (0, 1) for policy in ("sarathi", "slai")
    ]


def test_all_policies_meet_the_same_arrivals() -> None:
    result = evaluate(evaluation(), with_windows=False)
    digests: dict[tuple[float | None, int], set[str]] = {(cell.load, cell.seed): set() for cell in result.cells}
    for cell in result.cells:
        digests[cell.load, cell.seed].add(cell.trace)
    assert all(len(found) == 1 for found in digests.values())
    assert len({next(iter(found)) for found in digests.values()}) == 4
    assert [trace.trace for trace in result.traces] == [next(iter(found)) for found in digests.values()]


def test_a_policy_gets_the_same_numbers_in_any_company() -> None:
    both = evaluate(evaluation(), with_windows=False)
    alone = evaluate(evaluation(policies=("slai",), reference="slai"), with_windows=False)
    assert [cell for cell in both.cells if cell.policy == "slai"] == list(alone.cells)


def test_an_interruption_leaves_finished_cells_and_resuming_ends_as_if_there_was_none(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"

    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("cells", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation(), cells_path=path, progress=interrupt, with_windows=False)
    header, *cells = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["config_hash"] == evaluation().digest()
    assert len(cells) == 3
    counts: list[tuple[str, int]] = []
    resumed = evaluate(
        evaluation(),
        cells_path=path,
        resume=True,
        progress=lambda stage, done, _: counts.append((stage, done)),
        with_windows=False,
    )
    assert counts == [("cells", done) for done in (4, 5, 6, 7, 8)]
    assert without_timing(resumed) == without_timing(evaluate(evaluation(), with_windows=False))


def test_a_line_that_was_cut_off_is_simulated_again(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    whole = evaluate(evaluation(), cells_path=path, with_windows=False)
    path.write_text(path.read_text()[:-200])
    counts: list[int] = []
    resumed = evaluate(
        evaluation(),
        cells_path=path,
        resume=True,
        progress=lambda stage, done, _: counts.append(done),
        with_windows=False,
    )
    assert counts == [8]
    assert resumed == whole


def test_cells_of_another_configuration_are_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    evaluate(evaluation(loads=(4.0,), seeds=1), cells_path=path, with_windows=False)
    with pytest.raises(InputError, match="expected cells of configuration"):
        evaluate(evaluation(loads=(4.0,), seeds=2), cells_path=path, resume=True)
    with pytest.raises(InputError, match="cannot read cells to resume"):
        CellFile(tmp_path / "none.jsonl", "0", Cell, resume=True)
    (tmp_path / "other.jsonl").write_text("hello\n")
    with pytest.raises(InputError, match="expected a cells file"):
        CellFile(tmp_path / "other.jsonl", "0", Cell, resume=True)


def _die(task: int) -> int:
    os._exit(3)


def test_a_worker_that_dies_is_reported() -> None:
    with pytest.raises(InputError, match="a worker process died"):
        list(run_tasks(_die, [1, 2], workers=2))


def _fail(task: int) -> int:
    raise InputError(f"task {task}: expected better, got worse")


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_input_found_in_a_worker_arrives_whole(workers: int) -> None:
    with pytest.raises(InputError, match=r"^task \d: expected better, got worse$"):
        list(run_tasks(_fail, [1, 2], workers=workers))


def _cell(policy: str, seed: int, ttft: float, verdict: str) -> Cell:
    keys = ("median_ttft_ms", "p99_ttft_ms", "p99_itl_ms", "slo_attainment")
    report: dict[str, Any] = dict.fromkeys(
        (
            *("mean_e2el_ms", "median_tpot_ms", "p99_itl_ms", "slo_attainment", "ttft_attainment", "tbt_attainment"),
            *("slo_goodput", "output_throughput", "request_throughput", "completed", "unfinished", "dropped"),
            "ended_by_length",
            *("evictions", "recomputed_tokens", "kv_use", "mean_batch_requests", "mean_batch_tokens"),
            *(
                "mean_iteration_ms",
                "busy_share",
                "p99.9_ttft_ms",
                "max_wait_s",
                "jain_index",
                "kept_up_share",
                "arrival_rate",
                "p99_ttft_ms",
            ),
            *("median_normalized_latency_ms", "duration", "mean_ttft_ms"),
        ),
        1.0,
    )
    report |= {
        "prompt_quartiles": {f"q{k}": {"p99.9_ttft_ms": 1.0, "max_wait_s": 1.0} for k in range(1, 5)},
        "median_ttft_ms": ttft,
        "request_goodput": None,
        "capacity": {"paper": verdict != "late", "sound": verdict == "stable", "verdict": verdict},
        "tiers": {"strict": dict.fromkeys(keys, None)},
    }
    return Cell(policy, 1.0, seed, "", None, "", "", 1, report, ())


def test_differences_are_taken_seed_by_seed() -> None:
    """TTFT of a: 110, 210, 310; of b: 100, 200, 300. The difference is 10 for each seed, 5 % of b's mean."""
    cells = [_cell("a", s, 110.0 + 100.0 * s, "stable") for s in range(3)]
    cells += [_cell("b", s, 100.0 + 100.0 * s, "late") for s in range(3)]
    (row,) = [r for r in paired(("a", "b"), (1.0,), cells, "b") if r.metric == "median_ttft_ms"]
    assert row.difference == Interval(10.0, 10.0, 10.0, 3)
    assert (row.relative, row.judgement) == (0.05, "worse")
    same = [r for r in paired(("a", "b"), (1.0,), cells, "b") if r.metric == "slo_attainment"]
    assert same[0].judgement == "no clear difference"
    missing = [r for r in paired(("a", "b"), (1.0,), cells, "b") if r.metric == "tiers.strict.p99_itl_ms"]
    assert math.isnan(missing[0].difference.mean)
    assert missing[0].judgement == "no clear difference"


def test_a_summary_counts_criteria_and_cuts_impossible_intervals() -> None:
    verdicts = ("stable", "starving", "starving")
    cells = [_cell("a", s, (1.0, 1.0, 100.0)[s], verdict) for s, verdict in enumerate(verdicts)]
    (row,) = summary(("a",), (1.0,), cells)
    assert (row.paper, row.sound, row.verdict) == (3, 1, "starving")
    assert row["median_ttft_ms"].mean == 34.0
    # 34 - 4.303 x 57.2 / sqrt(3) would be negative.
    assert row["median_ttft_ms"].low == 0.0


def test_decisions_are_timed_and_the_timeline_is_kept() -> None:
    result = evaluate(evaluation(policies=("sarathi", "random"), loads=(4.0,), seeds=1))
    assert result.windows is not None
    assert list(result.windows.policies) == ["sarathi", "random"]
    for seen in result.windows.policies.values():
        assert seen.decision_us is not None
        assert 0.0 < seen.decision_us.median < 1e4
        assert len({len(column) for column in seen.timeline.columns().values()}) == 1
        assert list(seen.timeline.start_s) == sorted(seen.timeline.start_s)
    assert result.windows.policies["sarathi"].largest_batch_tokens <= 512 + 128


def test_runs_outside_the_range_of_the_profile_are_announced() -> None:
    source = Source(None, "poisson:lengths=fixed:9000,4", True, 5)
    result = evaluate(evaluation(policies=("vllm",), reference="vllm", source=source, loads=(1.0,), seeds=1))
    assert any("requests of up to 9004 tokens" in line for line in result.warnings)
    assert any(line.startswith("vllm: batches of up to 9000 tokens") for line in result.warnings)


def test_chunks_that_the_profile_does_not_know_are_announced() -> None:
    """Of a prompt of 4096 tokens, the last seven of sixteen chunks stand behind more than 2048."""
    source = Source(None, "poisson:lengths=fixed:4096,4", True, 5)
    policies = ("sarathi:token_budget=256", "vllm")
    known = load_profile("l40s-mistral-7b")
    compared = evaluation(policies=policies, reference="vllm", source=source, loads=(0.1,), seeds=1, profile=known)
    (line,) = (line for line in evaluate(compared).warnings if "in chunks of fewer than" in line)
    share = "44% of the prompt tokens in chunks of fewer than 512 behind more than 2048"
    assert line == f"{policies[0]}: {share}; profile l40s-mistral-7b is too fast there"


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    path = tmp_path / "lengths.csv"
    rows = "".join(f"{10 + k},{1 + k % 7}\n" for k in range(50))
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + rows)
    return path


@pytest.fixture
def timed(tmp_path: Path) -> Path:
    path = tmp_path / "timed.csv"
    rows = "".join(f"{k},{10 + k},{1 + k % 7}\n" for k in range(50))
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    return path


def test_a_length_file_gives_the_requests_that_read_trace_gives(lengths: Path) -> None:
    source = SourceOptions(trace=str(lengths), num_requests=30).source()
    assert source.requests(2.0, 7).digest() == read_trace(lengths, rate=2.0, num_requests=30, seed=7).digest()


def test_a_recorded_trace_differs_between_seeds_in_tiers_only(timed: Path) -> None:
    options = SourceOptions(trace=str(timed), rate_scale=0.5)
    source = options.source()
    first, second = source.requests(None, 0), source.requests(None, 1)
    assert (first.arrival == second.arrival).all()
    assert (first.prompt == second.prompt).all()
    assert (first.tier != second.tier).any()
    assert first.rate == pytest.approx(0.5)
    assert options.loads(None, None) == (None,)
    assert "seeds differ only in tiers" in source.seed_note
    assert source.requests(3.0, 0).rate == pytest.approx(3.0)


def test_rates_are_read_as_lists_and_ranges() -> None:
    options = SourceOptions()
    assert options.loads(None, None) == (1.6,)
    assert options.loads(2.5, None) == (2.5,)
    assert options.loads(None, "1.0:2.0:0.2") == (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
    assert options.loads(None, "1,3,2") == (1.0, 3.0, 2.0)
    assert SourceOptions(workload="gamma:cv=2,rate=3").loads(None, None) == (3.0,)


def test_commas_also_stand_between_the_parameters_of_a_policy(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    text = "slai:token_budget=1024,offset=3, sarathi,random:seed=4,runs"
    assert split_policies(text) == ("slai:token_budget=1024,offset=3", "sarathi", "random:seed=4", "runs")
    assert resolve("slai:token_budget=1024,offset=3").spec == "slai:token_budget=1024,offset=3.0"
    assert resolve("random:seed=4").spec == "random:seed=4"


@pytest.mark.parametrize("spec", ["nosuch", "slai:offset=x", "slai:nosuch=1", "random:seed=x", "random:x=1"])
def test_specs_that_name_nothing_are_refused(spec: str) -> None:
    with pytest.raises(InputError):
        resolve(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policies": "slai"}, "policies: expected a tuple of policies, got 'slai'"),
        ({"source": "trace.csv"}, "source: expected a Source, got 'trace.csv'"),
        ({"profile": "tile-unit"}, r"profile: expected a profile of load_profile\(NAME\), got 'tile-unit'"),
        ({"config": {}}, r"config: expected an EngineConfig, got \{\}"),
        ({"seeds": 1.5}, "seeds: expected a whole number >= 1, got 1.5"),
        ({"loads": ()}, r"loads: expected a tuple of rates, got \(\)"),
        ({"loads": 1.0}, "loads: expected a tuple of rates, got 1.0"),
    ],
)
def test_a_part_of_another_kind_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluation(**changes)
