"""Checkpoints of a training run: everything that the next update depends on, in one file written at once.

A checkpoint is taken between two updates and holds network, optimiser, normalisation, the random generators of torch,
numpy and Python, counters, and the state of every environment row. Training on from it is bit for bit what would have
happened without the interruption.

A file is a safetensors archive: arrays by name, those of the environment compressed (zlib), and one JSON text for
everything else. Nothing in it is code. What it may hold is known before it is read, from the model that it is loaded
into: names, types, shapes and so the size of the file and of what is decompressed.
"""

import json
import random
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from agents.learning.ppo.checkpoint_file import (
    ENVIRONMENT,
    FORMAT,
    ROOM,
    DamagedCheckpoint,
    check_arrays,
    check_hash,
    compressed,
    count_of,
    digest,
    episodes_of,
    mapping_of,
    read,
)
from agents.learning.ppo.normalize import TimedNormalize
from agents.learning.ppo.queues.groups import GroupedServers
from agents.learning.ppo.rollout import TimedPPO
from agents.learning.ppo.snapshot import restore, snapshot
from agents.learning.ppo.streams import stream_state, stream_text
from agents.learning.ppo.vec_env import SB3VecEnv
from agents.work.files import write_atomically
from engine.errors import InputError
from llmsched_env.vector import LLMSchedVectorEnv

SUFFIX = ".safetensors"
_NAME = re.compile(r"step-(\d{12})\.safetensors")
_OLD = "step-*.pt"
_POLICY, _MORE = "policy.", "learner."
_CONSTANT = ("fleet.memories.0", "fleet.latency.", "fleet.rules.", "prices", "world_of_row")
"""Arrays of our environments that never change: parameters of kernels, profile, rules, what work costs."""


@dataclass(frozen=True)
class Checkpoint:
    """A copy of everything that the next update depends on."""

    num_timesteps: int
    """Decisions trained on."""
    arrays: dict[str, np.ndarray]
    """Network, optimiser, normalisation, generators, rows; the environment's arrays under ``environment.<path>``."""
    about: dict[str, Any]
    """Everything else, as JSON."""

    def save(self, folder: Path, config_hash: str, keep: int) -> Path:
        """Write it as ``step-<decisions>``; of it and older ones all but the last `keep` are deleted.

        Args:
            folder: where checkpoints go.
            config_hash: of the configuration that the run has.
            keep: checkpoints to keep, this one included.

        Raises:
            InputError: the folder cannot be written.
        """
        from safetensors.numpy import save

        files = {name: compressed(a) if name.startswith(ENVIRONMENT) else a for name, a in self.arrays.items()}
        about = json.dumps(self.about | {"config_hash": config_hash})
        path = folder / f"step-{self.num_timesteps:012d}{SUFFIX}"
        if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
            path.unlink()  # a link or a pipe would be written through
        metadata = {"format": FORMAT, "about": about, "sha256": digest(files, about)}
        write_atomically(path, save(files, metadata=metadata))
        for old in [other for other in checkpoints(folder) if other.name <= path.name][:-keep]:
            old.unlink(missing_ok=True)
        return path


def _base(model: TimedPPO) -> SB3VecEnv:
    env = model.get_env()
    assert env is not None
    base = env.unwrapped
    assert isinstance(base, SB3VecEnv)
    return base


def capture(model: TimedPPO, run: dict[str, Any]) -> Checkpoint:
    """Copy the model's state between two updates.

    Args:
        model: the learner; its environment is an `SB3VecEnv`, inside a `TimedNormalize` or not.
        run: plain data of the run to keep with it (JSON).
    """
    model.settle()
    environment = snapshot(_base(model).envs)
    rows = {name: value for name, value in environment.items() if isinstance(value, np.ndarray)}
    arrays = _learner_arrays(model) | {f"{ENVIRONMENT}{name}": value for name, value in rows.items()}
    about = {
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "episodes": list(model.ep_info_buffer or []),
        "run": run,
        "environment": {name: value for name, value in environment.items() if name not in rows},
        "python": random.getstate(),
        "numpy": stream_text(_numpy_stream()),
        "numpy_gauss": _gauss(),
    }
    return Checkpoint(model.num_timesteps, arrays, about)


