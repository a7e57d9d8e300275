"""`Fleet`: rows of servers with their memories, traces and outcomes, which both environment classes drive."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from engine.demand.requests import Requests
from engine.errors import InputError
from engine.server.integrity import check_server
from engine.server.policy import Policy
from engine.server.rows import new_rows, row_of
from engine.server.state import Server, load
from llmsched_env.config import EnvConfig
from llmsched_env.crew import ALONE, Crew
from llmsched_env.episode import episode_report
from llmsched_env.inputs import Actions, needs_reset
from llmsched_env.live import Live
from llmsched_env.observation import OBSERVATION_LIMIT, OBSERVATION_SIZE
from llmsched_env.own import OwnFunction, Seen, Step, sealed, seen_by, size_of
from llmsched_env.reward import REWARD_TERMS
from llmsched_env.rows import Memories, Rows, new_memories, new_outcome
from llmsched_env.state import EnvState, StateCodec, is_sound, limits_of
from llmsched_env.step import bundle_arrays, compiled_step
from llmsched_env.worlds import World, latencies_of, most_tiers, params_of, rules_of, worlds_of


def observation_space(own_size: int = 0) -> spaces.Box:
    """Box float32[OBSERVATION_SIZE]; the entries are named in `llmsched_env.OBSERVATION_NAMES`.

    With an observation function of a user: any numbers, as many as it makes.
    """
    if own_size:
        return spaces.Box(-np.inf, np.inf, (own_size,), np.float32)
    return spaces.Box(-OBSERVATION_LIMIT, OBSERVATION_LIMIT, (OBSERVATION_SIZE,), np.float32)


def memories_of(rows: int, worlds: Sequence[World], arms: Sequence[Policy]) -> Memories:
    """Zeroed memories with the parameters of the codec and of the arms."""
    config = worlds[0].config
    codec = config.action.codec
    cells = max(codec.request_memory, *(arm.request_memory for arm in arms), 0)
    row_cells = max(codec.row_memory, *(arm.row_memory for arm in arms), 0)
    return new_memories(params_of(worlds), rows, config.workload.num_requests, cells, row_cells)


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
        crew: Crew = ALONE,
        live: Live | None = None,
        batched: bool = True,
        max_episode_steps: int = 0,
    ) -> None:
        """Allocate everything and compile nothing yet.

        Args:
            rows: servers.
            config: of all of them.
            crew: the threads that step the rows.
            live: steps the only row with an executor instead of the profile.
            batched: whether actions come with a leading axis for the rows.
            max_episode_steps: truncates an episode as `gymnasium.wrappers.TimeLimit` does (0: no limit).

        Raises:
            InputError: an unknown profile or arm, a workload that the server can never serve, or rows for which there
                is no memory.
        """
        self._options = (rows, config, crew, live, batched, max_episode_steps)
        self._build(worlds_of(config))

    def _build(self, worlds: tuple[World, ...]) -> None:
        rows, config, crew, live, batched, max_episode_steps = self._options
        self.config = config
        self.crew = crew
        self.live = live
        self.rows = rows
        self.worlds = worlds
        """What an episode may play in: one, or those of the scenarios."""
        action, codec = config.action, config.action.codec
        arms = worlds[0].arms()
        self.kernels = tuple(kernel.compiled for kernel in (codec.kernel, *(arm.kernel for arm in arms)) if kernel)
        n = config.workload.num_requests
        try:
            self.memories = memories_of(rows, worlds, arms)
            self.servers: Server = new_rows(rows, n, most_tiers(worlds))
        except (MemoryError, ValueError) as error:
            raise InputError(f"num_envs: no memory for {rows} rows of {n} requests ({error})") from None
        self.row_servers: list[Server] = [row_of(self.servers, e) for e in range(rows)]
        self.actions = Actions(action, rows, batched)
        self.latency = latencies_of(worlds)
        self.rules = rules_of(worlds, max_episode_steps)
        self.outcome = new_outcome(rows)
        self.world = np.zeros(rows, np.int64)
        """int64[rows], the world that each row is in."""
        self._prepare_own()
        self.returns = np.zeros(rows)
        self.term_sums = np.zeros((rows, len(REWARD_TERMS)))
        self.started = False
        self._has_episode = np.zeros(rows, np.bool_)
        self._row_bytes = self._row_arrays()  # records are slow to index one by one
        sums = {"return": self.returns, "term_sums": self.term_sums}
        self._codec = StateCodec(self.servers, self.memories, self.outcome, sums, codec)
        arrays = Rows(self.servers, self.memories, self.latency, self.rules, self.outcome, self.world)
        self._arrays = bundle_arrays(len(self.kernels))(self.kernels, arrays)
        self._step = self._stepper()

    def _prepare_own(self) -> None:
        """Find the functions of the user, if the configuration names any."""
        config, outcome = self.config, self.outcome
        seen = seen_by(outcome.observation, self.servers.visible)
        numbers = sealed(outcome.terms), sealed(outcome.elapsed_s), sealed(outcome.reward)
        self._told = Step(*numbers, sealed(outcome.terminated), sealed(outcome.truncated), seen)
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
        return {
            "options": self._options,
            "worlds": self.worlds,
            "arrays": list(self._kept()),
            "episodes": self._has_episode,
        }

    def _kept(self) -> Iterator[np.ndarray]:
        """The arrays that a copy takes over."""
        yield from _leaves((self.servers, self.memories, self.outcome))
        yield from (self.returns, self.term_sums, self.world)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the fleet anew and fill it."""
        self._options = state["options"]
        self._build(state["worlds"])
        for array, saved in zip(self._kept(), state["arrays"], strict=True):
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
        return self._states().save(e, generator, int(self.world[e]))

    def load_state(self, e: int, state: object, generator: np.random.Generator) -> np.random.Generator:
        """Put row `e` into a state; returns the generator of its next episodes.

        Raises:
            InputError: a state that does not fit; nothing has happened then.
        """
        generator, self.world[e] = self._states().load(e, state, generator)
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
        if not self._codec.digests:
            self._codec.describe(self.worlds)
        return self._codec

    def copy_row(self, source: int, rows: Iterable[int]) -> None:
        """Put rows into the state of one row, with its world, trace, memories, last outcome and sums."""
        others = [e for e in rows if e != source]
        for part in self._row_bytes:
            part[others] = part[source]
        for e in others:
            self._look(e, e + 1)
        self.started = bool(self._has_episode.all())

    def _row_arrays(self) -> list[np.ndarray]:
        """The bytes of every array with one entry for each row, without what all rows share: uint8[rows, n] each."""
        kept = (self.servers, self.memories.request, self.memories.row, self.outcome)
        arrays = [*_leaves(kept), self.returns, self.term_sums, self.world, self._has_episode]
        return [np.frombuffer(array, np.uint8).reshape(self.rows, -1) for array in arrays]

    def check_rows(self, where: str) -> None:
        """Check that compiled code can go on with the arrays of every row, after something else has written them.

        Raises:
            InputError: they do not fit together; `where` begins the line.
        """
        for e, world in enumerate(self.world.tolist()):
            if not 0 <= world < len(self.worlds):
                raise InputError(f"{where}: row {e}: expected a world 0..{len(self.worlds) - 1}, got {world}")
            check_server(self.row_servers[e], limits_of(self.worlds[world].config), f"{where}: row {e}")
            memory = self.memories.row[e, 0], self.memories.request[e, 0], self.outcome.observation[e]
            if not is_sound(self.config.action.codec, *memory):
                raise InputError(f"{where}: row {e}: expected memories as a step leaves them, got others")

    @property
    def scenarios(self) -> list[str]:
        """Names of the scenarios by number; that of a world that has none is empty."""
        return [one.name for one in self.config.scenarios] or [""]

    def draw(self, rng: np.random.Generator, world: int = 0) -> Requests:
        """The trace of one episode in a world, all of it from one generator."""
        return self.worlds[world].draw(rng)

    def check_trace(self, requests: Requests, world: int = 0) -> None:
        """Check that the rows can serve a trace in a world.

        Raises:
            InputError: they cannot (`World.check_trace`).
        """
        self.worlds[world].check_trace(requests)

    def begin(self, e: int, rng: np.random.Generator, requests: Requests | None = None, world: int = -1) -> None:
        """Start an episode in row `e`: which world it plays in and its trace are drawn where they are not given.

        Args:
            e: the row.
            rng: its generator; the world is drawn first, unless there is only one.
            requests: the trace (None: drawn).
            world: its number (-1: drawn).

        Raises:
            InputError: a trace that the rows cannot serve.
        """
        if world < 0:
            world = int(rng.integers(len(self.worlds))) if len(self.worlds) > 1 else 0
        self.start(e, self.draw(rng, world) if requests is None else requests, world)

    def start(self, e: int, requests: Requests, world: int = 0) -> None:
        """Put row `e` in front of a trace in a world and move it to its first decision.

        Raises:
            InputError: a trace that the rows cannot serve.
        """
        self.check_trace(requests, world)
        if self.live:
            self.live.start(requests)
        self.world[e] = world
        load(self.row_servers[e], self.worlds[world].config.engine, requests)
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

    def _stepper(self) -> Callable[[Any, int, int, bool], int]:
        arrays, live = self._arrays, self.live
        if live:
            return lambda action, first, last, opens: live.step(self, action, opens)
        step = compiled_step(len(self.kernels))
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
        bad = self._step(action, 0, self.rows, False) if self.crew.is_alone else self._share()
        if bad >= 0:
            raise self.actions.refused(given, bad)
        if self._reward is not None:
            self.outcome.reward[:] = self._reward(self._told, (self.rows,), np.float64)
        if self._observe is not None:
            self._look(0, self.rows)
        self.returns += self.outcome.reward
        self.term_sums += self.outcome.terms

    def _share(self) -> int:
        """As the compiled step of all rows, by the whole crew."""
        action = self.actions.array
        outside = ((action < 0) | (action >= self.rules.sizes)).any(1)
        if outside.any():
            return int(outside.argmax())
        self.crew.share(self.rows, lambda first, last: self._step(action, first, last, False))
        return -1

    def advance(self, e: int, choice: np.ndarray) -> None:
        """Take one decision in row `e` alone: int64[heads], known to be in the space."""
        self.actions.array[e] = choice
        self._step(self.actions.array, e, e + 1, False)
        self._look(e, e + 1)
        self.returns[e] += self.outcome.reward[e]
        self.term_sums[e] += self.outcome.terms[e]

    def report(self, e: int) -> dict[str, float]:
        """Numbers of the episode so far in row `e`, with the return and the sums of the reward terms."""
        world = self.worlds[self.world[e]]
        report = episode_report(self.row_servers[e], world.config.engine, world.tiers)
        report["return"] = float(self.returns[e])
        report["decisions"] = int(self.outcome.steps[e])
        report |= {f"reward_{name}": float(v) for name, v in zip(REWARD_TERMS, self.term_sums[e], strict=True)}
        return report
