"""`Clusters`: clusters of servers with their traces and outcomes, which the environment classes drive."""

import copy
from typing import Any

import numpy as np
from gymnasium import spaces

from engine.cluster.clusters import Cluster, Fresh, cluster_of, new_cluster, new_clusters
from engine.cluster.features import FEATURE_LIMIT, REPLICA_NAMES, REQUEST_NAMES
from engine.cluster.fleet import kernels_of
from engine.cluster.loop import ASKS
from engine.cluster.record import ClusterRecord
from engine.cluster.simulate import record_of
from engine.cluster.state import RouterView
from engine.demand.requests import Requests
from engine.errors import InputError
from engine.runs.driving import PolicyError
from engine.runs.simulate import what_ended
from engine.runs.steps import OVER
from engine.server.rows import row_of
from llmsched_env.inputs import is_whole, needs_reset, show
from llmsched_env.reward import REWARD_TERMS
from llmsched_env.routing.config import RouterConfig
from llmsched_env.routing.report import cluster_report
from llmsched_env.routing.step import FAILED, LIMITS, Rules, compiled_step, new_outcome
from llmsched_env.worlds import draw


def observation_names(replicas: int) -> tuple[str, ...]:
    """Name of each entry of an observation: those of each replica in turn, then those of the request."""
    each = (f"replica_{j}_{name}" for j in range(replicas) for name in REPLICA_NAMES)
    return (*each, *(f"request_{name}" for name in REQUEST_NAMES))


