"""Learned routers: the same choices as rules that they can express, kept in a folder, and nothing foreign gets in."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import baselines
from agents.learning.learned.load import load_policy
from agents.learning.learned.router import LearnedRouter, load_router
from agents.learning.learned.router_bundle import FEATURE_NAMES, FORMAT, RouterBundle
from agents.learning.learned.stored_policy import POLICY_FILE
from agents.policies import pretrained_folder
from agents.routers import resolve_router, router_fingerprint
from baselines import routers
from engine.cluster.record import ClusterRecord
from engine.cluster.router import Router
from engine.cluster.simulate import simulate_cluster
from engine.config import EngineConfig
from engine.demand.workload import Workload
from engine.errors import InputError
from tests.strategies import DEVICE

BUSY = Workload(rate=30.0, num_requests=200, lengths="lognormal:5,0.7,4.5,0.7,1024")
TIGHT = EngineConfig(num_blocks=400, max_model_len=1024)


def linear(**weights: float) -> RouterBundle:
    """A bundle of one layer: the sum of some features, each times its weight."""
    values = np.array([list(weights.values())], np.float32)
    return RouterBundle(
        layers=((values, np.zeros(1, np.float32)),),
        mean=np.zeros(len(weights)),
        std=np.ones(len(weights)),
        features=tuple(weights),
    )


def deep(seed: int = 0) -> RouterBundle:
    """A bundle of two layers that sees everything."""
    rng, size = np.random.default_rng(seed), len(FEATURE_NAMES)
    layers = ((6, size), (1, 6))
    return RouterBundle(
        layers=tuple((rng.normal(size=s).astype(np.float32), np.zeros(s[0], np.float32)) for s in layers),
        mean=np.full(size, 0.5),
        std=np.full(size, 2.0),
        activation="tanh",
        clip=5.0,
    )


def served(router: Router, devices: tuple[float, ...] = (1.0, 1.0, 2.0)) -> ClusterRecord:
    """A busy trace in front of replicas, each so many times as slow as the first."""
    policies, models = [baselines.make("sarathi")] * len(devices), [DEVICE.scaled(slow) for slow in devices]
    return simulate_cluster(router, policies, BUSY.generate(1), models, [TIGHT] * len(devices))


@pytest.mark.parametrize(
    ("weights", "rule"),
    [
        ({"prompt_work": -1.0}, "least_tokens:output_weight=0"),
        ({"in_flight": -1.0}, "jsq"),
        ({"kv_free": 1.0}, "least_kv:age=0"),
    ],
)
def test_rules_are_points_of_a_linear_score(weights: dict[str, float], rule: str) -> None:
    ours, theirs = served(LearnedRouter("x", linear(**weights)), (1.0,) * 3), served(routers.make(rule), (1.0,) * 3)
    assert np.array_equal(ours.replica, theirs.replica)
    assert len(np.unique(ours.replica)) == 3


def test_the_weights_decide() -> None:
    fastest = served(LearnedRouter("x", linear(slowness=-1.0)))
    assert fastest.sent[2] == 0
    assert served(LearnedRouter("x", linear(slowness=1.0))).sent.tolist() == [0, 0, len(BUSY.generate(1))]


def test_a_bundle_that_is_kept_decides_as_before(tmp_path: Path) -> None:
    bundle = replace(deep(), command="made by hand")
    bundle.save(tmp_path / "run" / "final")
    again = load_router(tmp_path / "run", age=0.5)
    assert (again.bundle.command, again.bundle.features, again.spec) == (
        "made by hand",
        FEATURE_NAMES,
        f"{tmp_path}/run:age=0.5",
    )
    ours, theirs = served(LearnedRouter("x", bundle, 0.5)), served(again)
    assert np.array_equal(ours.replica, theirs.replica)
    assert not np.array_equal(ours.replica, served(LearnedRouter("x", bundle)).replica)


def test_the_place_of_a_replica_decides_nothing() -> None:
    turned = served(LearnedRouter("x", deep()), (2.0, 1.0))
    assert np.array_equal(served(LearnedRouter("x", deep()), (1.0, 2.0)).replica, 1 - turned.replica)


def test_a_spec_names_a_folder_with_an_age(tmp_path: Path) -> None:
    deep().save(tmp_path / "bundle")
    spec = f"{tmp_path}/bundle:age=2"
    router = resolve_router(spec)
    assert (router.report_s, router.spec) == (2.0, spec)
    assert router_fingerprint(spec).startswith(f"{spec}@")
    deep(1).save(tmp_path / "bundle")
    assert router_fingerprint(spec) != router_fingerprint(f"{tmp_path}/bundle")
    assert router_fingerprint("jsq:age=0") == "jsq"


def test_what_is_no_router_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"router: expected one of random, .*pretrained-router, the folder of"):
        resolve_router("nothing")
    with pytest.raises(InputError, match="expected the bundle of a router"):
        resolve_router(str(tmp_path))
    deep().save(tmp_path / "bundle")
    with pytest.raises(InputError, match=r"router '.*': expected .*age"):
        resolve_router(f"{tmp_path}/bundle:depth=2")
    with pytest.raises(InputError, match=f"expected a policy bundle with format '{FORMAT}'"):
        resolve_router(str(pretrained_folder()))
    with pytest.raises(InputError, match="expected a policy bundle with format 'llmsched-policy/2'"):
        load_policy(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("features", [*FEATURE_NAMES[:-1], "hit"], "made for other features than those of this version, with 'hit'"),
        ("features", list(FEATURE_NAMES[:-1]), "layer 0: expected 18 inputs"),
        ("features", 7, "features: expected"),
        ("clip", 0.0, "clip: expected"),
        ("network", {"widths": [6, 1], "activation": "gelu"}, "layers with tanh or relu"),
        ("more", 1, "unknown key 'more'"),
    ],
)
def test_a_bundle_that_does_not_fit_is_one_line(tmp_path: Path, key: str, value: Any, reason: str) -> None:
    deep().save(tmp_path)
    about = json.loads((tmp_path / POLICY_FILE).read_text(encoding="utf-8"))
    (tmp_path / POLICY_FILE).write_text(json.dumps(about | {key: value}), encoding="utf-8")
    with pytest.raises(InputError, match=reason) as caught:
        RouterBundle.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_network_with_several_numbers_for_a_replica_is_refused() -> None:
    with pytest.raises(InputError, match="expected one number for each replica, got 2"):
        replace(linear(waiting=1.0), layers=((np.zeros((2, 1), np.float32), np.zeros(2, np.float32)),))
