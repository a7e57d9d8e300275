"""`ClusterEnv`: what the environments of one cluster share, whoever decides in them."""

from typing import Any, ClassVar, Generic, TypeVar

import gymnasium

from engine.cluster.record import ClusterRecord
from engine.cluster.state import RouterView
from engine.errors import InputError
from llmsched_env.inputs import check_options, check_requests, check_seed, show, step_limit
from llmsched_env.reward import REWARD_TERMS
from llmsched_env.routing.clusters import Clusters
from llmsched_env.routing.config import RouterConfig, configured

KEYWORDS = ("config", "render_mode", "max_episode_steps")
"""What the constructors take besides the fields of the configuration."""

Seen = TypeVar("Seen")


class ClusterEnv(gymnasium.Env[Seen, Any], Generic[Seen]):
    """One cluster as an environment; a subclass has the spaces, what is seen, and what an action does."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as Gymnasium declares it
    CONFIG: ClassVar[type[RouterConfig]]
    CLUSTERS: ClassVar[type[Clusters]]
    config: RouterConfig
    clusters: Clusters

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
        if render_mode is not None:
            raise InputError(f"render_mode: this environment draws nothing, got {show(render_mode)}")
        self.config = configured(self.CONFIG, config, changes, KEYWORDS)
        self.render_mode = None
        self.clusters = self.CLUSTERS(1, self.config, step_limit(max_episode_steps))

    def _seen(self) -> Seen:
        """What there is to see now, as arrays of its own."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Seen, dict[str, Any]]:
        """Start an episode; ``options["requests"]`` may give the trace.

        Raises:
            InputError: a seed that is no whole number >= 0, an unknown option, or a trace that does not fit.
        """
        seed, given = check_seed(seed), check_options(options, ("requests",)).get("requests")
        if given is not None:
            given = check_requests(given, "options['requests']")
            self.clusters.check_trace(given)
        super().reset(seed=seed)
        self.clusters.begin(0, self.np_random, given)
        return self._seen(), {"action_mask": self.clusters.outcome.mask[0].copy()}

    def _came(self) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        """What a step returns, once it has been taken."""
        outcome = self.clusters.outcome
        terminated, truncated = bool(outcome.terminated[0]), bool(outcome.truncated[0])
        info: dict[str, Any] = {
            "elapsed_s": float(outcome.elapsed_s[0]),
            "reward_terms": dict(zip(REWARD_TERMS, outcome.terms[0].tolist(), strict=True)),
            "action_mask": outcome.mask[0].copy(),
        }
        if terminated or truncated:
            info["report"] = self.clusters.report(0)
        return self._seen(), float(outcome.reward[0]), terminated, truncated, info

    @property
    def view(self) -> RouterView:
        """What a router may see now; live: read it, never write."""
        return self.clusters.view(0)

    def report(self) -> dict[str, Any]:
        """The numbers of the episode so far, as ``info["report"]`` has them at its end.

        Raises:
            ResetNeeded: there is no episode.
        """
        return self.clusters.report(0)

    def record(self, router: str = "agent") -> ClusterRecord:
        """What happened to every request so far, as `simulate_cluster` has it.

        Raises:
            ResetNeeded: there is no episode.
        """
        return self.clusters.record(0, router)
