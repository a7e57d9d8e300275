"""PPO of a router: it begins as the rule of the search, its bundle scores as its network does, and it trains."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from agents.learning.learned.network import forward, packed, scratch_cells
from agents.learning.learned.router import load_router
from agents.learning.learned.router_bundle import FEATURE_NAMES, RouterBundle
from agents.learning.ppo.router.policy import CLIP, ScoreFrame, ScorePolicy
from agents.learning.ppo.router.rows import RouterFleets
from agents.learning.ppo.router.train import RouterPPOConfig, shipped_recipe, train_router
from engine.cluster.features import REPLICA_NAMES, REQUEST_NAMES
from engine.errors import InputError
from llmsched_env.routing.vector import LLMSchedRouterVectorEnv

SIZE, REPLICAS = len(FEATURE_NAMES), 3
ENTRIES = REPLICAS * len(REPLICA_NAMES) + len(REQUEST_NAMES)
RNG = np.random.default_rng(0)
FRAME = ScoreFrame(RNG.random(SIZE), 1.0 + RNG.random(SIZE), RNG.random(SIZE), 2.0)
TINY = RouterPPOConfig(replicas=2, loads=(2.0,), requests=10, rows=2, steps=32, updates=2, batch=64)


def policy(seed: int = 0) -> ScorePolicy:
    """An actor whose hidden layer says something."""
    th.manual_seed(seed)
    low, high = np.zeros(ENTRIES, np.float32), np.full(ENTRIES, 1e4, np.float32)
    made = ScorePolicy(
        spaces.Box(low, high),
        spaces.Discrete(REPLICAS),
        lambda left: 1e-3,
        frame=FRAME,
        replicas=REPLICAS,
        width=5,
        critic=8,
    )
    with th.no_grad():
        made.mlp_extractor.output.weight.normal_()
        made.mlp_extractor.hidden.bias.normal_()
    return made


def test_the_bundle_scores_every_replica_as_the_network_does() -> None:
    net = policy().mlp_extractor
    bundle = RouterBundle(net.layers(), FRAME.mean, FRAME.std, clip=CLIP)
    p, scratch = packed(bundle, bundle.columns), np.zeros(scratch_cells(bundle))
    seen = (3.0 * np.random.default_rng(1).random((20, ENTRIES))).astype(np.float32)
    logits = net.forward_actor(th.as_tensor(seen)).detach().numpy()
    for row, expected in zip(seen, logits, strict=True):
        own, request = row[: -len(REQUEST_NAMES)].reshape(REPLICAS, -1), row[-len(REQUEST_NAMES) :]
        found = [scratch[forward(p, np.concatenate([one, request]), scratch)] for one in own]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_replicas_in_another_order_have_their_logits_in_that_order_and_the_same_value() -> None:
    made = policy()
    seen = np.random.default_rng(2).random((4, ENTRIES)).astype(np.float32)
    own = seen[:, : -len(REQUEST_NAMES)].reshape(4, REPLICAS, -1)
    turned = np.concatenate([own[:, ::-1].reshape(4, -1), seen[:, -len(REQUEST_NAMES) :]], 1)
    one, other = (made.mlp_extractor.forward_actor(th.as_tensor(x)).detach().numpy() for x in (seen, turned))
    assert one[:, ::-1] == pytest.approx(other, abs=1e-5)
    values = [made.predict_values(th.as_tensor(x)).detach().numpy() for x in (seen, turned)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_rows_side_by_side_are_the_environments_with_rewards_in_their_units() -> None:
    def envs() -> list[LLMSchedRouterVectorEnv]:
        return [LLMSchedRouterVectorEnv(2, replicas=2, max_steps=5, ages=(age,)) for age in (0.0, 1.0)]

    both, alone = RouterFleets(envs(), [2.0, 4.0]), envs()
    first = both.reset(seed=3)[0]
    assert np.array_equal(first, np.concatenate([alone[0].reset(seed=3)[0], alone[1].reset(seed=1003)[0]]))
    for k in range(6):
        actions = np.array([k % 2, 0, 1, 1])
        observed, rewards, terminated, truncated, infos = both.step(actions)
        parts = [env.step(actions[2 * j : 2 * j + 2]) for j, env in enumerate(alone)]
        assert np.array_equal(observed, np.concatenate([part[0] for part in parts]))
        assert rewards.tolist() == [*(parts[0][1] / 2.0), *(parts[1][1] / 4.0)]
        assert np.array_equal(infos["elapsed_s"], np.concatenate([part[4]["elapsed_s"] for part in parts]))
        if k == 4:
            assert truncated.all()
            assert not terminated.any()
            assert np.array_equal(infos["final_obs"][3], parts[1][4]["final_obs"][1])


def test_a_training_leaves_a_router_and_repeats_exactly(tmp_path: Path) -> None:
    lines: list[str] = []
    for name in ("one", "other"):
        train_router(replace(TINY, run_dir=tmp_path / name), lines.append, "by hand")
    assert lines[:2] == lines[2:]
    one, other = (load_router(tmp_path / name).bundle for name in ("one", "other"))
    assert [np.array_equal(a, b) for (a, _), (b, _) in zip(one.layers, other.layers, strict=True)] == [True, True]
    assert (one.command, one.activation, len(one.layers[0][1])) == ("by hand", "relu", 2 + TINY.width)


def test_the_recipe_is_a_configuration(tmp_path: Path) -> None:
    assert RouterPPOConfig.from_yaml(shipped_recipe(), seed=3).seed == 3
    (tmp_path / "x.yml").write_text("replicas: 1\n")
    with pytest.raises(InputError, match="replicas: expected"):
        RouterPPOConfig.from_yaml(tmp_path / "x.yml")
