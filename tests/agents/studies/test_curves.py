"""Learning curves: the policy of each checkpoint, and what the command shows of several trainings."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.learning.learned.bundle import Bundle
from agents.learning.ppo.queues.past import past_policies
from agents.learning.ppo.train import train
from agents.studies.curves import Line
from engine.errors import InputError
from tests.agents.learning.test_queues import QUEUE, queue_run
from tests.agents.learning.training import small

SUITE = "seeds: 1\nrequests: 20\nscenarios:\n  - {name: easy, workload: 'poisson:rate=1'}\n"
CHANGES = {"checkpoint_every": 128, "eval_every": 128, "keep_checkpoints": 5}


@pytest.mark.parametrize("hidden", [(), (8, 4)])
def test_the_last_checkpoint_is_the_exported_policy(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    run = train(queue_run(tmp_path / "run", queue=replace(QUEUE, actor=hidden), **CHANGES | {"eval_every": 0}))
    past, final = past_policies(run), Bundle.load(run / "final")
    steps = [bundle.timesteps for bundle in past]
    assert steps == sorted(set(steps))
    assert steps[-1] == final.timesteps
    for (weight, bias), (last_weight, last_bias) in zip(past[-1].layers, final.layers, strict=True):
        assert np.array_equal(weight, last_weight)
        assert np.array_equal(bias, last_bias)
    assert any(not np.array_equal(a[0], b[0]) for a, b in zip(past[0].layers, final.layers, strict=True))


def test_trainings_are_shown_on_their_traces_and_over_a_suite(tmp_path: Path) -> None:
    runs = [train(queue_run(tmp_path / f"q-{seed}", seed=seed, **CHANGES)) for seed in (0, 1)]
    (tmp_path / "suite.yml").write_text(SUITE)
    arguments = ["--suites", str(tmp_path / "suite.yml"), "--others", "slackfit", "--workers", "1", "--no-progress"]
    main(["curves", *map(str, runs), *arguments, "--out", str(tmp_path / "out")])
    *worlds, suite = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert [panel["title"] for panel in worlds] == ["1 requests/s", "2 requests/s"]
    for panel in (*worlds, suite):
        assert [line["run"] for line in panel["lines"]] == ["q-0", "q-1"]
        assert all(len(line["decisions"]) == len(line["values"]) >= 2 for line in panel["lines"])
    assert suite["levels"]["slackfit"] == pytest.approx(100.0, abs=1.0)
    assert all(50.0 < value < 150.0 for line in suite["lines"] for value in line["values"])
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_of_a_recipe_are_of_one_kind() -> None:
    assert [Line(run, (), ()).kind for run in ("queue-0", "queue-12", "queue-b")] == ["queue", "queue", "queue-b"]


def test_what_is_no_such_training_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = train(small(tmp_path / "plain", checkpoint_every=64))
    with pytest.raises(InputError, match=r"plain/.*: expected a checkpoint of the trainer for queues, got one of"):
        past_policies(other)
    assert main(["curves", str(other), "--out", str(tmp_path / "out")]) == 2
    assert "plain: expected TensorBoard's files with relative/mean_ttft/..., found none" in capsys.readouterr().err
