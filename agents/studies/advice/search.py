"""The best settings for some traffic, by successive halving: many on a short trace, the better ones on longer ones.

All settings of a round serve the same requests at the same loads. Those go on that carry most, and those with the
largest goodput at one of the loads, so that a setting which is best in overload only is not lost. Settings that served
every load alike to the last digit are one: the plainest of them goes on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation.points import Point
from agents.evaluation.setup import Setup, run_cells
from agents.source import Source
from agents.studies.advice.settings import Setting, default_setting, grid
from agents.studies.advice.trials import Pieces, Task, Trial, by_policy, pieces_of, run_trial
from agents.work.cells import CellFile, kept_cells
from agents.work.progress import OnProgress, unseen
from agents.work.provenance import config_hash
from engine.config import EngineConfig
from engine.device.latency import LatencyModel
from engine.errors import InputError

SHARES = (0.1, 0.35, 0.55, 0.75, 0.95)
"""Loads of the first rounds, as shares of what no scheduler sustains."""
FINAL_SHARES = tuple(round(0.1 * k, 1) for k in range(1, 12))
"""Loads of the last one."""


@dataclass(frozen=True)
class Round:
    """How settings are compared before it is decided who goes on."""

    length: float
    """Requests of a run, as a share of those of the last round."""
    seeds: int
    """Seeds, at most those of the last round."""
    keep: int
    """Settings that go on."""
    tolerance: float
    """Width of the last bracket around a limit, as a share of what no scheduler sustains."""


ROUNDS = (Round(0.25, 1, 40, 0.04), Round(0.5, 2, 14, 0.02), Round(1.0, 3, 5, 0.01))
FINAL_TOLERANCE = 0.005
"""Of the last round, which has all seeds."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Whose traffic is to be served on what."""

    source: Source
    """Where the requests come from; its tiers are the SLO."""
    profile: LatencyModel
    """Seconds of an iteration."""
    config: EngineConfig
    """Limits of the server; max_num_seqs is the largest that is tried."""
    rate: float | None
    """Requests/s that come; None: not known."""
    gpu: str
    """Class of GPUs, for vLLM's defaults."""
    others: tuple[str, ...]
    """Policies beside vLLM's."""
    seeds: int
    """Traces of the last round."""
    num_requests: int
    """Requests of each."""

    def __post_init__(self) -> None:
        """Check what the parts do not check themselves.

        Raises:
            InputError: a closed loop, or a profile on which requests take no time.
        """
        if loop := self.source.closed_loop:
            raise InputError(f"advise: expected an open loop, in which rates can be set; got {loop}")
        if not self.bound < math.inf:
            raise InputError(f"profile {self.profile.name!r}: expected one on which requests take time")

    @cached_property
    def bound(self) -> float:
        """Requests/s that no scheduler sustains; inf: there is no such bound."""
        return self.setup(self.policies, self.num_requests).bound(self.rate or 1.0) or math.inf

    @cached_property
    def policies(self) -> tuple[str, ...]:
        """VLLM as it is without options, and the others."""
        return (default_setting(self.gpu).spec, *self.others)

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """What is tried, by spec; the plainest first."""
        return {one.spec: one for one in (default_setting(self.gpu), *grid(self.config))}

    def setup(self, policies: Sequence[str], num_requests: int) -> Setup:
        """The server with these policies."""
        source = pieces_of(self.source, num_requests)
        return Setup(
            policies=tuple(policies),
            source=source,
            seeds=min(self.seeds, source.number) if isinstance(source, Pieces) else self.seeds,
            reference=policies[0],
            profile=self.profile,
            config=self.config,
        )

    def rates(self, shares: Sequence[float]) -> tuple[float, ...]:
        """The loads at these shares of the bound, and the one that is asked about."""
        asked = () if self.rate is None else (self.rate,)
        return tuple(sorted({*(float(f"{share * self.bound:.4g}") for share in shares), *asked}))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        setup = self.setup(self.policies, self.num_requests).to_dict()
        rounds = [asdict(one) for one in ROUNDS]
        return setup | {"rate": self.rate, "gpu": self.gpu, "settings": list(self.settings), "rounds": rounds}

    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the JSON form."""
        return config_hash(self.to_dict())


@dataclass(frozen=True)
class Found:
    """What the last round measured."""

    rates: tuple[float, ...]
    """Loads at which everybody was served, requests/s."""
    trials: Mapping[str, Sequence[Trial]]
    """Of the settings that were left, of vLLM's defaults and of the other policies; the seeds of each in order."""
    tried: int
    """Settings of the first round."""
    grid: Mapping[str, Sequence[Trial]]
    """The same of every setting, where all were to be served in full; else nothing."""


@dataclass(frozen=True)
class Workplace:
    """Where trials are run and kept."""

    workers: int = 1
    """Processes; the result is the same for any number."""
    file: CellFile[Trial] | None = None
    """Keeps finished trials."""
    progress: OnProgress = unseen

    @property
    def names(self) -> tuple[str, ...]:
        """What the rounds are called, the whole grid last."""
        return (*(f"round {k + 1} of {len(ROUNDS) + 1}" for k in range(len(ROUNDS) + 1)), "whole grid")


