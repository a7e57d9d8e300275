"""Policies judged by what they cost in whole runs on training traces: what searches without gradients minimise."""

from dataclasses import dataclass

import baselines
from agents.learning.heldout import record_return
from agents.learning.learned.policy import LearnedPolicy
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.serve import Deployment, Synthetic, serve
from llmsched_env.config import EnvConfig


@dataclass(frozen=True)
class Trial:
    """A policy (or the spec of a baseline) on one trace."""

    policy: LearnedPolicy | str
    workload: Workload
    seed: int
    env: EnvConfig


def measure(trial: Trial) -> tuple[float, float, float]:
    """Cost, median TTFT (s) and requests that met every deadline, per second.

    The cost is seconds of TTFT plus late gaps in deadlines, per request (`llmsched_env.reward`).
    """
    policy = baselines.make(trial.policy) if isinstance(trial.policy, str) else trial.policy
    deployment = Deployment(executor=load_profile(trial.env.profile), config=trial.env.engine)
    record, report = serve(policy, Synthetic(trial.workload), None, trial.seed, deployment)
    return -record_return(record, trial.env.reward) / len(record.requests), report.ttft.p50, report.goodput
