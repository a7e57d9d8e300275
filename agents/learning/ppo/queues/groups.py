"""`GroupedServers`: rows that never end, in groups that serve the same arrivals, in several worlds at once.

Common arrivals make the difference between two rows that of what they chose (common random numbers; the groups of GRPO,
Shao et al. 2024, on a common prompt are the same idea), and rows that go on spend their time where a loaded server is,
not on the way there from an empty one: relaxation takes minutes.

A trace that is nearly over is replaced: the reference policy serves the next one for a while in the group's first row,
whose state the others then take.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from agents.learning.ppo.queues.config import QueueConfig
from agents.learning.ppo.queues.worlds import Setting
from engine.errors import InputError
from llmsched_env.config import EnvConfig
from llmsched_env.crew import ALONE, Crew
from llmsched_env.fleet import Fleet
from llmsched_env.inputs import check_seeds
from llmsched_env.observation import OBSERVATION_SIZE
from llmsched_env.privileged import PRIVILEGED_SIZE, Known, foresee, work_until

RESERVE = 1.5
"""A group begins another trace when fewer requests are left than so many times what a rollout takes."""


class Group(NamedTuple):
    """Rows on common arrivals."""

    number: int
    world: int
    first: int  # of its rows
    last: int  # behind its rows


class GroupedServers(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """A fleet whose rows are in groups, which follow each other, those of the same world side by side.

    Actions are levels as real numbers, float32[rows, heads], which are rounded here. The observation is that of the
    environment, then the privileged entries, if wanted. `new_round` must come before each rollout.
    """

    def __init__(
        self, env: EnvConfig, setting: Setting, queue: QueueConfig, groups: int, rollout: int, crew: Crew = ALONE
    ) -> None:
        """Allocate everything.

        Args:
            env: with the scenarios of the worlds, if these are scenarios.
            setting: the worlds, and the reference.
            queue: size of the groups, burn-in, whether the privileged entries are wanted.
            groups: how many there are.
            rollout: decisions of a row in one rollout.
            crew: the threads that step the rows.

        Raises:
            InputError: traces that are too short for burn-in and two rollouts.
        """
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = None
        self.worlds, self.choose = setting.worlds, setting.choose
        self.size, self.burn_in, self.num_envs = queue.group_size, queue.burn_in, groups * queue.group_size
        self.fleet = Fleet(self.num_envs, replace(env, rates=(), backlog=0, max_steps=0, horizon_s=0.0), crew)
        of_group = np.repeat(np.arange(len(self.worlds)), [world.groups for world in self.worlds]).tolist()
        self.groups = tuple(Group(g, w, g * self.size, (g + 1) * self.size) for g, w in enumerate(of_group))
        self.world_of_row = np.repeat(of_group, self.size)
        self._make_spaces(OBSERVATION_SIZE + (PRIVILEGED_SIZE if queue.privileged else 0))
        self.prices = np.concatenate([one.price for one in setting.watched])
        self.work = np.zeros((self.num_envs, env.workload.num_requests + 1))
        self.taken = np.array([one.requests * rollout for one in setting.watched])
        self.began = np.zeros(groups, np.int64)
        self._tiers = self.count_tiers()
        self._arrived = self.fleet.servers.visible.row["next_arrival"][:, 0]
        self._generators = [np.random.default_rng() for _ in self.groups]
        for world, taken in zip(self.worlds, self.taken, strict=True):
            least, got = int(self.burn_in + 2 * RESERVE * taken), env.workload.num_requests
            if got < least:
                raise InputError(f"env.workload.num_requests: expected at least {least} for {world.name}, got {got}")

    def _make_spaces(self, width: int) -> None:
        highest = np.array(self.fleet.config.action.sizes, np.float32) - 1.0
        self.levels = spaces.Box(np.zeros_like(highest), highest, dtype=np.float32)
        self.single_action_space = self.levels
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observed = np.zeros((self.num_envs, width), np.float32)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: object = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Put every group into a state of the reference, at a random place of a trace; group g draws from seed + g."""
        seeds = check_seeds(seed, len(self.groups))
        for group in self.groups:
            if (own := seeds[group.number]) is not None:
                self._generators[group.number] = np.random.default_rng(own)
            until = self._generators[group.number].integers(self.burn_in, self._limit(group) + 1)
            self._restart(group, int(until))
        return self._look(), {}

    def new_round(self, resync: bool) -> np.ndarray:
        """Before a rollout: other traces where they are nearly over, one state for each group; the observations.

        Args:
            resync: whether the groups that go on take the state of one of their rows.
        """
        for group in self.groups:
            arrived = self._arrived[group.first : group.last]
            latest = int(arrived.max())
            self.taken[group.world] = max(self.taken[group.world], latest - self.began[group.number])
            if latest >= self._limit(group):
                self._restart(group, self.burn_in)
            elif resync:
                chosen = int(self._generators[group.number].integers(self.size))
                self.fleet.copy_row(group.first + chosen, range(group.first, group.last))
            self.began[group.number] = arrived.min()
        self._tiers = self.count_tiers()
        return self._look()

    def count_tiers(self) -> np.ndarray:
        """Late gaps and finished requests of each tier so far, float64[2, rows, tiers]."""
        tier = self.fleet.servers.hidden.tier
        return np.stack([tier["late_gaps"], tier["finished"]]).astype(np.float64)

    def _limit(self, group: Group) -> int:
        """Arrivals from which on a group begins another trace."""
        left = int(RESERVE * self.taken[group.world])
        return max(self.fleet.config.workload.num_requests - left, self.burn_in)

    def _restart(self, group: Group, until: int) -> None:
        """Begin another trace where the reference has served so many arrivals."""
        fleet, world, e = self.fleet, self.worlds[group.world], group.first
        requests = world.env.workload.generate(self._generators[group.number])
        fleet.start(e, requests, world.place)
        while self._arrived[e] < until:
            fleet.advance(e, self.choose(fleet.outcome.observation[e : e + 1])[0])
        fleet.copy_row(e, range(e, group.last))
        served = fleet.servers.hidden.output[e].astype(np.float64)
        self.work[e : group.last] = work_until(self.prices[group.world :], requests.prompt.astype(np.float64), served)
        self.began[group.number] = self._arrived[e]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one decision in every row; nothing ever ends.

        Args:
            actions: float[rows, heads], levels before rounding.
        """
        outcome = self.fleet.outcome
        self.fleet.step(np.clip(np.rint(actions), self.levels.low, self.levels.high).astype(np.int64))
        rewards, never, tiers = outcome.reward.copy(), np.zeros(self.num_envs, np.bool_), self.count_tiers()
        infos = {"reward": rewards, "elapsed_s": outcome.elapsed_s, "reward_terms": outcome.terms}
        infos["late_gaps"], infos["finished"] = tiers - self._tiers
        self._tiers = tiers
        return self._look(), rewards, never, never, infos

    def _look(self) -> np.ndarray:
        """The observations, with the privileged entries behind them."""
        servers, own = self.fleet.servers, self.observed
        own[:, :OBSERVATION_SIZE] = self.fleet.outcome.observation
        if own.shape[1] > OBSERVATION_SIZE:
            price = self.prices.view(np.float64).reshape(len(self.prices), -1)
            known = Known(servers.visible, servers.hidden.output, self.work, price, self.world_of_row)
            out = own[:, OBSERVATION_SIZE:]
            self.fleet.crew.share(self.num_envs, lambda first, last: foresee(known, out, first, last))
        return own.copy()
