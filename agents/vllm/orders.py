"""Whether a measurement and a prediction put policies in one order, and which policies the measurement tells apart.

Everything is said of pairs of policies, on the seeds for which both were served (a seed that was served twice counts
twice). Kendall's tau is the pairs in the same order less those in the other one, over the geometric mean of those that
are not tied in the measurement and those that are not tied in the prediction (tau-b): where all policies meet every
SLO there is no order and no tau. Two policies are told apart where the 95 % interval of their measured difference, over
samples of the seeds and of the requests of each (the same ones for both policies), leaves 0 out; of these pairs a
prediction without a difference counts as half wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from agents.vllm.results import METRICS, Measured, numbers_of

DRAWS = 200
"""Samples of the seeds and of the requests for an interval."""
_TIED = 1e-9
"""Numbers that differ by less are equal but for rounding."""
_OF_WHOLE_RUNS = [METRICS.index("goodput"), METRICS.index("makespan_s")]
"""Of one seed nothing is known of how far these are chance: a sample of its requests has the makespan of all."""
Numbers = Mapping[str, float]


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
    """Of its 95 % interval."""
    high: float
    pairs: int
    """Of policies."""
    told_apart: int
    """Those of them that the measurement tells apart."""
    tau_told_apart: float
    """Kendall's tau over these."""


@dataclass(frozen=True)
class Difference:
    """What a policy has more than another one, on the same requests."""

    rate: float
    policy: str
    reference: str
    metric: str
    value: float
    low: float
    """Of its 95 % interval; nan: nothing is known of it."""
    high: float
    predicted: float
    """What the simulation says; nan: it says nothing."""

    @property
    def is_told(self) -> bool:
        """Whether the measurement tells the two apart."""
        return self.low > _TIED or self.high < -_TIED


@dataclass(frozen=True, eq=False)
class _Cell:
    """A policy, once at one load."""

    real: np.ndarray  # float64[1 + DRAWS, METRICS], of all requests, then of samples of them
    predicted: np.ndarray  # float64[METRICS]; nan: unknown


_Table = dict[str, dict[tuple[int, int], _Cell]]
"""The cells of a load by policy, then by seed and how often that was served before."""


@dataclass(frozen=True, eq=False)
class _Compared:
    """A policy less another one: of everything first, then of samples."""

    policy: str
    reference: str
    real: np.ndarray  # float64[1 + DRAWS, METRICS]
    predicted: np.ndarray  # float64[1 + DRAWS, METRICS]

    def difference(self, rate: float, k: int) -> Difference:
        """In one metric."""
        sampled = self.real[1:, k]
        low, high = np.nanquantile(sampled, (0.025, 0.975)) if np.isfinite(sampled).any() else (np.nan, np.nan)
        given = self.real[0, k], low, high, self.predicted[0, k]
        return Difference(rate, self.policy, self.reference, METRICS[k], *map(float, given))


def compare_policies(pairs: Sequence[Pair], seed: int = 0) -> tuple[list[Difference], list[Rank]]:
    """At each load every policy against each one before it; and the order of all, where there are three or more."""
    differences: list[Difference] = []
    ranks: list[Rank] = []
    for rate in sorted({pair.measured.cell.rate for pair in pairs}):
        rng = np.random.default_rng(seed)
        table = _table([pair for pair in pairs if pair.measured.cell.rate == rate], rng)
        compared = _compare(table, rng)
        is_order = len(table) > 2 and any(np.isfinite(one.predicted).any() for one in compared)
        for k in range(len(METRICS)):
            found = [one.difference(rate, k) for one in compared]
            differences += found
            ranks += [_rank(rate, k, compared, found)] if is_order else []
    return differences, ranks


