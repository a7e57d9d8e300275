"""What the observation tells of deadlines, the device, seats and outputs."""

from typing import Any

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.demand.requests import Requests, Tier
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from llmsched_env import OBSERVATION_NAMES, EnvConfig, LLMSchedEnv
from llmsched_env.actions.action import Codec

DEVICE = load_profile("rtx6000ada-mistral-7b")
TIERS = (Tier("tight", 0.25, 0.05), Tier("loose", 0.75, 0.5))


def seen_by(env: LLMSchedEnv, requests: Requests, until: float) -> dict[str, float]:
    """The observation after so many seconds in which all decodes run and prompts by 512 tokens."""
    observation, _ = env.reset(options={"requests": requests})
    while env.fleet.servers.visible.row["now"][0, 0] < until:
        observation, _, over, _, _ = env.step(np.array([5, 0, 0]))
        assert not over
    return dict(zip(OBSERVATION_NAMES, map(float, observation), strict=True))


def environment(**changes: Any) -> LLMSchedEnv:
    return LLMSchedEnv(EnvConfig(workload=Workload(num_requests=4, tiers=TIERS), **changes))


def present(count: int, output: int = 400) -> Requests:
    return Requests.create([0.0] * count, [200] * count, [output] * count, [0, *[1] * (count - 1)], tiers=TIERS)


def test_deadlines_and_the_batch_of_all_decodes() -> None:
    seen = seen_by(environment(), present(4), 1.0)
    assert seen["tightest_deadline"] == pytest.approx(0.1)
    assert seen["tightest_decodes"] == 0.25
    floor = DEVICE.overhead + DEVICE.floor
    assert floor / 0.05 < seen["decodes_time"] < 1.05 * floor / 0.05
    # 512 tokens take twice as long as the weights, which decodes read anyway.
    assert seen["chunk_time"] == pytest.approx((512 * DEVICE.per_token - DEVICE.floor) / floor / 4.0, rel=0.2)
    assert seen["mixing_loss"] < -0.1


def test_nobody_decodes() -> None:
    seen = seen_by(environment(), present(4), 0.0)
    assert (seen["tightest_deadline"], seen["tightest_decodes"], seen["decodes_time"]) == (1.0, 0.0, 0.0)
    assert seen["mixing_loss"] == 0.0


def test_another_device_is_seen() -> None:
    """Half the seconds are half the deadline, and the same number of shortest batches; mixing may be dear."""
    plain, fast, dear = (
        seen_by(environment(profile=f"{DEVICE.name}{change}"), present(4), 1.0)
        for change in ("", ":speed=2", ":mixed=100")
    )
    assert fast["decodes_time"] == pytest.approx(plain["decodes_time"] / 2.0, rel=0.05)
    assert fast["chunk_time"] == pytest.approx(plain["chunk_time"], rel=0.05)
    assert dear["mixing_loss"] > plain["mixing_loss"]


def test_kv_for_each_seat() -> None:
    engine = EngineConfig(num_blocks=4096, max_num_seqs=128)
    assert seen_by(environment(engine=engine), present(4), 0.1)["kv_per_seat"] == 1.0


def test_scarcity_counts_halvings() -> None:
    """Four prompts of 200 tokens with some outputs hold 14 blocks of 16 each; 56 are left of 112: half."""
    half = seen_by(environment(engine=EngineConfig(num_blocks=112, max_num_seqs=16)), present(4), 0.3)
    assert half["kv_scarcity"] == 1.0
    assert half["seat_scarcity"] == pytest.approx(np.log2(16 / 12))
    full = seen_by(environment(engine=EngineConfig(num_blocks=112, max_num_seqs=4)), present(4), 0.3)
    assert full["seat_scarcity"] == 6.0


def test_outputs_of_those_that_are_done_by_arrival() -> None:
    """The third request is done before the second; it counts once the second is."""
    output = [10, 60, 20, 400]
    requests = Requests.create([0.0] * 4, [20] * 4, output, [1] * 4, tiers=TIERS)
    env = environment()
    early, late = (seen_by(env, requests, until) for until in (1.0, 3.0))
    assert (early["mean_output"], early["output_spread"]) == (10.0 / 256.0, 0.0)
    assert late["mean_output"] == pytest.approx(30.0 / 256.0)
    assert late["output_spread"] == pytest.approx(np.std(output[:3]) / 30.0)


def test_parameters_of_a_codec_begin_with_the_device() -> None:
    with pytest.raises(InputError, match=r"^action 'blind': PARAMS: expected \('profile', DEVICE\) first, got"):

        class Blind(Codec):
            name = "blind"
            PARAMS = np.dtype([("unit", "f8")])
