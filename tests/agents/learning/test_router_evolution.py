"""Evolution of a router: it starts at its rule, repeats exactly, goes on after a stop, and finds a router."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.learning.learned.router import LearnedRouter, load_router
from agents.learning.search.recipes import read_search, saved_search
from agents.learning.search.router_evolution import (
    START,
    RouterEvolutionConfig,
    evolve_router,
    frame,
    relative,
    score,
    shipped_router_recipe,
)
from agents.learning.search.router_worlds import Trial, World, aged, all_worlds, mean_ttft_s
from engine.cluster.features import REPLICA_NAMES
from engine.errors import InputError

TINY = RouterEvolutionConfig(
    replicas=(2,),
    loads=(2.0,),
    policies=("slackfit:tuned",),
    ages=(1.0,),
    rivals=("least_tokens",),
    requests=40,
    generations=2,
    population=4,
    workers=1,
)


def test_the_search_starts_at_its_rule() -> None:
    shared = frame(TINY)
    trials = TINY.trials(1)
    assert [trial.world.is_mixed for trial in trials] == [False, True]
    assert [trial.requests for trial in trials] == [80, 160]
    bundle = shared.bundle(shared.start)
    costs = dict(zip(bundle.features, -bundle.layers[0][0][0] / bundle.std, strict=True))
    assert costs["own_prompt"] / costs["prompt_work"] == pytest.approx(START["own_prompt"] / START["prompt_work"])
    assert sum(cost != 0.0 for cost in costs.values()) == len(START)
    assert relative([bundle], [bundle, "random"], trials, 1).max() == 0.0


def test_the_score_takes_a_loss_dearer_than_a_gain() -> None:
    assert score(np.array([[0.1, -0.1], [0.0, 0.0], [-0.1, -0.1]]), 2.0) == pytest.approx([0.1, 0.0, -0.1])


def test_a_search_repeats_exactly_and_goes_on(tmp_path: Path) -> None:
    def columns(folder: Path) -> list[list[str]]:
        return [line.split(",")[2:] for line in (folder / "log.csv").read_text().splitlines()]

    evolve_router(replace(TINY, run_dir=tmp_path / "whole"), lambda line: None)
    evolve_router(replace(TINY, run_dir=tmp_path / "parts", generations=1, workers=2), lambda line: None)
    config = saved_search(tmp_path / "parts", generations=2)
    evolve_router(config, lambda line: None, resume=True)  # type: ignore[arg-type]
    assert columns(tmp_path / "whole") == columns(tmp_path / "parts")
    assert len(columns(tmp_path / "whole")) == 3
    one, other = load_router(tmp_path / "whole"), load_router(tmp_path / "parts")
    assert np.array_equal(one.bundle.layers[0][0], other.bundle.layers[0][0])
    trial = Trial(one.bundle, World(2, True, 1.0, "slai", 0.0), 60, 1)
    assert mean_ttft_s(trial) == mean_ttft_s(trial._replace(router=other.bundle))
    with pytest.raises(InputError, match="already holds a run"):
        evolve_router(replace(TINY, run_dir=tmp_path / "whole"), lambda line: None)


def test_worlds_are_equal_and_mixed_fleets() -> None:
    worlds = all_worlds((2, 4), (1.5,), ("slai",), (0.0, 1.0))
    assert len(worlds) == 8
    mixed = World(4, True, 1.5, "slai", 0.0)
    assert [seat.profile.name for seat in mixed.fleet] == ["rtx6000ada-mistral-7b"] * 2 + [
        "rtx6000ada-mistral-7b:speed=3"
    ] * 2
    assert mixed.rate == 12.0
    assert World(4, False, 1.5, "slai", 0.0).rate == 6.0


def test_a_rival_gets_reports_as_old_as_the_world_has_them() -> None:
    assert aged("least_tokens:output_weight=0", 5.0).spec == "least_tokens:output_weight=0.0,age=5.0"
    assert aged("round_robin", 5.0).report_s == 0.0
    made = aged(frame(TINY).bundle(np.ones(len(REPLICA_NAMES))), 5.0)
    assert isinstance(made, LearnedRouter)
    assert made.report_s == 5.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kind: router\nfeatures: [prompt_work, hits]\n", "features: expected names among .*, got 'hits'"),
        ("kind: router\nfeatures: [prompt_work]\n", "features: expected prompt_work and own_prompt among them"),
        ("kind: router\nrivals: []\n", "rivals: expected at least one, got none"),
        ("kind: router\nrivals: [nobody]\n", "router: expected one of"),
        ("kind: router\nrates: [1.0]\n", "unknown key 'rates'"),
        ("kind: queue\n", "unknown key 'kind'"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "x.yml").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_search(str(tmp_path / "x.yml"))


def test_the_shipped_recipe_is_a_configuration_and_has_no_tiers() -> None:
    config = read_search("pretrained-router", seed=3)
    assert isinstance(config, RouterEvolutionConfig)
    assert config == RouterEvolutionConfig.from_yaml(shipped_router_recipe(), seed=3)
    with pytest.raises(InputError, match="evolve: expected options of a router's search, got tiers"):
        read_search("pretrained-router", tiers=())


def test_the_command_searches_and_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yml").write_text(
        "kind: router\nreplicas: [2]\nloads: [1.5]\npolicies: [slai]\nages: [1.0]\nrivals: [least_tokens]\n"
        "requests: 20\npopulation: 4\ngenerations: 1\n"
    )
    flags = ["--recipe", str(tmp_path / "x.yml"), "--run-dir", str(tmp_path / "run"), "--workers", "1"]
    main(["evolve", *flags])
    assert f"llmsched route --routers least_tokens,{tmp_path}/run/final" in capsys.readouterr().out
    assert len(load_router(tmp_path / "run").bundle.features) == len(REPLICA_NAMES)
