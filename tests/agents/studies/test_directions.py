"""Published directions: the studies are complete, the same requests for all, and the figures add up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import baselines
from agents.cli import main
from agents.studies import directions
from agents.studies.directions import METRICS, STUDIES, Study, chosen, measure
from agents.work.progress import unseen
from engine.demand.workload import parse_workload
from engine.errors import InputError


def brief(study: Study) -> Study:
    """A few seconds of it at its highest rate."""
    return replace(study, rates=study.rates[-1:], seconds=4.0)


@pytest.mark.parametrize("study", STUDIES, ids=lambda s: s.name)
def test_every_study_runs_and_compares_with_its_reference(study: Study) -> None:
    for spec in study.policies:
        baselines.make(spec)
    parse_workload(study.workload)
    result = measure(brief(study), 2, 1, unseen)
    assert [row.policy for row in result.rows] == list(study.policies)
    reference, policy = result.rows[:2]
    assert all(row.metric(name).n == 2 for row in result.rows for name in METRICS)
    assert result.holds == (policy.metric(study.metric).mean < reference.metric(study.metric).mean)
    if reference.times_lower is not None:
        assert reference.times_lower.mean == 1.0


def test_studies_are_chosen_by_name() -> None:
    assert chosen(None) == STUDIES
    assert [study.name for study in chosen("alise, ltr")] == ["alise", "ltr"]
    with pytest.raises(InputError, match=r"only: expected studies among ltr, .*, got 'nosuch'"):
        chosen("nosuch")


def test_the_command_prints_the_published_figure_beside_the_measured_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions, "STUDIES", tuple(brief(study) for study in STUDIES))
    out = tmp_path / "d.json"
    assert main(["directions", "--only", "past_future", "--seeds", "1", "--workers", "1", "--json", str(out)]) == 0
    assert "doi 10.1145/3676641.3716011" in capsys.readouterr().out
    (study,) = json.loads(out.read_text())["studies"]
    assert study["study"]["name"] == "past_future"
    assert main(["directions", "--seeds", "0"]) == 2
    assert "seeds: expected a whole number >= 1, got 0" in capsys.readouterr().err
