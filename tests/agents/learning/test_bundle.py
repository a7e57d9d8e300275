"""Bundles and learned policies: the same decisions as the trained model, and nothing foreign gets in."""

import hashlib
import json
import pickle
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from safetensors.numpy import load_file, save_file

from agents.learning.heldout import record_return
from agents.learning.learned.bundle import Bundle
from agents.learning.learned.load import load_policy, policy_of
from agents.learning.learned.mixture import LearnedMixture
from agents.learning.learned.network import best, forward, network_params, scratch_cells
from agents.learning.learned.policy import LearnedPolicy, RandomLegal
from agents.learning.learned.stored_policy import CODEC, FIRST_FORMAT, FORMAT, POLICY_FILE, WEIGHTS_FILE
from agents.learning.ppo.rollout import TimedPPO
from agents.learning.ppo.train import build_model, learned_policy, train
from agents.learning.ppo.train_config import TrainConfig
from agents.policies import pretrained_folder
from engine.compiled.random import splitmix64
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel, load_profile
from engine.errors import InputError
from engine.runs.record import Record
from engine.runs.simulate import simulate
from llmsched_env import OBSERVATION_NAMES, OBSERVATION_SIZE, EnvConfig, LLMSchedEnv
from llmsched_env.actions import Allocation, Mixture, Slackfit
from tests.agents.learning.training import small
from tests.toys import constant

MODEL = load_profile("rtx6000ada-mistral-7b")
FIRST = Path(__file__).with_name("first_format")
REQUESTS = Workload(rate=2.2, num_requests=60).generate(7)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


def trained(config: TrainConfig) -> TimedPPO:
    """A model with weights far from their start, so that its choices vary, and real statistics."""
    model = build_model(config)
    model.learn(config.total_timesteps)
    generator = th.Generator().manual_seed(3)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * th.randn(parameter.shape, generator=generator))
    return model


def observations(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(0.5, 2.0, (count, OBSERVATION_SIZE)).clip(-10, 10).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small(tmp_path_factory.mktemp("bundle"), net_arch=(24, 16))
    place = config.run_dir / "policy"
    learned_policy(trained(config), config).bundle.save(place)
    return place


@pytest.mark.parametrize(
    ("changes", "env"),
    [
        ({}, {}),
        ({"net_arch": (64, 32, 16)}, {}),
        ({"net_arch": ()}, {}),
        ({"activation": "relu"}, {}),
        ({"normalize": False}, {}),
        ({}, {"action": "mixture"}),
    ],
)
def test_choices_equal_those_of_the_model(tmp_path: Path, changes: dict[str, Any], env: dict[str, Any]) -> None:
    config = small(tmp_path, **changes)
    config = replace(config, env=replace(config.env, **env))
    model = trained(config)
    policy = learned_policy(model, config)
    policy.bundle.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    seen = observations(4000)
    normalizer: Any = model.get_vec_normalize_env()
    expected, _ = model.predict(normalizer.normalize_obs(seen) if normalizer else seen, deterministic=True)
    expected = expected.reshape(len(seen), -1)
    assert len(np.unique(expected, axis=0)) > 2, "a model that always does the same shows little"
    np.testing.assert_array_equal(policy.choose(seen), expected)
    np.testing.assert_array_equal(loaded.choose(seen), expected)


def play(env: EnvConfig, requests: Requests, policy: LearnedPolicy) -> tuple[Any, float]:
    """Drive the environment with a policy's choices until it ends: (server, return)."""
    single = LLMSchedEnv(env)
    observation, _ = single.reset(seed=0, options={"requests": requests})
    total, over = 0.0, False
    while not over:
        choice = policy.choose(observation[None])[0]
        observation, reward, terminated, truncated, _ = single.step(choice if len(choice) > 1 else choice[0])
        total += reward
        over = terminated or truncated
    return single.fleet.servers, total


def assert_same_times(record: Record, servers: Any) -> None:
    for name in ("first_token", "completed", "max_gap"):
        np.testing.assert_array_equal(record.ledger[name], servers.hidden.ledger[name][0])
    assert record.row["iterations"][0] == servers.visible.row["iterations"][0, 0]
    assert record.row["evictions"][0] == servers.visible.row["evictions"][0, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"skip_decode_only": True},
        {"action": Allocation(budget="time")},
        {"action": Allocation(hold=4)},
        {"action": Slackfit()},
        {"action": Slackfit(hold=8), "skip_decode_only": True},
        {"action": Slackfit(ageing=20.0, close=1.0), "skip_decode_only": True},
        {"action": Mixture()},
        {"action": Mixture(arms=("orca", "fastertransformer", "slai")), "skip_decode_only": True},
    ],
)
@pytest.mark.parametrize("num_blocks", [14_000, 700])
def test_simulation_equals_the_environment(tmp_path: Path, changes: dict[str, Any], num_blocks: int) -> None:
    """The kernel in `simulate` and the same choices in the environment serve every request at the same times."""
    config = small(tmp_path)
    workload = Workload(rate=2.2, num_requests=60)
    engine = replace(config.env.engine, num_blocks=num_blocks, max_model_len=8192)
    env = replace(config.env, workload=workload, rates=(), engine=engine, **changes)
    policy = learned_policy(trained(replace(config, env=env)), replace(config, env=env))
    servers, total = play(env, REQUESTS, policy)
    record = simulate(policy, REQUESTS, MODEL, engine)
    assert policy.runs_compiled
    assert_same_times(record, servers)
    assert record_return(record, env.reward) == pytest.approx(total, rel=1e-9)


