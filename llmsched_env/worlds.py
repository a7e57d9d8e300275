"""`World`: one of the scenarios that rows of an environment play, and all of them as arrays for the compiled step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import COEFFICIENTS, LatencyModel, load_profile
from engine.errors import InputError
from engine.server.policy import Policy
from llmsched_env.config import EnvConfig
from llmsched_env.rows import Latencies, Rules


@dataclass(frozen=True)
class World:
    """A device with its server and requests."""

    config: EnvConfig
    """The environment of this scenario alone."""
    model: LatencyModel
    """Its device."""

    @property
    def tiers(self) -> list[str]:
        """Names of its tiers."""
        return [tier.name for tier in self.config.workload.tiers]

    def arms(self) -> list[Policy]:
        """The policies of which a choice picks one, told this device."""
        return [arm.on(self.model) for arm in self.config.action.policies(self.config.prediction)]

    def params(self) -> list[np.ndarray]:
        """Parameters of the codec's kernel and of those of the arms, as they are on this device."""
        return [self.config.action.codec.params(self.model), *(arm.params(self.config.engine) for arm in self.arms())]

    def draw(self, rng: np.random.Generator) -> Requests:
        """The trace of one episode: rate, backlog, lengths, tiers and arrivals from one generator."""
        config = self.config
        return draw(rng, config.workload, config.rates, config.prediction, config.backlog)

    def check_trace(self, requests: Requests) -> None:
        """Check that a row can serve a trace here.

        Raises:
            InputError: another number of requests or tiers than it has, a request that is too long, or predictions
                that are refreshed.
        """
        n, tiers = self.config.workload.num_requests, len(self.tiers)
        if len(requests) != n or len(requests.tiers) != tiers:
            raise InputError(
                f"reset: expected {n} requests in {tiers} tiers, got {len(requests)} in {len(requests.tiers)}"
            )
        if requests.forecast.every:
            raise InputError("reset: expected a trace with one prediction per request, got refreshed ones")
        requests.check_servable(self.config.engine)


def draw(
    rng: np.random.Generator, workload: Workload, rates: Sequence[float], prediction: str, backlog: int = 0
) -> Requests:
    """Draw the trace of one episode.

    Args:
        rng: draws everything.
        workload: its arrivals, lengths and tiers.
        rates: requests/s of which one is drawn (none: the workload's own).
        prediction: channel of predictions ("": none).
        backlog: up to so many requests are present at time 0.
    """
    if len(rates) > 0:
        rate = float(rng.choice(np.asarray(rates)))
        workload = workload if rate == workload.rate else type(workload)(**{**vars(workload), "rate": rate})
    requests = workload.generate(rng)
    if backlog:
        present = int(rng.integers(backlog + 1))
        if present:
            arrival = np.maximum(requests.arrival - requests.arrival[present - 1], 0.0)
            requests = requests.replace(arrival=arrival)
    if prediction:
        requests = predict(requests, prediction, int(rng.integers(2**32)))
    return requests


def worlds_of(config: EnvConfig) -> tuple[World, ...]:
    """The worlds of a configuration: one, or one for each of its scenarios.

    Raises:
        InputError: an unknown profile.
    """
    return tuple(World(one, load_profile(one.profile)) for one in config.worlds)


def most_tiers(worlds: Sequence[World]) -> int:
    """The largest number of tiers in any of them."""
    return max(len(world.tiers) for world in worlds)


def params_of(worlds: Sequence[World]) -> np.ndarray:
    """The parameters of every kernel in every world, float64[worlds, kernels, p]."""
    given = [world.params() for world in worlds]
    stacked = np.zeros((len(given), len(given[0]), max(len(p) for params in given for p in params)))
    for w, params in enumerate(given):
        for k, p in enumerate(params):
            stacked[w, k, : len(p)] = p
    return stacked


def latencies_of(worlds: Sequence[World]) -> Latencies:
    """The latency models of all worlds."""
    models = [world.model.compiled(world.config.engine) for world in worlds]
    knots = np.array([len(model.table) for model in models], np.int64)
    coefficient = np.concatenate([model.coefficient for model in models]).astype(COEFFICIENTS).view(np.recarray)
    table = np.zeros((len(models), max(1, int(knots.max())), 2))
    for w, model in enumerate(models):
        table[w, : knots[w]] = model.table
    return Latencies(coefficient, table, knots)


def rules_of(worlds: Sequence[World], max_episode_steps: int) -> Rules:
    """What does not change while the rows are stepped."""
    config = worlds[0].config
    action, codec = config.action, config.action.codec
    limits = [config.max_steps, config.horizon_s, config.skip_decode_only, action.holds, max_episode_steps]
    limits.append(codec.LEARNS)
    weight = np.zeros((len(worlds), most_tiers(worlds)))
    for w, world in enumerate(worlds):
        weight[w, : len(world.tiers)] = [tier.weight for tier in world.config.workload.tiers]
    return Rules(
        config.reward.vector(),
        weight,
        np.array(limits, np.float64),
        np.array(action.sizes, np.int64),
        np.array(codec.DECODES, np.int64),
        np.array(codec.FALLBACK, np.int64),
    )
