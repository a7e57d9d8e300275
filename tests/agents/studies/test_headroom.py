"""Headroom: the best setting of each trace after the fact, and how much of it a policy reaches."""

import json
from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.studies.score.headroom import Headroom, Search, settings_of
from agents.studies.score.judging import by_scenario
from agents.studies.score.records import Cell
from agents.studies.score.run import serve_contest
from baselines.slackfit import Slackfit
from engine.scenarios.scenario import read_scenario
from engine.scenarios.suite import Suite

SUITE = Suite(name="small", seeds=2, requests=80, scenarios=(read_scenario("poisson:rate=2.5"),))


@pytest.fixture(scope="module")
def searched() -> tuple[Search, list[Cell], Headroom]:
    search = Search(SUITE, ("slackfit", "slai"), 5)
    cells = serve_contest(search.contest)
    return search, cells, search.judge(cells)


def test_settings_are_distinct_values_of_the_space_and_begin_with_the_default() -> None:
    specs = settings_of("slackfit", 30)
    assert len(set(specs)) == len(specs) == 30
    assert specs[0] == "slackfit"
    assert specs == settings_of("slackfit", 30)
    given = dict(part.split("=") for part in specs[1].partition(":")[2].split(","))
    assert set(given) == set(Slackfit.space)


def test_hindsight_is_the_best_of_what_keeps_the_deadlines(searched: tuple[Search, list[Cell], Headroom]) -> None:
    _, cells, result = searched
    runs = by_scenario(cells)["poisson:rate=2.5"]
    row = result.rows[0]
    for kind, names in (("settings", ["slackfit"]), ("foresight", ["slackfit", "clairvoyant"])):
        best = []
        for seed in range(2):
            base = runs["slackfit"][seed]
            found = [runs[spec][seed] for name in names for spec in settings_of(name, 5)]
            fine = [
                point.mean_ttft_ms or 0.0
                for point in found
                if (point.slo_goodput or 0.0) >= 0.99 * (base.slo_goodput or 0.0)
                and all(
                    (point.p99_itl_ms[tier] or 0.0) <= due or (base.p99_itl_ms[tier] or 0.0) > due
                    for tier, due in (("strict", 100.0), ("relaxed", 500.0))
                )
            ]
            best.append(min(fine))
        assert getattr(row, f"{kind}_ttft_ms").mean == pytest.approx(sum(best) / 2)


def test_slackfit_as_it_is_reaches_nothing_and_hindsight_all(searched: tuple[Search, list[Cell], Headroom]) -> None:
    _, _, result = searched
    base, slai = result.rows
    assert (base.policy, base.of_settings, base.gain_ms.mean) == ("slackfit", 0.0, 0.0)
    assert slai.of_settings is not None
    room = slai.base_ttft_ms.mean - slai.settings_ttft_ms.mean
    assert slai.of_settings * room == pytest.approx(slai.base_ttft_ms.mean - slai.ttft_ms.mean)
    assert slai.foresight_ttft_ms.mean <= slai.settings_ttft_ms.mean <= slai.base_ttft_ms.mean


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "mine.yml"
    suite.write_text("scenarios: ['poisson:rate=1.5']\n")
    line = f"headroom srtf --suite {suite} --tries 2 --seeds 2 --num-requests 30 --workers 1 --out {tmp_path / 'out'}"
    assert main(line.split()) == 0
    assert "srtf" in capsys.readouterr().out
    data = json.loads((tmp_path / "out" / "headroom.json").read_text())
    assert (data["format"], data["tries"], len(data["rows"])) == ("llmsched-headroom/1", 2, 1)


@pytest.mark.parametrize(
    ("line", "words"),
    [("srtf --tries 0", "tries: expected a whole number"), ("srtf --suite gone", "suite: expected one of default")],
)
def test_a_wrong_line_is_one_line(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["headroom", *line.split()]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
