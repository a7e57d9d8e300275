"""What a router costs: several replicas beside one server, per iteration, the memory of many, the environment."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np

import baselines
from agents.bench.timing import alternate, peak_mib
from baselines import routers
from engine.cluster.simulate import simulate_cluster
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import DEFAULT_PROFILE, load_profile
from engine.runs.simulate import simulate

ROUTER, POLICY = "least_tokens", "sarathi"
RATE, REQUESTS = 1.6, 4000
"""Requests/s and requests of each replica."""
ENVS = 64
"""Clusters of the vector environment."""


def _requests(replicas: int, each: int) -> Requests:
    return Workload(rate=RATE * replicas, num_requests=each * replicas).generate(0)


def _one(requests: Requests) -> int:
    """Serve with one server; the iterations that it took."""
    record = simulate(baselines.make(POLICY), requests, load_profile(DEFAULT_PROFILE))
    return int(record.row["iterations"][0])


def _several(requests: Requests, replicas: int) -> int:
    """Serve with several replicas; the iterations that they took."""
    policies, devices = [baselines.make(POLICY)] * replicas, [load_profile(DEFAULT_PROFILE)] * replicas
    record = simulate_cluster(routers.make(ROUTER), policies, requests, devices)
    return sum(int(one.row["iterations"][0]) for one in record.records)


def _rate(serve: Callable[[], int]) -> float:
    """Iterations per second of CPU time."""
    start = time.process_time()
    iterations = serve()
    return iterations / (time.process_time() - start)


def cluster(scale: float) -> dict[str, Any]:
    """CPU time of an iteration behind a router over that of `simulate`, in turn, and decisions of the router."""
    each = max(100, int(REQUESTS * scale))
    traces = {replicas: _requests(replicas, each) for replicas in (1, 4, 16)}
    serves = {"simulate": partial(_one, traces[1])}
    serves |= {f"cluster_{n}": partial(_several, traces[n], n) for n in (4, 16)}
    iterations = {name: serve() for name, serve in serves.items()}
    rates = alternate(7, {name: partial(_rate, serve) for name, serve in serves.items()})
    return {
        "cluster_4_to_simulate": rates["simulate"] / rates["cluster_4"],
        "cluster_16_to_simulate": rates["simulate"] / rates["cluster_16"],
        "routing_decisions_per_s": rates["cluster_4"] * len(traces[4]) / iterations["cluster_4"],
    }


def cluster_peak(scale: float) -> dict[str, Any]:
    """Largest resident size of a process with 64 replicas and 1000 requests for each, warm cache (MiB)."""
    _several(_requests(64, max(10, int(1000 * scale))), 64)
    return {"cluster_peak_mib": peak_mib()}


def router_env(scale: float) -> dict[str, Any]:
    """Decisions per second of CPU time of 64 clusters of 4 replicas, with observations, rewards, reports and resets."""
    import llmsched_env

    envs = llmsched_env.LLMSchedRouterVectorEnv(ENVS, policy=POLICY)
    envs.reset(seed=0)
    in_turn = np.arange(ENVS)

    def decide() -> float:
        start, steps = time.process_time(), max(20, int(400 * scale))
        for k in range(steps):
            envs.step((in_turn + k) % 4)
        return ENVS * steps / (time.process_time() - start)

    decide()
    return {"router_env_decisions_per_s": median(decide() for _ in range(7))}
