"""Scores over a suite: what the number means, what is named as broken, and that any number of workers says the same."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.evaluation.points import Point
from agents.evaluation.suite_runs import RunOptions
from agents.reporting.score_tables import markdown_text, scenario_grids, totals_grid, verdict_lines
from agents.studies.score.judging import (
    by_scenario,
    is_feasible,
    is_saturated,
    kept_tiers,
    score,
    standings_of,
    totals_of,
)
from agents.studies.score.records import MOST_TTFT, REFERENCES, Score, World
from agents.studies.score.run import Contest, run_contest
from engine.errors import InputError
from engine.scenarios.scenario import read_scenario
from engine.scenarios.suite import Suite

OWN = "srtf"
SUITE = Suite(
    name="small",
    seeds=2,
    requests=60,
    scenarios=(
        read_scenario("poisson:rate=2"),
        read_scenario({"workload": "gamma:cv=2,rate=6", "profile": "h100-mistral-7b", "tiers": ["name=all,tbt=0.1"]}),
    ),
)


@pytest.fixture(scope="module")
def result() -> Score:
    return run_contest(Contest(SUITE, (OWN,)))


def test_the_references_run_beside_and_the_best_of_them_is_100(result: Score) -> None:
    assert result.policies == (OWN, *REFERENCES)
    assert result.scored == (OWN,)
    runs = by_scenario(result.cells)
    for world in result.worlds:
        for seed in range(2):
            points = {name: runs[world.scenario][name][seed] for name in result.policies}
            assert len({point.trace for point in points.values()}) == 1
            best = max(points[name].slo_goodput or 0.0 for name in REFERENCES)
            least = min(points[name].mean_ttft_ms or math.inf for name in REFERENCES)
            for name, point in points.items():
                expected = (point.slo_goodput or 0.0) / best * least / (point.mean_ttft_ms or math.inf)
                assert score(runs[world.scenario], name)[seed] == pytest.approx(100.0 * math.sqrt(expected))
    own = next(row for row in result.totals if row.policy == OWN)
    means = [row.score.mean for row in result.standings if row.policy == OWN]
    assert own.score.mean == pytest.approx(sum(means) / 2)


def test_who_else_is_scored_changes_no_score(result: Score) -> None:
    more = run_contest(Contest(SUITE, (OWN, "orca", "slai")))
    assert {row.policy: row.score for row in more.totals}[OWN] == result.totals[0].score


def test_workers_and_interruptions_change_nothing(result: Score, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 3 and not (tmp_path / stage).exists():
            (tmp_path / stage).touch()
            raise KeyboardInterrupt

    contest = Contest(SUITE, (OWN,))
    with pytest.raises(KeyboardInterrupt):
        run_contest(contest, RunOptions(folder=tmp_path, progress=interrupt))
    done: list[int] = []
    again = run_contest(contest, RunOptions(2, tmp_path, resume=True, progress=lambda _, k, __: done.append(k)))
    assert again == result
    assert done[0] == 4
    with pytest.raises(InputError, match="expected cells of configuration"):
        run_contest(Contest(replace(SUITE, requests=61), (OWN,)), RunOptions(folder=tmp_path, resume=True))


def point(goodput: float, ttft: float | None, strict_ms: float = 90.0, **changes: Any) -> Point:
    given = {
        "rate": 1.0,
        "arrival_rate": 1.0,
        "paper": True,
        "sound": True,
        "failures": (),
        "trace": "",
        "mean_ttft_ms": ttft,
        "median_ttft_ms": ttft,
        "p99_ttft_ms": ttft,
        "p99_itl_ms": {"strict": strict_ms, "free": None},
        "kept_up_share": 1.0,
        "slo_goodput": goodput,
        "slo_attainment": 1.0,
        "iterations": 1,
    }
    return Point(**{**given, **changes})


DUE = {"strict": 0.1, "free": 0.5}
WORLD = World("here", "poisson", 1.0, DUE, kept=("strict", "free"), saturated=False, notes=())


def runs(**own: Any) -> dict[str, list[Point]]:
    """Three seeds: the references alike, slai in time and the others late; one policy of its own."""
    found = {name: [point(1.0, 200.0, 120.0) for _ in range(3)] for name in REFERENCES}
    found["slai"] = [point(0.9, 400.0, 90.0) for _ in range(3)]
    found["own"] = [point(**({"goodput": 1.0, "ttft": 200.0} | own)) for _ in range(3)]
    return found


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, 100.0),
        ({"goodput": 0.25}, 50.0),
        ({"ttft": 800.0}, 50.0),
        ({"ttft": 50.0}, 200.0),
        ({"ttft": 1.0}, 100.0 * math.sqrt(MOST_TTFT)),
        ({"goodput": 0.0}, 0.0),
        ({"ttft": None}, 0.0),
    ],
)
def test_a_score_is_the_root_of_two_ratios(own: dict[str, Any], expected: float) -> None:
    assert score(runs(**own), "own") == pytest.approx([expected] * 3)


def test_what_is_broken_is_named() -> None:
    def own(world: World, **changes: Any) -> Any:
        (row,) = (row for row in standings_of(world, runs(**changes)) if row.policy == "own")
        return row

    fine = own(WORLD)
    assert (fine.lost, fine.is_behind, fine.is_slower, fine.outcome) == ((), False, False, "ties")
    late = own(WORLD, strict_ms=101.0)
    assert late.lost == late.late == ("strict",)
    assert own(WORLD, goodput=0.98).is_behind
    assert not own(WORLD, goodput=0.995).is_behind
    assert own(WORLD, ttft=211.0).is_slower
    assert not own(WORLD, ttft=209.0).is_slower
    assert own(replace(WORLD, saturated=True), ttft=500.0).slower is None
    found = {"here": runs(strict_ms=101.0, goodput=0.9, ttft=300.0)}
    total = {row.policy: row for row in totals_of(found, list(standings_of(WORLD, found["here"])))}["own"]
    assert (total.lost, total.behind, total.slower) == (("here: strict",), ("here",), ("here",))
    assert (total.wins, total.loses) == (0, 1)


def test_a_deadline_that_nobody_keeps_is_asked_of_nobody() -> None:
    found = runs(strict_ms=150.0)
    assert kept_tiers(found, DUE) == ("strict", "free")
    found["slai"] = found["slackfit"]
    assert kept_tiers(found, DUE) == ("free",)
    assert all(row.lost == () for row in standings_of(replace(WORLD, kept=("free",)), found))


def test_a_scenario_is_feasible_if_somebody_serves_it() -> None:
    behind = {"kept_up_share": 0.5}
    nobody = {name: [point(0.5, 200.0, **behind)] for name in REFERENCES}
    assert not is_feasible(nobody, overload=False)
    assert is_feasible(nobody, overload=True)
    assert is_feasible(nobody | {"own": [point(0.5, 200.0)]}, overload=False)
    late = {name: [point(0.0, 200.0, slo_attainment=0.1)] for name in REFERENCES}
    assert not is_feasible(late, overload=True)
    assert is_saturated({name: [point(0.5, 200.0, sound=False)] for name in REFERENCES})
    assert not is_saturated(runs())


def test_scenarios_without_a_feasible_policy_are_skipped_and_named(result: Score) -> None:
    impossible = read_scenario({"name": "impossible", "workload": "poisson:rate=2", "tiers": ["name=all,tbt=0.001"]})
    more = run_contest(Contest(replace(SUITE, scenarios=(*SUITE.scenarios, impossible)), (OWN,)))
    assert more.skipped == ("impossible",)
    assert [row.score for row in more.totals] == [row.score for row in result.totals]
    assert next(verdict_lines(more)) == "Skipped, nobody serves them: impossible."
    with pytest.raises(InputError, match="expected a scenario that some policy serves, got none"):
        run_contest(Contest(replace(SUITE, scenarios=(impossible,)), (OWN,)))


def test_the_tables_say_it(result: Score) -> None:
    (part,) = totals_grid(result).parts
    assert {row[0] for row in part.rows} == {OWN, *REFERENCES}
    grids = list(scenario_grids(result))
    assert [len(grid.parts[0].rows) for grid in grids] == [5, 5]
    assert ["TBT p99 all, s (0.1)" in [head.title for head in grid.heads] for grid in grids] == [False, True]
    lines = list(verdict_lines(result))
    assert all(line.startswith(f"{OWN}: ") for line in lines)
    totals, _, scenarios = markdown_text(result).split("\n\n")
    assert len(totals.splitlines()) == 7
    assert len(scenarios.splitlines()) == 4


def test_the_command_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, suite = tmp_path / "out", tmp_path / "mine.yml"
    suite.write_text("seeds: 3\nrequests: 40\nscenarios: ['poisson:rate=1.5', 'poisson:rate=6@h100-mistral-7b']\n")
    command = ["score", "srtf,orca", "random", "--suite", str(suite), "--workers", "1", "--out", str(out)]
    assert main([*command, "--seeds", "2"]) == 0
    text = capsys.readouterr().out
    assert "poisson:rate=6@h100-mistral-7b: 6 requests/s" in text
    assert "orca: goodput at most 1% below the best of sarathi, slai, vllm_v1, slackfit in 2: " in text
    data = json.loads((out / "score.json").read_text())
    assert (data["format"], data["seeds"], data["requests"]) == ("llmsched-score/1", 2, 40)
    assert data["scored"] == ["srtf", "orca", "random"]
    assert len(data["standings"]) == 2 * 7
    html = (out / "report.html").read_text()
    assert html.count("poisson:rate=6@h100-mistral-7b") >= 1
    assert "http" not in html


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no-such-policy", "policy: expected one of"),
        ("srtf srtf", "policies: expected each once, got 'srtf' twice"),
        (
            "srtf --suite nothing",
            "suite: expected one of default, devices, heldout, overload, referee, training or",
        ),
        ("srtf --suite gone.yml", "gone.yml"),
        ("srtf --seeds 0", "seeds: expected a whole number"),
        ("srtf --num-requests x", "num-requests: expected a whole number"),
        ("srtf --resume", "cells to resume"),
        ("srtf --profile tile-unit", "profile"),
    ],
)
def test_a_wrong_line_is_one_line(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["score", *line.split()]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