def search(
    question: Question,
    *,
    whole_grid: bool = False,
    workers: int = 1,
    cells_path: Path | None = None,
    resume: bool = False,
    progress: OnProgress = unseen,
) -> Found:
    """Find the best settings.

    Args:
        question: whose traffic is to be served on what.
        whole_grid: also serve with every setting what those of the last round are served with, to compare.
        workers: processes; the result is the same for any number.
        cells_path: keep finished trials in this jsonl file.
        resume: take the trials that the file already has.
        progress: told how many trials of a round are done.

    Raises:
        InputError: bad input, no setting that meets the SLO, or kept trials of another configuration.
    """
    question.setup(question.policies, question.num_requests).check(question.rate or question.bound)
    with kept_cells(cells_path, question.digest(), Trial, resume) as file:
        place = Workplace(workers, file, progress)
        left = _halved(question, place)
        final = Round(1.0, question.seeds, len(left), FINAL_TOLERANCE)
        rates, everything = question.rates(FINAL_SHARES), tuple(question.settings)
        last = dict.fromkeys((*left, *question.policies))
        trials = run_round(question, place, len(ROUNDS), tuple(last), final, rates)
        stage = len(ROUNDS) + 1
        grid = run_round(question, place, stage, everything, final, rates, beyond=False) if whole_grid else {}
        return Found(rates, trials, len(everything), grid)


def _halved(question: Question, place: Workplace) -> list[str]:
    """The settings that are left for the last round."""
    left, rates = list(question.settings), question.rates(SHARES)
    for stage, one in enumerate(ROUNDS):
        trials = run_round(question, place, stage, left, one, rates)
        if stage == 0:
            _check_met(question, trials)
        left = survivors(trials, rates, one.keep)
    return left


def run_round(
    question: Question,
    place: Workplace,
    stage: int,
    policies: Sequence[str],
    one: Round,
    rates: tuple[float, ...],
    beyond: bool = True,
) -> dict[str, list[Trial]]:
    """The trials of each policy in a round, in the order of the policies (`Task` says what the rest means)."""
    number = max(2, round(one.length * question.num_requests))
    setups = {policy: question.setup((policy,), number) for policy in policies}
    tasks = {
        (stage, policy, seed): Task(setup, stage, seed, rates, one.tolerance * question.bound, beyond)
        for policy, setup in setups.items()
        for seed in range(min(one.seeds, setup.seeds))
    }
    # All settings of vLLM are one kernel: workers that inherit it need no more.
    kernels = tuple(dict.fromkeys((policies[0], *(spec for spec in policies if spec not in question.settings))))
    found = run_cells(
        question.setup(kernels, number),
        run_trial,
        tasks,
        place.file,
        workers=place.workers,
        on_cell=partial(place.progress, place.names[stage]),
    )
    trials = by_policy(found)
    return {policy: trials[policy] for policy in policies}


def survivors(trials: Mapping[str, Sequence[Trial]], rates: Sequence[float], keep: int) -> list[str]:
    """The settings that go on, in the order in which they came: half for what they carry, half for single loads."""
    distinct: dict[Any, str] = {}
    for policy, own in trials.items():
        distinct.setdefault(tuple(map(_looks, own)), policy)
    left = list(distinct.values())
    orders = [_best_first(left, [trial_mean(trials[policy]) for policy in left])]
    orders += [_best_first(left, [goodput_at(trials[policy], rate) for policy in left]) for rate in rates]
    chosen = set(orders[0][: (keep + 1) // 2])
    for place in range(len(left)):
        for order in orders[1:]:
            if len(chosen) < keep:
                chosen.add(order[place])
    return [policy for policy in left if policy in chosen]


def _looks(trial: Trial) -> tuple[tuple[float | None, ...], ...]:
    """What a trial shows of a setting; the same for settings that took the same decisions."""
    return tuple((p.rate, p.slo_goodput, p.mean_ttft_ms, p.median_ttft_ms, p.iterations) for p in trial.points)


def trial_mean(trials: Sequence[Trial]) -> float:
    """Goodput at the load that it carries, mean over its trials, requests/s."""
    return float(np.mean([trial.goodput for trial in trials]))


def goodput_at(trials: Sequence[Trial], rate: float) -> float:
    """Its mean goodput at a common load, requests/s."""
    return float(np.mean([trial.at(rate).slo_goodput or 0.0 for trial in trials]))


def _best_first(policies: Sequence[str], values: Sequence[float]) -> list[str]:
    """The policies by their values, the largest first, equal ones in their order."""
    return [policies[index] for index in np.argsort(-np.asarray(values), kind="stable")]


def _check_met(question: Question, trials: Mapping[str, Sequence[Trial]]) -> None:
    """Find an SLO that nothing meets.

    Raises:
        InputError: no setting meets it at any load, with the one that comes nearest at the lowest.
    """
    if any(trial.carried for own in trials.values() for trial in own):
        return
    lowest = question.rates(SHARES)[0]
    points = {policy: own[0].at(lowest) for policy, own in trials.items()}
    nearest = max(points, key=lambda policy: points[policy].slo_attainment or 0.0)
    slo = "; ".join(f"ttft {tier.ttft_s:g} s, tbt {tier.tbt_s:g} s" for tier in question.source.tiers)
    raise InputError(
        f"slo: no setting meets it ({slo}) on {question.profile.name}, not even at {lowest:g} requests/s; nearest: "
        f"{nearest} keeps it for {_kept(points[nearest])}"
    )


def _kept(point: Point) -> str:
    """How near a load comes to the SLO, in words."""
    tbt = max((ms for ms in point.p99_itl_ms.values() if ms is not None), default=None)
    times = {"p99 TTFT": point.p99_ttft_ms, "p99 TBT": tbt}
    texts = (f"{name} {ms / 1000.0:.3g} s" for name, ms in times.items() if ms is not None)
    return f"{100.0 * (point.slo_attainment or 0.0):.1f} % of the requests ({', '.join(texts)})"
