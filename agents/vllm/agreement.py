"""An A/B in a vLLM engine beside its simulation: errors of each number, and whether both put policies in one order."""

import tempfile
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.device.importing import vllm_log
from agents.device.importing.source import Importing
from agents.policies import resolve
from agents.vllm.plan import PLAIN
from agents.vllm.results import METRICS, Measured, numbers_in, numbers_of
from agents.vllm.settings import STOCK
from engine.device import fitting
from engine.device.latency import LatencyModel, load_profile
from engine.runs.distribution import finite
from engine.runs.metrics import summarize
from engine.runs.simulate import simulate
from engine.server.policy import Policy

DRAWS = 200
"""Samples of requests for the interval of a rank correlation."""
Numbers = dict[str, float]


@dataclass(frozen=True)
class Pair:
    """A cell: what was measured, and what a simulation says."""

    measured: Measured
    real: Numbers
    predicted: Numbers | None = None
    """None where it is not known what was served by whom."""


@dataclass(frozen=True)
class Rank:
    """Kendall's tau between the measured and the predicted order of the policies."""

    rate: float
    metric: str
    tau: float
    low: float
    """Of its 95 % interval over samples of the requests that were served, the same ones for every policy."""
    high: float


def fit_profile(cells: Sequence[Measured], name: str) -> LatencyModel:
    """The profile of the engine, from what its scheduler logged where vLLM decided (everywhere, if it did nowhere).

    A fit by relative errors takes little notice of batches that took far too long; scaled, it adds up to the time that
    all of them took.

    Raises:
        InputError: too few batches.
    """
    logged = [cell for cell in cells if cell.steps]
    chosen = [cell for cell in logged if cell.cell.policy == STOCK] or logged
    head = chosen[0].steps[0]
    lines = [line for cell in chosen for line in cell.steps[1:]]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "steps.csv"
        log.write_text("\n".join([head, *lines]) + "\n")
        imported = vllm_log.read(log, Importing())
    model = fitting.fit(imported.points, name, imported.provenance)
    took = sum(point.seconds for point in imported.points)
    return model.scaled(took / float(fitting.predicted(model, imported.points).sum()))


def _told(policy: Policy, model: LatencyModel) -> Policy:
    """The policy told this device for good, as it was in the engine; the simulated one does not change that."""
    told = copy(policy.on(model))
    object.__setattr__(told, "on", lambda _: told)
    return told


def _simulated(cell: Measured, model: LatencyModel) -> Numbers:
    config = cell.config()
    requests = cell.plan.requests(cell.cell)
    if cell.cell.policy in (STOCK, PLAIN):
        limits = f"max_num_batched_tokens={config.max_batched_tokens},max_num_seqs={config.max_num_seqs}"
        policy = resolve(f"vllm_v1:{limits}")
        config = config.replace(watermark=0.0)
    else:
        policy = _told(resolve(cell.cell.policy), load_profile(cell.plan.profile))
    return numbers_in(summarize(simulate(policy, requests, model, config)), float(requests.arrival[0]))


def compare(cells: Sequence[Measured], model: LatencyModel | None) -> list[Pair]:
    """The numbers of each cell, and those of its simulation on a profile, where there is one and limits are known.

    Raises:
        InputError: a policy that there is not here.
    """
    return [
        Pair(
            cell,
            numbers_of(cell.served, cell.tiers()),
            _simulated(cell, model) if model is not None and cell.limits else None,
        )
        for cell in cells
    ]


def _tau(real: np.ndarray, predicted: np.ndarray) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(real, predicted).statistic)


def ranks(pairs: Sequence[Pair], seed: int = 0) -> list[Rank]:
    """Agreement of the orders at each load where there are three or more policies that were served for every seed."""
    found = []
    for rate, table in _tables([pair for pair in pairs if pair.predicted]):
        if len(table) > 2:
            drawn = _drawn(table, np.random.default_rng(seed))
            found += [_rank(rate, metric, table, drawn) for metric in METRICS]
    return found


@dataclass(frozen=True)
class Difference:
    """What a policy has more than another one, on the same requests."""

    rate: float
    policy: str
    reference: str
    metric: str
    value: float
    low: float
    """Of its 95 % interval over samples of these requests."""
    high: float


