"""`LLMSchedRouterVectorEnv`: many independent fleets behind routers, stepped by one compiled call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from engine.cluster.state import RouterView
from engine.errors import InputError
from engine.ranges import COUNT
from llmsched_env.autoreset import restart_ended, start_rows
from llmsched_env.inputs import (
    check_options,
    check_reset_mask,
    check_row,
    check_seeds,
    check_traces,
    show,
    step_limit,
)
from llmsched_env.routing.clusters import RouterClusters
from llmsched_env.routing.config import RouterConfig, configured

KEYWORDS = ("num_envs", "config", "render_mode", "max_episode_steps")
"""What the constructor takes besides the fields of `RouterConfig`."""


class LLMSchedRouterVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many clusters as one vector environment; row by row the same as `LLMSchedRouterEnv`.

    A row that ends is reset in the same step: its last observation is ``infos["final_obs"][row]`` and its numbers are
    ``infos["final_info"]["report"][row]``. Every step gives ``infos["elapsed_s"]`` (float64[rows]),
    ``infos["reward_terms"]`` (float64[rows, terms], unweighted, order `REWARD_TERMS`) and ``infos["action_mask"]``
    (int8[rows, J], for the observation that comes with it, after resets). Arrays in the infos are overwritten by the
    next step.

    Args of the constructor: `num_envs` rows; `config` (a `RouterConfig`); other keywords as those of
    `LLMSchedRouterEnv`: fields of `RouterConfig`, and `max_episode_steps`.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self,
        num_envs: int = 1,
        config: RouterConfig | None = None,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **changes: Any,
    ) -> None:
        """Build the rows; `reset` starts them.

        Raises:
            InputError: the configuration cannot be run, an unknown keyword, or a render mode.
        """
        if render_mode is not None:
            raise InputError(f"render_mode: the vector environment draws nothing, got {show(render_mode)}")
        self.num_envs = int(COUNT.check(num_envs, "num_envs"))
        self.config = configured(RouterConfig, config, changes, KEYWORDS)
        self.render_mode = None
        self.clusters = RouterClusters(self.num_envs, self.config, step_limit(max_episode_steps))
        self.single_action_space = self.clusters.route_space
        self.single_observation_space = self.clusters.seen_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._generators = [np.random.default_rng() for _ in range(self.num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in every row, or in some of them.

        Args:
            seed: row e draws its episodes from ``seed + e``, or from its own entry of a list; without one it goes on
                with the generator that it has.
            options: ``{"requests": [...]}`` gives each row its first trace instead; ``{"reset_mask": bool[rows]}``
                resets these rows only, the others stay where they are.

        Returns:
            Observations float32[rows, n] and ``{"action_mask": int8[rows, J]}``.

        Raises:
            InputError: seeds, options or traces that do not fit; nothing has happened then.
        """
        seeds = check_seeds(seed, self.num_envs)
        known = check_options(options, ("requests", "reset_mask"))
        chosen, given = np.ones(self.num_envs, np.bool_), known.get("requests")
        if known.get("reset_mask") is not None:
            chosen = check_reset_mask(known["reset_mask"], self.num_envs)
        traces = check_traces(given, chosen) if given is not None else [None] * self.num_envs
        for trace in traces:
            if trace is not None:
                self.clusters.check_trace(trace)
        start_rows(
            chosen,
            seeds,
            self._generators,
            self.clusters.has_episode,
            lambda e, rng: self.clusters.begin(e, rng, traces[e]),
        )
        outcome = self.clusters.outcome
        return outcome.observation.copy(), {"action_mask": outcome.mask}

    def step(self, actions: object) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Send the request of every row to a replica (see the class for what comes back).

        Raises:
            ResetNeeded: some row has no episode.
            InputError: an action that is not in the space, or a replica that drains; nothing has happened then.
        """
        clusters, outcome = self.clusters, self.clusters.outcome
        clusters.step(actions)
        infos: dict[str, Any] = {"reward_terms": outcome.terms, "action_mask": outcome.mask}
        infos["elapsed_s"] = outcome.elapsed_s.copy()  # the resets below write to it
        terminated, truncated = outcome.terminated.copy(), outcome.truncated.copy()
        infos |= restart_ended(
            terminated | truncated, outcome.observation, clusters.report, self._generators, clusters.begin
        )
        return outcome.observation.copy(), outcome.reward.copy(), terminated, truncated, infos

    def action_masks(self) -> np.ndarray:
        """Which replicas may get the request of each row: bool[rows, J]."""
        return self.clusters.outcome.mask > 0

    def view(self, row: int) -> RouterView:
        """What a router may see now in a row; live: read it, never write.

        Raises:
            InputError: there is no such row.
        """
        return self.clusters.view(check_row(row, self.num_envs))