JOINT = "rtx4090-llama-3.1-8b"
"""A device with a table, on which prompts beside decodes are dear."""


@pytest.mark.parametrize(
    "changes",
    [
        {"action": Slackfit()},
        {"action": Slackfit(hold=4), "skip_decode_only": True},
        {"action": Mixture(arms=("slackfit", "slackfit:phases=exclusive", "sarathi")), "skip_decode_only": True},
        {"action": Allocation(budget="time"), "skip_decode_only": True},
    ],
)
@pytest.mark.parametrize("charge", [{}, {"decision_s": 0.01}, {"decision_per_request_s": 3e-4}])
def test_simulation_equals_the_environment_on_any_device(changes: dict[str, Any], charge: dict[str, Any]) -> None:
    """Also where batches take longer than the profile says, which both learn; trained on another device."""
    requests, action = Workload(rate=2.0, num_requests=100).generate(3), changes["action"]
    engine = replace(EnvConfig().engine, **charge)
    env = EnvConfig(workload=Workload(rate=2.0, num_requests=100), profile=JOINT, engine=engine, **changes)
    size = sum(action.sizes)
    weight = np.random.default_rng(0).normal(0.0, 1.0, (size, OBSERVATION_SIZE)).astype(np.float32)
    layers = ((weight, np.zeros(size, np.float32)),)
    codec = action.codec.params(MODEL)
    bundle = Bundle(layers, "tanh", np.zeros(OBSERVATION_SIZE), np.ones(OBSERVATION_SIZE), 9.0, codec, env)
    servers, _ = play(env, requests, policy_of(bundle, "x"))
    assert_same_times(simulate(policy_of(bundle, "x"), requests, load_profile(JOINT), engine), servers)


def test_python_loop_equals_compiled_loop(folder: Path) -> None:
    policy = load_policy(folder)
    compiled = simulate(policy, REQUESTS, MODEL)
    stepwise = simulate(policy, REQUESTS, MODEL, log_steps=True)
    np.testing.assert_array_equal(compiled.ledger, stepwise.ledger)


def test_bundle_comes_back_as_it_was_saved(folder: Path, tmp_path: Path) -> None:
    first = Bundle.load(folder)
    first.save(tmp_path / "again")
    second = Bundle.load(tmp_path / "again")
    np.testing.assert_array_equal(network_params(first), network_params(second))
    assert (first.env, first.versions, first.sources) == (second.env, second.versions, second.sources)
    assert {"torch", "stable-baselines3", "llmsched"} <= set(first.versions)
    assert len(first.sources) == 16
    assert (folder / WEIGHTS_FILE).read_bytes() == (tmp_path / "again" / WEIGHTS_FILE).read_bytes()


