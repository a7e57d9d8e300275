"""`Fleet`: rows of servers with their memories, traces and outcomes, which both environment classes drive."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel, load_profile
from engine.errors import InputError
from engine.server.integrity import check_server
from engine.server.policy import Policy
from engine.server.rows import new_rows, row_of
from engine.server.state import ROW, Server, load, set_limits
from llmsched_env.actions import Codec
from llmsched_env.config import EnvConfig
from llmsched_env.episode import episode_report
from llmsched_env.inputs import Actions, needs_reset
from llmsched_env.live import Live
from llmsched_env.observation import OBSERVATION_LIMIT, OBSERVATION_SIZE
from llmsched_env.own import OwnFunction, Seen, Step, sealed, seen_by, size_of
from llmsched_env.reward import REWARD_TERMS
from llmsched_env.state import EnvState, StateCodec, is_sound
from llmsched_env.step import (
    Memories,
    Rules,
    bundle_arrays,
    compiled_step,
    new_memories,
    new_outcome,
)


def observation_space(own_size: int = 0) -> spaces.Box:
    """Box float32[OBSERVATION_SIZE]; the entries are named in `llmsched_env.OBSERVATION_NAMES`.

    With an observation function of a user: any numbers, as many as it makes.
    """
    if own_size:
        return spaces.Box(-np.inf, np.inf, (own_size,), np.float32)
    return spaces.Box(-OBSERVATION_LIMIT, OBSERVATION_LIMIT, (OBSERVATION_SIZE,), np.float32)


def _memories(
    rows: int, config: EnvConfig, codec: Codec, params: Sequence[np.ndarray], arms: Sequence[Policy]
) -> Memories:
    """Zeroed memories with the parameters of the codec and of the arms."""
    cells = max([codec.request_memory, *(a.request_memory for a in arms)])
    row_cells = max([codec.row_memory, *(a.row_memory for a in arms)])
    n, width = config.workload.num_requests, max(len(p) for p in params)
    memories = new_memories(len(params), width, rows, n, cells, row_cells)
    for k, p in enumerate(params):
        memories.params[k, : len(p)] = p
    return memories


def _rules(config: EnvConfig, max_episode_steps: int) -> Rules:
    """What is the same for every row."""
    action, codec = config.action, config.action.codec
    limits = [config.max_steps, config.horizon_s, config.skip_decode_only, action.holds, max_episode_steps]
    limits.append(codec.LEARNS)
    return Rules(
        config.reward.vector(),
        np.array([t.weight for t in config.workload.tiers], np.float64),
        np.array(limits, np.float64),
        np.array(action.sizes, np.int64),
        np.array(codec.DECODES, np.int64),
        np.array(codec.FALLBACK, np.int64),
    )


def _leaves(arrays: Iterable[Any]) -> Iterator[np.ndarray]:
    """The arrays in nested tuples of them."""
    for item in arrays:
        if isinstance(item, np.ndarray):
            yield item
        else:
            yield from _leaves(item)


class Fleet:
    """Rows of servers with their memories, traces and outcomes: what both environment classes drive."""

    def __init__(
        self,
        rows: int,
        config: EnvConfig,
        threads: int = 1,
        live: Live | None = None,
        batched: bool = True,
        max_episode_steps: int = 0,
    ) -> None:
        """Allocate everything and compile nothing yet.

        Args:
            rows: servers.
            config: of all of them.
            threads: > 1 spreads rows over numba's threads.
            live: steps the only row with an executor instead of the profile.
            batched: whether actions come with a leading axis for the rows.
            max_episode_steps: truncates an episode as `gymnasium.wrappers.TimeLimit` does (0: no limit).

        Raises:
            InputError: an unknown profile or arm, a workload that the server can never serve, or rows for which there
                is no memory.
        """
        self._options = (rows, config, threads, live, batched, max_episode_steps)
        self._build(load_profile(config.profile))

    def _build(self, model: LatencyModel) -> None:
        rows, config, threads, live, batched, max_episode_steps = self._options
        self.config = config
        self.live = live
        self.rows = rows
        self._model = model
        self.latency = model.compiled(config.engine)
        action, codec = config.action, config.action.codec
        arms = [arm.on(model) for arm in action.policies(config.prediction)]
        self.kernels = tuple(kernel.compiled for kernel in (codec.kernel, *(arm.kernel for arm in arms)) if kernel)
        params = [codec.params(model), *(arm.params(config.engine) for arm in arms)]
        n, tiers = config.workload.num_requests, config.workload.tiers
        try:
            self.memories = _memories(rows, config, codec, params, arms)
            self.servers: Server = new_rows(rows, n, len(tiers))
        except (MemoryError, ValueError) as error:
            raise InputError(f"num_envs: no memory for {rows} rows of {n} requests ({error})") from None
        self.row_servers: list[Server] = [row_of(self.servers, e) for e in range(rows)]
        self.actions = Actions(action, rows, batched)
        self.rules = _rules(config, max_episode_steps)
        self.outcome = new_outcome(rows)
        self._prepare_own()
        self.returns = np.zeros(rows)
        self.term_sums = np.zeros((rows, len(REWARD_TERMS)))
        self.started = False
        self._has_episode = np.zeros(rows, np.bool_)
        sums = {"return": self.returns, "term_sums": self.term_sums}
        self._codec = StateCodec(self.servers, self.memories, self.outcome, sums, codec)
        arrays = (self.servers, self.memories, self.latency, self.rules, self.outcome)
        self._arrays = bundle_arrays(len(self.kernels))(self.kernels, *arrays)
        self._step = self._stepper(threads > 1)

    def _prepare_own(self) -> None:
        """Find the functions of the user, if the configuration names any."""
        config, outcome = self.config, self.outcome
        seen = seen_by(outcome.observation, self.servers.visible)
        self._told = Step(
            sealed(outcome.terms),
            sealed(outcome.elapsed_s),
            sealed(outcome.reward),
            sealed(outcome.terminated),
            sealed(outcome.truncated),
            seen,
        )
        reward, sha256 = config.reward.function, config.reward.function_sha256
        self._reward = OwnFunction(reward, sha256, "env.reward.function") if reward else None
        self._observe: OwnFunction | None = None
        self.observed = outcome.observation
        """float32[rows, m], what the agent sees of each row; overwritten by the next step."""
        if config.observation:
            self._observe = OwnFunction(config.observation, config.observation_sha256, "env.observation")
            self.observed = np.zeros((self.rows, size_of(self._observe, seen)), np.float32)
        self.observation_space = observation_space(self.observed.shape[1] if self._observe else 0)

    def _look(self, first: int, last: int) -> None:
        """Make the user's observation of some rows."""
        if self._observe is not None:
            seen = Seen(*(array[first:last] for array in self._told.seen))
            self.observed[first:last] = self._observe(seen, (last - first, self.observed.shape[1]), np.float32)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: the arrays, without what is compiled or only looks at them."""
        arrays = [*_leaves((self.servers, self.memories, self.outcome)), self.returns, self.term_sums]
        return {"options": self._options, "model": self._model, "arrays": arrays, "episodes": self._has_episode}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the fleet anew and fill it."""
        self._options = state["options"]
        self._build(state["model"])
        mine = [*_leaves((self.servers, self.memories, self.outcome)), self.returns, self.term_sums]
        for array, saved in zip(mine, state["arrays"], strict=True):
            array[...] = saved
        self._has_episode[:] = state["episodes"]
        self.started = bool(self._has_episode.all())
        for e in np.flatnonzero(self._has_episode).tolist():
            self._look(e, e + 1)

    def save_state(self, e: int, generator: np.random.Generator) -> EnvState:
        """Row `e` and its generator as a state.

        Raises:
            ResetNeeded: the row has no episode.
            InputError: an executor runs the batches, whose state cannot be stored.
        """
        if not self._has_episode[e]:
            raise needs_reset("env.save_state()")
        return self._states().save(e, generator)

    def load_state(self, e: int, state: object, generator: np.random.Generator) -> np.random.Generator:
        """Put row `e` into a state; returns the generator of its next episodes.

        Raises:
            InputError: a state that does not fit; nothing has happened then.
        """
        generator = self._states().load(e, state, generator)
        self._has_episode[e] = True
        self.started = bool(self._has_episode.all())
        self._look(e, e + 1)
        return generator

    def check_state(self, state: object) -> None:
        """Check that `load_state` takes a state.

        Raises:
            InputError: it does not.
        """
        self._states().check(state)

    def _states(self) -> StateCodec:
        if self.live:
            raise InputError("state: expected an environment on a profile, the state of an executor cannot be stored")
        if not self._codec.digest:
            self._codec.describe(self.config, self._model)
        return self._codec

    def check_rows(self, where: str) -> None:
        """Check that compiled code can go on with the arrays of every row, after something else has written them.

        Raises:
            InputError: they do not fit together; `where` begins the line.
        """
        limits = np.zeros(1, ROW).view(np.recarray)
        set_limits(limits, self.config.engine)
        for e in range(self.rows):
            check_server(self.row_servers[e], limits, f"{where}: row {e}")
            memory = self.memories.row[e, 0], self.memories.request[e, 0], self.outcome.observation[e]
            if not is_sound(self.config.action.codec, *memory):
                raise InputError(f"{where}: row {e}: expected memories as a step leaves them, got others")

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

    def check_trace(self, requests: Requests) -> None:
        """Check that the rows can serve a trace.

        Raises:
            InputError: another number of requests or tiers than the rows have, a request that is too long, or
                predictions that are refreshed.
        """
        n, tiers = self.config.workload.num_requests, len(self.config.workload.tiers)
        if len(requests) != n or len(requests.tiers) != tiers:
            raise InputError(
                f"reset: expected {n} requests in {tiers} tiers, got {len(requests)} in {len(requests.tiers)}"
            )
        if requests.forecast.every:
            raise InputError("reset: expected a trace with one prediction per request, got refreshed ones")
        requests.check_servable(self.config.engine)

    def start(self, e: int, requests: Requests) -> None:
        """Put row `e` in front of a trace and move it to its first decision.

        Raises:
            InputError: a trace that the rows cannot serve.
        """
        self.check_trace(requests)
        if self.live:
            self.live.start(requests)
        load(self.row_servers[e], self.config.engine, requests)
        self.memories.request[e] = 0.0
        self.memories.row[e] = 0.0
        self.returns[e] = 0.0
        self.term_sums[e] = 0.0
        self._step(self.actions.array, e, e + 1, True)
        self._look(e, e + 1)
        if not self.started:
            self._has_episode[e] = True
            self.started = bool(self._has_episode.all())

    def has_episode(self, e: int) -> bool:
        """Whether row `e` has been reset."""
        return bool(self._has_episode[e])

    def _stepper(self, parallel: bool) -> Callable[[Any, int, int, bool], int]:
        arrays, live = self._arrays, self.live
        if live:
            return lambda action, first, last, opens: live.step(self, action, opens)
        step = compiled_step(len(self.kernels), parallel)
        return lambda action, first, last, opens: step(action, arrays, first, last, opens)

    def step(self, given: object) -> None:
        """Advance every row by one decision; results are in `outcome`.

        Args:
            given: actions as callers give them, of the shape that the constructor was told.

        Raises:
            ResetNeeded: some row has no episode.
            InputError: an action that is not in the space; nothing has happened then. With an executor it is a
                fallback instead (`Live`).
        """
        if not self.started:
            raise needs_reset("env.step()")
        action = self.actions.take(given) if self.live is None else given
        bad = self._step(action, 0, self.rows, False)
        if bad >= 0:
            raise self.actions.refused(given, bad)
        if self._reward is not None:
            self.outcome.reward[:] = self._reward(self._told, (self.rows,), np.float64)
        if self._observe is not None:
            self._look(0, self.rows)
        self.returns += self.outcome.reward
        self.term_sums += self.outcome.terms

    def report(self, e: int) -> dict[str, float]:
        """Numbers of the episode so far in row `e`, with the return and the sums of the reward terms."""
        report = episode_report(self.row_servers[e], self.config.engine, [t.name for t in self.config.workload.tiers])
        report["return"] = float(self.returns[e])
        report["decisions"] = int(self.outcome.steps[e])
        report |= {f"reward_{name}": float(v) for name, v in zip(REWARD_TERMS, self.term_sums[e], strict=True)}
        return report
