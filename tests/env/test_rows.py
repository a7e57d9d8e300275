"""The vector environment is the scalar one, row by row, bit for bit; and every action is legal."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.demand.workload import Workload
from engine.errors import InputError
from llmsched_env import Allocation, EnvConfig, LLMSchedEnv, LLMSchedVectorEnv, Mixture, RewardWeights
from llmsched_env.crew import Crew

ROOT = Path(__file__).resolve().parents[2]
SHORT = Workload(rate=3.0, num_requests=24)
CONFIGS = {
    "allocation": EnvConfig(workload=SHORT, skip_decode_only=True, rates=(1.0, 4.0), backlog=12),
    "every iteration": EnvConfig(workload=SHORT),
    "time budget": EnvConfig(
        workload=SHORT, skip_decode_only=True, action=Allocation(budget="time"), reward=RewardWeights(starvation=1.0)
    ),
    "mixture": EnvConfig(
        workload=SHORT, skip_decode_only=True, action=Mixture(arms=("slai", "sarathi", "orca", "vllm"))
    ),
    "horizon": EnvConfig(workload=SHORT, skip_decode_only=True, horizon_s=4.0),
}


def play_scalar(config: Any, seed: Any, actions: Any) -> Any:
    env = LLMSchedEnv(config)
    observation, _ = env.reset(seed=seed)
    history: list[Any] = [observation]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        history.append((observation, reward, terminated, truncated, info["elapsed_s"], info.get("report")))
        if terminated or truncated:
            observation, _ = env.reset()
            history.append(observation)
    return history


def same(a: Any, b: Any) -> Any:
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", CONFIGS)
def test_vector_rows_equal_single_environments(name: Any) -> None:
    config, rows, steps = CONFIGS[name], 3, 400
    vector = LLMSchedVectorEnv(rows, config)
    space = vector.single_action_space
    space.seed(3)
    actions = np.array([[space.sample() for _ in range(rows)] for _ in range(steps)])
    first, _ = vector.reset(seed=11)
    tracks = [[first[e]] for e in range(rows)]
    ended = 0
    for action in actions:
        observation, reward, terminated, truncated, infos = vector.step(action)
        for e in range(rows):
            if terminated[e] or truncated[e]:
                ended += 1
                report = infos["final_info"]["report"][e]
                last = infos["final_obs"][e]
                tracks[e].append((last, reward[e], terminated[e], truncated[e], infos["elapsed_s"][e], report))
                tracks[e].append(observation[e])
            else:
                tracks[e].append((observation[e], reward[e], False, False, None, None))
    assert ended > 0 or name == "every iteration"
    for e in range(rows):
        alone = play_scalar(config, 11 + e, actions[:, e])
        assert len(alone) == len(tracks[e])
        for one, row in zip(alone, tracks[e], strict=True):
            if not isinstance(one, tuple):
                assert same(one, row)
                continue
            assert same(one[0], row[0])
            assert one[1:4] == row[1:4]
            assert row[5] is None or one[5] == row[5]


def test_rows_do_not_depend_on_their_number() -> None:
    config = CONFIGS["allocation"]
    few, many = LLMSchedVectorEnv(2, config), LLMSchedVectorEnv(5, config)
    a, b = few.reset(seed=4)[0], many.reset(seed=4)[0]
    for k in range(100):
        assert same(a, b[:2])
        action = np.array([[(k + e) % 9, k % 5, (k + e) % 4] for e in range(5)])
        a, b = few.step(action[:2])[0], many.step(action)[0]


@pytest.mark.parametrize("action", [(0, 4, 0), (0, 0, 3), (8, 4, 1), (8, 0, 2), (1, 4, 3), (3, 2, 3)])
def test_every_constant_action_serves_everybody(action: Any) -> None:
    env = LLMSchedEnv(EnvConfig(workload=Workload(rate=4.0, num_requests=60)))
    env.reset(seed=2)
    terminated, steps = False, 0
    while not terminated and steps < 100_000:
        _, _, terminated, _, info = env.step(np.array(action))
        steps += 1
    assert terminated
    assert info["report"]["completed"] == 60


def test_every_action_is_legal_under_memory_pressure() -> None:
    engine = EnvConfig().engine.replace(num_blocks=700, max_model_len=8192, max_num_seqs=24)
    config = EnvConfig(engine=engine, workload=Workload(rate=6.0, num_requests=60))
    env = LLMSchedEnv(config)
    env.action_space.seed(5)
    env.reset(seed=5)
    terminated = False
    for _ in range(200_000):
        _, _, terminated, _, info = env.step(env.action_space.sample())
        row = env.fleet.servers.visible.row[0, 0]
        held = env.fleet.servers.visible.request[0]["blocks"].sum()
        assert row.free_blocks == row.num_blocks - held >= 0
        assert row.num_running <= row.max_num_seqs
        if terminated:
            break
    assert terminated
    assert info["report"]["evictions"] > 0


@pytest.mark.parametrize("num_blocks", [14_000, 700])
def test_skipping_is_running_all_decodes_where_no_prompt_is_left(num_blocks: int) -> None:
    """The shortcut through decode-only iterations serves as the action "budget 0, every decode runs" does there."""
    engine = EnvConfig().engine.replace(num_blocks=num_blocks, max_model_len=8192)
    config = EnvConfig(engine=engine, workload=Workload(rate=4.0, num_requests=60))
    skipping, asking = LLMSchedEnv(config, skip_decode_only=True), LLMSchedEnv(config)
    choose = (2, 3, 1)
    envs, steps = (skipping, asking), []
    for env in envs:
        env.reset(seed=4)
        terminated, count = False, 0
        while not terminated:
            row = env.fleet.servers.visible.row[0, 0]
            action = choose if row.num_waiting + row.num_prefilling > 0 else (0, 0, 0)
            terminated, count = env.step(np.array(action))[2], count + 1
        steps.append(count)
    assert steps[0] < steps[1]
    a, b = (env.fleet.servers for env in envs)
    assert a.visible.row["evictions"][0, 0] == b.visible.row["evictions"][0, 0]
    assert (a.visible.row["evictions"][0, 0] > 0) == (num_blocks == 700)
    for name in ("first_token", "completed", "max_gap"):
        np.testing.assert_array_equal(a.hidden.ledger[name], b.hidden.ledger[name])


def test_threads_may_be_the_first_thing_that_is_compiled(tmp_path: Path) -> None:
    code = """
