"""The table of the SLAI paper (arXiv 2508.01002): Sarathi FCFS against SLAI on chat lengths, and the capacity gain.

Both semantics are measured: *reference*, that of the authors' public code (agrimUT/SLAI 5098a7a), in which finishing
a prompt ends TTFT and emits no token, and *default*, that of a real engine. With the real length file the requests are
those that the public code itself draws from a seed, so single medians can be compared with a run of that code.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import baselines
from agents.evaluation.capacity import CRITERIA, gain_bound
from agents.work.progress import OnProgress, unseen
from agents.work.records import as_json
from engine.config import EngineConfig
from engine.demand.length_models import EmpiricalLengths
from engine.demand.requests import DEFAULT_TIERS, Requests, draw_tiers
from engine.demand.traces import trace_lengths
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel, load_profile
from engine.errors import InputError
from engine.runs.distribution import finite
from engine.runs.report import Report
from engine.runs.serve import Deployment

FORMAT = "llmsched-reproduce/1"
PROFILE = "rtx6000ada-mistral-7b"
POLICIES = {"sarathi": "Sarathi FCFS", "slai": "SLAI (SPF, dynamic offset, user priority)"}
"""Specs compared, the first being the one that the gain is over."""
SEMANTICS = ("reference", "default")
RATES = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
SEEDS = (42, 43, 44)
GAP_CAP = 3.0
"""Largest gap between arrivals in mean gaps: the public code's cut, which raises the rate by 5.2 %."""
CAPACITY_RANGE = (0.5, 4.0)
CAPACITY_TOLERANCE = 0.01
MEDIAN_TOLERANCE = 0.05
GAIN_RANGE = (0.18, 0.27)

PUBLIC_RUN: dict[float, dict[str, tuple[float, ...]]] = {
    1.0: {"sarathi": (0.328, 1.8), "slai": (0.274, 1.5, 0.068, 0.419)},
    1.4: {"sarathi": (0.468, 2.4), "slai": (0.318, 1.9, 0.077, 0.411)},
    1.6: {"sarathi": (0.608, 3.4), "slai": (0.360, 2.8, 0.086, 0.400)},
    1.8: {"sarathi": (0.909, 5.5), "slai": (0.516, 16.4, 0.093, 0.366)},
}
"""The public code on a simulated clock, seed 42, 2500 requests: median and p99 TTFT, p99 TBT strict and relaxed (s)."""


@dataclass(frozen=True)
class Cell:
    """One run of the table; times in seconds, rates in requests/s, None where there is no sample."""

    semantics: str
    policy: str
    seed: int
    rate: float
    median_ttft_s: float | None
    p99_ttft_s: float | None
    p99_tbt_strict_s: float | None
    p99_tbt_relaxed_s: float | None
    arrival_rate: float | None
    completed: int
    unfinished: int
    evictions: int
    duration_s: float
    paper: bool
    sound: bool
    verdict: str

    @classmethod
    def of(cls, report: Report, semantics: str, policy: str, seed: int, rate: float) -> "Cell":
        """The cell that a report fills."""
        tbt = {tier.strict: finite(tier.itl.p99) for tier in report.tiers}
        return cls(
            semantics,
            policy,
            seed,
            rate,
            finite(report.ttft.p50),
            finite(report.ttft.p99),
            tbt.get(True),
            tbt.get(False),
            finite(report.arrival_rate),
            report.completed,
            report.unfinished,
            report.evictions,
            report.duration_s,
            report.paper,
            report.sound,
            report.verdict,
        )


@dataclass(frozen=True)
class Capacity:
    """The largest rates within capacity by both criteria, requests/s."""

    semantics: str
    policy: str
    seed: int
    paper: float
    sound: float

    def rate(self, criterion: str) -> float:
        """That of the criterion `paper` or `sound`."""
        return self.paper if criterion == "paper" else self.sound


@dataclass(frozen=True)
class Gain:
    """How much more SLAI sustains than Sarathi, as a share."""

    semantics: str
    criterion: str
    per_seed: tuple[float, ...]
    mean: float
    bound: str
    """Exact, or what it is where a search ended at a limit (`agents.evaluation.capacity.gain_bound`)."""


@dataclass(frozen=True)
class Deviation:
    """A figure of ours beside that of the public code."""

    policy: str
    rate: float
    figure: str
    """Name of the field of `Cell`."""
    public: float
    ours: float | None
    deviation: float | None
    """Ours over the public one, less 1."""