def _learner_arrays(model: TimedPPO) -> dict[str, np.ndarray]:
    """Network, optimiser, normalisation, where the rows stand, generators."""
    found = {f"{_POLICY}{name}": _array(value) for name, value in model.policy.state_dict().items()}
    for own, optimizer in model.optimizers().items():
        for k, moments in optimizer.state_dict()["state"].items():
            found |= {f"{own}.{k}.{name}": _array(value) for name, value in moments.items()}
    normalizer = model.get_vec_normalize_env()
    if isinstance(normalizer, TimedNormalize):
        found |= {f"normalization.{name}": value for name, value in normalizer.state().items()}
    rows = {"last_obs": model._last_obs, "episode_starts": model._last_episode_starts, **_base(model).state()}
    found |= {f"rows.{name}": np.array(value) for name, value in rows.items()}
    found |= {f"{_MORE}{name}": value for name, value in model.more_state().items()}
    return found | _torch_generators(model)


def _array(value: object) -> np.ndarray:
    return np.array(value.detach().cpu().numpy()) if isinstance(value, th.Tensor) else np.asarray(value)


def _numpy_stream() -> Any:
    """The generator behind `numpy.random`, from which SB3 draws."""
    return np.random.mtrand._rand._bit_generator


def _gauss() -> list[Any]:
    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002 - what SB3 draws from
    return list(state[3:])


def _torch_generators(model: TimedPPO) -> dict[str, np.ndarray]:
    found = {"generators.torch": th.get_rng_state()}
    if model.device.type == "cuda":
        found |= {f"generators.cuda{k}": state for k, state in enumerate(th.cuda.get_rng_state_all())}
    return {name: _array(state) for name, state in found.items()}


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in Path(folder).glob(f"step-*{SUFFIX}") if _NAME.fullmatch(path.name))


