"""How much a policy that believes predictions of output lengths gains, by the error of the predictions and the load.

Every policy serves the same requests with each channel of predictions; its mean latency is compared, seed by seed, with
that of a reference that needs none. *Pays* means that the whole 95 % interval of the difference is below zero.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from agents.evaluation.setup import Setup, policy_of
from agents.evaluation.statistics import Interval, mean_interval, paired_interval
from agents.work.processes import run_in_order
from agents.work.provenance import versions
from engine.demand.predictions import errors, parse_channel
from engine.errors import InputError
from engine.runs.distribution import finite

METRICS = {"mean_e2e_s": "mean latency", "mean_ttft_s": "mean TTFT", "p99_ttft_s": "p99 TTFT"}
"""What is measured in each run (s)."""


@dataclass(frozen=True)
class Task:
    """One run."""

    setup: Setup
    policy: str
    load: float | None
    seed: int


@dataclass(frozen=True)
class Run:
    """What came of one run; times in seconds, None where there is no sample."""

    policy: str
    channel: str | None
    """Channel of the predictions; None for the reference, which needs none."""
    load: float | None
    seed: int
    arrival_rate: float | None
    mean_e2e_s: float | None
    mean_ttft_s: float | None
    p99_ttft_s: float | None
    slo_attainment: float | None
    evictions: int


@dataclass(frozen=True)
class Effect:
    """One metric of a policy, and how it differs from the reference's on the same requests."""

    mean: Interval
    difference: Interval
    relative: float | None
    """The mean difference over the reference's mean."""


@dataclass(frozen=True)
class Row:
    """A policy at one load with one channel."""

    policy: str
    load: float | None
    channel: str
    mean_e2e_s: Effect
    mean_ttft_s: Effect
    p99_ttft_s: Effect

    @property
    def pays(self) -> bool:
        """Whether the mean latency is lower than the reference's for sure."""
        return self.mean_e2e_s.difference.high < 0.0


@dataclass(frozen=True)
class ChannelErrors:
    """Measured errors of a channel, mean over the seeds."""

    channel: str | None
    mae: float | None
    """Mean absolute error of the first predictions, tokens."""
    tau: float | None
    """Kendall's tau."""


@dataclass(frozen=True)
class Pays:
    """The channels with which a policy pays at a load."""

    policy: str
    load: float | None
    channels: tuple[str, ...]


@dataclass(frozen=True)
class Sensitivity:
    """The result of a study; the fields are the keys of its JSON form."""

    setting: dict[str, Any]
    """The setup as plain data."""
    versions: dict[str, str]
    channels: tuple[ChannelErrors, ...]
    """As measured at the first load."""
    cells: tuple[Run, ...]
    rows: tuple[Row, ...]
    """By policy, load and channel."""
    pays: tuple[Pays, ...]

    @property
    def loads(self) -> tuple[float | None, ...]:
        """Arrival rates in requests/s, None for recorded times."""
        return tuple(self.setting["loads"])

    @property
    def reference(self) -> str:
        """The policy that the others are compared with."""
        return str(self.setting["reference"])


def run_task(task: Task) -> Run:
    """Serve one load and seed with one policy and channel."""
    report = task.setup.serve(task.policy, task.load, task.seed).report
    return Run(
        policy=str(task.policy),
        channel=task.setup.source.prediction if policy_of(task.policy).channel else None,
        load=task.load,
        seed=task.seed,
        arrival_rate=finite(report.arrival_rate),
        mean_e2e_s=finite(report.e2el.mean),
        mean_ttft_s=finite(report.ttft.mean),
        p99_ttft_s=finite(report.ttft.p99),
        slo_attainment=finite(report.slo_attainment),
        evictions=report.evictions,
    )