def differences(pairs: Sequence[Pair], seed: int = 0) -> list[Difference]:
    """Each policy against the first one, at each load."""
    found = []
    for rate, table in _tables(pairs):
        names = [own[0].measured.cell.policy for own in table]
        drawn = _drawn(table, np.random.default_rng(seed)) if len(table) > 1 else []
        for metric in METRICS:
            means = _means(table, "real", metric)
            samples = np.array([[one[metric] for one in sample] for sample in drawn])
            for k, name in enumerate(names[1:], 1):
                low, high = np.quantile(samples[:, k] - samples[:, 0], (0.025, 0.975))
                given = rate, name, names[0], metric
                found.append(Difference(*given, float(means[k] - means[0]), float(low), float(high)))
    return found


def _tables(pairs: Sequence[Pair]) -> list[tuple[float, list[list[Pair]]]]:
    """The loads, and at each the pairs of each policy by seed."""
    rates = sorted({pair.measured.cell.rate for pair in pairs})
    return [(rate, _table([pair for pair in pairs if pair.measured.cell.rate == rate])) for rate in rates]


def _rank(rate: float, metric: str, table: Sequence[Sequence[Pair]], drawn: Sequence[Sequence[Numbers]]) -> Rank:
    real, predicted = (_means(table, side, metric) for side in ("real", "predicted"))
    taus = np.array([_tau(np.array([one[metric] for one in sample]), predicted) for sample in drawn])
    taus = taus[np.isfinite(taus)]
    low, high = np.quantile(taus, (0.025, 0.975)) if len(taus) else (np.nan, np.nan)
    return Rank(rate, metric, _tau(real, predicted), float(low), float(high))


def _table(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """The pairs of each policy, by seed; of those with all seeds."""
    seeds = sorted({pair.measured.cell.seed for pair in pairs})
    by_policy: dict[str, dict[int, Pair]] = {}
    for pair in pairs:
        by_policy.setdefault(pair.measured.cell.policy, {})[pair.measured.cell.seed] = pair
    return [[own[seed] for seed in seeds] for own in by_policy.values() if len(own) == len(seeds)]


def _means(table: Sequence[Sequence[Pair]], side: str, metric: str) -> np.ndarray:
    return np.array([np.mean([getattr(pair, side)[metric] for pair in own]) for own in table])


def _drawn(table: Sequence[Sequence[Pair]], rng: np.random.Generator) -> list[list[Numbers]]:
    """The measured numbers of each policy for samples of the requests of each seed, the same ones for all policies."""
    samples = []
    for _ in range(DRAWS):
        chosen = [rng.integers(0, len(p.measured.served.ttft), len(p.measured.served.ttft)) for p in table[0]]
        rows = []
        for own in table:
            each = [numbers_of(p.measured.served, p.measured.tiers(), c) for p, c in zip(own, chosen, strict=True)]
            rows.append({metric: float(np.mean([numbers[metric] for numbers in each])) for metric in METRICS})
        samples.append(rows)
    return samples


def to_dict(
    pairs: Sequence[Pair], found: Sequence[Rank], differing: Sequence[Difference], model: LatencyModel | None
) -> dict[str, Any]:
    """Everything, for a file."""
    cells = [
        {
            **vars(p.measured.cell),
            "measured": _finite(p.real),
            "predicted": _finite(p.predicted) if p.predicted else None,
            "counters": p.measured.counters,
        }
        for p in pairs
    ]
    orders = [
        {"rate": one.rate, "metric": one.metric, **_finite({"tau": one.tau, "low": one.low, "high": one.high})}
        for one in found
    ]
    name, residuals = (model.name, model.provenance.get("residuals")) if model else (None, None)
    differ = [vars(one) | _finite({key: getattr(one, key) for key in ("value", "low", "high")}) for one in differing]
    return {"cells": cells, "ranks": orders, "differences": differ, "profile": name, "residuals": residuals}


def _finite(numbers: Numbers) -> dict[str, float | None]:
    """The numbers as JSON has them: null for what is none."""
    return {name: finite(value) for name, value in numbers.items()}