def old_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of an earlier version of this program, which this one cannot go on from."""
    return sorted(Path(folder).glob(_OLD))


def load_checkpoint(model: TimedPPO, path: Path, config_hash: str) -> dict[str, Any]:
    """Put a freshly built, equally configured model (environment included) into a saved state.

    Where the file does not fit, the model is left in any state; another checkpoint may then be loaded into it.

    Args:
        model: of the same configuration.
        path: the checkpoint.
        config_hash: of the configuration that the run has.

    Returns:
        The run's data that was saved with it.

    Raises:
        DamagedCheckpoint: the file is not a whole checkpoint.
        InputError: it belongs to another configuration, or cannot be read.
    """
    first = _base(model).reset()
    own = capture(model, {})
    arrays, about = read(path, sum(a.nbytes for a in own.arrays.values()) + _moments_bytes(model) + ROOM)
    check_hash(path, about.get("config_hash"), config_hash)
    try:
        if (name := _NAME.fullmatch(path.name)) and int(name[1]) != count_of(about, "num_timesteps"):
            raise InputError("num_timesteps: expected that of the file's name")
        checked = check_arrays(arrays, own.arrays | _row_arrays(model, first), _moments(model))
        _apply(model, checked, about)
        return mapping_of(about, "run")
    except Exception as error:  # whatever a damaged file leads to
        reason = (str(error) or type(error).__name__).splitlines()[0].removeprefix("checkpoint: ")
        raise DamagedCheckpoint(f"{path}: damaged ({reason[:160]})") from None


def _moments(model: TimedPPO) -> dict[str, np.ndarray]:
    """What Adam has once it has made a step, with the right types and shapes."""
    found: dict[str, np.ndarray] = {}
    for own, optimizer in model.optimizers().items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for k, parameter in enumerate(parameters):
            like = np.zeros(tuple(parameter.shape), np.float32)
            names = {"step": np.zeros((), np.float32), "exp_avg": like, "exp_avg_sq": like}
            found |= {f"{own}.{k}.{name}": value for name, value in names.items()}
    return found


def _moments_bytes(model: TimedPPO) -> int:
    return sum(a.nbytes for a in _moments(model).values())


def _row_arrays(model: TimedPPO, observations: np.ndarray) -> dict[str, np.ndarray]:
    started = np.zeros(len(observations), np.bool_)
    return {"rows.last_obs": observations.astype(np.float32), "rows.episode_starts": started}


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _apply(model: TimedPPO, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    base, normalizer = _base(model), model.get_vec_normalize_env()
    steps, updates, episodes = count_of(about, "num_timesteps"), count_of(about, "n_updates"), episodes_of(about)
    environment = _part(arrays, ENVIRONMENT) | mapping_of(about, "environment")
    if isinstance(base.envs, LLMSchedVectorEnv | GroupedServers):
        _check_constants(snapshot(base.envs), environment)
    restore(base.envs, environment)
    if isinstance(base.envs, LLMSchedVectorEnv | GroupedServers):
        base.envs.fleet.check_rows("checkpoint")  # compiled code indexes with what these arrays hold
    model.policy.load_state_dict({k: th.from_numpy(v.copy()) for k, v in _part(arrays, _POLICY).items()})
    for own, optimizer in model.optimizers().items():
        _set_optimizer(optimizer, _part(arrays, f"{own}."))
    model.load_more_state(_part(arrays, _MORE))
    if isinstance(normalizer, TimedNormalize):
        normalizer.load_state(_part(arrays, "normalization."))
    rows = _part(arrays, "rows.")
    if (rows["lengths"] < 0).any():
        raise InputError("rows.lengths: expected numbers >= 0")
    base.load_state(rows)
    model._last_obs, model._last_episode_starts = rows["last_obs"].copy(), rows["episode_starts"].copy()
    model.num_timesteps, model._n_updates = steps, updates
    model.ep_info_buffer = deque(episodes, maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    _check_network(model)
    _set_generators(_part(arrays, "generators."), about)


def _check_constants(own: dict[str, Any], environment: dict[str, Any]) -> None:
    """What a configuration fixes in our own environment: all its plain numbers, parameters, profile and rules.

    Raises:
        InputError: one differs.
    """
    for name, value in own.items():
        given = environment.get(name)
        if isinstance(value, np.ndarray):
            same = not name.startswith(_CONSTANT) or (isinstance(given, np.ndarray) and _equal(given, value))
        else:
            same = isinstance(value, str) or (type(given) is type(value) and given == value)
        if not same:
            raise InputError(f"checkpoint: {name}: expected what the configuration gives, got another value")


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _set_optimizer(optimizer: th.optim.Optimizer, moments: dict[str, np.ndarray]) -> None:
    state: dict[int, dict[str, th.Tensor]] = {}
    for name, value in moments.items():
        k, _, moment = name.partition(".")
        if moment == "exp_avg_sq" and (value < 0.0).any():
            raise InputError(f"checkpoint: {name}: expected numbers >= 0")
        state.setdefault(int(k), {})[moment] = th.from_numpy(value.copy())
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _check_network(model: TimedPPO) -> None:
    """Finite weights can still give infinite logits, from which nothing can be drawn."""
    with th.no_grad():
        observations = th.as_tensor(model._last_obs, device=model.device)
        parts: Any = model.policy.get_distribution(observations).distribution
        shown = [getattr(p, "logits", p.mean) for p in (parts if isinstance(parts, list) else [parts])]
        if not all(bool(th.isfinite(x).all()) for x in [*shown, model.policy.predict_values(observations)]):
            raise InputError("checkpoint: policy: expected a network with finite outputs")


def _set_generators(states: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    version, numbers, gauss_next = about["python"]
    has_gauss, gauss = about["numpy_gauss"]
    state = stream_state(_numpy_stream(), about["numpy"])["state"]
    random.setstate((version, tuple(numbers), gauss_next))
    np.random.set_state(("MT19937", state["key"], state["pos"], int(has_gauss), float(gauss)))  # noqa: NPY002
    th.set_rng_state(th.from_numpy(states["torch"].copy()))
    cuda = [th.from_numpy(value.copy()) for name, value in sorted(states.items()) if name.startswith("cuda")]
    if cuda:
        th.cuda.set_rng_state_all(cuda)
