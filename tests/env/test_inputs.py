"""Every action, seed, option and keyword of a caller is checked before compiled code sees it: one line, both faces."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baselines
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.runs.simulate import simulate
from llmsched_env import ACTIONS, EnvConfig, LLMSchedEnv, LLMSchedVectorEnv

SHORT = Workload(rate=3.0, num_requests=12)
CONFIGS = {kind: EnvConfig(workload=SHORT, action=ACTIONS[kind]()) for kind in ("allocation", "mixture")}
SCALAR = {name: LLMSchedEnv(config) for name, config in CONFIGS.items()}
VECTOR = {name: LLMSchedVectorEnv(3, config) for name, config in CONFIGS.items()}
SHAPE = {"allocation": (3,), "mixture": ()}


class Hostile:
    """Raises whatever is done with it."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no array")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


WRONG: list[Any] = [
    None,
    True,
    "abc",
    b"abc",
    {},
    {1, 2, 3},
    object(),
    Hostile(),
    float("nan"),
    10**30,
    -1,
    np.array([], np.int64),
    np.zeros((2, 2, 2, 2), np.int64),
    ["a", "b", "c"],
    [[0], [0, 0]],
]
"""Illegal in every space."""


def wrong_for(shape: tuple[int, ...]) -> list[Any]:
    """Illegal where actions have this shape."""
    zeros = np.zeros(shape, np.int64)
    last = zeros.copy()
    last[(-1,) * len(shape)] = 99
    return [
        zeros.astype(float),
        zeros.astype(float) + 0.5,
        zeros.astype(float) * np.nan,
        zeros.astype(bool),
        zeros.astype(complex),
        zeros.astype("M8[s]"),
        zeros.astype(object),
        zeros.astype(str),
        zeros - 1,
        zeros + 10**9,
        zeros + np.iinfo(np.int64).max,
        zeros.astype(np.uint64) + np.uint64(2**64 - 1),
        last,
        zeros[None],
        np.zeros((*shape, 1), np.int64),
        np.zeros((*shape, 3), np.int64),
        np.zeros((4,), np.int64) if shape != (4,) else np.zeros(5, np.int64),
        np.ma.MaskedArray(zeros, mask=True),
    ]


def state_of(env: Any) -> list[Any]:
    visible = env.fleet.servers.visible
    return [visible.row.tobytes(), visible.request.tobytes(), env.fleet.memories.row.tobytes()]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("face", ["scalar", "vector"])
def test_illegal_actions_are_refused_and_change_nothing(face: str, kind: str) -> None:
    env: Any = (SCALAR if face == "scalar" else VECTOR)[kind]
    shape = SHAPE[kind] if face == "scalar" else (3, *SHAPE[kind])
    env.reset(seed=0)
    before = state_of(env)
    for action in [*WRONG, *wrong_for(shape)]:
        with pytest.raises(InputError, match="whole number") as error:
            env.step(action)
        assert "\n" not in str(error.value)
    assert state_of(env) == before


@pytest.mark.parametrize("kind", CONFIGS)
def test_legal_actions_of_every_integer_type_do_the_same(kind: str) -> None:
    rows = 3
    base = np.ones((rows, *SHAPE[kind]), np.int64)
    read_only = base.copy()
    read_only.flags.writeable = False
    forms = [base, read_only, base.tolist(), np.asfortranarray(base), tuple(base.tolist()), base[::-1]]
    forms += [base.astype(t) for t in (np.int8, np.uint8, np.int32, np.uint64)]
    seen = []
    for form in forms:
        VECTOR[kind].reset(seed=1)
        seen.append(VECTOR[kind].step(form)[0])
        SCALAR[kind].reset(seed=1)
        seen.append(np.tile(SCALAR[kind].step(form[0])[0], (rows, 1)))
        np.testing.assert_array_equal(seen[-1][0], seen[0][0])
        np.testing.assert_array_equal(seen[-2], seen[0])


