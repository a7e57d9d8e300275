"""What a score over a suite consists of, as records; their fields are the keys of score.json."""

from dataclasses import dataclass
from typing import Any

from agents.evaluation import standing
from agents.evaluation.points import Point
from agents.evaluation.statistics import Interval
from agents.work.records import as_file

FORMAT = "llmsched-score/1"
REFERENCES = ("sarathi", "slai", "vllm_v1", "slackfit")
"""Always run, so that a score is the same whoever else is scored: the best of them is 100."""
KEEPERS = ("slai", "slackfit")
"""A deadline that one of them keeps is asked of every policy."""
PACE = "slackfit"
"""The policy whose mean TTFT is asked of every other one, below saturation ..."""
SLOWER = 0.05
"""... but for this share."""
MOST_TTFT = 4.0
"""A mean TTFT counts as at most so many times as short as the best reference's."""


@dataclass(frozen=True)
class Cell:
    """One run: a policy in a scenario with one seed."""

    scenario: str
    policy: str
    seed: int
    point: Point

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells them apart."""
        return self.scenario, self.policy, self.seed


@dataclass(frozen=True)
class World:
    """A scenario and what it asks for."""

    scenario: str
    text: str
    """The scenario as it is written."""
    rate: float
    """Requests/s."""
    deadlines: dict[str, float]
    """TBT deadline of each tier, s."""
    kept: tuple[str, ...]
    """Tiers whose deadline SLAI or slackfit keeps (p99 TBT, mean over the seeds): it is asked of every policy."""
    saturated: bool
    """Whether no reference meets the sound criterion with more than half of the seeds: mean TTFT is then that of a
    queue, and only goodput and deadlines are compared."""
    notes: tuple[str, ...]
    """Policies that were trained for something else."""


@dataclass(frozen=True, kw_only=True)
class Standing(standing.Standing):
    """How a policy does in a scenario, over the seeds."""

    scenario: str
    score: Interval
    """100: as much goodput and as short a mean TTFT as the best reference has of each (`judging.score`)."""
    lost: tuple[str, ...]
    """Tiers of `World.kept` whose deadline it misses."""
    slower: float | None
    """Mean TTFT over that of PACE, less 1; None in a saturated scenario."""

    @property
    def is_slower(self) -> bool:
        """Whether it is more than SLOWER slower."""
        return self.slower is not None and self.slower > SLOWER


@dataclass(frozen=True)
class Total:
    """A policy over all scenarios."""

    policy: str
    score: Interval
    """Mean over the scenarios of each seed, over the seeds."""
    against: Interval
    """The same less that of PACE, seed by seed."""
    scenarios: int
    wins: int
    """Scenarios with more goodput than the best reference for sure ..."""
    loses: int
    """... and with less."""
    lost: tuple[str, ...]
    """Where it misses a deadline that SLAI or slackfit keeps: scenario and tier."""
    behind: tuple[str, ...]
    """Scenarios where it loses more than 1 % of the best reference's goodput."""
    slower: tuple[str, ...]
    """Scenarios below saturation where its mean TTFT is more than SLOWER above that of PACE."""


@dataclass(frozen=True)
class Score:
    """What came of it; `to_dict` is what score.json holds."""

    config: dict[str, Any]
    """Suite, policies and seeds as plain data."""
    config_hash: str
    suite: str
    seeds: int
    requests: int
    versions: dict[str, str]
    scored: tuple[str, ...]
    """The policies that were asked for; the references run beside them."""
    worlds: tuple[World, ...]
    skipped: tuple[str, ...]
    """Scenarios without a feasible policy."""
    standings: tuple[Standing, ...]
    """By scenario and policy."""
    totals: tuple[Total, ...]
    """By policy."""
    cells: tuple[Cell, ...]
    """Every run."""

    @property
    def policies(self) -> tuple[str, ...]:
        """What the policies are called."""
        return tuple(row.policy for row in self.totals)

    @property
    def deadlines(self) -> int:
        """Scenarios and tiers whose deadline is asked of every policy."""
        return sum(len(world.kept) for world in self.worlds)

    def of(self, scenario: str) -> list[Standing]:
        """The standings in one scenario."""
        return [row for row in self.standings if row.scenario == scenario]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return as_file(self, FORMAT)
