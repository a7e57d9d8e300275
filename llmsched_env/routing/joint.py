"""`LLMSchedFleetEnv`: a router and the schedulers behind it as one `gymnasium.Env`, turn by turn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from engine.cluster.fleet import Replicas
from engine.cluster.seats import Seat
from engine.errors import InputError
from engine.server.policy import Policy, kernel_of
from engine.server.state import Memory, Plan, View
from llmsched_env.actions import Action, Allocation
from llmsched_env.actions.reading import read_action
from llmsched_env.config import EnvConfig
from llmsched_env.fleet import memories_of, observation_space
from llmsched_env.inputs import is_whole, show
from llmsched_env.observation import OBSERVATION_SIZE
from llmsched_env.routing.clusters import Clusters
from llmsched_env.routing.config import RouterConfig
from llmsched_env.routing.single import ClusterEnv
from llmsched_env.routing.turns import ROUTER, Joint, Schedulers, compiled_turns
from llmsched_env.worlds import World

AGENT = "agent"
"""What schedules on the replicas, in the place of a policy."""


@dataclass(frozen=True)
class _Agent(Policy):
    """Stands where a policy would; it is never asked."""

    name: ClassVar[str] = AGENT


@kernel_of(_Agent)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    """Plan nothing."""


def _read(value: object, where: str) -> Action:
    """An action: an object, its name, or a mapping with its name and settings."""
    return read_action({"action": value}, Allocation(), where.removesuffix(".action"))


@dataclass(frozen=True)
class FleetConfig(RouterConfig):
    """A router and the schedulers behind it as an environment."""

    policy: str = AGENT
    """Nothing else: the agent schedules on every replica."""
    action: Action = field(default_factory=Allocation, metadata={"read": _read})
    """What it chooses for a batch (`llmsched_env.actions`): an object, its name, or a mapping with its settings."""
    skip_decode_only: bool = False
    """Whether batches of decodes alone, with no prompt waiting, run without asking."""

    def __post_init__(self) -> None:
        """Check every field, and that they fit together.

        Raises:
            InputError: one of them does not fit.
        """
        super().__post_init__()
        if self.action.holds > 1:
            raise InputError(
                f"fleet env.action: expected choices that hold for one batch, got hold={self.action.holds}"
            )
        for seat in self.seats:
            if seat.policy != AGENT:
                raise InputError(f"fleet env.fleet: expected replicas without a policy, got {seat.policy!r}")

    @property
    def channel(self) -> str:
        """The channel of the predictions that the requests have, "": none."""
        return self.prediction

    def build(self) -> Replicas:
        """The replicas, with the agent in the place of their policies."""
        seats = self.seats
        return Replicas.of([_Agent()] * len(seats), [seat.profile for seat in seats], [seat.config for seat in seats])

    def worlds(self) -> tuple[World, ...]:
        """For each replica the environment of it alone, on its device.

        Raises:
            InputError: an arm that cannot be run there.
        """
        different = {id(seat): self._world(seat) for seat in self.seats}
        return tuple(different[id(seat)] for seat in self.seats)

    def _world(self, seat: Seat) -> World:
        alone = EnvConfig(
            engine=seat.config,
            workload=self.workload,
            action=self.action,
            prediction=self.prediction,
            reward=self.reward,
        )
        return World(alone, seat.profile)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return super().to_dict() | {"action": self.action.to_dict()}


class FleetClusters(Clusters):
    """Clusters in which router and schedulers are asked turn by turn."""

    def __init__(self, count: int, config: FleetConfig, max_episode_steps: int = 0) -> None:
        """Allocate everything (see `Clusters`)."""
        super().__init__(count, config, max_episode_steps)
        action, codec, worlds = config.action, config.action.codec, config.worlds()
        arms = worlds[0].arms()
        self._kernels = tuple(kernel.compiled for kernel in (codec.kernel, *(arm.kernel for arm in arms)) if kernel)
        self.schedulers = Schedulers(
            memories_of(count * len(worlds), worlds, arms),
            np.array([config.skip_decode_only]),
            np.array(action.sizes, np.int64),
            np.array(codec.DECODES, np.int64),
            np.array(codec.FALLBACK, np.int64),
            np.full(count, ROUTER, np.int64),
            np.zeros((count, OBSERVATION_SIZE), np.float32),
        )
        self._joint = Joint(self.clusters, self.schedulers, self.rules, self.outcome)
        self._actions = np.zeros((count, 1 + len(action.sizes)), np.int64)
        self._step = compiled_turns(len(self._kernels), self._joint)

    def _run(self, opens: int) -> int:
        if opens >= 0:
            replicas = len(self._replicas)
            for cells in (self.schedulers.memories.request, self.schedulers.memories.row):
                cells[opens * replicas : (opens + 1) * replicas] = 0.0
        return int(self._step(self._kernels, self._joint, self._actions, opens))

    def step(self, given: Sequence[Any] | np.ndarray) -> None:
        """Let the one decide in every cluster whose turn it is; results are in `outcome` and `schedulers`.

        Args:
            given: for each cluster a replica and the dimensions of the action, of which only those count whose turn
                it is.

        Raises:
            ResetNeeded: some cluster has no episode.
            InputError: an action that is not in the space, or a replica that drains; nothing has happened then.
            PolicyError: a replica cannot go on, whatever is planned.
        """
        self._need_episodes()
        for e, action in enumerate(given):
            self._actions[e] = self._whole(action)
        bad = self._run(-1)
        if bad >= 0:
            raise self._refused(self._actions[bad].tolist(), int(self.schedulers.turn[bad]))
        self._check(bad)

    def _whole(self, action: object) -> np.ndarray:
        """One action as whole numbers, the range of which is left to the compiled step."""
        size = self._actions.shape[1]
        if isinstance(action, np.ndarray) and action.dtype.kind in "iu" and action.shape == (size,):
            return action
        if isinstance(action, list | tuple) and len(action) == size and all(map(is_whole, action)):
            return np.array(action)
        raise self._refused(action, ROUTER)

    def _refused(self, got: object, turn: int) -> InputError:
        places, sizes = len(self._replicas), self.schedulers.sizes.tolist()
        open_ = f"a replica 0..{places - 1} that does not drain" if turn == ROUTER else f"a choice of {sizes} behind it"
        return InputError(f"action: expected {1 + len(sizes)} whole numbers, now with {open_}, got {show(got)}")


class LLMSchedFleetEnv(ClusterEnv[dict[str, Any]]):
    """A router and the schedulers behind it: one after the other decides, whoever has something to decide next.

    ## Description
    Requests arrive over time. At an arrival the router says which of J replicas gets the request; whenever a replica is
    to run another batch, its scheduler composes it. Decisions come in the order of time.

    ## Action
    MultiDiscrete([J, ...]): the replica, then the dimensions of the scheduler's action (`action`, as in
    `LLMSched-v0`). Only the part counts of the one whose turn it is; the other may be anything.
    ``info["action_mask"]`` says which replicas may be chosen.

    ## Observation
    Dict. `turn`: Discrete(J + 1), 0 at the router's turn, 1 + j at that of replica j. `route`: what a router sees
    (`LLMSchedRouter-v0`), zeros when it is not its turn. `schedule`: what the scheduler of replica j sees of its server
    (`LLMSched-v0`), zeros at the router's turn.

    ## Rewards
    As in `LLMSchedRouter-v0`, between one decision and the next, whosever they are: all share it.

    ## Starting state and end of an episode
    As in `LLMSchedRouter-v0`; `max_steps` counts the decisions of all.

    ## Arguments
    `config`: a `FleetConfig`; other keywords replace its fields (``action="slackfit"``, ``skip_decode_only=True``,
    ``replicas=2``). One scheduler serves all replicas of a learner, or one each: `turn` says which asks.

        import gymnasium
        env = gymnasium.make("llmsched_env:LLMSchedFleet-v0", replicas=2)
        observation, info = env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    """

    CONFIG = FleetConfig
    CLUSTERS = FleetClusters
    config: FleetConfig
    clusters: FleetClusters

    def __init__(
        self,
        config: FleetConfig | None = None,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **changes: Any,
    ) -> None:
        """Build the fleet.

        Raises:
            InputError: an unknown keyword, a render mode, or a configuration that cannot be run.
        """
        super().__init__(config, render_mode, max_episode_steps, **changes)
        places = len(self.config.seats)
        self.action_space = spaces.MultiDiscrete([places, *self.config.action.sizes])
        self.observation_space = spaces.Dict(
            {
                "turn": spaces.Discrete(places + 1),
                "route": self.clusters.seen_space,
                "schedule": observation_space(),
            }
        )

    def step(self, action: object) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Let the one decide whose turn it is.

        Raises:
            ResetNeeded: there is no episode.
            InputError: an action that is not in the space, or a replica that drains; nothing has happened then.
        """
        self.clusters.step([action])
        return self._came()

    def _seen(self) -> dict[str, Any]:
        schedulers = self.clusters.schedulers
        return {
            "turn": np.int64(schedulers.turn[0] + 1),
            "route": self.clusters.outcome.observation[0].copy(),
            "schedule": schedulers.observation[0].copy(),
        }
