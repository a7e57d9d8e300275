"""Which of the settings to take, what each carries, and from which load on another one is better."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from agents.device.figures import figures
from agents.evaluation.statistics import Interval, mean_interval, paired_interval
from agents.studies.advice.search import Found, Question, goodput_at, trial_mean
from agents.studies.advice.trials import Trial
from agents.work.provenance import versions
from agents.work.records import as_file

FORMAT = "llmsched-advice/1"
CLOSE = 0.005
"""Share of the best value up to which another one counts as equal; the plainest setting is then taken."""
WORTH = 0.01
"""Share of the goodput that another setting must add at a load to be named for it."""


@dataclass(frozen=True)
class Row:
    """A setting of vLLM, or another policy."""

    policy: str
    is_setting: bool
    """Whether it is one of vLLM's."""
    carries: Interval
    """The load with the largest goodput of those that are met, requests/s (`agents.studies.advice.trials`); 0: none."""
    carries_by_seed: tuple[float, ...]
    attainment: float
    """Share of the requests within the SLO at that load, mean over the seeds; 0 where none is met."""
    goodput: Interval
    """At that load, requests/s within the SLO over the whole run, the end of it included in which nobody arrives."""
    goodput_by_seed: tuple[float, ...]
    gain: Interval
    """That beyond the advised setting's, seed by seed."""
    at_rate: Interval | None
    """Goodput at the load that was asked about, requests/s; None: none was."""
    at_rates: tuple[Interval, ...]
    """Goodput at each of the common loads, requests/s."""


@dataclass(frozen=True)
class Regime:
    """Loads at which the same setting, and the same policy, is best."""

    low: float
    """Lowest common load of it, requests/s."""
    high: float
    """Highest."""
    setting: str
    """Best setting of vLLM there: the advised one unless another adds more than WORTH."""
    setting_gain: Interval
    """Its goodput beyond the advised one's at the highest of these loads, requests/s."""
    policy: str
    """Best of all policies in the same way."""
    policy_gain: Interval


@dataclass(frozen=True)
class GridCheck:
    """The advised setting among all, each served with what those of the last round were served with."""

    settings: int
    best: str
    """The setting with the largest goodput at a load that is met."""
    best_goodput: float
    """That, requests/s."""
    advised_goodput: float
    """The advised one's."""
    share: float
    """How far that is from the best, as a share of it; <= 0."""


