"""What is left to win: slackfit with the best of many settings for each single trace, chosen after the fact.

No policy can know that setting beforehand, so what it saves is more than can be asked of one; but it is what the knobs
of slackfit, which the learned policies turn too, can do when they stand still. Told the true output lengths as well
(`clairvoyant`), it is what could be had by foresight. Neither is a proof: a policy that moves its knobs within a trace
may do better than any that stands still. A setting counts only where it keeps every deadline that slackfit as it is
keeps on the trace (p99 TBT), and 99 % of its goodput.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

import baselines
from agents.evaluation.points import Point
from agents.evaluation.standing import ByPolicy
from agents.evaluation.statistics import Interval, mean_interval, paired_interval
from agents.studies.score.judging import by_scenario
from agents.studies.score.records import PACE, Cell
from agents.studies.score.run import Contest
from agents.work.records import as_file
from engine.scenarios.suite import Suite
from engine.spec import write_spec

FORMAT = "llmsched-headroom/1"
KINDS = {"settings": ("slackfit",), "foresight": ("slackfit", "clairvoyant")}
"""What is chosen from after the fact, by the name of the field that says what it comes to."""
KEPT_GOODPUT = 0.99
"""Share of the goodput of PACE that a setting has to keep."""
LEAST_ROOM = 0.02
"""Where hindsight gains less than this share of slackfit's mean TTFT, there is no share of it to speak of."""
SEED = 15
"""Draws the settings that are tried."""


def settings_of(name: str, tries: int) -> list[str]:
    """So many settings of a baseline, drawn from the values that `llmsched tune` tries; the default comes first."""
    space: Mapping[str, Sequence[Any]] = baselines.POLICIES[name].space
    every = list(product(*space.values()))
    chosen = np.random.default_rng(SEED).choice(len(every), min(tries - 1, len(every)), replace=False)
    specs = [write_spec(name, dict(zip(space, every[k], strict=True))) for k in sorted(chosen.tolist())]
    return [name, *(spec for spec in specs if spec != name)]


@dataclass(frozen=True)
class Reach:
    """How far a policy comes in a scenario, over the seeds."""

    scenario: str
    policy: str
    rate: float
    """Requests/s."""
    base_ttft_ms: Interval
    """Mean TTFT of slackfit as it is."""
    settings_ttft_ms: Interval
    """That of the best setting of each trace."""
    foresight_ttft_ms: Interval
    """The same with the output lengths told."""
    ttft_ms: Interval
    """That of the policy."""
    gain_ms: Interval
    """What it saves against slackfit as it is, trace by trace."""
    of_settings: float | None
    """The gain over that of the best settings; None where these gain less than LEAST_ROOM."""
    of_foresight: float | None


@dataclass(frozen=True)
class Headroom:
    """What came of it; `to_dict` is what headroom.json holds."""

    config: dict[str, Any]
    config_hash: str
    suite: str
    seeds: int
    tries: int
    """Settings that were tried of slackfit, and again of clairvoyant."""
    rows: tuple[Reach, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return as_file(self, FORMAT)


@dataclass(frozen=True)
class Search:
    """Which policies are compared with what hindsight finds."""

    suite: Suite
    policies: tuple[str, ...]
    tries: int

    @property
    def contest(self) -> Contest:
        """All of them beside every setting."""
        tried = [spec for name in KINDS["foresight"] for spec in settings_of(name, self.tries)]
        return Contest(self.suite, (*self.policies, *(spec for spec in tried if spec not in self.policies)))

    def judge(self, cells: Sequence[Cell]) -> Headroom:
        """What the runs of the contest say."""
        found, contest = by_scenario(cells), self.contest
        rows = []
        for one in self.suite.scenarios:
            due = {tier.name: 1000.0 * tier.tbt_s for tier in one.tiers}
            best = {kind: _best(found[one.name], self._tried(kind), due) for kind in KINDS}
            rows += [_reach(one.name, one.rate, policy, found[one.name], best) for policy in self.policies]
        return Headroom(contest.to_dict(), contest.digest(), self.suite.name, self.suite.seeds, self.tries, tuple(rows))

    def _tried(self, kind: str) -> list[str]:
        return [spec for name in KINDS[kind] for spec in settings_of(name, self.tries)]


def _best(found: ByPolicy, specs: Sequence[str], due: Mapping[str, float]) -> list[float]:
    """The shortest mean TTFT (ms) of any setting on each trace, of those that keep what slackfit as it is keeps."""
    return [
        min(_ttft(found[spec][seed]) for spec in specs if _keeps(found[spec][seed], base, due))
        for seed, base in enumerate(found[PACE])
    ]


def _ttft(point: Point) -> float:
    return np.inf if point.mean_ttft_ms is None else point.mean_ttft_ms


def _keeps(point: Point, base: Point, due: Mapping[str, float]) -> bool:
    """Whether a run is in time wherever another one is, with (nearly) as much goodput."""
    in_time = all(_in_time(point, tier, limit) or not _in_time(base, tier, limit) for tier, limit in due.items())
    return in_time and (point.slo_goodput or 0.0) >= KEPT_GOODPUT * (base.slo_goodput or 0.0)


def _in_time(point: Point, tier: str, limit_ms: float) -> bool:
    gap = point.p99_itl_ms[tier]
    return gap is None or gap <= limit_ms


def _reach(scenario: str, rate: float, policy: str, found: ByPolicy, best: Mapping[str, list[float]]) -> Reach:
    base, own = ([_ttft(point) for point in found[name]] for name in (PACE, policy))
    gain = paired_interval(base, own)
    return Reach(
        scenario=scenario,
        policy=policy,
        rate=rate,
        base_ttft_ms=mean_interval(base),
        settings_ttft_ms=mean_interval(best["settings"]),
        foresight_ttft_ms=mean_interval(best["foresight"]),
        ttft_ms=mean_interval(own),
        gain_ms=gain,
        of_settings=_share(gain.mean, base, best["settings"]),
        of_foresight=_share(gain.mean, base, best["foresight"]),
    )


def _share(gain: float, base: Sequence[float], best: Sequence[float]) -> float | None:
    room = paired_interval(base, best).mean
    return gain / room if room > LEAST_ROOM * mean_interval(base).mean else None
