"""Episodes of a user's own trace: rows at recorded times from a random one on, in both faces."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import llmsched_env  # noqa: F401
from agents.commands.train import on_trace
from agents.learning.ppo.train_config import TrainConfig
from engine.demand.workload import Workload, parse_workload
from engine.errors import InputError
from llmsched_env.config import EnvConfig


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Eight requests, a second apart but for the last gap; the fourth is longer than the default server takes."""
    path = tmp_path / "own.csv"
    rows = [(k, 100 + k, 2 + k) for k in range(7)] + [(9, 107, 9)]
    rows[3] = (3, 99_999, 5)
    text = "".join(f"{t},{p},{o}\n" for t, p, o in rows)
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + text)
    return path


def test_recorded_arrivals_are_rows_from_a_random_one_on(trace: Path) -> None:
    workload = Workload(arrivals="recorded", trace=str(trace), num_requests=5)
    drawn = [workload.generate(seed) for seed in range(40)]
    assert {int(r.prompt[0]) for r in drawn} == {100, 101, 102, 99_999, 104, 105, 106, 107}
    assert drawn[0].digest() == workload.generate(0).digest()
    for requests in drawn:
        first = int(requests.output[0]) - 2 if requests.prompt[0] != 99_999 else 3
        times = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0])
        lap = 9.0 * 8 / 7
        at = first + np.arange(5)
        assert requests.arrival == pytest.approx(times[at % 8] + lap * (at // 8) - times[first])
    assert "from a random row on" in drawn[0].source
    assert len(parse_workload(f"recorded:trace={trace},num_requests=20").generate(1)) == 20


def test_a_trace_gives_its_lengths_to_other_arrivals(trace: Path) -> None:
    requests = parse_workload(f"poisson:rate=2,num_requests=8,trace={trace}").generate(0)
    assert sorted(requests.prompt.tolist()) == [100, 101, 102, 104, 105, 106, 107, 99_999]


def test_environment_skips_or_refuses_what_its_server_cannot_serve(trace: Path) -> None:
    workload = Workload(arrivals="recorded", trace=str(trace), num_requests=5)
    with pytest.raises(InputError, match=r"line 5: expected prompt .* 1 of 8 rows cannot be served"):
        EnvConfig(workload=workload).workload.generate(0)
    config = EnvConfig(workload=Workload(arrivals="recorded", trace=str(trace), num_requests=5, unservable="skip"))
    assert all(config.workload.generate(seed).prompt.max() < 1000 for seed in range(20))
    with pytest.raises(InputError, match=r"env\.rates: expected none with recorded arrivals"):
        EnvConfig(workload=workload, rates=(1.0,))
    with pytest.raises(InputError, match="trace: expected a trace file for recorded arrivals"):
        Workload(arrivals="recorded")


def test_saved_environment_knows_its_trace_and_can_be_moved(trace: Path) -> None:
    config = EnvConfig(workload=Workload(arrivals="recorded", trace=str(trace), num_requests=5, unservable="skip"))
    saved = json.loads(json.dumps(config.to_dict()))
    assert len(saved["workload"]["trace_sha256"]) == 16
    loaded = EnvConfig.from_dict(saved)
    assert loaded.workload.generate(3).digest() == config.workload.generate(3).digest()
    trace.write_text(trace.read_text() + "10,1,1\n")
    with pytest.raises(InputError, match="expected the trace with SHA-256"):
        loaded.workload.generate(3)
    trace.unlink()
    assert EnvConfig.from_dict(saved) == loaded
    assert json.loads(json.dumps(loaded.to_dict())) == saved
    assert "trace" not in EnvConfig().to_dict()["workload"]


def test_training_takes_a_trace(trace: Path) -> None:
    with pytest.raises(InputError, match="1 of 8 rows cannot be served"):
        on_trace(TrainConfig.from_yaml(), str(trace))
    config = on_trace(TrainConfig.from_yaml(), str(trace), "skip")
    assert (config.env.workload.arrivals, config.env.rates) == ("recorded", ())
    assert config.to_dict()["env"]["workload"]["trace_sha256"]
    trace.write_text("num_prefill_tokens,num_decode_tokens\n5,5\n")
    config = on_trace(TrainConfig.from_yaml(), str(trace))
    assert (config.env.workload.arrivals, config.env.rates) == ("poisson", (1.4, 1.6, 1.8, 2.0))


def test_both_faces_play_the_same_rows(trace: Path) -> None:
    workload = Workload(arrivals="recorded", trace=str(trace), num_requests=6, unservable="skip")
    env = gymnasium.make("llmsched_env:LLMSched-v0", workload=workload)
    rows = gymnasium.make_vec(
        "llmsched_env:LLMSched-v0", num_envs=2, vectorization_mode="vector_entry_point", workload=workload
    )
    alone, _ = env.reset(seed=5)
    together, _ = rows.reset(seed=5)
    assert np.array_equal(alone, together[0])
    action = env.action_space.sample()
    assert np.array_equal(env.step(action)[0], rows.step(np.array([action, action]))[0][0])
    env.close()
    rows.close()
