import json
import math
from pathlib import Path

import numpy as np
import pytest

import baselines
from agents.bench import speed
from agents.bench.cluster import cluster
from agents.bench.timing import alternate, peak_mib
from agents.commands.bench import Command
from engine.errors import InputError


def test_peers_are_measured_in_turn_and_give_medians() -> None:
    calls: list[str] = []
    values = {"ours": iter([3.0, 1.0, 2.0]), "peer": iter([30.0, 10.0, 20.0])}

    def rate(name: str) -> float:
        calls.append(name)
        return next(values[name])

    found = alternate(3, {"ours": lambda: rate("ours"), "peer": lambda: rate("peer")})
    assert calls == ["ours", "peer"] * 3
    assert found == {"ours": 2.0, "peer": 20.0}


def test_simulation_is_measured_with_sixty_four_running() -> None:
    found = speed.simulate_rate(0.25)
    assert found["simulate_iterations_per_s"] == min(found["simulate_iterations_per_s_by_policy"].values())
    # The trace's first and last seconds have fewer; the cap is 64.
    assert 48 < found["simulate_mean_batch_requests"] <= 64


def test_every_baseline_is_measured_beside_sarathi() -> None:
    found = speed.policies(0.002)
    assert list(found["policy_to_sarathi"]) == baselines.names()
    assert found["policy_to_sarathi"]["sarathi"] == 1.0
    assert found["slowest_policy_to_sarathi"] == min(found["policy_to_sarathi"].values()) > 0.0


def test_a_cluster_is_measured_beside_simulate() -> None:
    found = cluster(0.05)
    assert found["routing_decisions_per_s"] > 0.0
    assert 0.2 < found["cluster_4_to_simulate"] < 20.0
    assert 0.2 < found["cluster_16_to_simulate"] < 20.0


def test_peak_memory_counts_what_a_process_holds() -> None:
    before = peak_mib()
    block = np.ones(64 * 1024 * 1024, np.int8)
    del block
    # The peak stays when the memory is given back, and grows no further by a smaller block.
    peak = peak_mib()
    assert peak >= max(before, 64.0)
    assert np.ones(1024).sum() == 1024
    assert peak_mib() - peak < 8.0


def test_each_measurement_runs_in_a_process_of_its_own() -> None:
    found = speed.measure("peak", 0.02)
    assert set(found) == {"simulate_peak_mib"}
    assert 20 < found["simulate_peak_mib"] < 2000


def test_failed_measurement_says_why() -> None:
    with pytest.raises(RuntimeError, match="bench nonsense: KeyError: 'nonsense'"):
        speed.measure("nonsense")


def test_scalar_env_is_compared_with_cartpole_on_equal_terms() -> None:
    found = speed.scalar_env(0.01)
    ratio = found["scalar_env_steps_per_s"] / found["cartpole_steps_per_s"]
    assert found["scalar_to_cartpole"] == ratio > 0.0


@pytest.mark.slow
def test_ppo_is_compared_with_an_environment_that_costs_nothing() -> None:
    found = speed.measure("ppo", 0.01)
    assert found["ppo_to_null_env"] == found["ppo_fps"] / found["ppo_null_env_fps"] > 0.0
    assert found["ppo_plain_sb3_null_env_fps"] > 0.0
    for kind in ("queue", "queue_two_threads"):
        assert found[f"{kind}_to_null_env"] == found[f"{kind}_fps"] / found[f"{kind}_null_env_fps"] > 0.0


def test_command_prints_and_writes_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Command(only="peak,vector", scale=0.02, json=tmp_path / "speed.json").run()
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "speed.json").read_text())
    for key in ("simulate_peak_mib", "vector_env_steps_per_s"):
        assert math.isfinite(written[key])
        assert key in printed
    assert written["threads"] == 1
    assert {"processor", "cores", "numba"} <= set(written["machine"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Command(only="speed"), "only: expected measurements among simulate, capacity"),
        (Command(scale=0.0), r"scale: expected a number in \(0, 100\], got 0.0"),
    ],
)
def test_bad_options_are_one_line(command: Command, message: str) -> None:
    with pytest.raises(InputError, match=message):
        command.run()
