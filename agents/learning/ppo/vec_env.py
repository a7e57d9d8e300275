"""`SB3VecEnv`: any Gymnasium vector environment with same-step autoreset as a Stable-Baselines3 `VecEnv`.

Differences that it bridges (stable_baselines3/common/vec_env/base_vec_env.py, gymnasium/vector/vector_env.py):

- Gymnasium tells termination from truncation, SB3 has one `done` and ``info["TimeLimit.truncated"]``.
- The last observation of an episode is ``infos["final_obs"][row]`` there, ``info["terminal_observation"]`` here.
- Gymnasium's infos are one dictionary of arrays, SB3's are one dictionary per row. Only rows whose episode ends get
  entries here; what comes with every step stays an array, in `step_infos`.
- SB3's `Monitor` wraps single environments; here the vector keeps return and length itself and gives the same
  ``info["episode"]``, with the numbers of the environment's episode report beside ``r``, ``l`` and ``t``.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium import Wrapper
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv

from engine.errors import InputError

Indices = int | Iterable[int] | None


def row_info(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """The entries of one row of a vector info; masks (``_key``) and rows that they leave out are skipped."""
    found: dict[str, Any] = {}
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if (key.startswith("_") and key[1:] in infos) or (mask is not None and not mask[row]):
            continue
        found[key] = row_info(values, row) if isinstance(values, dict) else values[row]
    return found


def _numbers(report: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in report.items() if isinstance(v, int | float | np.number)}


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment as SB3 takes it.

    `step_infos` is the vector info of the latest step and `elapsed_s` float64[rows], the seconds that the step covered
    (None if the environment does not say). Info dictionaries are reused: copy what must outlive the next step.

    Raises:
        InputError: the environment does not declare same-step autoreset.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.SAME_STEP.value):
            raise InputError(f"vector environment: expected autoreset mode SameStep, got {mode}")
        self.envs = envs
        self.step_infos: dict[str, Any] = {}
        self.elapsed_s: np.ndarray | None = None
        self._actions = np.zeros(0)
        self._infos: list[dict[str, Any]] = [{} for _ in range(envs.num_envs)]
        self._ended = np.zeros(0, np.int64)
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, np.int64)
        self._started = time.perf_counter()
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> np.ndarray:
        """Start an episode in every row, with the seeds and options given before; returns the observations.

        Raises:
            InputError: `set_options` gave rows different options, which a vector environment cannot take.
        """
        if any(options != self._options[0] for options in self._options):
            raise InputError("set_options: expected the same options for every row of a vector environment")
        seed = self._seeds[0]
        observations, self.step_infos = self.envs.reset(seed=seed, options=self._options[0] or None)
        self.reset_infos = [row_info(self.step_infos, row) for row in range(self.num_envs)]
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._forget_infos()
        self._reset_seeds()
        self._reset_options()
        return np.array(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step every row: (observations, float32 rewards, dones, infos)."""
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        self.step_infos = infos
        self.elapsed_s = infos.get("elapsed_s")
        self._returns += rewards
        self._lengths += 1
        done = np.logical_or(terminated, truncated)
        self._forget_infos()
        self._ended = np.flatnonzero(done)
        for row in self._ended.tolist():
            self._end_episode(row, infos, bool(truncated[row] and not terminated[row]))
        return np.array(observations), np.array(rewards, np.float32), done, self._infos

    def _forget_infos(self) -> None:
        for row in self._ended:
            self._infos[row] = {}
        self._ended = self._ended[:0]

    def _end_episode(self, row: int, infos: dict[str, Any], truncated: bool) -> None:
        final = row_info(infos.get("final_info", {}), row)
        elapsed = round(time.perf_counter() - self._started, 6)
        episode = {"r": float(self._returns[row]), "l": int(self._lengths[row]), "t": elapsed}
        self._infos[row] = {
            **final,
            "terminal_observation": infos["final_obs"][row],
            "TimeLimit.truncated": truncated,
            "episode": {**_numbers(final.get("report", {})), **episode},
        }
        self._returns[row] = 0.0
        self._lengths[row] = 0

    def state(self) -> dict[str, np.ndarray]:
        """Return and length of the running episodes: float64[rows] and int64[rows]."""
        return {"returns": self._returns.copy(), "lengths": self._lengths.copy()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue the running episodes from what `state` gave.

        Raises:
            InputError: something else, or another number of rows.
        """
        found: list[Any] = [state.get(n) if isinstance(state, dict) else None for n in ("returns", "lengths")]
        if not all(isinstance(array, np.ndarray) and array.shape == (self.num_envs,) for array in found):
            raise InputError(f"state: expected returns and lengths of {self.num_envs} rows, as `state` gives them")
        self._returns[:], self._lengths[:] = found

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One image per row, where the environment draws them."""
        frames: Any = self.envs.render() if self.envs.render_mode == "rgb_array" else None
        return list(frames) if frames is not None else [None] * self.num_envs

    def _rows(self, indices: Indices) -> list[int]:
        try:
            rows = [int(row) for row in self._get_indices(indices)]
        except (TypeError, ValueError):
            raise InputError(f"indices: expected None, a row or rows, got {indices!r}") from None
        for row in rows:
            if not -self.num_envs <= row < self.num_envs:
                raise InputError(f"indices: expected rows 0 to {self.num_envs - 1}, got {row}")
        return rows

    def _singles(self) -> list[Any] | None:
        """The environments of the rows, if the vector is made of single ones (Gymnasium's `SyncVectorEnv`)."""
        return getattr(self.envs, "envs", None)

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute for each of the rows; one of a natively vectorised environment belongs to all of them.

        Raises:
            AttributeError: there is none of this name.
        """
        rows, singles = self._rows(indices), self._singles()
        if singles is None:
            return [getattr(self.envs, attr_name)] * len(rows)
        return [
            e.get_wrapper_attr(attr_name) if hasattr(e, "get_wrapper_attr") else getattr(e, attr_name)
            for e in (singles[row] for row in rows)
        ]

    def set_attr(self, attr_name: str, value: object, indices: Indices = None) -> None:
        """Set an attribute of the rows.

        Raises:
            InputError: some rows only, where one object holds all rows.
        """
        rows, singles = self._rows(indices), self._singles()
        if singles is not None:
            for row in rows:
                singles[row].set_wrapper_attr(attr_name, value)
            return
        self._require_all(f"set_attr {attr_name!r}", rows)
        setattr(self.envs, attr_name, value)

    def _require_all(self, what: str, rows: list[int]) -> None:
        if sorted(row % self.num_envs for row in rows) != list(range(self.num_envs)):
            raise InputError(f"{what}: expected all rows, which are one object here, got {rows}")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method for the rows and return one result for each.

        A natively vectorised environment has one method for all rows: it is called once, with `indices` if it takes
        them, and its result must have one entry for each row (or be None).

        Raises:
            AttributeError: there is no such method.
            InputError: some rows only, or a result without one entry for each row.
        """
        rows, singles = self._rows(indices), self._singles()
        if singles is not None:
            return [singles[r].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for r in rows]
        method: Callable[..., Any] = getattr(self.envs, method_name)
        if "indices" in inspect.signature(method).parameters:
            method_kwargs["indices"] = rows
        else:
            self._require_all(f"env_method {method_name!r}", rows)
        result = method(*method_args, **method_kwargs)
        if result is None:
            return [None] * len(rows)
        if not hasattr(result, "__len__") or len(result) != len(rows):
            raise InputError(f"env_method {method_name!r}: expected one result for each of {len(rows)} rows")
        return list(result) if "indices" in method_kwargs else [result[row] for row in rows]

    def env_is_wrapped(self, wrapper_class: type[Wrapper[Any, Any, Any, Any]], indices: Indices = None) -> list[bool]:
        """Whether each of the rows is inside this wrapper; rows of a natively vectorised environment never are."""
        rows, singles = self._rows(indices), self._singles()
        return [singles is not None and is_wrapped(singles[row], wrapper_class) for row in rows]
