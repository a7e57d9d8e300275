"""Settings against each other on a frozen suite: what is run, what is said of it, and what a pull request gets."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.evaluation.setup import Setup
from agents.evaluation.statistics import paired_interval
from agents.evaluation.suite_runs import RunOptions, setup_in
from agents.reporting.compare_tables import markdown_text, scenario_grids, totals_grid, traces_line, verdict_lines
from agents.studies.referee.freeze import digests_of
from agents.studies.referee.judging import rows_of, totals_of
from agents.studies.referee.records import KEPT, Cell, OptionComparison
from agents.studies.referee.run import OptionStudy, compare_options
from agents.studies.referee.variants import Variant, baseline_of, parse_options, variants_of
from engine.errors import InputError
from engine.scenarios.scenario import Scenario, read_scenario
from engine.scenarios.suite import Suite, load_suite

SUITE = Suite(
    name="small",
    seeds=3,
    requests=60,
    scenarios=(
        read_scenario({"name": "short of memory", "workload": "poisson:rate=3", "server": "num_blocks=700"}),
        read_scenario({"name": "fast", "workload": "gamma:cv=2,rate=6", "profile": "h100-mistral-7b"}),
    ),
)
OPTIONS = parse_options(["watermark=0,0.3"])


@pytest.fixture(scope="module")
def result() -> OptionComparison:
    return compare_options(OptionStudy(SUITE, "vllm_v1", OPTIONS))


def test_every_setting_meets_the_same_requests(result: OptionComparison) -> None:
    assert [variant.policy for variant in result.variants] == ["vllm_v1:watermark=0", "vllm_v1:watermark=0.3"]
    assert result.baseline == "watermark=0"
    assert len(result.cells) == 2 * 3 * 2
    traces = {(cell.scenario, cell.seed): cell.trace for cell in result.cells}
    assert all(traces[cell.scenario, cell.seed] == cell.trace for cell in result.cells)
    assert len(set(traces.values())) == 6


def test_a_row_says_what_the_runs_say(result: OptionComparison) -> None:
    (row,) = (row for row in result.of("short of memory") if row.variant == "watermark=0.3")
    setup = setup_in(SUITE.scenarios[0], SUITE, tuple(variant.policy for variant in result.variants))
    off, on = ([_run(setup, policy, seed) for seed in range(3)] for policy in setup.labels)
    assert sum(one["evictions"] for one in off) > sum(one["evictions"] for one in on)
    fewer = paired_interval([one["evictions"] for one in on], [one["evictions"] for one in off])
    assert row.changes["evictions"].change == fewer
    logs = [math.log(one["mean_e2el_ms"] / two["mean_e2el_ms"]) for one, two in zip(on, off, strict=True)]
    assert row.changes["mean_e2el_ms"].change.mean == pytest.approx(math.exp(np.mean(logs)) - 1.0)
    assert row.values["mean_e2el_ms"].mean == pytest.approx(np.mean([one["mean_e2el_ms"] for one in on]))


def _run(setup: Setup, policy: str, seed: int) -> dict[str, float]:
    return setup.serve(policy, 3.0, seed).report.to_dict()


def cells(scenario: str, variant: str, **numbers: list[float]) -> list[Cell]:
    """Runs with these numbers by seed; all others are 1."""
    return [
        Cell(scenario, variant, seed, "", {key: numbers[key][seed] if key in numbers else 1.0 for key in KEPT})
        for seed in range(2)
    ]


def test_over_scenarios_ratios_are_multiplied_and_differences_added() -> None:
    """Twice as long in one scenario and half as long in the other is no change; 1 and 3 evictions more are 2."""
    runs = {
        "a": {"x": cells("a", "x"), "y": cells("a", "y", p99_ttft_ms=[2.0, 2.0], evictions=[2.0, 2.0])},
        "b": {"x": cells("b", "x"), "y": cells("b", "y", p99_ttft_ms=[0.5, 0.5], evictions=[4.0, 4.0])},
    }
    rows = [row for name, found in runs.items() for row in rows_of(name, 1.0, found, "x")]
    base, other = totals_of(runs, rows, "x")
    assert base.changes == {}
    assert other.changes["p99_ttft_ms"].change.mean == pytest.approx(0.0)
    assert other.changes["evictions"].change.mean == 2.0
    assert [row.changes["p99_ttft_ms"].change.mean for row in rows if row.variant == "y"] == pytest.approx([1.0, -0.5])


def test_more_is_better_of_what_is_good_and_worse_of_what_is_not() -> None:
    more = {"slo_attainment": [2.0, 2.0], "p99_itl_ms": [2.0, 2.0]}
    found = {"x": cells("a", "x"), "y": cells("a", "y", **more)}
    rows = list(rows_of("a", 1.0, found, "x"))
    judged = {key: change.judgement for key, change in rows[1].changes.items()}
    assert judged["slo_attainment"] == "better"
    assert judged["p99_itl_ms"] == "worse"
    assert judged["evictions"] == "no clear difference"
    total = list(totals_of({"a": found}, rows, "x"))[1]
    assert (total.better, total.worse) == (("a",), ())


def test_a_number_that_is_not_there_leaves_no_interval() -> None:
    found = {"x": cells("a", "x"), "y": cells("a", "y", median_tpot_ms=[math.nan, 1.0])}
    row = list(rows_of("a", 1.0, found, "x"))[1]
    assert math.isnan(row.changes["median_tpot_ms"].change.mean)
    assert row.changes["median_tpot_ms"].judgement == "no clear difference"


def test_several_options_are_a_grid_and_the_last_one_runs_first() -> None:
    options = parse_options(["watermark=0,0.1", "max_num_seqs=8, 16"])
    names = [variant.name for variant in variants_of("vllm_v1:gpu=h100", options)]
    assert names == [f"watermark={share},max_num_seqs={seats}" for share in ("0", "0.1") for seats in ("8", "16")]
    assert variants_of("vllm_v1:gpu=h100", options)[3].policy == "vllm_v1:gpu=h100,watermark=0.1,max_num_seqs=16"


def test_what_is_no_parameter_of_the_policy_is_one_of_the_server() -> None:
    both = variants_of("sarathi", parse_options(["token_budget=256", "async_scheduling=false,true"]))
    assert both[1] == Variant(
        "token_budget=256,async_scheduling=true", "sarathi:token_budget=256", "async_scheduling=true"
    )
    plain = read_scenario({"name": "one", "server": "async_scheduling=false,num_blocks=900"})
    there = both[1].scenario(plain)
    assert (there.name, there.engine.async_scheduling, there.engine.num_blocks) == ("one", True, 900)
    assert (both[0].scenario(plain).engine.async_scheduling, Scenario().engine.async_scheduling) == (False, False)


def test_a_setting_of_the_server_is_what_its_runs_have() -> None:
    suite = Suite(name="one", seeds=1, requests=40, scenarios=(read_scenario("poisson:rate=3"),))
    seats = compare_options(OptionStudy(suite, "sarathi", parse_options(["num_blocks=700,14000"])))
    waits = {cell.variant: cell.numbers["mean_ttft_ms"] or 0.0 for cell in seats.cells}
    assert waits["num_blocks=700"] > 2.0 * waits["num_blocks=14000"]
    assert len({cell.trace for cell in seats.cells}) == 1


def test_one_seed_is_said_to_leave_no_interval() -> None:
    suite = Suite(name="one", seeds=1, requests=40, scenarios=(read_scenario("poisson:rate=3"),))
    found = compare_options(OptionStudy(suite, "vllm_v1", parse_options(["watermark=0,0.3"])))
    assert "of one seed, which leaves no interval" in totals_grid(found).caption
    assert next(verdict_lines(found)).endswith("points; one seed shows no more.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, "watermark=0,max_num_seqs=8"), ("max_num_seqs=16", "watermark=0,max_num_seqs=16")],
)
def test_the_baseline_is_the_first_setting_or_a_named_one(text: str | None, expected: str) -> None:
    options = parse_options(["watermark=0,0.1", "max_num_seqs=8,16"])
    assert baseline_of(variants_of("vllm_v1", options), options, text) == expected


def test_workers_and_interruptions_change_nothing(result: OptionComparison, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    study = OptionStudy(SUITE, "vllm_v1", OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        compare_options(study, RunOptions(folder=tmp_path, progress=interrupt))
    done: list[int] = []
    again = compare_options(study, RunOptions(2, tmp_path, resume=True, progress=lambda _, k, __: done.append(k)))
    assert again == result
    assert done[0] == 6
    other = OptionStudy(SUITE, "vllm_v1", parse_options(["watermark=0,0.2"]))
    with pytest.raises(InputError, match="expected cells of configuration"):
        compare_options(other, RunOptions(folder=tmp_path, resume=True))


def test_the_shipped_suite_draws_the_requests_that_it_was_frozen_with() -> None:
    suite = load_suite("referee")
    workloads = {scenario.name.rpartition(" ")[0] for scenario in suite.scenarios}
    assert (len(workloads), len(suite.scenarios), suite.seeds) == (5, 15, 10)
    assert digests_of(suite) == suite.traces


def test_requests_that_are_no_longer_those_of_the_suite_are_noticed() -> None:
    digests = digests_of(SUITE)
    same = replace(SUITE, traces={"fast": digests["fast"]})
    frozen = compare_options(OptionStudy(same, "vllm_v1", OPTIONS))
    assert (frozen.frozen, frozen.changed) == (3, ())
    assert "3 of 6 traces as the suite knows them" in traces_line(frozen)
    other = replace(SUITE, traces={"fast": (digests["fast"][0], "0" * 16)})
    changed = compare_options(OptionStudy(other, "vllm_v1", OPTIONS))
    assert (changed.frozen, changed.changed) == (1, ("fast, seed 1",))
    assert traces_line(changed).startswith("NOT the frozen suite: 1 of 6 traces are others")
    assert traces_line(changed) in markdown_text(changed)


def test_tables_of_one_suite_have_one_digest_whatever_is_compared(result: OptionComparison) -> None:
    other = compare_options(OptionStudy(SUITE, "sarathi", parse_options(["token_budget=256,512"])))
    assert other.suite_hash == result.suite_hash
    assert other.config_hash != result.config_hash
    scenarios = (replace(SUITE.scenarios[0], server="num_blocks=701"), SUITE.scenarios[1])
    there = compare_options(OptionStudy(replace(SUITE, scenarios=scenarios), "sarathi", other.options))
    assert there.suite_hash != other.suite_hash


def test_another_number_of_requests_is_not_the_frozen_suite() -> None:
    assert load_suite("referee", seeds=2).traces
    assert not load_suite("referee", requests=100).traces


def test_the_tables_say_it(result: OptionComparison) -> None:
    (part,) = totals_grid(result).parts
    assert [row[0] for row in part.rows] == ["watermark=0.3"]
    assert [len(grid.parts[0].rows) for grid in scenario_grids(result)] == [2, 2]
    lines = list(verdict_lines(result))
    assert lines[0].startswith("watermark=0.3: SLO met ")
    assert lines[-1] == f"Suite digest {result.suite_hash}: not frozen."


def test_the_markdown_can_be_pasted(result: OptionComparison) -> None:
    text = markdown_text(result)
    title, totals, caption, *_ = text.split("\n\n")
    assert title == "### vllm_v1: watermark = 0, 0.3"
    assert len({line.count(" | ") for line in totals.splitlines()}) == 1
    assert "95 % intervals over 3 seeds" in caption
    assert re.search(r"\*\*-\d+\.\d \[-\d+\.\d, -\d+\.\d\]\*\*", text)
    assert text.count("<details>") == text.count("</details>") == 1
    assert "`llmsched compare --policy vllm_v1 --option watermark=0,0.3 --suite small --seeds 3" in text


def test_the_command_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, suite = tmp_path / "out", tmp_path / "mine.yml"
    suite.write_text("seeds: 3\nrequests: 40\nscenarios: ['poisson:rate=1.5', 'poisson:rate=6@h100-mistral-7b']\n")
    command = ["compare", "--option", "max_num_batched_tokens=512,2048", "--suite", str(suite), "--workers", "1"]
    assert main([*command, "--seeds", "2", "--baseline", "max_num_batched_tokens=2048", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "poisson:rate=6@h100-mistral-7b: 6 requests/s" in text
    assert "max_num_batched_tokens=512: SLO met" in text
    data = json.loads((out / "compare.json").read_text())
    assert (data["format"], data["seeds"], data["requests"]) == ("llmsched-compare/1", 2, 40)
    assert data["baseline"] == "max_num_batched_tokens=2048"
    assert "--baseline max_num_batched_tokens=2048" in (out / "table.md").read_text()
    assert "http" not in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "option: expected at least one"),
        ("--option watermark", "option: expected NAME=VALUE,VALUE, got 'watermark'"),
        ("--option watermark=", "option: expected NAME=VALUE,VALUE, got 'watermark='"),
        ("--option watermark=0", "option: expected two settings to compare at least, got 'watermark=0' alone"),
        ("--option watermark=0,0", "option: watermark: expected each value once, got '0' twice"),
        ("--option watermark=0,.1 --option watermark=2", "option: expected each name once, got 'watermark' twice"),
        ("--option watermark=0,x", "policy 'vllm_v1': watermark: expected a number, got 'x'"),
        ("--option watermarks=0,1", "policy 'vllm_v1': expected one of max_num_batched_tokens"),
        ("--option watermark=0,2", "watermark: expected a share >= 0 and < 1, got 2"),
        ("--option prefix_cache=none,all", "prefix_cache: expected none or own, got 'all'"),
        ("--option version=0.12,0.32", "version: expected a version of vLLM from 0.13 to 0.32, got '0.12'"),
        ("--option version=latest,0.32", "version: expected a version of vLLM from 0.13 to 0.32, got 'latest'"),
        ("--option watermark=0,.1 --baseline watermark=2", "baseline: watermark: expected one of 0, .1, got '2'"),
        ("--option watermark=0,.1 --baseline seats=2", "baseline: expected key=value with a key among watermark"),
        ("--option watermark=0,.1 --engine tgi", "engine: expected one of vllm, sglang, trtllm, lightllm, got 'tgi'"),
        ("--option watermark=0,.1 --engine vllm --policy orca", "engine, policy: expected one of them, got both"),
        ("--option watermark=0,.1 --policy gone", "policy: expected one of"),
        ("--option watermark=0,.1 --suite gone", "suite: expected one of"),
        ("--option watermark=0,.1 --seeds 0", "seeds: expected a whole number"),
        ("--option watermark=0,.1 --resume", "cells to resume"),
    ],
)
def test_a_wrong_line_is_one_line(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *line.split()]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
