"""Closed loops in the environment: the loop holds, both faces agree, a stored state goes on bit-equal."""

from typing import Any

import numpy as np
import pytest

from engine.demand.workload import Workload
from engine.errors import InputError
from llmsched_env.config import EnvConfig
from llmsched_env.env import LLMSchedEnv
from llmsched_env.vector import LLMSchedVectorEnv

USERS = Workload(arrivals="closed", concurrency=5, think="exp:0.5", num_requests=30, lengths="fixed:400,20")
LIMIT = Workload(rate=20.0, max_concurrency=5, num_requests=30, lengths="fixed:400,20")


def actions(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, [9, 5, 4], (count, 3))


@pytest.mark.parametrize("workload", [USERS, LIMIT])
def test_an_episode_serves_everybody_with_no_more_in_flight_than_places(workload: Workload) -> None:
    env = LLMSchedEnv(EnvConfig(workload=workload))
    env.reset(seed=1)
    for action in actions(5000):
        _, _, terminated, _, _ = env.step(action)
        row = env.fleet.row_servers[0].visible.row[0]
        assert row.num_waiting + row.num_running <= 5
        if terminated:
            break
    server = env.fleet.row_servers[0]
    assert int(server.visible.row[0].finished) == 30
    arrival, left = server.visible.request["arrival"], np.sort(server.hidden.ledger["completed"])
    assert (np.diff(arrival) >= 0.0).all()
    assert (arrival[5:] >= left[:-5]).all()


@pytest.mark.parametrize("workload", [USERS, LIMIT])
def test_rows_of_the_vector_env_and_a_stored_state_are_the_scalar_env(workload: Workload) -> None:
    config = EnvConfig(workload=workload)
    scalar, vector, other = LLMSchedEnv(config), LLMSchedVectorEnv(2, config), LLMSchedEnv(config)
    scalar.reset(seed=4)
    vector.reset(seed=3)
    other.reset(seed=9)
    state: Any = None
    for k, action in enumerate(actions(40)):
        if k == 20:
            state = scalar.save_state()
            other.load_state(state)
        one = scalar.step(action)
        many = vector.step(np.stack([action, action]))
        assert np.array_equal(one[0], many[0][1])
        assert one[1] == many[1][1]
        if k >= 20:
            again = other.step(action)
            assert np.array_equal(one[0], again[0])
            assert one[1] == again[1]


def test_what_a_closed_loop_has_no_use_for_is_refused() -> None:
    with pytest.raises(InputError, match=r"env\.backlog, env\.rates: expected none for a closed loop"):
        EnvConfig(workload=USERS, rates=(1.0, 2.0))
    with pytest.raises(InputError, match="expected none for a closed loop"):
        EnvConfig(workload=USERS, backlog=3)