@dataclass(frozen=True)
class Setting:
    """What was served, how."""

    lengths: str
    real_lengths: bool
    """Whether the requests are those of the public code."""
    protocol: str
    num_requests: int
    gap_cap: float
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    policies: dict[str, str]
    profile: str
    capacity_tolerance: float
    ttft: dict[str, str]
    """What TTFT is in each semantics."""


@dataclass(frozen=True)
class Table:
    """The result; the fields are the keys of its JSON form, after its format."""

    setting: Setting
    cells: tuple[Cell, ...]
    """One for each semantics, policy, seed and rate."""
    capacities: tuple[Capacity, ...]
    gains: tuple[Gain, ...]
    deviations: tuple[Deviation, ...]
    """From `PUBLIC_RUN`."""
    targets: dict[str, bool | None]
    """Which goals hold; None: not measured."""

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"format": FORMAT, **{name: as_json(value) for name, value in vars(self).items()}}


@dataclass(frozen=True)
class Study:
    """What to serve: the lengths, how many requests, on which device."""

    lengths: EmpiricalLengths | None = None
    """Rows of the real length file; None draws from the shipped table."""
    num_requests: int = 2500
    """Requests per run."""
    model: LatencyModel | None = None
    """Latency model; None: the shipped profile of the paper's card."""

    def requests(self, rate: float, seed: int) -> Requests:
        """The requests of one load (requests/s) and seed.

        Raises:
            InputError: fewer rows in the length file than requests.
        """
        if self.lengths is None:
            drawn = Workload(rate=rate, num_requests=self.num_requests, gap_cap=GAP_CAP)
            return drawn.generate(seed)
        return public_requests(self.lengths, rate, seed, self.num_requests)

    def report(self, semantics: str, policy: str, rate: float, seed: int) -> Report:
        """Serve one load with one policy and summarise it."""
        config = EngineConfig.reference() if semantics == "reference" else EngineConfig()
        model = self.model or load_profile(PROFILE)
        return Deployment(executor=model, config=config).run(baselines.make(policy), self.requests(rate, seed)).report


def load_study(lengths: Path | None, num_requests: int) -> Study:
    """The study on a length file, or on the shipped table.

    Raises:
        InputError: the file cannot be read, or has fewer rows than requests.
    """
    rows = None if lengths is None else trace_lengths(lengths)
    study = Study(rows, num_requests, load_profile(PROFILE))
    study.requests(1.0, SEEDS[0])
    return study


def public_requests(lengths: EmpiricalLengths, rate: float, seed: int, num_requests: int) -> Requests:
    """The requests that the public SLAI code draws: same rows, same gaps, same paying users for the same seed.

    Rows are shuffled by pandas (a legacy numpy stream), gaps come from Python's `random`, users from
    `default_rng`, each seeded anew; these generators are part of the protocol.

    Raises:
        InputError: fewer rows than requests.
    """
    if num_requests > len(lengths):
        raise InputError(
            f"num_requests: expected at most {len(lengths)} (the rows of {lengths.name}), got {num_requests}"
        )
    rows = np.random.RandomState(seed).permutation(len(lengths))[:num_requests]
    uniform = random.Random(seed)
    gaps = [min(-math.log(1.0 - uniform.random()), GAP_CAP) for _ in range(num_requests)]
    tier = draw_tiers(np.random.default_rng(seed), num_requests, DEFAULT_TIERS)
    return Requests.create(
        np.cumsum(gaps) / rate,
        lengths.prompt[rows],
        lengths.output[rows],
        tier,
        source=f"{lengths.name}, arrivals at {rate:g}/s as in the public SLAI code, seed {seed}",
    )


def capacity(study: Study, semantics: str, policy: str, seed: int, criterion: str) -> float:
    """Largest rate (requests/s) within capacity by one criterion, to `CAPACITY_TOLERANCE`, found by bisection.

    The lowest rate of `CAPACITY_RANGE` is the answer where not even that passes, the highest where all do.
    """
    low, high = CAPACITY_RANGE
    while high - low > CAPACITY_TOLERANCE:
        middle = 0.5 * (low + high)
        passed = getattr(study.report(semantics, policy, middle, seed), criterion)
        low, high = (middle, high) if passed else (low, middle)
    return round(0.5 * (low + high), 4)


