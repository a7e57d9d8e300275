"""`LLMSchedVectorEnv`: many independent servers, stepped by one compiled call."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import baselines
from engine.errors import InputError
from engine.latency import load_profile
from engine.policy import Policy
from engine.predictions import predict
from engine.requests import Requests
from engine.rows import new_rows, row_of
from engine.state import Server, load
from llmsched_env.action import (
    ACTION_SIZES,
    ALLOCATION_PARAMS,
    ALLOCATION_REQUEST_MEMORY,
    ALLOCATION_ROW_MEMORY,
    allocation_params,
)
from llmsched_env.config import EnvConfig
from llmsched_env.episode import episode_report
from llmsched_env.live import Live
from llmsched_env.observation import OBSERVATION_LIMIT, OBSERVATION_SIZE
from llmsched_env.reward import REWARD_TERMS
from llmsched_env.step import (
    Memories,
    Rules,
    bundle_arrays,
    new_memories,
    new_outcome,
    step_allocation,
    step_mixture,
)


def observation_space() -> spaces.Box:
    """Box float32[OBSERVATION_SIZE]; the entries are named in `llmsched_env.OBSERVATION_NAMES`."""
    return spaces.Box(-OBSERVATION_LIMIT, OBSERVATION_LIMIT, (OBSERVATION_SIZE,), np.float32)


def action_space(config: EnvConfig) -> spaces.Space[Any]:
    """MultiDiscrete (budget, decode rule, order) for `allocation`, Discrete (arm) for `mixture`."""
    if config.action == "mixture":
        return spaces.Discrete(len(config.arms))
    return spaces.MultiDiscrete(list(ACTION_SIZES))


class Fleet:
    """Rows of servers with their memories, traces and outcomes: what both environment classes drive."""

    def __init__(self, rows: int, config: EnvConfig, threads: int = 1, live: Live | None = None) -> None:
        """Allocate everything and compile nothing yet.

        Args:
            rows: servers.
            config: of all of them.
            threads: > 1 spreads rows over numba's threads.
            live: steps the only row with an executor instead of the profile.

        Raises:
            InputError: an unknown profile or arm, or a workload that the server can never serve.
        """
        self.config = config
        self.live = live
        self.rows = rows
        model = load_profile(config.profile)
        self.latency = model.compiled(config.engine)
        arms: list[Policy] = [baselines.make(s) for s in config.arms] if config.action == "mixture" else []
        for arm in arms:
            if not arm.runs_compiled:
                raise InputError(f"env.arms: expected policies with a compiled kernel, got {arm.spec!r}")
            if arm.channel and not config.prediction:
                raise InputError(f"env.prediction: expected a channel such as {arm.channel} for {arm.spec!r}, got none")
        self.kernels = tuple(a.kernel.compiled for a in arms if a.kernel)
        n, tiers = config.workload.num_requests, config.workload.tiers
        params = [
            allocation_params(model, config.budget, config.ageing, config.close),
            *(a.params(config.engine) for a in arms),
        ]
        cells = max([ALLOCATION_REQUEST_MEMORY, *(a.request_memory for a in arms)])
        row_cells = max([ALLOCATION_ROW_MEMORY, *(a.row_memory for a in arms)])
        width = max([ALLOCATION_PARAMS, *(len(p) for p in params)])
        self.memories: Memories = new_memories(len(params), width, rows, n, cells, row_cells)
        for k, p in enumerate(params):
            self.memories.params[k, : len(p)] = p
        self.servers: Server = new_rows(rows, n, len(tiers))
        self.row_servers: list[Server] = [row_of(self.servers, e) for e in range(rows)]
        limits = np.array([config.max_steps, config.horizon_s, config.skip_decode_only, config.hold], np.float64)
        self.rules = Rules(config.reward.vector(), np.array([t.weight for t in tiers]), limits)
        self.outcome = new_outcome(rows)
        self.returns = np.zeros(rows)
        self.term_sums = np.zeros((rows, len(REWARD_TERMS)))
        self._arrays = bundle_arrays()(self.servers, self.memories, self.latency, self.rules, self.outcome)
        self._step = self._stepper(threads > 1)
        self._no_action = np.zeros((rows, 1), np.int64)

    def draw(self, rng: np.random.Generator) -> Requests:
        """The trace of one episode: rate, backlog, lengths, tiers and arrivals from one generator."""
        workload = self.config.workload
        if self.config.rates:
            rate = float(rng.choice(np.asarray(self.config.rates)))
            workload = workload if rate == workload.rate else type(workload)(**{**vars(workload), "rate": rate})
        requests = workload.generate(rng)
        if self.config.backlog:
            present = int(rng.integers(self.config.backlog + 1))
            if present:
                arrival = np.maximum(requests.arrival - requests.arrival[present - 1], 0.0)
                requests = requests.replace(arrival=arrival)
        if self.config.prediction:
            requests = predict(requests, self.config.prediction, int(rng.integers(2**32)))
        return requests

    def start(self, e: int, requests: Requests) -> None:
        """Put row `e` in front of a trace and move it to its first decision.

        Raises:
            InputError: the trace has another number of requests or tiers than the rows, or one that is too long.
        """
        n = self.config.workload.num_requests
        if len(requests) != n or len(requests.tiers) != len(self.config.workload.tiers):
            raise InputError(
                f"reset: expected {n} requests in {len(self.config.workload.tiers)} tiers, "
                f"got {len(requests)} in {len(requests.tiers)}"
            )
        requests.check_lengths(self.config.engine.max_request_tokens)
        load(self.row_servers[e], self.config.engine, requests)
        self.memories.request[e] = 0.0
        self.memories.row[e] = 0.0
        self.returns[e] = 0.0
        self.term_sums[e] = 0.0
        if self.live:
            self.live.start(requests)
        self._step(self._no_action, e, e + 1, True)

    def _stepper(self, parallel: bool) -> Callable[[np.ndarray, int, int, bool], None]:
        arrays, kernels, live = self._arrays, self.kernels, self.live
        if live:
            return lambda action, first, last, opens: live.step(self, action, opens)
        if not kernels:
            allocation = step_allocation(parallel)
            return lambda action, first, last, opens: allocation(action, arrays, first, last, opens)
        mixture = step_mixture(len(kernels), parallel)
        return lambda action, first, last, opens: mixture(kernels, action, arrays, first, last, opens)

    def step(self, action: np.ndarray) -> None:
        """Advance every row by one decision; `action` is int64[rows, dimensions]; results are in `outcome`."""
        self._step(action, 0, self.rows, False)
        self.returns += self.outcome.reward
        self.term_sums += self.outcome.terms

    def report(self, e: int) -> dict[str, float]:
        """Numbers of the episode so far in row `e`, with the return and the sums of the reward terms."""
        report = episode_report(self.row_servers[e], [t.name for t in self.config.workload.tiers])
        report["return"] = float(self.returns[e])
        report["decisions"] = int(self.outcome.steps[e])
        report |= {f"reward_{name}": float(v) for name, v in zip(REWARD_TERMS, self.term_sums[e], strict=True)}
        return report


class LLMSchedVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many LLM servers as one vector environment; row by row the same as `LLMSchedEnv`.

    A row that ends is reset in the same step: its last observation is ``infos["final_obs"][row]`` and its numbers are
    ``infos["final_info"]["report"][row]``. Every step gives ``infos["elapsed_s"]`` (float64[rows], seconds that the
    step covered) and ``infos["reward_terms"]`` (float64[rows, terms], unweighted, order `REWARD_TERMS`).
    The arrays that `step` returns are overwritten by the next step, but for the observation.

    Args of the constructor: `num_envs` rows; `config`; `threads` > 1 spreads rows over numba's threads.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(
        self, num_envs: int = 1, config: EnvConfig | None = None, threads: int = 1, render_mode: str | None = None
    ) -> None:
        """Build the rows; `reset` starts them.

        Raises:
            InputError: the configuration cannot be run, or a render mode is asked for.
        """
        if render_mode is not None:
            raise InputError(f"render_mode: the vector environment draws nothing, got {render_mode!r}")
        if num_envs < 1:
            raise InputError(f"num_envs: expected at least 1, got {num_envs!r}")
        self.config = config or EnvConfig()
        self.num_envs = num_envs
        self.render_mode = None
        self.single_observation_space = observation_space()
        self.single_action_space = action_space(self.config)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.fleet = Fleet(num_envs, self.config, threads)
        self._generators: list[np.random.Generator] = []

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in every row.

        Args:
            seed: row e draws its traces from ``seed + e`` (or from its own entry of a list).
            options: ``{"requests": [...]}`` gives each row its first trace instead.

        Returns:
            Observations float32[rows, OBSERVATION_SIZE] and an empty info.
        """
        if isinstance(seed, list):
            seeds: list[int | None] = seed
        elif seed is not None:
            seeds = [seed + e for e in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs
        if not self._generators or seed is not None:
            self._generators = [np.random.default_rng(s) for s in seeds]
        given = (options or {}).get("requests")
        for e, rng in enumerate(self._generators):
            self.fleet.start(e, given[e] if given is not None else self.fleet.draw(rng))
        return self.fleet.outcome.observation.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one decision in every row (see the class for what comes back)."""
        fleet, outcome = self.fleet, self.fleet.outcome
        fleet.step(np.ascontiguousarray(actions, np.int64).reshape(self.num_envs, -1))
        infos: dict[str, Any] = {"elapsed_s": outcome.elapsed_s, "reward_terms": outcome.terms}
        terminated, truncated = outcome.terminated.copy(), outcome.truncated.copy()
        ended = np.flatnonzero(terminated | truncated)
        if ended.size:
            final_obs = np.full(self.num_envs, None, object)
            reports = np.full(self.num_envs, None, object)
            for e in ended.tolist():
                final_obs[e] = outcome.observation[e].copy()
                reports[e] = fleet.report(e)
                fleet.start(e, fleet.draw(self._generators[e]))
            mask = terminated | truncated
            infos |= {"final_obs": final_obs, "_final_obs": mask}
            infos |= {"final_info": {"report": reports, "_report": mask}, "_final_info": mask}
        return outcome.observation.copy(), outcome.reward.copy(), terminated, truncated, infos