def test_loading_unpickles_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(th, "load", refuse)
    assert load_policy(folder).choose(observations(3)).shape == (3, 3)


def test_run_folder_gives_its_best_policy(tmp_path: Path) -> None:
    run = train(small(tmp_path / "run", total_timesteps=128))
    loaded = load_policy(run)
    assert loaded.spec == str(run)
    np.testing.assert_array_equal(network_params(loaded.bundle), network_params(Bundle.load(run / "best")))


def edit(place: Path, **changes: Any) -> None:
    about = json.loads((place / POLICY_FILE).read_text())
    (place / POLICY_FILE).write_text(json.dumps(about | changes))


def edit_env(place: Path, **changes: Any) -> None:
    edit(place, env=json.loads((place / POLICY_FILE).read_text())["env"] | changes)


def rewrite_weights(place: Path, change: Any) -> None:
    """Change the tensors and fix the hash, as a person who edits a bundle by hand would."""
    tensors = load_file(place / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, place / WEIGHTS_FILE)
    edit(place, weights_sha256=hashlib.sha256((place / WEIGHTS_FILE).read_bytes()).hexdigest())


def fill_codec(tensors: dict[str, np.ndarray], value: float) -> None:
    for name, array in tensors.items():
        if name.startswith(CODEC):
            array.fill(value)


