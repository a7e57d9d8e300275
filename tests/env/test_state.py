"""Copies, pickles and stored states of an environment go on bit for bit; what does not fit is refused, never run."""

import copy
import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from llmsched_env import EnvConfig, EnvState, LLMSchedEnv, LLMSchedVectorEnv, Mixture, Slackfit

SHORT = Workload(rate=3.0, num_requests=16)
CONFIGS = {
    "allocation": EnvConfig(workload=SHORT, rates=(1.0, 4.0), backlog=8, skip_decode_only=True),
    "slackfit": EnvConfig(workload=SHORT, skip_decode_only=True, action=Slackfit(hold=3, ageing=5.0)),
    "mixture": EnvConfig(
        workload=SHORT, skip_decode_only=True, action=Mixture(arms=("slai", "sarathi:order=spf", "mlfq", "vllm"))
    ),
}
ENVS = {name: LLMSchedEnv(config) for name, config in CONFIGS.items()}


def choices(env: Any, steps: int, seed: int = 0) -> np.ndarray:
    space = env.unwrapped.action_space
    space.seed(seed)
    return np.array([space.sample() for _ in range(steps)])


def plain(value: Any) -> Any:
    """Infos without arrays, so that they compare; nan equals nan."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return repr(value.tolist()) if isinstance(value, np.ndarray) else repr(value)


def scalar_track(env: Any, actions: np.ndarray) -> list[Any]:
    seen: list[Any] = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((observation.tobytes(), reward, terminated, truncated, plain(info)))
        if terminated or truncated:
            seen.append(env.reset()[0].tobytes())
    return seen


def vector_track(env: Any, actions: np.ndarray) -> list[Any]:
    seen: list[Any] = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        flags = (terminated.tolist(), truncated.tolist())
        seen.append((observation.tobytes(), reward.tobytes(), *flags, plain(info)))
    return seen


def duplicates(env: Any) -> list[Any]:
    return [copy.deepcopy(env), pickle.loads(pickle.dumps(env)), copy.deepcopy(pickle.loads(pickle.dumps(env)))]


@pytest.mark.parametrize("name", CONFIGS)
def test_copies_of_a_single_environment_go_on_alike_and_apart(name: str) -> None:
    env = gymnasium.make("LLMSched-v0", config=CONFIGS[name], max_episode_steps=90)
    env.reset(seed=3)
    actions = choices(env, 600)
    scalar_track(env, actions[:40])
    copies = duplicates(env)
    expected = scalar_track(env, actions[40:])
    assert any(isinstance(entry, bytes) for entry in expected), "no episode ended: autoreset was not compared"
    for other in copies:
        assert scalar_track(other, actions[40:]) == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_copies_of_a_vector_environment_go_on_alike_and_apart(name: str) -> None:
    env: Any = gymnasium.make_vec("LLMSched-v0", num_envs=3, config=CONFIGS[name], max_episode_steps=90)
    env.reset(seed=3)
    env.action_space.seed(0)
    actions = np.array([env.action_space.sample() for _ in range(400)])
    vector_track(env, actions[:40])
    copies = duplicates(env)
    expected = vector_track(env, actions[40:])
    assert env.fleet.outcome.steps.max() < 90
    for other in copies:
        assert vector_track(other, actions[40:]) == expected


def test_a_copy_before_reset_is_one_before_reset() -> None:
    for env in (LLMSchedEnv(CONFIGS["allocation"]), LLMSchedVectorEnv(2, CONFIGS["allocation"])):
        for other in duplicates(env):
            with pytest.raises(gymnasium.error.ResetNeeded):
                other.save_state()
            other.reset(seed=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_state_is_gone_on_from_any_number_of_times(name: str) -> None:
    env, other = ENVS[name], LLMSchedEnv(CONFIGS[name])
    observation, _ = env.reset(seed=5)
    actions = choices(env, 500, 1)
    scalar_track(env, actions[:50])
    state = env.save_state()
    expected = scalar_track(env, actions[50:])
    for target in (env, env, other):
        first = target.load_state(pickle.loads(pickle.dumps(state)))
        assert not np.array_equal(first, observation)
        assert scalar_track(target, actions[50:]) == expected
    assert sum(isinstance(entry, bytes) for entry in expected) > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_take_states_of_rows_and_of_single_environments(name: str) -> None:
    single, few, many = ENVS[name], LLMSchedVectorEnv(2, CONFIGS[name]), LLMSchedVectorEnv(5, CONFIGS[name])
    many.reset(seed=0)
    few.reset(seed=9)
    single.reset(seed=9)
    actions = choices(single, 400, 2)
    for action in actions[:10]:
        few.step(np.stack([action, action]))
        single.step(action)
    row, alone = few.save_state(row=0), single.save_state()
    assert row.data.tobytes() == alone.data.tobytes()
    np.testing.assert_array_equal(many.load_state(row, row=4), single.load_state(row))
    np.testing.assert_array_equal(many.load_state(alone, row=1), many.load_state(row, row=4))
    expected = scalar_track(single, actions[10:])
    tracks: list[list[Any]] = [[], []]
    for action in actions[10:]:
        observation, reward, terminated, truncated, infos = many.step(np.stack([action] * 5))
        for track, e in zip(tracks, (1, 4), strict=True):
            ended = terminated[e] or truncated[e]
            last = infos["final_obs"][e] if ended else observation[e]
            track.append((last.tobytes(), reward[e], terminated[e], truncated[e]))
            if ended:
                track.append(observation[e].tobytes())
    wanted = [entry if isinstance(entry, bytes) else entry[:4] for entry in expected]
    assert tracks == [wanted, wanted]


def test_all_rows_at_once() -> None:
    env = LLMSchedVectorEnv(3, CONFIGS["allocation"])
    env.reset(seed=1)
    actions = np.array([[[k % 9, k % 5, k % 4]] * 3 for k in range(200)])
    vector_track(env, actions[:20])
    states = env.save_state()
    expected = vector_track(env, actions[20:])
    other = LLMSchedVectorEnv(3, CONFIGS["allocation"])
    other.load_state(states)
    assert vector_track(other, actions[20:]) == expected
    for wrong in (states[:2], states[0], None, [*states[:2], None]):
        with pytest.raises(InputError, match="state"):
            env.load_state(wrong)
    rows: list[Any] = [3, -1, 1.0, True, "0", np.array([0])]
    for row in rows:
        with pytest.raises(InputError, match="row"):
            env.save_state(row=row)
        with pytest.raises(InputError, match="row"):
            env.load_state(states[0], row=row)


def test_another_bit_generator_comes_with_the_state() -> None:
    env, other = LLMSchedEnv(CONFIGS["allocation"]), LLMSchedEnv(CONFIGS["allocation"])
    env.np_random = np.random.Generator(np.random.MT19937(4))
    env.reset()
    other.load_state(env.save_state())
    np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": replace(SHORT, num_requests=17)},
        {"workload": replace(SHORT, rate=2.0)},
        {"profile": "rtx6000ada-mistral-7b:speed=2"},
        {"engine": {"num_blocks": 9000}},
        {"budget": "time"},
        {"max_steps": 50},
        {"reward": {"goodput": 1.0}},
        {"action": "mixture", "backlog": 0},
    ],
)
def test_states_of_other_configurations_are_refused(changes: dict[str, Any]) -> None:
    env, other = ENVS["allocation"], LLMSchedEnv(CONFIGS["allocation"], **changes)
    env.reset(seed=0)
    other.reset(seed=0)
    before = other.save_state().data.tobytes()
    with pytest.raises(InputError, match=r"^state: expected") as error:
        other.load_state(env.save_state())
    assert "\n" not in str(error.value)
    assert other.save_state().data.tobytes() == before


def test_objects_that_are_no_states_are_refused() -> None:
    env = ENVS["allocation"]
    env.reset(seed=0)
    state = env.save_state()
    parts: list[dict[str, Any]] = [
        {"data": None},
        {"data": state.data[:0]},
        {"data": np.zeros(1, state.data.dtype)},
        {"data": state.data.view(np.uint8)},
        {"gaps": None},
        {"gaps": np.array([[0, -1]])},
        {"gaps": np.array([[10**9, 1]])},
        {"gaps": np.array([[-1, 1]])},
        {"gaps": np.array([[5, 1], [5, 1]])},
        {"generator": None},
        {"generator": {"bit_generator": "os"}},
        {"generator": {"bit_generator": "PCG64", "state": 3}},
        {"generator": {**state.generator, "state": {"state": -1, "inc": "x"}}},
        {"generator": {**np.random.MT19937(0).state, "state": {**np.random.MT19937(0).state["state"], "pos": 10**6}}},
        {"generator": {**np.random.Philox(0).state, "buffer_pos": -(10**6)}},
        {"config": None},
        {"config": "0" * 16},
        {"check": state.check + 1},
        {"check": None},
        {"check": 1.0},
    ]
    wrong: list[Any] = [None, 3, "state", {}, [state], state.data, *(replace(state, **part) for part in parts)]
    for one in wrong:
        with pytest.raises(InputError, match=r"^state") as error:
            env.load_state(one)
        assert "\n" not in str(error.value)
    env.load_state(state)


@pytest.mark.parametrize("part", [{"gaps": None}, {"generator": {}}, {"generator": {"bit_generator": "PCG64"}}])
def test_a_list_of_states_is_taken_as_a_whole_or_not_at_all(part: dict[str, Any]) -> None:
    env = LLMSchedVectorEnv(3, CONFIGS["allocation"])
    env.reset(seed=0)
    states = env.save_state()
    env.step(np.full((3, 3), 1))
    before = [(state.check, state.generator) for state in env.save_state()]
    with pytest.raises(InputError, match=r"^state: expected"):
        env.load_state([*states[:2], replace(states[2], **part)])
    assert [(state.check, state.generator) for state in env.save_state()] == before


def test_numbers_of_a_generator_are_whole() -> None:
    env = ENVS["allocation"]
    env.reset(seed=0)
    state = env.save_state()
    for inner in ({"state": 1.5, "inc": 1}, {"state": 1, "inc": True}, {"state": "1", "inc": 1}):
        with pytest.raises(InputError, match=r"^state: expected"):
            env.load_state(replace(state, generator=state.generator | {"state": inner}))
    with pytest.raises(InputError, match=r"^state: expected"):
        env.load_state(replace(state, generator=state.generator | {"has_uint32": 0.5}))


def test_a_changed_array_is_noticed_wherever_it_is() -> None:
    env = ENVS["mixture"]
    env.reset(seed=0)
    for _ in range(30):
        env.step(2)
    state = env.save_state()
    for name in state.data.dtype.names or ():
        data = state.data.copy()
        flat = data[name].reshape(-1).view(np.uint8)
        flat[len(flat) // 3] ^= 1
        with pytest.raises(InputError, match=r"^state: expected"):
            env.load_state(replace(state, data=data))


HOSTILE = """
import sys
import numpy as np
import dataclasses
import llmsched_env
from engine.errors import InputError
from engine.server.integrity import checksum
from engine.demand.workload import Workload
from llmsched_env.state import _used

