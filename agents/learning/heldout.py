"""How good a policy is on traces that training never sees: the yardstick for the best model and for TensorBoard."""

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from typing import NamedTuple

import numpy as np

from agents.learning.learned.policy import LearnedPolicy
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.device.latency import load_profile
from engine.runs.record import Record
from engine.runs.report import Report
from engine.runs.serve import Deployment
from engine.server.policy import Policy
from llmsched_env.config import EnvConfig
from llmsched_env.fleet import Fleet
from llmsched_env.reward import NUM_TERMS, RewardWeights, add_totals, weighted

HELD_OUT_SEED = 1 << 40
"""Traces for choosing the best model are drawn from this seed on: far from those of evaluations (0, 1, ...)."""
TRAINING_SEED = 1 << 41
"""Training traces are drawn from this seed on, 2**20 seeds apart for different training seeds."""


def reward_terms(record: Record, weights: RewardWeights) -> np.ndarray:
    """The environment's reward terms summed over a whole run, float64[terms] in the order of REWARD_TERMS."""
    terms, tier_weight = np.zeros(NUM_TERMS), np.array([t.weight for t in record.requests.tiers])
    add_totals(record, record, tier_weight, weights.vector(), 1.0, terms)
    return terms


def record_return(record: Record, weights: RewardWeights) -> float:
    """Undiscounted return of a run under reward weights."""
    return float(weighted(weights.vector(), reward_terms(record, weights)))


@dataclass(frozen=True)
class Score:
    """Results of one policy on all held-out traces."""

    returns: np.ndarray  # float64[traces], return for each request of the trace
    ttft_s: np.ndarray  # float64[traces], mean TTFT
    reports: tuple[Report, ...]
    worlds: tuple[str, ...]  # of each trace: scenario, or rate

    @property
    def mean_return(self) -> float:
        """Mean over traces of the return per request."""
        return float(self.returns.mean())

    @property
    def mean_ttft_s(self) -> float:
        """Mean over traces of the mean TTFT."""
        return float(self.ttft_s.mean())


class Case(NamedTuple):
    """A held-out trace and where it is served."""

    world: str
    """Scenario or rate."""
    env: EnvConfig
    """The environment of its scenario alone."""
    deployment: Deployment
    requests: Requests


class HeldOut:
    """A fixed set of traces (every world and rate of the environment x some seeds), the scores of policies on it."""

    def __init__(self, env: EnvConfig, traces: int, requests: int) -> None:
        self.env = env
        names = [scenario.name for scenario in env.scenarios] or [""]
        worlds = zip(names, env.worlds, strict=True)
        self.cases = [case for name, world in worlds for case in _cases(name, world, traces, requests)]

    @property
    def traces(self) -> list[Requests]:
        """The traces."""
        return [case.requests for case in self.cases]

    def _own_return(self, policy: Policy, env: EnvConfig, requests: Requests) -> float:
        """What a learned policy earns in the environment by a user's reward; nan for others, which do not act there."""
        if not isinstance(policy, LearnedPolicy):
            return float("nan")
        workload = dataclass_replace(env.workload, num_requests=len(requests))
        env = dataclass_replace(env, workload=workload, rates=(), backlog=0, max_steps=0, horizon_s=0.0)
        fleet = Fleet(1, env)
        fleet.start(0, requests)
        while not fleet.outcome.terminated[0]:
            fleet.step(policy.choose(fleet.observed))
        return float(fleet.returns[0])

    def score(self, policy: Policy) -> Score:
        """Serve every trace with a policy.

        Raises:
            PolicyError: the policy broke the rules.
        """
        returns, ttft, reports = [], [], []
        for _, env, deployment, requests in self.cases:
            record, report = deployment.run(policy, requests)
            total = self._own_return(policy, env, requests) if env.reward.function else None
            returns.append((record_return(record, env.reward) if total is None else total) / len(requests))
            ttft.append(report.ttft.mean)
            reports.append(report)
        return Score(np.array(returns), np.array(ttft), tuple(reports), tuple(case.world for case in self.cases))


def _cases(name: str, env: EnvConfig, traces: int, requests: int) -> Iterator[Case]:
    """So many held-out traces of each rate of one world."""
    deployment = Deployment(executor=load_profile(env.profile), config=env.engine)
    for rate in dict.fromkeys(env.rates or (env.workload.rate,)):
        workload = dataclass_replace(env.workload, num_requests=requests, rate=rate)
        for k in range(traces):
            drawn = workload.generate(HELD_OUT_SEED + k)
            trace = predict(drawn, env.prediction, HELD_OUT_SEED + k) if env.prediction else drawn
            yield Case(name or f"{rate:g}", env, deployment, trace)