def truncate(place: Path) -> None:
    data = (place / WEIGHTS_FILE).read_bytes()
    (place / WEIGHTS_FILE).write_bytes(data[: len(data) // 2])


def flip_a_bit(place: Path) -> None:
    data = bytearray((place / WEIGHTS_FILE).read_bytes())
    data[-5] ^= 1
    (place / WEIGHTS_FILE).write_bytes(data)


def pickled(place: Path) -> None:
    data = pickle.dumps({"layer_0.weight": [1.0]})
    (place / WEIGHTS_FILE).write_bytes(data)
    edit(place, weights_sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged, or not the weights of this policy.json"),
        (flip_a_bit, "damaged, or not the weights of this policy.json"),
        (pickled, "expected safetensors"),
        (lambda p: (p / WEIGHTS_FILE).unlink(), r"cannot read weights \(No such file"),
        (lambda p: (p / POLICY_FILE).write_text("{"), "expected JSON"),
        (lambda p: (p / POLICY_FILE).write_bytes(b"\xff\xfe\x00"), "expected a policy bundle as UTF-8 text"),
        (lambda p: (p / POLICY_FILE).write_text("[]"), "expected a policy bundle with format"),
        (lambda p: edit(p, format="other/1"), "expected a policy bundle with format"),
        (lambda p: edit(p, surprise=1), "unknown key 'surprise'"),
        (lambda p: edit(p, observation=["a"]), "made for another observation"),
        (lambda p: edit(p, action={"kind": "allocation", "heads": [2]}), "made for actions \\[2\\]"),
        (lambda p: edit(p, network={"widths": [9], "activation": "tanh"}), "expected tensors"),
        (lambda p: edit(p, network={"widths": "x", "activation": "tanh"}), "network.widths: expected a list"),
        (lambda p: edit(p, network={"widths": [10**9], "activation": "tanh"}), "numbers from 1 to 4096"),
        (lambda p: edit(p, network={"widths": [10**30], "activation": "tanh"}), "network.widths"),
        (lambda p: edit(p, sampled="yes"), "sampled: expected true or false"),
        (lambda p: edit(p, versions=[["a", "b"]]), "versions: expected a mapping"),
        (lambda p: edit(p, timesteps=1e300), "timesteps: expected"),
        (lambda p: edit(p, length_table=[]), "expected a length table"),
        (lambda p: edit(p, length_table={"name": "x"}), "length_table: expected the fields"),
        (lambda p: edit_env(p, hold=10**200), "env.action: unknown|hold: expected"),
        (lambda p: edit_env(p, budget="time"), "codec: expected the budgets of 'time'"),
        (lambda p: edit_env(p, action={"name": "mixture", "arms": ["slai"] * 99}), "made for actions"),
        (lambda p: (p / POLICY_FILE).write_text("[" * 100_000), "brackets"),
        (lambda p: rewrite_weights(p, lambda t: fill_codec(t, -1.0)), "codec: expected"),
        (lambda p: rewrite_weights(p, lambda t: fill_codec(t, 1e300)), "codec: expected"),
        (lambda p: rewrite_weights(p, lambda t: fill_codec(t, np.inf)), "codec: expected"),
        (lambda p: rewrite_weights(p, lambda t: fill_codec(t, 0.0)), "codec: expected"),
        (lambda p: rewrite_weights(p, lambda t: t.update(x=np.zeros(1 << 20))), "expected weights of at most"),
        (lambda p: edit(p, network=3), "network: expected widths and activation"),
        (lambda p: edit(p, network={"widths": [24, 16, 18], "activation": "sine"}), "tanh or relu"),
        (lambda p: edit(p, clip="wide"), "clip: expected a number > 0"),
        (lambda p: edit(p, clip=-1.0), "clip: expected a number > 0"),
        (lambda p: edit(p, env={"action": "allocation", "engines": 1}), "unknown key 'engines'"),
        (lambda p: edit(p, env=[]), "expected mappings"),
        (lambda p: rewrite_weights(p, lambda t: t["mean"].fill(np.nan)), "mean: expected finite numbers"),
        (lambda p: rewrite_weights(p, lambda t: t["std"].fill(0.0)), "positive normalisation scales"),
        (lambda p: rewrite_weights(p, lambda t: t.update(mean=t["mean"][:3])), "mean: expected"),
        (
            lambda p: rewrite_weights(p, lambda t: t.update({"codec.slacks": t["codec.slacks"].astype(np.float32)})),
            "codec.slacks: expected float64",
        ),
        (lambda p: rewrite_weights(p, lambda t: t.update({"layer_1.weight": t["layer_1.weight"].T.copy()})), "layer 1"),
        (lambda p: rewrite_weights(p, lambda t: t.pop("mean")), "expected tensors"),
        (lambda p: rewrite_weights(p, lambda t: t.pop("codec.slacks")), "codec: missing parameter 'slacks'"),
        (lambda p: rewrite_weights(p, lambda t: t.update({"codec.x": t["mean"]})), "codec: unknown parameter 'x'"),
        (
            lambda p: rewrite_weights(p, lambda t: t.update({"codec.slacks": t["codec.slacks"][:2]})),
            r"codec: slacks: expected 5 numbers, got shape \(2,\)",
        ),
        (lambda p: edit(p, format=FIRST_FORMAT), "expected tensors"),
        (lambda p: edit(p, observation="kv_use"), "observation: expected a list"),
    ],
)
def test_damaged_or_foreign_bundle_is_refused_in_one_line(
    folder: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    place = tmp_path / "policy"
    shutil.copytree(folder, place)
    damage(place)
    with pytest.raises(InputError, match=message) as caught:
        load_policy(place)
    assert "\n" not in str(caught.value)
    assert str(place) in str(caught.value)


def test_mutated_bundles_are_refused_in_one_line_or_serve(folder: Path, tmp_path: Path) -> None:
    """200 folders with bytes changed and the hash put right: refused, or a policy that serves every request."""
    rng, place, refusals = np.random.default_rng(19), tmp_path / "policy", []
    whole = {name: (folder / name).read_bytes() for name in (WEIGHTS_FILE, POLICY_FILE)}
    few = Workload(rate=2.2, num_requests=5).generate(7)
    place.mkdir()
    for turn in range(200):
        changed = {name: bytearray(data) for name, data in whole.items()}
        target = changed[WEIGHTS_FILE if turn % 2 else POLICY_FILE]
        for at in rng.integers(0, 1500 if rng.random() < 0.7 else len(target), rng.integers(1, 4)):
            target[at] = rng.integers(256)
        for name, data in changed.items():
            (place / name).write_bytes(bytes(data))
        if turn % 2:
            edit(place, weights_sha256=hashlib.sha256(changed[WEIGHTS_FILE]).hexdigest())
        try:
            record = simulate(load_policy(place), few, MODEL)
        except InputError as error:
            refusals.append(str(error))
            continue
        assert record.row["finished"][0] == len(few)
    assert 50 < len(refusals) < 200
    assert not [line for line in refusals if "\n" in line or str(place) not in line]


def test_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a policy bundle \(policy.json\) or a training run with one"):
        load_policy(tmp_path)


def test_saving_over_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(InputError, match="expected a new or empty folder or an older bundle"):
        Bundle.load(folder).save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_mixture_policy_is_its_own_kind(tmp_path: Path) -> None:
    config = small(tmp_path)
    config = replace(config, env=replace(config.env, action=Mixture()))
    learned_policy(build_model(config), config).bundle.save(tmp_path / "policy")
    assert isinstance(load_policy(tmp_path / "policy"), LearnedMixture)


def test_forward_is_the_network(folder: Path) -> None:
    """The kernel's logits against the matrix products written with numpy."""
    bundle = Bundle.load(folder)
    scratch = np.zeros(scratch_cells(bundle))
    for observation in observations(20):
        at = forward(network_params(bundle), observation, scratch)
        x = np.clip((observation - bundle.mean) / bundle.std, -bundle.clip, bundle.clip).astype(np.float32)
        value = x.astype(np.float64)
        for k, (weight, bias) in enumerate(bundle.layers):
            value = weight.astype(np.float64) @ value + bias
            value = np.tanh(value) if k < len(bundle.layers) - 1 else value
        np.testing.assert_allclose(scratch[at : at + len(value)], value, rtol=1e-9, atol=1e-12)


def test_network_finds_its_entries_by_name_in_any_order(folder: Path) -> None:
    """The same network with its inputs turned around, and one that does not know the last entry."""
    bundle, seen = Bundle.load(folder), observations(500)
    (weight, bias), *rest = bundle.layers
    weight = np.round(64 * weight) / 64  # short numbers, whose sums are the same in any order
    mean, std = np.zeros(len(bundle.mean)), np.ones(len(bundle.std))
    bundle = replace(bundle, layers=((weight, bias), *rest), mean=mean, std=std)
    seen = np.round(64 * seen) / 64
    turned = replace(bundle, layers=((weight[:, ::-1], bias), *rest), observation=OBSERVATION_NAMES[::-1])
    chosen = policy_of(bundle, "x").choose(seen)
    assert len(np.unique(chosen, axis=0)) > 2
    np.testing.assert_array_equal(policy_of(turned, "x").choose(seen), chosen)
    blind = np.concatenate([weight[:, :-1], np.zeros((len(weight), 1), np.float32)], axis=1)
    layers = ((weight[:, :-1], bias), *rest)
    without = replace(bundle, layers=layers, observation=OBSERVATION_NAMES[:-1], mean=mean[:-1], std=std[:-1])
    expected = policy_of(replace(bundle, layers=((blind, bias), *rest)), "x").choose(seen)
    assert not np.array_equal(expected, chosen)
    np.testing.assert_array_equal(policy_of(without, "x").choose(seen), expected)


def test_codec_without_a_knob_is_as_it_was_before_there_was_one() -> None:
    codec = Slackfit(ageing=3.0, close=0.5, close_until=0.4)
    params = codec.params(MODEL)
    named = codec.to_names(params)
    np.testing.assert_array_equal(codec.from_names(named), params)
    del named["ageing"], named["close"], named["close_until"]
    np.testing.assert_array_equal(codec.from_names(named), Slackfit().params(MODEL))


def test_policy_of_the_first_format_decides_as_the_shipped_one(tmp_path: Path) -> None:
    """`first_format` is the shipped policy as it was before its numbers had names, and two of its settings were set."""
    first, shipped = (Bundle.load(place) for place in (FIRST, pretrained_folder()))
    first = first.adjusted(close_until=0.5, longest=7.0)
    assert json.loads((pretrained_folder() / POLICY_FILE).read_text())["format"] == FORMAT
    assert (first.env, first.versions, first.command) == (shipped.env, shipped.versions, shipped.command)
    first.save(tmp_path / "again")
    seen, requests = 4.0 * observations(20_000), Workload(rate=2.2, num_requests=300).generate(1)
    chosen = policy_of(shipped, "x").choose(seen)
    assert len(np.unique(chosen, axis=0)) > 40
    for bundle in (first, Bundle.load(tmp_path / "again")):
        np.testing.assert_array_equal(bundle.codec, shipped.codec)
        np.testing.assert_array_equal(policy_of(bundle, "x").choose(seen), chosen)
    one, other = (simulate(policy_of(bundle, "x"), requests, MODEL).ledger for bundle in (first, shipped))
    np.testing.assert_array_equal(one, other)


def test_codec_of_the_first_format_with_other_budgets_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FIRST, tmp_path / "policy")
    edit_env(tmp_path / "policy", budget="time")
    with pytest.raises(InputError, match="codec: expected the budgets of 'time', got kind 2") as caught:
        Bundle.load(tmp_path / "policy")
    assert str(tmp_path / "policy") in str(caught.value)


def test_first_of_equal_logits_wins() -> None:
    choice = np.zeros(2, np.int64)
    best(np.array([0.0, 1.0, 1.0, 5.0, 5.0]), 0, np.array([3, 2]), choice)
    assert choice.tolist() == [1, 0]


@pytest.mark.parametrize("model", [constant(0.02), LatencyModel(0.0, 0.01, 0.0, 0.0, 0.0, cached=1e9, tile=10**9)])
def test_a_learned_policy_runs_on_every_device(model: LatencyModel) -> None:
    """Also where tokens cost nothing."""
    record = simulate(policy_of(Bundle.load(pretrained_folder()), "x"), REQUESTS, model)
    assert record.row["finished"][0] == len(REQUESTS)


def test_random_legal_depends_on_its_seed_only() -> None:
    runs = [simulate(RandomLegal(seed=s), REQUESTS, MODEL) for s in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0].ledger, runs[1].ledger)
    assert not np.array_equal(runs[0].ledger["completed"], runs[2].ledger["completed"])