from engine import Workload
from llmsched_env import EnvConfig, LLMSchedVectorEnv
for action in ("allocation", "mixture"):
    rows = LLMSchedVectorEnv(3, EnvConfig(action=action, workload=Workload(num_requests=4)), threads=2)
    rows.reset(seed=0)
    rows.step(rows.action_space.sample())
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("rows", [1, 6, 50])
def test_threads_do_not_change_a_bit(rows: int) -> None:
    config = CONFIGS["allocation"]
    one, two = LLMSchedVectorEnv(rows, config), LLMSchedVectorEnv(rows, config, threads=3)
    a, b = one.reset(seed=9)[0], two.reset(seed=9)[0]
    for k in range(150):
        assert same(a, b)
        action = np.array([[(k + e) % 9, (k * e) % 5, (k + e) % 4] for e in range(rows)])
        a, b = one.step(action)[0], two.step(action)[0]


def test_threads_step_no_row_if_one_has_an_action_outside() -> None:
    rows = LLMSchedVectorEnv(40, CONFIGS["allocation"], threads=2)
    rows.reset(seed=0)
    before, wrong = rows.fleet.servers.visible.row.tobytes(), np.zeros((40, 3), np.int64)
    wrong[37, 1] = 9
    with pytest.raises(InputError, match=r"^action of row 37: "):
        rows.step(wrong)
    assert rows.fleet.servers.visible.row.tobytes() == before


def test_a_crew_does_every_row_once_whoever_is_busy() -> None:
    crew, goes_on = Crew(3), threading.Event()
    busy = [crew.start(goes_on.wait) for _ in range(2)]
    alone: list[int] = []
    crew.share(100, lambda first, last: alone.extend(range(first, last)))
    assert alone == [*range(100)]
    goes_on.set()
    assert all(one.result() for one in busy)
    done: list[int] = []
    crew.share(100, lambda first, last: done.extend(range(first, last)))
    assert sorted(done) == [*range(100)]


def test_what_a_crew_raises_is_raised() -> None:
    def fail(first: int, last: int) -> None:
        if first > 0:
            raise InputError("a line")

    crew = Crew(2)
    with pytest.raises(InputError, match="a line"):
        crew.share(40, fail)
    with pytest.raises(InputError, match="a line"):
        crew.start(lambda: fail(1, 2)).result()
    with pytest.raises(InputError, match="a line"):
        Crew().start(lambda: fail(1, 2))