def check(setup: Setup, channels: tuple[str, ...]) -> tuple[str, ...]:
    """The channels in canonical form, after a look at everything else.

    Raises:
        InputError: no channel, an unknown one, one twice, or policies that are not what the study needs.
    """
    specs = tuple(parse_channel(channel).spec for channel in channels)
    if not specs or len(set(specs)) < len(specs):
        raise InputError(f"channels: expected at least one, each once, got {', '.join(channels) or 'none'}")
    if policy_of(setup.reference).channel:
        raise InputError(f"reference: expected a policy that needs no predictions, got {setup.reference!r}")
    for policy in setup.policies:
        if policy != setup.reference and not policy_of(policy).channel:
            raise InputError(f"policies: expected policies that need predictions, got {policy!r}")
    return specs


def sensitivity(
    setup: Setup,
    loads: tuple[float | None, ...],
    channels: tuple[str, ...],
    *,
    workers: int = 1,
    on_run: Callable[[int, int], object] = lambda done, total: None,
) -> Sensitivity:
    """Run every policy with every channel, load and seed.

    Args:
        setup: policies that need predictions, the reference among them; the source's own channel is not used.
        loads: arrival rates in requests/s, None for recorded times.
        channels: specs of channels.
        workers: processes.
        on_run: called with (runs finished, all runs).

    Raises:
        InputError: bad input.
    """
    specs = check(setup, channels)
    setup.check(loads[0])
    told = {spec: replace(setup, source=replace(setup.source, prediction=spec)) for spec in specs}
    others = [policy for policy in setup.policies if policy != setup.reference]
    tasks = list(_tasks(setup, told, others, loads))
    if min(workers, len(tasks)) > 1:
        setup.compile()
    runs = run_in_order(run_task, tasks, workers, on_run)
    rows = tuple(_row(runs, setup.reference, *place) for place in product(others, loads, specs))
    return Sensitivity(
        setting=setup.to_dict() | {"loads": list(loads), "reference": setup.reference},
        versions=versions(),
        channels=tuple(_errors(one, loads[0], others[0]) for one in told.values()),
        cells=runs,
        rows=rows,
        pays=tuple(_pays(rows, policy, load) for policy, load in product(others, loads)),
    )


def _tasks(
    setup: Setup, told: Mapping[str, Setup], others: Sequence[str], loads: Sequence[float | None]
) -> Iterator[Task]:
    """The reference at every load and seed, then the others with every channel, too."""
    seeds = range(setup.seeds)
    for load, seed in product(loads, seeds):
        yield Task(setup, setup.reference, load, seed)
    for with_channel, load, policy, seed in product(told.values(), loads, others, seeds):
        yield Task(with_channel, policy, load, seed)


def _pays(rows: Sequence[Row], policy: str, load: float | None) -> Pays:
    paying = (row.channel for row in rows if (row.policy, row.load) == (policy, load) and row.pays)
    return Pays(str(policy), load, tuple(paying))


def _row(runs: Sequence[Run], reference: str, policy: str, load: float | None, channel: str) -> Row:
    ours = [run for run in runs if (run.policy, run.channel, run.load) == (policy, channel, load)]
    theirs = [run for run in runs if (run.policy, run.channel, run.load) == (reference, None, load)]
    effects = {name: _effect(_values(ours, name), _values(theirs, name)) for name in METRICS}
    return Row(str(policy), load, channel, **effects)


def _values(runs: Sequence[Run], metric: str) -> list[float]:
    found = [getattr(run, metric) for run in runs]
    return [math.nan if value is None else value for value in found]


def _effect(ours: Sequence[float], theirs: Sequence[float]) -> Effect:
    difference, base = paired_interval(ours, theirs), mean_interval(theirs).mean
    return Effect(mean_interval(ours), difference, finite(difference.mean / base) if base else None)


def _errors(setup: Setup, load: float | None, policy: str) -> ChannelErrors:
    found = [errors(setup.requests_for(policy, load, seed)) for seed in range(setup.seeds)]
    mae, tau = (mean_interval([getattr(e, name) for e in found]).mean for name in ("mae", "tau"))
    return ChannelErrors(setup.source.prediction, finite(mae), finite(tau))
