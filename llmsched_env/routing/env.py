"""`LLMSchedRouterEnv`: a fleet of servers behind a router as a `gymnasium.Env`."""

from typing import Any

import numpy as np

from llmsched_env.routing.clusters import RouterClusters
from llmsched_env.routing.config import RouterConfig
from llmsched_env.routing.single import ClusterEnv


class LLMSchedRouterEnv(ClusterEnv[np.ndarray]):
    """Several servers: which of them gets the request that arrives?

    ## Description
    Requests arrive over time; each is sent to one of J replicas at once and stays there. Each replica batches by a
    scheduler of its own, which the agent does not touch. One decision per arrival.

    ## Action
    Discrete(J): the replica. ``env.action_masks()`` and ``info["action_mask"]`` say which ones may be chosen: those
    that drain may not, and are refused.

    ## Observation
    Box float32[J * k + r]: k features of each replica in turn, then r of the request and the moment
    (`engine.cluster.features`; `split` gives the parts). They are the same function of each replica, so that permuting
    replicas permutes lines; the age of the reports is among them. What is reported is as old as `ages` makes it, what
    the router has counted itself is exact.

    ## Rewards
    Weighted sum of the terms of `LLMSched-v0` (`llmsched_env.reward`) between one arrival and the next: by default
    minus the request-seconds without a first token, which sum to minus the total TTFT of the episode. The two terms
    that are seconds are exact at any time; the others count what a batch does when it ends. ``info["reward_terms"]``
    has each term, ``info["elapsed_s"]`` the seconds of the step, by which to discount.

    ## Starting state
    The first arrival, all replicas idle. The seed determines the episode: the age of its reports, its rate, its
    requests.

    ## Episode end
    Terminated when every request has been sent and served: the last step lasts until then. Truncated at `horizon_s`
    or after `max_steps` decisions. The last observation shows the replicas as they are then, beside the request that
    would be next at a truncation by steps, else the last one. ``info["report"]`` holds TTFT, gaps and goodput of the
    episode.

    ## Arguments
    `config`: a `RouterConfig`; other keywords replace its fields (``replicas=8``, ``fleet="mixed.yml"``,
    ``policy="sarathi"``, ``ages=(0.0, 1.0)``). `max_episode_steps` truncates as `gymnasium.wrappers.TimeLimit` does.
    ``reset(options={"requests": requests})`` plays a given trace. `view` is what a router sees, live: a baseline acts
    by ``router.route(env.unwrapped.view, memory)``.

        import gymnasium
        env = gymnasium.make("llmsched_env:LLMSchedRouter-v0")
        observation, info = env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    """

    CONFIG = RouterConfig
    CLUSTERS = RouterClusters
    clusters: RouterClusters

    def __init__(
        self,
        config: RouterConfig | None = None,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **changes: Any,
    ) -> None:
        """Build the fleet.

        Raises:
            InputError: an unknown keyword, a render mode, or a configuration that cannot be run.
        """
        super().__init__(config, render_mode, max_episode_steps, **changes)
        self.action_space = self.clusters.route_space
        self.observation_space = self.clusters.seen_space

    def step(self, action: object) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Send the request to a replica.

        Raises:
            ResetNeeded: there is no episode.
            InputError: no replica, or one that drains; nothing has happened then.
        """
        self.clusters.step(action)
        return self._came()

    def _seen(self) -> np.ndarray:
        return self.clusters.outcome.observation[0].copy()

    def action_masks(self) -> np.ndarray:
        """Which replicas may get the request: bool[J]."""
        return self.clusters.outcome.mask[0] > 0
