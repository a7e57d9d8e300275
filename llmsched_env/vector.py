"""`LLMSchedVectorEnv`: many independent servers, stepped by one compiled call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from engine.errors import InputError
from engine.ranges import COUNT
from llmsched_env.autoreset import restart_ended, start_rows
from llmsched_env.config import EnvConfig, configure
from llmsched_env.crew import THREADS, Crew
from llmsched_env.fleet import Fleet
from llmsched_env.inputs import (
    check_options,
    check_reset_mask,
    check_row,
    check_scenarios,
    check_seeds,
    check_traces,
    show,
    step_limit,
)
from llmsched_env.presets import named

KEYWORDS = ("num_envs", "config", "threads", "render_mode", "max_episode_steps")
"""What the constructor takes besides the fields of `EnvConfig`."""


class LLMSchedVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many LLM servers as one vector environment; row by row the same as `LLMSchedEnv`.

    A row that ends is reset in the same step: its last observation is ``infos["final_obs"][row]`` and its numbers are
    ``infos["final_info"]["report"][row]``. Every step gives ``infos["elapsed_s"]`` (float64[rows], seconds that the
    step covered) and ``infos["reward_terms"]`` (float64[rows, terms], unweighted, order `REWARD_TERMS`).
    The arrays that `step` returns are overwritten by the next step, but for the observation. With `scenarios` a row
    draws that of each episode from its generator, as `LLMSchedEnv` does, and ``infos["scenario"]`` (int64[rows]) says
    which it was in the step.

    Args of the constructor: `num_envs` rows; `config` (an `EnvConfig`, or the id of a registered one); `threads`, which
    share the rows out among themselves, with the same bits (`llmsched_env.crew`); other keywords as those of
    `LLMSchedEnv`: fields of `EnvConfig`, and `max_episode_steps`, which truncates every row as
    `gymnasium.wrappers.TimeLimit` does. `executor` is refused: it serves one environment.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        num_envs: int = 1,
        config: EnvConfig | str | None = None,
        threads: int = 1,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **changes: Any,
    ) -> None:
        """Build the rows; `reset` starts them.

        Raises:
            InputError: the configuration cannot be run, an unknown keyword, or a render mode or an executor is given.
        """
        if render_mode is not None:
            raise InputError(f"render_mode: the vector environment draws nothing, got {show(render_mode)}")
        if changes.pop("executor", None) is not None:
            raise InputError("executor: one executor serves one environment, use gymnasium.make instead of make_vec")
        self.num_envs = int(COUNT.check(num_envs, "num_envs"))
        self.config = configure(named(config), changes, KEYWORDS)
        self.render_mode = None
        self.single_action_space = self.config.action.space()
        limit = step_limit(max_episode_steps)
        crew = Crew(int(THREADS.check(threads, "threads")))
        self.fleet = Fleet(self.num_envs, self.config, crew, max_episode_steps=limit)
        self.single_observation_space = self.fleet.observation_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._generators = [np.random.default_rng() for _ in range(self.num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in every row, or in some of them.

        Args:
            seed: row e draws its traces from ``seed + e``, or from its own entry of a list; without one it goes on with
                the generator that it has.
            options: ``{"requests": [...]}`` gives each row its first trace instead; ``{"scenario": [...]}`` the
                scenario of its first episode (name or number, None: drawn); ``{"reset_mask": bool[rows]}`` resets these
                rows only, the others stay where they are.

        Returns:
            Observations float32[rows, OBSERVATION_SIZE] and an empty info.

        Raises:
            InputError: seeds, options or traces that do not fit; nothing has happened then.
        """
        seeds = check_seeds(seed, self.num_envs)
        known = check_options(options, ("requests", "reset_mask", "scenario"))
        chosen, given = np.ones(self.num_envs, np.bool_), known.get("requests")
        if known.get("reset_mask") is not None:
            chosen = check_reset_mask(known["reset_mask"], self.num_envs)
        traces = check_traces(given, chosen) if given is not None else [None] * self.num_envs
        worlds = check_scenarios(known.get("scenario"), self.fleet.scenarios, traces)
        for trace, world in zip(traces, worlds, strict=True):
            if trace is not None:
                self.fleet.check_trace(trace, world)
        start_rows(
            chosen,
            seeds,
            self._generators,
            self.fleet.has_episode,
            lambda e, rng: self.fleet.begin(e, rng, traces[e], worlds[e]),
        )
        return self.fleet.observed.copy(), self._scenario_infos()

    def step(self, actions: object) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one decision in every row (see the class for what comes back).

        Raises:
            ResetNeeded: some row has no episode.
            InputError: an action that is not in the space; nothing has happened then.
        """
        fleet, outcome = self.fleet, self.fleet.outcome
        fleet.step(actions)
        infos: dict[str, Any] = {"elapsed_s": outcome.elapsed_s, "reward_terms": outcome.terms}
        infos |= self._scenario_infos()
        terminated, truncated = outcome.terminated.copy(), outcome.truncated.copy()
        infos |= restart_ended(terminated | truncated, fleet.observed, fleet.report, self._generators, fleet.begin)
        return fleet.observed.copy(), outcome.reward.copy(), terminated, truncated, infos

    def _scenario_infos(self) -> dict[str, Any]:
        """The scenario of each row before rows that end are reset, if the configuration has any."""
        return {"scenario": self.fleet.world.copy()} if self.config.scenarios else {}

    def save_state(self, row: int | None = None) -> Any:
        """The state of one row (`EnvState`), or a list with those of all rows.

        Raises:
            ResetNeeded: a row has no episode.
            InputError: there is no such row.
        """
        if row is None:
            return [self.fleet.save_state(e, rng) for e, rng in enumerate(self._generators)]
        e = check_row(row, self.num_envs)
        return self.fleet.save_state(e, self._generators[e])

    def load_state(self, state: object, row: int | None = None) -> np.ndarray:
        """Put one row into a state, or all rows into a list of them; rows and environments are interchangeable.

        Returns:
            The observation of the row, float32[OBSERVATION_SIZE], or those of all rows.

        Raises:
            InputError: no such row, a state of another configuration, or a damaged one; nothing has happened then.
        """
        if row is not None:
            e = check_row(row, self.num_envs)
            self._generators[e] = self.fleet.load_state(e, state, self._generators[e])
            return self.fleet.observed[e].copy()
        if not isinstance(state, list | tuple) or len(state) != self.num_envs:
            got = f"{len(state)} states" if isinstance(state, list | tuple) else show(state)
            raise InputError(f"state: expected a list of {self.num_envs} states (or row=...), got {got}")
        for one in state:
            self.fleet.check_state(one)
        for e, one in enumerate(state):
            self._generators[e] = self.fleet.load_state(e, one, self._generators[e])
        return self.fleet.observed.copy()

    def render(self) -> None:
        """Nothing: the vector environment draws nothing."""
