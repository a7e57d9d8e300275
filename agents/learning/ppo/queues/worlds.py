"""Worlds: the servers and workloads that one training run is over, and what a reference policy costs in each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from agents.learning.teachers import Teacher
from engine.device.latency import load_profile
from engine.errors import InputError
from llmsched_env.config import EnvConfig
from llmsched_env.fleet import Fleet
from llmsched_env.privileged import describe
from llmsched_env.reward import NUM_TERMS

WATCHED_TRACES = 4
"""Traces that the reference serves in each world before training begins."""
LEAST_COST = 1e-3
"""Requests without a first token that a world's mean cost is at least taken for."""
MOST_GROWTH = 0.05
"""Where more of the arriving requests than this stay in the queue, there is more work than the reference can do."""
LEAST_STD = 0.02
"""Observations that hardly vary under the reference are divided by this."""


@dataclass(frozen=True)
class World:
    """One server with its workload."""

    name: str
    """As logs call it."""
    env: EnvConfig
    """Profile, limits, workload at one rate."""
    place: int = 0
    """Number of its device and server in the environment's worlds."""
    share: int = 1
    """How often it is named: of so many shares of the groups."""
    groups: int = 1
    """How many groups of rows serve it."""


class Watched(NamedTuple):
    """What the reference did in a world."""

    terms: np.ndarray  # float64[NUM_TERMS], reward terms per second
    observations: np.ndarray  # float64[n, observations]
    requests: float  # arrivals in one decision
    growth: float  # requests without a first token that were added over the later half, as a share of its arrivals
    price: np.ndarray  # PRICES[1]


class Setting(NamedTuple):
    """Worlds with what the reference does there."""

    worlds: tuple[World, ...]
    watched: list[Watched]
    choose: Teacher


def worlds_of(env: EnvConfig) -> tuple[World, ...]:
    """A world for each scenario or rate of an environment; a rate that is named twice has twice the share.

    Raises:
        InputError: requests that rows cannot go on with for ever.
    """
    _check_endless(env)
    plain = replace(env, rates=(), backlog=0, max_steps=0, horizon_s=0.0)
    envs = _named(plain, env.rates or (env.workload.rate,))
    names = [name for name, _ in envs]
    return tuple(
        World(name, one, place if env.scenarios else 0, names.count(name))
        for place, (name, one) in enumerate(dict(envs).items())
    )


def shared_out(worlds: Sequence[World], groups: int) -> tuple[World, ...]:
    """The worlds with so many groups together.

    Raises:
        InputError: fewer groups than shares.
    """
    names = [world.name for world in worlds for _ in range(world.share)]
    if groups < len(names):
        raise InputError(f"n_envs: expected a group of rows for each of {len(names)} worlds, got {groups}")
    drawn = [names[g % len(names)] for g in range(groups)]
    return tuple(replace(world, groups=drawn.count(world.name)) for world in worlds)


def _named(env: EnvConfig, rates: Sequence[float]) -> list[tuple[str, EnvConfig]]:
    """Each scenario with its name, or each rate; one that is named twice stands there twice."""
    if env.scenarios:
        return list(zip((one.name for one in env.scenarios), env.worlds, strict=True))
    return [(f"{rate:g}", replace(env, workload=replace(env.workload, rate=rate))) for rate in rates]


def _check_endless(env: EnvConfig) -> None:
    """Check that rows can go on for ever with what is drawn.

    Raises:
        InputError: they cannot.
    """
    if env.prediction or env.observation or env.reward.function:
        raise InputError("queue.group_size: expected no predictions and no functions of yours")
    if any(one.workload.trace or one.workload.is_closed for one in env.worlds):
        raise InputError("queue.group_size: expected arrivals that are drawn, got a trace file or a closed loop")


def watch(world: World, choose: Teacher, skipped: int, seed: int) -> Watched:
    """Let the reference serve a few traces of a world.

    Args:
        world: the world.
        choose: the reference.
        skipped: requests at the start of each trace that do not count: the server was empty.
        seed: of the traces.
    """
    fleet, model, workload = Fleet(WATCHED_TRACES, world.env), load_profile(world.env.profile), world.env.workload
    traces = [workload.generate(seed + k) for k in range(WATCHED_TRACES)]
    for e, trace in enumerate(traces):
        fleet.start(e, trace)
    arrived, queue = (fleet.servers.visible.row[name][:, 0] for name in ("next_arrival", "no_first_token"))
    counted = workload.num_requests - skipped
    queued = np.zeros(WATCHED_TRACES)
    terms, seconds, decisions, seen = np.zeros(NUM_TERMS), 0.0, 0, []
    while (arrived < workload.num_requests).all():
        counts = arrived >= skipped
        queued = np.where(arrived < skipped + counted / 2, queue, queued)
        seen.append(fleet.outcome.observation[counts].astype(np.float64))
        fleet.step(choose(fleet.outcome.observation))
        terms += fleet.outcome.terms[counts].sum(0)
        seconds += float(fleet.outcome.elapsed_s[counts].sum())
        decisions += bool(counts.any())
    price = describe(model, traces[0], workload.rate)
    growth = float((queue - queued).mean()) / (counted / 2)
    return Watched(terms / seconds, np.concatenate(seen), counted / decisions, growth, price)


def usual_cost(watched: Watched, weights: np.ndarray) -> float:
    """Mean cost per second of the reference under weights of the terms, float64[>= NUM_TERMS]."""
    return max(-float(watched.terms @ weights[:NUM_TERMS]), LEAST_COST)


def scale_of(watched: Sequence[Watched]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the observations over all worlds, each counted alike, float64[observations]."""
    mean = np.mean([one.observations.mean(0) for one in watched], 0)
    square = np.mean([((one.observations - mean) ** 2).mean(0) for one in watched], 0)
    return mean, np.maximum(np.sqrt(square), LEAST_STD)