def test_the_row_of_an_illegal_action_is_named() -> None:
    env = VECTOR["allocation"]
    env.reset(seed=0)
    actions = np.zeros((3, 3), np.int64)
    actions[1] = [3, 9, 1]
    with pytest.raises(InputError, match=r"^action of row 1: expected whole numbers 0\.\.8 .*, got \[3, 9, 1\]$"):
        env.step(actions)


CRASHES = """
import numpy as np, llmsched_env
from engine.errors import InputError
scalar, vector = llmsched_env.LLMSchedEnv(), llmsched_env.LLMSchedVectorEnv(4)
scalar.reset(seed=0); vector.reset(seed=0)
cases = [(scalar, [10**9, 0, 0]), (scalar, np.full(3, -(10**12))), (vector, np.zeros(4)), (vector, np.zeros(12, int)),
         (vector, np.full((4, 3), 10**9)), (vector, np.full((4, 3), -(2**63))), (vector, np.zeros((4, 1), int))]
refused = 0
for env, action in cases:
    try:
        env.step(action)
    except InputError:
        refused += 1
print(refused, len(cases))
"""


def test_actions_that_crashed_the_process_are_refused() -> None:
    done = subprocess.run([sys.executable, "-c", CRASHES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "7 7\n"), done.stderr[-500:]


def anything() -> st.SearchStrategy[Any]:
    """Objects of all kinds, and arrays that nearly fit."""
    numbers = st.integers() | st.integers(-3, 12) | st.floats() | st.booleans() | st.none() | st.text(max_size=3)
    nested = st.recursive(numbers, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
    dtypes = st.sampled_from(["i1", "u1", "i4", "i8", "u8", "f4", "f8", "?", "c16", "O", "U2", "M8[s]"])
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    arrays = st.builds(lambda d, s, v: np.full(s, v).astype(d), dtypes, shapes, st.integers(-2, 12))
    return nested | arrays | st.dictionaries(st.text(max_size=2), numbers, max_size=2) | st.just(Hostile())


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    """The message of an InputError, "" if the call went well."""
    try:
        call(*args, **kwargs)
    except InputError as error:
        return str(error)
    return ""


def legal(space: Any, action: Any) -> bool:
    """Whether gymnasium takes the action: it takes flags as 0 and 1 too, and does not take every object."""
    try:
        return bool(space.contains(action))
    except Exception:
        return False


@settings(max_examples=300, deadline=None)
@given(action=anything(), kind=st.sampled_from(sorted(CONFIGS)))
def test_any_object_as_action_is_served_or_refused_in_one_line(action: Any, kind: str) -> None:
    for env in (SCALAR[kind], VECTOR[kind]):
        if not env.fleet.started:
            env.reset(seed=0)
        before = state_of(env)
        refusal = refused(env.step, action)
        assert "\n" not in refusal
        assert (state_of(env) == before) == bool(refusal)
        if refusal and getattr(action, "dtype", None) != np.bool_ and not isinstance(action, list | bool):
            assert not legal(env.action_space, action)
        if env.fleet.outcome.terminated.any():
            env.reset(seed=0)


@settings(max_examples=300, deadline=None)
@given(seed=anything() | st.integers(0, 2**80), options=anything() | st.fixed_dictionaries({"requests": anything()}))
def test_any_seed_and_options_are_taken_or_refused_in_one_line(seed: Any, options: Any) -> None:
    for env in (SCALAR["allocation"], VECTOR["allocation"]):
        assert "\n" not in refused(env.reset, seed=seed, options=options)


@pytest.mark.parametrize(
    "seed", [-1, 1.0, True, "1", [1, 2], (1, 2, -3), np.array([1.0, 2.0, 3.0]), 2.5, np.bool_(True)]
)
def test_seeds_that_are_none_are_refused(seed: Any) -> None:
    with pytest.raises(InputError, match="seed"):
        VECTOR["allocation"].reset(seed=seed)
    with pytest.raises(InputError, match="seed"):
        SCALAR["allocation"].reset(seed=seed)


def test_seeds_of_every_integer_type_are_the_same_seed() -> None:
    scalar, vector = SCALAR["allocation"], VECTOR["allocation"]
    expected, _ = vector.reset(seed=5)
    forms: list[Any] = [np.int64(5), [5, 6, 7], (5, 6, 7), np.array([5, 6, 7], np.uint8), range(5, 8)]
    for form in forms:
        np.testing.assert_array_equal(vector.reset(seed=form)[0], expected)
    integers: list[Any] = [5, np.uint8(5), np.int64(5)]
    for form in integers:
        np.testing.assert_array_equal(scalar.reset(seed=form)[0], expected[0])
    np.testing.assert_array_equal(scalar.reset(seed=2**70 + 1)[0], vector.reset(seed=2**70)[0][1])


def test_none_among_the_seeds_keeps_the_generator_of_its_row() -> None:
    vector, other = LLMSchedVectorEnv(2, CONFIGS["allocation"]), LLMSchedVectorEnv(2, CONFIGS["allocation"])
    vector.reset(seed=3)
    other.reset(seed=3)
    np.testing.assert_array_equal(vector.reset(seed=[9, None])[0][1], other.reset()[0][1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"requests": "poisson"}, "trace"),
        ({"requests": 5}, "trace"),
        ({"requests": []}, "trace"),
        ({"request": None}, "expected keys among requests"),
        ("requests", "expected a dictionary"),
        ([1], "expected a dictionary"),
        ({1: 2}, "expected keys among requests"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: Any, message: str) -> None:
    for env in (SCALAR["allocation"], VECTOR["allocation"]):
        with pytest.raises(InputError, match=message):
            env.reset(options=options)


def test_a_trace_that_was_never_validated_is_validated_here() -> None:
    good = SHORT.generate(seed=0)
    bad = Requests(good.arrival, good.prompt, good.output, good.tier + 100, good.prediction, good.tiers, "")
    SCALAR["allocation"].reset(seed=0)
    before = state_of(SCALAR["allocation"])
    with pytest.raises(InputError, match="tier"):
        SCALAR["allocation"].reset(options={"requests": bad})
    with pytest.raises(InputError, match="tier"):
        VECTOR["allocation"].reset(options={"requests": [good, good, bad]})
    assert state_of(SCALAR["allocation"]) == before


@pytest.mark.parametrize("field", ["arrival", "prompt", "output", "tier", "tiers", "forecast"])
def test_traces_with_fields_of_any_type_are_refused_in_one_line(field: str) -> None:
    good = SHORT.generate(seed=0)
    for value in ("x", 5, (1, 2)):
        changes: dict[str, Any] = {field: value}
        bad = replace(good, **changes)
        with pytest.raises(InputError) as error:
            SCALAR["allocation"].reset(options={"requests": bad})
        assert "\n" not in str(error.value)


def test_a_simulation_validates_what_was_never_validated() -> None:
    good = SHORT.generate(seed=0)
    wrong: list[dict[str, Any]] = [{"tier": good.tier + 100}, {"output": good.output * 0 - 5}]
    for changes in wrong:
        with pytest.raises(InputError, match=next(iter(changes))):
            simulate(baselines.make("sarathi"), replace(good, **changes), load_profile(CONFIGS["mixture"].profile))


def test_an_executor_is_one() -> None:
    wrong: list[Any] = [5, object(), []]
    for junk in wrong:
        with pytest.raises(InputError, match=r"^executor: expected"):
            LLMSchedEnv(executor=junk)


def test_a_refused_reset_leaves_every_row_where_it_was() -> None:
    env = VECTOR["allocation"]
    env.reset(seed=0)
    before = state_of(env)
    for last in (Workload(rate=3.0, num_requests=5).generate(seed=1), None, "x"):
        with pytest.raises(InputError):
            env.reset(seed=7, options={"requests": [SHORT.generate(seed=0), SHORT.generate(seed=1), last]})
        assert state_of(env) == before


def test_steps_and_pictures_before_reset_are_refused_as_gymnasium_does() -> None:
    fresh: list[tuple[Any, Any]] = [(LLMSchedEnv(CONFIGS["allocation"]), (0, 0, 0))]
    fresh += [(LLMSchedVectorEnv(2, CONFIGS["allocation"]), np.zeros((2, 3), np.int64))]
    for env, action in fresh:
        with pytest.raises(gymnasium.error.ResetNeeded, match=r"before calling env\.reset"):
            env.step(action)
        with pytest.raises(InputError, match=r"before calling env\.reset"):
            env.step(action)
    drawing = LLMSchedEnv(CONFIGS["allocation"], render_mode="ansi")
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"before calling env\.reset"):
        drawing.render()


def test_reset_mask_resets_its_rows_only() -> None:
    env, untouched = (LLMSchedVectorEnv(3, CONFIGS["allocation"]) for _ in range(2))
    with pytest.raises(InputError, match="no episode yet"):
        env.reset(seed=0, options={"reset_mask": np.array([True, False, True])})
    for one in (env, untouched):
        one.reset(seed=4)
        for _ in range(5):
            one.step(np.ones((3, 3), np.int64))
    observation, _ = env.reset(seed=[8, 8, 8], options={"reset_mask": np.array([False, True, False])})
    alone, _ = LLMSchedEnv(CONFIGS["allocation"]).reset(seed=8)
    np.testing.assert_array_equal(observation[1], alone)
    mine, theirs = (one.step(np.ones((3, 3), np.int64)) for one in (env, untouched))
    np.testing.assert_array_equal(mine[0][[0, 2]], theirs[0][[0, 2]])
    assert env.fleet.outcome.steps.tolist() == [6, 1, 6]
    wrong: list[Any] = [np.zeros(3, bool), np.ones(2, bool), [True] * 3, np.ones(3), True, np.ones((3, 1), bool)]
    for mask in wrong:
        with pytest.raises(InputError, match="reset_mask"):
            env.reset(options={"reset_mask": mask})


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": -1},
        {"max_steps": 1.5},
        {"max_steps": True},
        {"max_steps": 10**30},
        {"horizon_s": float("nan")},
        {"horizon_s": "5"},
        {"horizon_s": -1.0},
        {"hold": 10**30},
        {"hold": 0},
        {"backlog": True},
        {"backlog": -1},
        {"rates": 1.5},
        {"rates": (1.0, float("nan"))},
        {"rates": ("1",)},
        {"rates": (True,)},
        {"rates": (10**400,)},
        {"skip_decode_only": 1},
        {"skip_decode_only": "yes"},
        {"action": ["allocation"]},
        {"action": np.array([1, 2])},
        {"max_episode_steps": 1.5},
        {"budget": None},
        {"arms": "slai", "action": "mixture"},
        {"arms": (1,), "action": "mixture"},
        {"profile": None},
        {"prediction": 3},
        {"engine": Workload()},
        {"workload": 5},
        {"reward": {"ttft": float("inf")}},
        {"reward": {"ttft": 10**400}},
        {"reward": {"starvation_s": True}},
        {"ageing": float("nan"), "budget": "slackfit"},
        {"config": {}},
        {"config": "LLMSched-v9"},
        {"scenarios": "no-such-suite"},
        {"scenarios": 3},
        {"scenarios": ["poisson@no-such-card"]},
        {"scenarios": "default", "rates": (1.0,)},
        {"max_episode_steps": 0},
        {"max_episode_steps": True},
        {"render_mode": ["ansi"]},
        {"no_such_field": 1},
    ],
)
def test_fields_that_do_not_fit_are_one_line_in_both_faces(changes: Any) -> None:
    for face in (LLMSchedEnv, LLMSchedVectorEnv):
        with pytest.raises(InputError) as error:
            face(**changes)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [{"num_envs": 0}, {"num_envs": 1.5}, {"num_envs": True}, {"num_envs": 10**12}, {"threads": 0}, {"threads": 1025}],
)
def test_rows_that_do_not_fit_are_one_line(changes: Any) -> None:
    with pytest.raises(InputError) as error:
        LLMSchedVectorEnv(**changes)
    assert "\n" not in str(error.value)