def test_random_legal_predicts_by_its_device() -> None:
    model = load_profile(JOINT)
    policy, told = RandomLegal(), RandomLegal().on(model)
    codec = Allocation().params(model)
    np.testing.assert_array_equal(told.params(EngineConfig())[: len(codec)], codec)
    assert not np.array_equal(policy.params(EngineConfig())[: len(codec)], codec)
    assert policy.on(MODEL).params(EngineConfig()).tolist() == policy.params(EngineConfig()).tolist()
    assert told == policy


def test_random_legal_serves_everybody_under_memory_pressure() -> None:
    engine = replace(EnvConfig().engine, num_blocks=700, max_model_len=8192)
    record = simulate(RandomLegal(), REQUESTS, MODEL, engine)
    assert record.row["finished"][0] == len(REQUESTS)
    assert record.row["evictions"][0] > 0


def test_random_legal_uses_every_choice_about_equally() -> None:
    counts = [np.zeros(n) for n in Allocation().sizes]
    word = splitmix64(np.uint64(5))
    for iteration in range(9000):
        for h, head in enumerate(counts):
            drawn = splitmix64(np.uint64((int(word) + 3 * iteration + h) % 2**64))
            head[int(drawn) % len(head)] += 1
    for head in counts:
        assert np.abs(head / 9000 - 1 / len(head)).max() < 0.02


@pytest.mark.parametrize("seed", [-1, 1.5, True, 2**54])
def test_random_legal_refuses_other_seeds(seed: Any) -> None:
    with pytest.raises(InputError, match="seed: expected a whole number"):
        RandomLegal(seed=seed)


def test_python_random_state_is_not_touched(folder: Path) -> None:
    random.seed(1)
    before = random.getstate()
    simulate(load_policy(folder), REQUESTS, MODEL)
    simulate(RandomLegal(), REQUESTS, MODEL)
    assert random.getstate() == before
