"""What a training run leaves for TensorBoard, and what it says about the policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import baselines
from agents.learning.heldout import HELD_OUT_SEED, TRAINING_SEED, HeldOut, record_return, reward_terms
from agents.learning.learned.load import load_policy
from agents.learning.ppo.callbacks import Evaluation
from agents.learning.ppo.tensorboard import SLO_METRICS, scalar_layout
from agents.learning.ppo.timeline import timeline
from agents.learning.ppo.train import train
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.metrics import summarize
from engine.runs.simulate import simulate
from engine.scenarios.suite import read_scenarios
from llmsched_env import REWARD_TERMS, EnvConfig, RewardWeights
from tests.agents.learning.training import small

MODEL = load_profile("rtx6000ada-mistral-7b")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(small(folder, total_timesteps=640, eval_baselines=("sarathi", "slai:offset=3")))
    train(small(folder, total_timesteps=768, eval_baselines=("sarathi", "slai:offset=3"), resume=True))
    return folder


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run), size_guidance={"histograms": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def test_scalars_cover_reward_service_levels_and_margins(events: EventAccumulator) -> None:
    tags = set(events.Tags()["scalars"])
    assert {f"reward/{term}" for term in REWARD_TERMS} <= tags
    assert {f"slo/{tier}/{metric}" for tier in ("strict", "relaxed") for metric in SLO_METRICS} - tags <= {
        f"slo/strict/{metric}" for metric in SLO_METRICS
    }
    assert {f"margin/{p}/{what}" for p in ("sarathi", "slai:offset=3") for what in ("ttft", "return")} <= tags
    assert {"rollout/ep_rew_mean", "train/value_loss", "time/fps", "episode/median_ttft_ms", "eval/return"} <= tags


def test_histograms_figure_hparams_and_layout_are_there(events: EventAccumulator) -> None:
    tags: dict[str, Any] = events.Tags()
    assert {"action/budget", "action/decode_rule", "action/prefill_order"} <= set(tags["histograms"])
    assert events.Histograms("action/prefill_order")[0].histogram_value.num == 64
    # Fewer than two whole numbers between the edges of a bucket: every choice is told from the others.
    assert np.diff(events.Histograms("action/prefill_order")[0].histogram_value.bucket_limit).max() == 1.0
    assert "timeline" in tags["images"]
    assert events.Images("timeline")[-1].width > 500
    plugins = {e for e in ("hparams", "custom_scalars") if events.PluginTagToContent(e)}
    assert plugins == {"hparams", "custom_scalars"}
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Service levels", "Reward", "Margin over baselines"]


def test_resumed_run_goes_on_in_the_same_curves(events: EventAccumulator) -> None:
    steps = [event.step for event in events.Scalars("train/value_loss")]
    assert steps == sorted(steps)
    assert len(set(steps)) == len(steps)
    assert steps[-1] == 768


def test_layout_names_every_series() -> None:
    layout = scalar_layout(["strict"], ["ttft"], ("slai",))
    assert layout["Service levels"]["p99_tbt_s"] == ["Multiline", ["slo/strict/p99_tbt_s"]]
    assert layout["Reward"]["terms of one step"] == ["Multiline", ["reward/ttft"]]
    assert layout["Margin over baselines"]["ttft"] == ["Multiline", ["margin/slai/ttft"]]
    assert "Margin over baselines" not in scalar_layout(["strict"], ["ttft"], ())


def test_margins_are_measured_on_the_same_traces(run: Path, tmp_path: Path) -> None:
    """What the event file says of the last policy can be worked out again from its bundle."""
    accumulator = EventAccumulator(str(run))
    accumulator.Reload()
    held_out = HeldOut(small(run).env, 1, 8)
    learned, rival = held_out.score(load_policy(run / "final")), held_out.score(baselines.make("sarathi"))
    logged = accumulator.Scalars("margin/sarathi/ttft")[-1].value
    assert logged == pytest.approx(1.0 - learned.mean_ttft_s / rival.mean_ttft_s, abs=1e-5)
    logged = accumulator.Scalars("margin/sarathi/return")[-1].value
    assert logged == pytest.approx(learned.mean_return - rival.mean_return, abs=1e-5)


def test_best_policy_is_the_one_with_the_best_return(tmp_path: Path) -> None:
    config = small(tmp_path)
    held_out = HeldOut(config.env, 1, 8)
    kept: list[float] = []
    policies = [load_policy(train(small(tmp_path / f"{seed}", seed=seed, eval_every=0))) for seed in range(4)]

    class Quiet(Evaluation):
        @property
        def logger(self) -> Any:
            class Nothing:
                record = staticmethod(lambda *args, **kwargs: None)

            return Nothing

    turn = iter(policies)
    evaluation = Quiet(config, lambda: next(turn), tmp_path / "best")
    returns = [held_out.score(policy).mean_return for policy in policies]
    for _ in policies:
        evaluation.evaluate()
        kept.append(held_out.score(load_policy(tmp_path / "best")).mean_return)
    assert kept == pytest.approx(np.maximum.accumulate(returns).tolist())
    assert len(set(returns)) > 1


def test_held_out_traces_are_not_those_of_training_or_evaluation() -> None:
    env = EnvConfig(rates=(1.0, 2.0))
    held_out = HeldOut(env, 2, 20)
    assert len(held_out.traces) == 4
    assert len({trace.digest() for trace in held_out.traces}) == 4
    evaluated = {Workload(rate=r, num_requests=20).generate(s).digest() for r in (1.0, 2.0) for s in range(50)}
    assert not evaluated & {trace.digest() for trace in held_out.traces}
    assert TRAINING_SEED - HELD_OUT_SEED > 1 << 30


def test_return_of_a_record_is_minus_total_ttft_and_lateness() -> None:
    requests = Workload(rate=1.8, num_requests=100).generate(1)
    record = simulate(baselines.make("vllm"), requests, MODEL)
    ttft, tbt, e2e, goodput, starvation = reward_terms(record, RewardWeights(starvation=1.0, starvation_s=1.0))
    times = record.ledger["first_token"] - requests.arrival
    assert -ttft == pytest.approx(times.sum())
    assert -e2e == pytest.approx((record.ledger["completed"] - requests.arrival).sum())
    assert tbt < 0.0
    assert goodput == pytest.approx(summarize(record).slo_attainment * 100)
    waited = record.ledger["first_scheduled"] - requests.arrival
    assert -starvation == pytest.approx(np.maximum(waited - 1.0, 0.0).sum())
    weights = RewardWeights(ttft=2.0, tbt=0.0, goodput=3.0)
    assert record_return(record, weights) == pytest.approx(2.0 * ttft + 3.0 * goodput)


def test_timeline_draws_every_iteration() -> None:
    record = simulate(baselines.make("slai"), Workload(num_requests=10).generate(0), MODEL, log_steps=True)
    figure = timeline(record, "ten requests")
    bars = figure.axes[0].patches
    assert record.steps is not None
    assert len(bars) == 2 * len(record.steps.batches)
    drawn = sum(bar.get_height() for bar in bars)  # type: ignore[attr-defined]
    assert drawn == sum(int(batch[:, 1].sum()) for batch in record.steps.batches)
    with pytest.raises(ValueError, match="expected a record with steps"):
        timeline(simulate(baselines.make("slai"), Workload(num_requests=2).generate(0), MODEL), "")


def test_held_out_traces_are_of_every_scenario() -> None:
    env = EnvConfig(scenarios=read_scenarios(["poisson:rate=1.5", "poisson:rate=9@h100-mistral-7b@num_blocks=900"]))
    held_out = HeldOut(env, 2, 20)
    assert [case.deployment.config.num_blocks for case in held_out.cases] == [14000, 14000, 900, 900]
    alone = [HeldOut(world, 2, 20).score(baselines.make("sarathi")).returns for world in env.worlds]
    np.testing.assert_array_equal(held_out.score(baselines.make("sarathi")).returns, np.concatenate(alone))