def bound_of(rate: float) -> str:
    """Whether a capacity is `exact`, or the search ended at a limit: `above` or `below` it."""
    low, high = CAPACITY_RANGE
    return "above" if rate > high - CAPACITY_TOLERANCE else "below" if rate < low + CAPACITY_TOLERANCE else "exact"


def reproduce(
    study: Study,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
    progress: OnProgress = unseen,
) -> Table:
    """Run the table.

    Args:
        study: lengths, number of requests, device.
        rates: nominal arrival rates in requests/s.
        seeds: of the requests.
        progress: called before each part.
    """
    cells: list[Cell] = []
    capacities: list[Capacity] = []
    parts = [(semantics, policy, seed) for semantics in SEMANTICS for policy in POLICIES for seed in seeds]
    for semantics, policy, seed in parts:
        progress("policies and seeds", len(capacities), len(parts))
        for rate in rates:
            cells.append(Cell.of(study.report(semantics, policy, rate, seed), semantics, policy, seed, rate))
        limits = (capacity(study, semantics, policy, seed, criterion) for criterion in CRITERIA)
        capacities.append(Capacity(semantics, policy, seed, *limits))
    gains = [_gain(capacities, semantics, criterion, seeds) for semantics in SEMANTICS for criterion in CRITERIA]
    deviations = tuple(_deviations(cells, seeds[0]))
    return Table(
        setting=_setting(study, rates, seeds),
        cells=tuple(cells),
        capacities=tuple(capacities),
        gains=tuple(gains),
        deviations=deviations,
        targets={
            "medians_within_5_percent": _medians_are_close(study, deviations, seeds[0]),
            "capacity_gain_18_to_27_percent": all(GAIN_RANGE[0] <= g <= GAIN_RANGE[1] for g in gains[0].per_seed),
        },
    )


def _setting(study: Study, rates: Sequence[float], seeds: Sequence[int]) -> Setting:
    real = study.lengths is not None
    return Setting(
        lengths=study.lengths.description if study.lengths is not None else "openchat_sharegpt4 (shipped table)",
        real_lengths=real,
        protocol="requests drawn as by the public SLAI code" if real else "requests drawn from joint quantiles",
        num_requests=study.num_requests,
        gap_cap=GAP_CAP,
        rates=tuple(rates),
        seeds=tuple(seeds),
        policies=POLICIES,
        profile=(study.model or load_profile(PROFILE)).name,
        capacity_tolerance=CAPACITY_TOLERANCE,
        ttft={"reference": "arrival to the last completion of the prompt", "default": "arrival to output token 1"},
    )


def _gain(capacities: Sequence[Capacity], semantics: str, criterion: str, seeds: Sequence[int]) -> Gain:
    found = {(c.policy, c.seed): c.rate(criterion) for c in capacities if c.semantics == semantics}
    base, other = POLICIES
    per_seed = tuple(found[other, seed] / found[base, seed] - 1.0 for seed in seeds)
    bounds = [[bound_of(found[policy, seed]) for seed in seeds] for policy in (other, base)]
    return Gain(semantics, criterion, per_seed, sum(per_seed) / len(per_seed), gain_bound(*bounds))


def _deviations(cells: Sequence[Cell], seed: int) -> Iterator[Deviation]:
    """Our reference-semantics figures of one seed beside those of the public code."""
    names = ("median_ttft_s", "p99_ttft_s", "p99_tbt_strict_s", "p99_tbt_relaxed_s")
    for cell in cells:
        if cell.semantics != "reference" or cell.seed != seed or cell.rate not in PUBLIC_RUN:
            continue
        for name, public in zip(names, PUBLIC_RUN[cell.rate][cell.policy], strict=False):
            ours = getattr(cell, name)
            deviation = None if ours is None else ours / public - 1.0
            yield Deviation(cell.policy, cell.rate, name, public, ours, deviation)


def _medians_are_close(study: Study, deviations: Sequence[Deviation], first_seed: int) -> bool | None:
    """Whether the medians are like the public code's; None without the same requests."""
    medians = [row.deviation for row in deviations if row.figure == "median_ttft_s"]
    comparable = study.lengths is not None and study.num_requests == 2500 and len(medians) == 2 * len(PUBLIC_RUN)
    if not comparable or first_seed != 42:
        return None
    return all(value is not None and abs(value) <= MEDIAN_TOLERANCE for value in medians)
