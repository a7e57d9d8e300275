"""What the features of a router's decision say about a view that is written by hand, and what they do not depend on."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import baselines
from engine.cluster.features import (
    FEATURE_LIMIT,
    REPLICA_FEATURES,
    REPLICA_NAMES,
    REQUEST_FEATURES,
    REQUEST_NAMES,
    encode,
)
from engine.cluster.router import Age, Router
from engine.cluster.simulate import simulate_cluster
from engine.cluster.state import RouterMemory, RouterView, new_view
from engine.config import EngineConfig
from engine.demand.requests import Requests
from tests.toys import constant


def by_hand() -> RouterView:
    """Two replicas, the second three times as slow, with reports 2 s old."""
    view = new_view(2)
    view.request[0].prompt, view.request[0].prediction, view.request[0].strict = 1024, np.nan, 1
    view.row[0].now, view.row[0].as_of = 10.0, 8.0
    for j, slowness in enumerate((1.0, 3.0)):
        r: Any = view.replica[j]
        r.num_blocks, r.block_size, r.seats, r.label = 1000, 16, 128, j
        r.prefill_s, r.decode_s = 1e-3 * slowness, 2e-3 * slowness
        r.sent, r.in_flight, r.reported, r.waiting, r.running = 40, 12, 36, 2, 8
        r.prompt_left, r.unanswered_then, r.unanswered = 500, 700, 1224
        r.unpredicted, r.generated = 10, 560
        r.free_blocks, r.blocks_wanted, r.batch_s = 250, 36, 0.256
    return view


def features(view: RouterView) -> tuple[np.ndarray, np.ndarray]:
    """The records of all replicas and that of the request."""
    replicas = np.full((len(view.replica), len(REPLICA_NAMES)), np.nan, np.float32)
    request = np.full(len(REQUEST_NAMES), np.nan, np.float32)
    encode(view, replicas, request)
    return replicas.view(REPLICA_FEATURES)[:, 0], request.view(REQUEST_FEATURES)[0]


CHUNK_S = 0.512
EXPECTED = {
    "prompt_work": (500 + 1224 - 700) * 1e-3 / CHUNK_S,  # of what was reported 176 tokens have been answered since
    "output_work": (10 * 256 - 560 + 2 * 256) * 2e-3 / CHUNK_S,  # two more requests than were reported
    "unanswered_work": 1224 * 1e-3 / CHUNK_S,
    "own_prompt": 2.0,
    "own_output": 256 * 2e-3 / CHUNK_S,
    "in_flight": 12 / 128,
    "waiting": (2 + 4) / 128,
    "running": 8 / 128,
    "kv_free": 0.25,
    "kv_wanted": (36 + 64) / 1000,
    "batch_time": 0.5,
    "slowness": 1.0,
    "sent_since": 4.0,
}
SLOWER = ("prompt_work", "output_work", "unanswered_work", "own_prompt", "own_output", "slowness")
"""Features that are three times as large where everything takes three times as long."""


def test_features_are_what_the_view_says() -> None:
    replicas, request = features(by_hand())
    for name, value in EXPECTED.items():
        times = 3.0 if name in SLOWER else 1.0
        assert (name, *replicas[name]) == (name, pytest.approx(value), pytest.approx(times * value))
    work = EXPECTED["prompt_work"] + EXPECTED["output_work"]
    assert replicas["weighted_work"].tolist() == pytest.approx([work, 9.0 * work])
    assert set(EXPECTED) | {"weighted_work"} == set(REPLICA_NAMES)
    assert request.tolist() == pytest.approx((2.0, 1.0, 1.0, 2.0 / CHUNK_S, 0.5))


def test_fresh_reports_need_no_correction_and_a_prediction_is_believed() -> None:
    view = by_hand()
    view.request[0].prediction = 100.0
    view.replica["unanswered_then"], view.replica["reported"] = view.replica["unanswered"], view.replica["sent"]
    view.replica["in_flight"] = 10
    replicas, request = features(view)
    assert replicas["prompt_work"][0] == pytest.approx(500 * 1e-3 / CHUNK_S)
    assert replicas["output_work"][0] == pytest.approx(2000 * 2e-3 / CHUNK_S)
    assert replicas["own_output"][0] == pytest.approx(100 * 2e-3 / CHUNK_S)
    assert replicas["sent_since"].tolist() == [0.0, 0.0]
    assert request["output"] == pytest.approx(100 / 256)


def test_replicas_in_another_order_have_the_same_features() -> None:
    view, turned = by_hand(), by_hand()
    turned.replica[:] = view.replica[::-1]
    (one, request), (other, same) = features(view), features(turned)
    assert one.tolist() == other[::-1].tolist()
    assert request == same


def test_faster_hardware_has_the_same_features() -> None:
    view, faster = by_hand(), by_hand()
    for name in ("prefill_s", "decode_s", "batch_s"):
        faster.replica[name] /= 4.0
    faster.row["as_of"] = faster.row["now"] - 0.5
    (one, request), (other, same) = features(view), features(faster)
    for name in REPLICA_NAMES:
        assert one[name].tolist() == pytest.approx(other[name].tolist())
    assert request.tolist() == pytest.approx(same.tolist())


def test_every_feature_is_a_number_between_0_and_the_limit() -> None:
    view = by_hand()
    view.replica["unanswered"], view.replica["prompt_left"], view.replica["unanswered_then"] = 1 << 40, 0, 1 << 50
    view.replica["in_flight"], view.replica["generated"] = 0, 1 << 40
    for found in features(view):
        values = np.array(found.tolist())
        assert values.min() >= 0.0
        assert values.max() <= FEATURE_LIMIT
    assert features(view)[0]["unanswered_work"][0] == FEATURE_LIMIT


@dataclass(frozen=True)
class _First(Router):
    """Always the first replica; notes its own count, that of the last report, and the seats."""

    age: Age = 0.0
    name: ClassVar[str] = "first"

    def __post_init__(self) -> None:
        """Nothing seen yet."""
        object.__setattr__(self, "seen", [])

    def route(self, view: RouterView, memory: RouterMemory) -> int:
        """The first."""
        r = view.replica[0]
        vars(self)["seen"].append((int(r.unanswered), int(r.unanswered_then), int(r.seats)))
        return 0


@pytest.mark.parametrize(("age", "then"), [(0.0, [0, 8, 16, 24]), (0.7, [0, 0, 16, 16])])
def test_a_report_keeps_what_the_router_had_counted(age: float, then: list[int]) -> None:
    requests = Requests.create([0.0, 0.5, 0.75, 0.9], [8, 8, 8, 8], [1, 1, 1, 1])
    router, config = _First(age=age), EngineConfig(max_num_seqs=4)
    simulate_cluster(router, [baselines.make("sarathi")], requests, [constant(1.0)], [config])
    assert vars(router)["seen"] == [(own, known, 4) for own, known in zip([0, 8, 16, 24], then, strict=True)]
