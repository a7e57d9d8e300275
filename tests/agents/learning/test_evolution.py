"""Evolution: it starts at the teacher, repeats exactly, and its policies are bundles like any other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.learning.learned.load import load_policy
from agents.learning.search.evolution import (
    FEATURES,
    SIZES,
    EvolutionConfig,
    evolve,
    frame,
    measure_all,
    score,
    shipped_recipe,
)
from engine.errors import InputError
from engine.scenarios.suite import load_suite, read_scenarios
from llmsched_env.actions import Slackfit
from llmsched_env.observation import OBSERVATION_NAMES, OBSERVATION_SIZE

TINY = EvolutionConfig(rates=(1.0, 2.0), requests=60, generations=2, population=4, workers=1)
PARAMETERS = len(SIZES) * (1 + len(FEATURES))


def test_zero_is_the_teacher_and_an_offset_moves_a_level() -> None:
    shared = frame(TINY)
    seen = np.random.default_rng(0).normal(size=(50, OBSERVATION_SIZE)).astype(np.float32)
    start = shared.policy(np.zeros(PARAMETERS)).choose(seen)
    assert (start == shared.base).all()
    x = np.zeros(PARAMETERS)
    x[0] = -2.0
    assert (shared.policy(x).choose(seen) == shared.base - [2, 0, 0]).all()


def test_a_head_follows_its_feature_up_to_its_last_level() -> None:
    shared = frame(TINY)
    x = np.zeros(PARAMETERS)
    x[1 + FEATURES.index("kv_use")] = 1.0
    seen = np.zeros((3, OBSERVATION_SIZE), np.float32)
    for feature, mean, std in zip(FEATURES, shared.mean, shared.std, strict=True):
        moves = np.array([-1.0, 0.0, 9.0]) if feature == "kv_use" else np.zeros(3)
        seen[:, OBSERVATION_NAMES.index(feature)] = mean + std * moves
    expected = [shared.base[0] - 1, shared.base[0], Slackfit().sizes[0] - 1]
    assert shared.policy(x).choose(seen)[:, 0].tolist() == expected


def test_a_search_repeats_exactly_with_any_number_of_workers(tmp_path: Path) -> None:
    logs = []
    for workers in (1, 2):
        config = replace(TINY, run_dir=tmp_path / str(workers), workers=workers)
        evolve(config, lambda line: None)
        logs.append([line.split(",")[2:] for line in (config.run_dir / "log.csv").read_text().splitlines()])
        assert load_policy(config.run_dir).bundle.env.action.holds == config.hold
    assert logs[0] == logs[1]
    assert len(logs[0]) == 1 + TINY.generations
    with pytest.raises(InputError, match="already holds a run"):
        evolve(replace(TINY, run_dir=tmp_path / "1"), lambda line: None)


def test_the_score_wants_less_cost_and_median_and_more_goodput() -> None:
    teacher = [[1.0, 0.2, 1.5]]
    better = [[0.9, 0.2, 1.5]], [[1.0, 0.19, 1.5]], [[1.0, 0.2, 1.6]]
    assert (score(np.array([teacher, *better])) < 0.0).all()
    assert score(np.array([teacher, teacher]))[0] == 0.0


def test_the_shipped_recipe_is_a_configuration(tmp_path: Path) -> None:
    assert EvolutionConfig.from_yaml(shipped_recipe(), seed=3).seed == 3
    other = tmp_path / "x.yml"
    other.write_text("population: 2\n")
    with pytest.raises(InputError, match="population"):
        EvolutionConfig.from_yaml(other)
    other.write_text("pupulation: 20\n")
    with pytest.raises(InputError, match="unknown key 'pupulation', known: "):
        EvolutionConfig.from_yaml(other)
    for text, message in (
        ("rates: 1.4", "rates: expected a list, got 1.4"),
        ("rates: [fast]", r"rates\[0\]: expected a number, got 'fast'"),
        ("sigma: wide", "sigma: expected a number, got 'wide'"),
    ):
        other.write_text(text)
        with pytest.raises(InputError, match=message):
            EvolutionConfig.from_yaml(other)
    with pytest.raises(InputError, match="cannot read a recipe"):
        EvolutionConfig.from_yaml(tmp_path / "none.yml")


def test_what_is_worse_at_one_rate_counts_more_than_what_is_better_at_another() -> None:
    teacher, mixed = [[1.0, 0.2, 1.5]] * 2, [[0.9, 0.2, 1.5], [1.0 / 0.9, 0.2, 1.5]]
    found = np.array([teacher, mixed])
    assert score(found)[0] == pytest.approx(0.0)
    assert score(found, 2.0)[0] == pytest.approx(-np.log(0.9))


def test_other_workloads_are_served_beside_the_default_one() -> None:
    config = replace(TINY, scenarios=read_scenarios(["gamma:rate=3,cv=2,lengths=fixed:64,8"]))
    assert [(load.arrivals, load.rate, load.num_requests) for load in config.loads] == [
        ("poisson", 1.0, 60),
        ("poisson", 2.0, 60),
        ("gamma", 3.0, 60),
    ]
    found = measure_all(["slai", "sarathi"], config, config.env(), 0)
    assert found.shape == (2, 3, 3)
    alone = measure_all(["slai", "sarathi"], TINY, config.env(), 0)
    assert (found[:, :2] == alone).all()
    assert (found[:, 2] != alone[:, 1]).all()


def test_without_features_the_levels_are_constant() -> None:
    shared = frame(replace(TINY, features=()))
    seen = np.random.default_rng(0).normal(size=(20, OBSERVATION_SIZE)).astype(np.float32)
    assert (shared.policy(np.array([1.0, 0.0, -1.0])).choose(seen) == shared.base + np.array([1, 0, -1])).all()
    with pytest.raises(InputError, match=r"features: expected names among .*, got 'nosuch'"):
        replace(TINY, features=("nosuch",))


def test_further_devices_are_served_with_their_own_memory() -> None:
    texts = ["poisson:rate=0.6@rtx4090-llama-3.1-8b", "poisson:rate=3@rtx6000ada-mistral-7b:speed=2@max_num_seqs=64"]
    config = replace(TINY, scenarios=read_scenarios(texts))
    env = config.env()
    places = config.envs(env)
    assert [place.profile for place in places[-2:]] == ["rtx4090-llama-3.1-8b", "rtx6000ada-mistral-7b:speed=2"]
    assert [place.engine.num_blocks for place in places[-2:]] == [2588, 14_000]
    assert places[-1].engine.max_num_seqs == 64
    assert [load.rate for load in config.loads[-2:]] == [0.6, 3.0]
    assert len(places) == len(config.loads)
    found = measure_all(["slackfit"], config, env, 0)
    assert found.shape[1] == len(places)
    assert (found[0, :, 1] > 0.0).all()


@pytest.mark.parametrize(
    ("scenarios", "message"),
    [
        ("[h100-mistral-7b]", r"scenarios\[0\]: workload: expected one of poisson"),
        ("['poisson:rate=2@nosuch']", "profile: expected one of"),
        ("['poisson:rate=-1']", "rate: expected a number > 0"),
        ("no-such-suite", "suite: expected one of"),
        ("3", "scenarios: expected the name of a suite or a list of scenarios"),
    ],
)
def test_bad_scenarios_are_one_clear_line(scenarios: str, message: str, tmp_path: Path) -> None:
    recipe = tmp_path / "own.yml"
    recipe.write_text(f"scenarios: {scenarios}\n")
    with pytest.raises(InputError, match=message):
        EvolutionConfig.from_yaml(recipe)


def test_a_suite_is_a_training_distribution() -> None:
    suite = load_suite("training")
    config = replace(TINY, scenarios=suite.scenarios)
    assert [load.rate for load in config.loads[2:]] == [one.rate for one in suite.scenarios]
    assert [load.tiers for load in config.loads[2:]] == [one.tiers for one in suite.scenarios]