def _table(pairs: Sequence[Pair], rng: np.random.Generator) -> _Table:
    table: _Table = {}
    chosen: dict[tuple[int, int], np.ndarray] = {}
    for pair in pairs:
        cell, count = pair.measured.cell, len(pair.measured.served.ttft)
        own = table.setdefault(cell.policy, {})
        key = cell.seed, sum(seed == cell.seed for seed, _ in own)
        if key not in chosen:
            chosen[key] = rng.integers(0, count, (DRAWS, count))
        sampled = [numbers_of(pair.measured.served, pair.measured.tiers(), one) for one in chosen[key]]
        predicted = pair.predicted or dict.fromkeys(METRICS, np.nan)
        own[key] = _Cell(_array([pair.real, *sampled]), _array([predicted])[0])
    return table


def _array(numbers: Sequence[Numbers]) -> np.ndarray:
    return np.array([[one[metric] for metric in METRICS] for one in numbers])


def _compare(table: _Table, rng: np.random.Generator) -> list[_Compared]:
    """Every policy less each one before it, on the seeds that both have."""
    drawn: dict[int, np.ndarray] = {}  # the same samples of the seeds for all pairs
    found = []
    for reference, policy in combinations(table, 2):
        keys = [key for key in table[reference] if key in table[policy]]
        if keys:
            seeds = drawn.setdefault(len(keys), rng.integers(0, len(keys), (DRAWS, len(keys))))
            both = [(table[policy][key], table[reference][key]) for key in keys]
            found.append(_Compared(policy, reference, *_less(both, seeds)))
    return found


def _less(both: Sequence[tuple[_Cell, _Cell]], seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells less others of the same seeds, measured and predicted; `seeds`: int64[DRAWS, cells], those that count."""
    with np.errstate(invalid="ignore"):  # a request without a token in both
        real = np.array([a.real - b.real for a, b in both])
    predicted = np.array([a.predicted - b.predicted for a, b in both])
    sampled = real[seeds, np.arange(1, 1 + DRAWS)[:, None]].mean(axis=1)
    if len(both) == 1:
        sampled[:, _OF_WHOLE_RUNS] = np.nan
    whole = real[:, 0].mean(axis=0), predicted.mean(axis=0)
    return np.vstack([whole[0], sampled]), np.vstack([whole[1], predicted[seeds].mean(axis=1)])


def _rank(rate: float, k: int, compared: Sequence[_Compared], differences: Sequence[Difference]) -> Rank:
    real, predicted = (np.array([getattr(one, side)[:, k] for one in compared]) for side in ("real", "predicted"))
    taus = np.array([_tau(real[:, draw], predicted[:, draw]) for draw in range(real.shape[1])])
    sampled = taus[1:][np.isfinite(taus[1:])]
    low, high = np.quantile(sampled, (0.025, 0.975)) if len(sampled) else (np.nan, np.nan)
    told = [one for one in differences if one.is_told and np.isfinite(one.predicted)]
    agree = [float(_sign(np.array(one.value)) * _sign(np.array(one.predicted))) for one in told]
    tau_told = float(np.mean(agree)) if agree else float("nan")
    return Rank(rate, METRICS[k], float(taus[0]), float(low), float(high), len(compared), len(told), tau_told)


def _sign(values: np.ndarray) -> np.ndarray:
    return np.sign(np.where(np.abs(values) < _TIED, 0.0, values))


def _tau(real: np.ndarray, predicted: np.ndarray) -> float:
    """Kendall's tau-b of the differences of all pairs."""
    known = np.isfinite(real) & np.isfinite(predicted)
    a, b = _sign(real[known]), _sign(predicted[known])
    untied = np.sqrt(np.count_nonzero(a) * np.count_nonzero(b))
    return float((a * b).sum() / untied) if untied else float("nan")


def _counts(real: float) -> bool:
    return real != 0.0 and bool(np.isfinite(real))


def errors(pairs: Sequence[Pair]) -> dict[str, float]:
    """The relative error of each predicted number, the median of its size over the cells; without those that are 0."""
    known = [(pair.real, pair.predicted) for pair in pairs if pair.predicted]
    found = {}
    for metric in METRICS:
        sizes = [abs(predicted[metric] / real[metric] - 1.0) for real, predicted in known if _counts(real[metric])]
        if finite := [one for one in sizes if np.isfinite(one)]:
            found[metric] = float(np.median(finite))
    return found