rng = np.random.default_rng(int(sys.argv[1]))
config = llmsched_env.EnvConfig(workload=Workload(rate=6.0, num_requests=24), skip_decode_only=True)
env = llmsched_env.LLMSchedEnv(config)
env.reset(seed=0)
for k in range(60):
    env.step((k % 9, k % 5, k % 4))
good = env.save_state()
used = _used(good.data.dtype)
values = [-1, 0, 1, 2**31 - 1, -2**31, 10**6, 2**62]
served = refused = 0
for trial in range(1500):
    raw = good.data.view(np.uint8).copy()
    names = [n for n in good.data.dtype.names if n not in ("reward", "elapsed_s")]
    for _ in range(int(rng.integers(1, 4))):
        name = names[int(rng.integers(len(names)))]
        kind, at = good.data.dtype.fields[name][:2]
        where = at + int(rng.integers(max(1, kind.itemsize // 4))) * 4
        size = int(rng.choice([4, 8]))
        value = values[int(rng.integers(len(values)))] if rng.random() < 0.7 else int(rng.integers(-5, 40))
        new = np.array([value], np.int64).view(np.uint8)[:size]
        if where + size <= at + kind.itemsize:
            raw[where : where + size] = new
    data = raw.view(good.data.dtype)
    check = int(checksum((raw & used).view(np.int64)))
    try:
        env.load_state(dataclasses.replace(good, data=data, check=check))
    except InputError as error:
        refused += 1
        assert "\\n" not in str(error)
        continue
    served += 1
    for k in range(12):
        env.step((k % 9, k % 5, k % 4))
    env.save_state()
print("done", served > 40, refused > 400)
"""


def test_hostile_states_with_a_right_checksum_cannot_crash_the_process() -> None:
    run = subprocess.run([sys.executable, "-c", HOSTILE, "0"], capture_output=True, text=True, timeout=240)
    assert (run.returncode, run.stdout) == (0, "done True True\n"), run.stderr[-800:]


def test_rows_that_something_else_wrote_are_checked_on_request() -> None:
    env = LLMSchedVectorEnv(2, CONFIGS["allocation"])
    env.reset(seed=0)
    for k in range(20):
        env.step(np.full((2, 3), k % 4))
        env.fleet.check_rows("checkpoint")
    env.fleet.servers.visible.queue[1, 0] = 10**6
    env.fleet.servers.visible.row["num_waiting"][1] += 1
    with pytest.raises(InputError, match=r"^checkpoint: row 1: expected"):
        env.fleet.check_rows("checkpoint")


def test_a_wrapper_keeps_its_own_count() -> None:
    env = TimeLimit(LLMSchedEnv(CONFIGS["allocation"]), 20)
    env.reset(seed=0)
    for _ in range(10):
        env.step((5, 0, 0))
    other = copy.deepcopy(env)
    flags = [[one.step((5, 0, 0))[3] for _ in range(10)] for one in (env, other)]
    assert flags == [[False] * 9 + [True]] * 2


class _Device:
    """An executor in real time."""

    real_time = True

    def start(self, requests: Any) -> None:
        """Nothing."""

    def seconds(self, server: Any) -> float:
        """A little."""
        return 0.01


def test_environments_on_executors() -> None:
    profile: Any = LLMSchedEnv(CONFIGS["allocation"], executor=load_profile(CONFIGS["allocation"].profile))
    profile.reset(seed=0)
    other = copy.deepcopy(profile)
    np.testing.assert_array_equal(profile.step((5, 0, 0))[0], other.step((5, 0, 0))[0])
    device: Any = LLMSchedEnv(CONFIGS["allocation"], executor=_Device())
    device.reset(seed=0)
    with pytest.raises(InputError, match=r"^copy: expected"):
        copy.deepcopy(device)
    for env in (profile, device):
        with pytest.raises(InputError, match=r"^state: expected"):
            env.save_state()


def test_states_are_compact_and_show_what_they_hold() -> None:
    env = LLMSchedEnv()
    env.reset(seed=0)
    for _ in range(50):
        env.step((5, 0, 0))
    state = env.save_state()
    assert isinstance(state, EnvState)
    assert len(pickle.dumps(state)) < 100_000
    assert float(state.data["row"]["now"][0, 0]) == float(env.fleet.servers.visible.row["now"][0, 0])