def split(observation: np.ndarray, replicas: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of the parts of observations: replicas float32[..., replicas, k], request float32[..., r]."""
    size = replicas * len(REPLICA_NAMES)
    each = observation[..., :size].reshape((*observation.shape[:-1], replicas, len(REPLICA_NAMES)))
    return each, observation[..., size:]


class Clusters:
    """Clusters with their traces and outcomes; a subclass says who decides what."""

    def __init__(self, count: int, config: RouterConfig, max_episode_steps: int = 0) -> None:
        """Allocate everything.

        Args:
            count: clusters.
            config: of all of them.
            max_episode_steps: truncates an episode as `gymnasium.wrappers.TimeLimit` does (0: no limit).

        Raises:
            InputError: a policy without a compiled kernel, a workload that a replica can never serve, or clusters for
                which there is no memory.
        """
        self.config = config
        self._replicas = config.build()
        self._tiers = [tier.name for tier in config.workload.tiers]
        places = len(self._replicas)
        self._fresh = new_cluster(self._replicas, self._servable(self._draw(np.random.default_rng(0))), 0.0)
        try:
            self.clusters: Cluster = new_clusters(self._fresh, count)
        except (MemoryError, ValueError) as error:
            raise InputError(f"num_envs: no memory for {count} clusters of {places} replicas ({error})") from None
        self._put = Fresh(self._fresh, self.clusters).put
        self.outcome = new_outcome(count, places)
        self.rules = rules_of(config, places, max_episode_steps)
        self._requests: list[Requests | None] = [None] * count
        self.route_space = spaces.Discrete(places)
        """Which replica."""
        self.seen_space = spaces.Box(0.0, FEATURE_LIMIT, self.outcome.observation.shape[1:], np.float32)
        """What a router sees."""

    def _run(self, opens: int) -> int:
        """Take one decision in every cluster, or move cluster `opens`, if >= 0, to its first one.

        Returns:
            DONE, FAILED, or the first cluster whose action is refused.
        """
        raise NotImplementedError

    def _draw(self, rng: np.random.Generator) -> Requests:
        config = self.config
        return draw(rng, config.workload, config.rates, config.channel)

    def _servable(self, requests: Requests) -> Requests:
        """Check that an episode can be played with these requests; returns them in arrays that nobody writes to.

        Raises:
            InputError: it cannot.
        """
        n, tiers = self.config.workload.num_requests, len(self._tiers)
        if len(requests) != n or len(requests.tiers) != tiers:
            got = f"{len(requests)} in {len(requests.tiers)}"
            raise InputError(f"reset: expected {n} requests in {tiers} tiers, got {got}")
        if requests.forecast.every:
            raise InputError("reset: expected a trace with one prediction per request, got refreshed ones")
        if 0.0 < self.config.horizon_s <= requests.arrival[0]:
            raise InputError(f"reset: expected a request before {self.config.horizon_s} s, got none")
        return self._replicas.servable(requests, float("inf"))

    def check_trace(self, requests: Requests) -> None:
        """Check that an episode can be played with these requests.

        Raises:
            InputError: it cannot.
        """
        self._servable(requests)

    def begin(self, e: int, rng: np.random.Generator, requests: Requests | None = None) -> None:
        """Start an episode in cluster `e`: age of the reports, seed of routers and trace are drawn in this order.

        Args:
            e: which cluster.
            rng: its generator.
            requests: the trace (None: drawn).

        Raises:
            InputError: a trace that does not fit.
            PolicyError: the policy of a replica broke the rules.
        """
        ages = self.config.ages
        age = ages[int(rng.integers(len(ages)))] if len(ages) > 1 else ages[0]
        seed = int(rng.integers(2**31))
        requests = self._servable(self._draw(rng) if requests is None else requests)
        self._requests[e] = requests
        self._put(e, self._replicas, requests, age, seed)
        self._check(self._run(e))

    def _need_episodes(self) -> None:
        """Check that every cluster has an episode.

        Raises:
            ResetNeeded: some cluster has none.
        """
        if None in self._requests:
            raise needs_reset("env.step()")

    def _check(self, found: int) -> None:
        """Raise what a policy has done.

        Raises:
            PolicyError: one broke the rules; the episode has ended.
        """
        if found != FAILED:
            return
        codes = self.outcome.code
        e = int(np.flatnonzero((codes != ASKS) & (codes != OVER))[0])
        self._requests[e] = None
        fleet, code = self.cluster(e).fleet, int(codes[e])
        j, most = int(fleet.course["replica"][0]), int(fleet.course["stop"][0])
        line = what_ended(code, self._replicas.policies[j], row_of(fleet.servers, j), most)
        raise PolicyError(f"replica {j}: {line}")

    def cluster(self, e: int) -> Cluster:
        """The arrays of cluster `e`."""
        cluster: Cluster = cluster_of(self.clusters, e)
        return cluster

    def view(self, e: int) -> RouterView:
        """What a router may see of cluster `e`."""
        return self.cluster(e).seen

    def has_episode(self, e: int) -> bool:
        """Whether cluster `e` has been reset."""
        return self._requests[e] is not None

    def report(self, e: int) -> dict[str, Any]:
        """Numbers of the episode so far in cluster `e`, with the return and the sums of the reward terms.

        Raises:
            ResetNeeded: there is no episode.
        """
        if not self.has_episode(e):
            raise needs_reset("env.report()")
        report = cluster_report(self.cluster(e), float(self.outcome.now[e]), self._replicas.configs[0], self._tiers)
        totals = self.outcome.totals[e]
        report["return"] = float(totals @ self.rules.weights[: len(totals)])
        report["decisions"] = int(self.outcome.steps[e])
        return report | {f"reward_{name}": float(v) for name, v in zip(REWARD_TERMS, totals, strict=True)}

    def record(self, e: int, router: str) -> ClusterRecord:
        """The record of an episode so far; of a finished one, what `simulate_cluster` makes of the same choices.

        Args:
            e: which cluster.
            router: who is said to have made them.

        Raises:
            ResetNeeded: there is no episode.
        """
        requests = self._requests[e]
        if requests is None:
            raise needs_reset("env.record()")
        cluster: Cluster = copy.deepcopy(self.cluster(e))
        sent = int(cluster.fleet.course["next"][0])
        trace = cluster.trace._replace(replica=cluster.trace.replica[:sent])
        return record_of(router, self._replicas, requests.head(sent), cluster.fleet, trace)


class RouterClusters(Clusters):
    """Clusters whose routers are asked; the schedulers of the replicas are fixed."""

    def __init__(self, count: int, config: RouterConfig, max_episode_steps: int = 0) -> None:
        """Allocate everything (see `Clusters`)."""
        super().__init__(count, config, max_episode_steps)
        self._kernels = tuple(kernel.compiled for kernel in kernels_of(self._replicas))
        self._actions = np.zeros(count, np.int64)
        self._step = compiled_step(len(self._kernels), self.clusters, self.rules, self.outcome)

    def _run(self, opens: int) -> int:
        return int(self._step(self._kernels, self.clusters, self.rules, self.outcome, self._actions, opens))

    def step(self, given: object) -> None:
        """Send the request of every cluster to a replica and go on to the next one; results are in `outcome`.

        Args:
            given: a replica for each cluster, a sequence or an array.

        Raises:
            ResetNeeded: some cluster has no episode.
            InputError: an action that is not in the space, or a replica that drains; nothing has happened then.
            PolicyError: the policy of a replica broke the rules.
        """
        self._need_episodes()
        self._take(given)
        bad = self._run(-1)
        if bad >= 0:
            raise self._refused(int(self._actions[bad]), f"action of row {bad}" if len(self._actions) > 1 else "action")
        self._check(bad)

    def _take(self, given: object) -> None:
        """Copy actions to where the compiled step reads them; their range is left to it."""
        if not isinstance(given, np.ndarray) or given.dtype.kind not in "iu":
            values = list(given) if isinstance(given, list | tuple | np.ndarray) else [given]
            if not all(map(is_whole, values)):
                raise self._refused(given, "action")
            given = np.array(values)
        if given.shape != self._actions.shape:
            raise self._refused(given, "action")
        self._actions[:] = given

    def _refused(self, got: object, where: str) -> InputError:
        count, places = self.outcome.mask.shape
        each = f"an array of {count} " if count > 1 and where == "action" else ""
        kind = "whole numbers" if each else "a whole number"
        return InputError(f"{where}: expected {each}{kind} 0..{places - 1}, no replica that drains, got {show(got)}")


def rules_of(config: RouterConfig, places: int, max_episode_steps: int) -> Rules:
    """What does not change while clusters are stepped."""
    drain_s = np.full(places, np.inf)
    for drain in config.drains:
        drain_s[drain.replica] = min(drain_s[drain.replica], drain.from_s)
    limits = np.array([config.max_steps, config.horizon_s, max_episode_steps], np.float64)
    assert len(limits) == len(LIMITS.names or ())
    tier_weight = np.array([tier.weight for tier in config.workload.tiers], np.float64)
    return Rules(config.reward.vector(), tier_weight, drain_s, limits)
