"""Checkpoints of a training run: everything that the next update depends on, in one file written at once.

A checkpoint is taken between two updates and holds network, optimiser, normalisation, the random generators of torch,
numpy and Python, counters, and the state of every environment row. Training on from it is bit for bit what would have
happened without the interruption. Files are torch archives read with ``weights_only``: no code from them is run.
"""

import io
import json
import random
import re
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from agents.files import write_atomically
from agents.learning.normalize import TimedNormalize
from agents.learning.rollout import TimedPPO
from agents.learning.snapshot import restore, snapshot
from agents.learning.vec_env import SB3VecEnv
from engine.errors import InputError

FORMAT = "llmsched-checkpoint/1"
_NAME = re.compile(r"step-(\d{12})\.pt")


def _base(model: TimedPPO) -> SB3VecEnv:
    env = model.get_env()
    assert env is not None
    base = env.unwrapped
    assert isinstance(base, SB3VecEnv)
    return base


def _tensor(data: bytes) -> th.Tensor:
    return th.frombuffer(bytearray(data), dtype=th.uint8)


def _pack(saved: dict[str, Any]) -> dict[str, Any]:
    return {k: (v[0], list(v[1]), _tensor(v[2])) if isinstance(v, tuple) else v for k, v in saved.items()}


def _unpack(saved: dict[str, Any]) -> dict[str, Any]:
    return {k: (v[0], tuple(v[1]), v[2].numpy().tobytes()) if isinstance(v, tuple) else v for k, v in saved.items()}


def _generators() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - SB3 draws from it
    version, numbers, gauss_next = random.getstate()
    state = {
        "torch": th.get_rng_state(),
        "numpy": [kind, th.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(numbers), gauss_next],
    }
    if th.cuda.is_available():
        state["cuda"] = th.cuda.get_rng_state_all()
    return state


def _set_generators(state: dict[str, Any]) -> None:
    th.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
    if "cuda" in state and th.cuda.is_available():
        th.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(model: TimedPPO, folder: Path, run: dict[str, Any], keep: int) -> Path:
    """Write the model's state between two updates; older checkpoints but for the last `keep` are deleted.

    Args:
        model: the learner; its environment is an `SB3VecEnv`, inside a `TimedNormalize` or not.
        folder: where checkpoints go.
        run: plain data of the run to keep with it (JSON).
        keep: checkpoints to keep, this one included.

    Raises:
        InputError: the folder cannot be written.
    """
    base, normalizer = _base(model), model.get_vec_normalize_env()
    learner = {
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "episodes": list(model.ep_info_buffer or []),
        "run": run,
    }
    rows = {"last_obs": model._last_obs, "episode_starts": model._last_episode_starts, **base.state()}
    data = {
        "format": FORMAT,
        "learner": json.dumps(learner),
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "generators": _generators(),
        "rows": {name: th.from_numpy(np.array(value)) for name, value in rows.items()},
        "environment": _pack(snapshot(base.envs)),
        "normalization": {},
    }
    if isinstance(normalizer, TimedNormalize):
        data["normalization"] = {name: th.from_numpy(value) for name, value in normalizer.state().items()}
    stream = io.BytesIO()
    th.save(data, stream)
    path = folder / f"step-{model.num_timesteps:012d}.pt"
    write_atomically(path, stream.getvalue())
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in Path(folder).glob("step-*.pt") if _NAME.fullmatch(path.name))


def load_checkpoint(model: TimedPPO, path: Path) -> dict[str, Any]:
    """Put a freshly built, equally configured model (environment included) into a saved state.

    Returns:
        The run's data that was saved with it.

    Raises:
        InputError: the file is damaged, foreign, or belongs to another configuration.
    """
    try:
        data = th.load(path, map_location=model.device, weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: expected a checkpoint, damaged or foreign ({reason[:80]})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path}: expected a checkpoint with format {FORMAT!r}")
    base, normalizer = _base(model), model.get_vec_normalize_env()
    try:
        model.policy.load_state_dict(data["policy"])
        model.policy.optimizer.load_state_dict(data["optimizer"])
        learner = json.loads(data["learner"])
        rows = {name: value.cpu().numpy() for name, value in data["rows"].items()}
        if isinstance(normalizer, TimedNormalize):
            normalizer.load_state({name: value.cpu().numpy() for name, value in data["normalization"].items()})
        base.reset()
        restore(base.envs, _unpack(data["environment"]))
        base.load_state(rows)
        model._last_obs, model._last_episode_starts = rows["last_obs"], rows["episode_starts"]
        model.num_timesteps, model._n_updates = learner["num_timesteps"], learner["n_updates"]
        model.ep_info_buffer = deque(learner["episodes"], maxlen=model._stats_window_size)
        model.ep_success_buffer = deque(maxlen=model._stats_window_size)
        _set_generators({k: _cpu(v) for k, v in data["generators"].items()})
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: does not fit this configuration ({str(error).splitlines()[0][:120]})") from None
    return dict(learner["run"])


def _cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, th.Tensor) else value