@dataclass(frozen=True)
class Advice:
    """What to do; `to_dict` is what advice.json holds."""

    config: dict[str, Any]
    """The question as plain data."""
    config_hash: str
    versions: dict[str, str]
    notes: tuple[str, ...]
    """Policies that were trained for something else; sizes beyond what the device was measured for."""
    traffic: str
    """Where the requests come from: what was read and what was assumed, of the first trace."""
    rate: float | None
    """Requests/s that come; None: not known."""
    bound: float
    """Requests/s that no scheduler sustains."""
    rates: tuple[float, ...]
    """Loads at which everybody was served, requests/s."""
    tried: int
    """Settings of the first round."""
    advised: str
    """The setting, as a policy."""
    options: dict[str, str]
    """The setting, by vLLM's names."""
    command: str
    """How vLLM is started with it."""
    rows: tuple[Row, ...]
    """The advised one first, then the other settings, then the other policies, each by goodput."""
    regimes: tuple[Regime, ...]
    """By load."""
    grid: GridCheck | None
    """How the advised setting stands among all of them; None: they were not all served in full."""

    @property
    def row(self) -> Row:
        """That of the advised setting."""
        return self.rows[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return as_file(self, FORMAT)


def judge(question: Question, found: Found) -> Advice:
    """Choose the setting, and compare everything else with it."""
    advised = choose(question, found)
    setting = question.settings[advised]
    rows = [_row(question, found, policy, advised) for policy in found.trials]
    rows.sort(key=lambda row: (row.policy != advised, not row.is_setting, -row.goodput.mean))
    setup = question.setup(tuple(found.trials), question.num_requests)
    return Advice(
        config=question.to_dict(),
        config_hash=question.digest(),
        versions=versions(),
        notes=(
            *setup.training_remarks(found.rates[0]),
            *_beyond(question, advised),
            *_too_short(question, rows[0].carries.mean),
        ),
        traffic=setup.source.requests(_shown_rate(question, found, rows[0]), 0).source,
        rate=question.rate,
        bound=question.bound,
        rates=found.rates,
        tried=found.tried,
        advised=advised,
        options=setting.options,
        command=setting.command,
        rows=tuple(rows),
        regimes=tuple(_regimes(question, found, advised)),
        grid=_grid_check(found, advised) if found.grid else None,
    )


def _shown_rate(question: Question, found: Found, advised: Row) -> float:
    """The load of the requests that the result describes, requests/s: that which comes, or what is carried."""
    return question.rate or float(f"{advised.carries.mean:.3g}") or found.rates[0]


def choose(question: Question, found: Found) -> str:
    """The setting to take: best at the load that is asked about, then at the one that it carries, then the plainest."""
    left = [policy for policy in found.trials if policy in question.settings]
    if question.rate is not None:
        left = _best(left, [goodput_at(found.trials[policy], question.rate) for policy in left])
    left = _best(left, [trial_mean(found.trials[policy]) for policy in left])
    return min(left, key=list(question.settings).index)


def _best(policies: Sequence[str], values: Sequence[float]) -> list[str]:
    """Those that are as good as the best."""
    least = (1.0 - CLOSE) * max(values)
    return [policy for policy, value in zip(policies, values, strict=True) if value >= least]


def _row(question: Question, found: Found, policy: str, advised: str) -> Row:
    own = found.trials[policy]
    goodputs, loads = [trial.goodput for trial in own], [trial.load for trial in own]
    kept = [(trial.carried.slo_attainment or 0.0) if trial.carried else 0.0 for trial in own]
    rate = question.rate
    return Row(
        policy=policy,
        is_setting=policy in question.settings,
        carries=mean_interval(loads),
        carries_by_seed=tuple(loads),
        attainment=float(np.mean(kept)),
        goodput=mean_interval(goodputs),
        goodput_by_seed=tuple(goodputs),
        gain=paired_interval(goodputs, [trial.goodput for trial in found.trials[advised]]),
        at_rate=None if rate is None else mean_interval(_goodputs(own, rate)),
        at_rates=tuple(mean_interval(_goodputs(own, one)) for one in found.rates),
    )


def _goodputs(trials: Sequence[Trial], rate: float) -> list[float]:
    """Goodput at a common load by seed, requests/s."""
    return [trial.at(rate).slo_goodput or 0.0 for trial in trials]


def _regimes(question: Question, found: Found, advised: str) -> Iterator[Regime]:
    """Runs of loads with the same answers."""
    everybody = list(found.trials)
    settings = [policy for policy in everybody if policy in question.settings]

    def answers(rate: float) -> tuple[str, str]:
        best = _worthwhile(found, settings, advised, rate)
        return best, _worthwhile(found, everybody, best, rate)

    for (setting, policy), run in groupby(found.rates, answers):
        loads = list(run)
        gains = [_gain(found, better, advised, loads[-1]) for better in (setting, policy)]
        yield Regime(loads[0], loads[-1], setting, gains[0], policy, gains[1])


def _grid_check(found: Found, advised: str) -> GridCheck:
    """Where the advised setting stands in the whole grid."""
    carried = {policy: trial_mean(trials) for policy, trials in found.grid.items()}
    best = max(carried, key=lambda policy: carried[policy])
    share = carried[advised] / carried[best] - 1.0 if carried[best] else 0.0
    return GridCheck(len(carried), best, carried[best], carried[advised], share)


def _worthwhile(found: Found, policies: Sequence[str], usual: str, rate: float) -> str:
    """The policy with the largest goodput at a load, if it is for sure worth another answer than the usual one."""
    best = max(policies, key=lambda policy: goodput_at(found.trials[policy], rate))
    gain = _gain(found, best, usual, rate)
    is_worth = gain.mean > WORTH * goodput_at(found.trials[usual], rate) and not gain.low <= 0.0
    return best if is_worth else usual


def _gain(found: Found, policy: str, other: str, rate: float) -> Interval:
    """Goodput of a policy beyond another's at a common load, requests/s."""
    return paired_interval(_goodputs(found.trials[policy], rate), _goodputs(found.trials[other], rate))


def _beyond(question: Question, advised: str) -> Iterator[str]:
    """A line where the advised batches are larger than any that the device was measured with."""
    measured = figures(question.profile).most_tokens
    if measured is not None and question.settings[advised].max_num_batched_tokens > measured:
        name = question.profile.name
        yield f"Batches of more than {measured} tokens are beyond what profile {name} was measured for."


def _too_short(question: Question, carried: float) -> Iterator[str]:
    """A line where more is carried than anybody sustains: the queue has had no time to grow."""
    if carried > question.bound:
        yield (
            f"{carried:.3g} requests/s is more than the bound of {question.bound:.3g}: with {question.num_requests} "
            "requests a run ends before its queue has grown; ask for more of them (--num-requests)."
        )
