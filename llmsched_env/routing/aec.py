"""`LLMSchedFleetAEC`: `LLMSched-Fleet` for learners of many agents, as a PettingZoo environment of turns (AEC).

Needs the extra ``pettingzoo``. The agents are ``router_0`` and ``replica_0`` ...; they act at different times, so turns
are the honest form, and there is no parallel one.
"""

from typing import Any

import numpy as np
from gymnasium import spaces

from engine.extras import need

need("pettingzoo", "llmsched_env.routing.aec")

from pettingzoo import AECEnv  # noqa: E402 - only behind the line that says what is missing

from llmsched_env.fleet import observation_space  # noqa: E402
from llmsched_env.routing.joint import FleetConfig, LLMSchedFleetEnv  # noqa: E402

ROUTER = "router_0"


class LLMSchedFleetAEC(AECEnv[str, np.ndarray, Any]):
    """`LLMSchedFleetEnv` with an agent for the router and one for each replica.

    The one whose turn it is sees what its part of the observation there is, and gives its part of the action; the
    others see what they saw last. All get the same rewards. ``infos[agent]["now_s"]`` is the time, by which to
    discount; the router's also has the ``action_mask``, and all have the ``report`` when the episode ends.

    Args of the constructor: those of `LLMSchedFleetEnv`.
    """

    metadata: dict[str, Any] = {"name": "llmsched_fleet_v0", "is_parallelizable": False, "render_modes": []}  # noqa: RUF012 - as PettingZoo declares it

    def __init__(self, config: FleetConfig | None = None, **changes: Any) -> None:
        """Build the fleet.

        Raises:
            InputError: an unknown keyword, or a configuration that cannot be run.
        """
        super().__init__()
        self.env = LLMSchedFleetEnv(config, **changes)
        self.render_mode = None
        replicas = [f"replica_{j}" for j in range(len(self.env.config.seats))]
        self.possible_agents = [ROUTER, *replicas]
        self.agents: list[str] = []
        self.observation_spaces = {ROUTER: self.env.clusters.seen_space, **dict.fromkeys(replicas, observation_space())}
        batch = self.env.config.action.space()
        self.action_spaces = {ROUTER: spaces.Discrete(len(replicas)), **dict.fromkeys(replicas, batch)}
        self._action = np.zeros(1 + len(self.env.config.action.sizes), np.int64)
        self._seen: dict[str, np.ndarray] = {}

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """What an agent sees."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """What an agent chooses."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Start an episode (`LLMSchedFleetEnv.reset`); options that mean nothing are passed over, as PettingZoo wants.

        Raises:
            InputError: a seed that is no whole number >= 0, or a trace that does not fit.
        """
        known = {"requests": options["requests"]} if options and "requests" in options else None
        observation, info = self.env.reset(seed=seed, options=known)
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self._seen = {agent: np.zeros(self.observation_spaces[agent].shape, np.float32) for agent in self.agents}
        self._skip_agent_selection = None
        self._pass_turn(observation, info)

    def _pass_turn(self, observation: dict[str, Any], info: dict[str, Any]) -> None:
        """Let the agent come next whose turn it is."""
        turn = int(observation["turn"])
        self.agent_selection = self.possible_agents[turn]
        self._seen[self.agent_selection] = observation["schedule" if turn else "route"]
        common = {"now_s": float(self.env.clusters.outcome.now[0])}
        if "report" in info:
            common["report"] = info["report"]
        self.infos = {agent: dict(common) for agent in self.agents}
        self.infos[ROUTER]["action_mask"] = info["action_mask"]

    def observe(self, agent: str) -> np.ndarray:
        """What an agent saw when it was last its turn."""
        return self._seen[agent]

    def step(self, action: Any) -> None:
        """Let the agent decide whose turn it is; one whose episode has ended gives None.

        Raises:
            InputError: an action that is not in its space, or a replica that drains; nothing has happened then.
        """
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        part = slice(0, 1) if agent == ROUTER else slice(1, None)
        self._action[part] = action
        observation, reward, terminated, truncated, info = self.env.step(self._action)
        self._cumulative_rewards[agent] = 0.0
        self.rewards = dict.fromkeys(self.agents, reward)
        self.terminations = dict.fromkeys(self.agents, terminated)
        self.truncations = dict.fromkeys(self.agents, truncated)
        self._pass_turn(observation, info)
        self._accumulate_rewards()
