"""What a comparison of settings consists of, as records; their fields are the keys of compare.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from agents.evaluation.statistics import Interval
from agents.studies.referee.variants import Variant
from agents.work.records import as_file

FORMAT = "llmsched-compare/1"


class Measure(NamedTuple):
    """A number of a run, and how that of one setting is compared with that of another."""

    key: str
    """In a report (`engine.runs.report.Report.to_dict`)."""
    title: str
    change: Literal["ratio", "difference"]
    """``ratio``: what is left of it, or more of it, less 1; ``difference``: so much more."""
    scale: float = 1.0
    """Of a value or a difference, as tables show it."""
    digits: int = 1
    """Behind the point, of values."""
    is_good: bool = False
    """Whether more is better."""


MEASURES = (
    Measure("slo_attainment", "SLO met, %", "difference", 100.0, is_good=True),
    Measure("median_ttft_ms", "TTFT median, s", "ratio", 0.001, 3),
    Measure("p99_ttft_ms", "TTFT p99, s", "ratio", 0.001, 2),
    Measure("median_tpot_ms", "TPOT median, ms", "ratio"),
    Measure("p99_itl_ms", "TBT p99, ms", "ratio", digits=0),
    Measure("mean_e2el_ms", "E2E mean, s", "ratio", 0.001, 2),
    Measure("output_throughput", "output tokens/s", "ratio", digits=0, is_good=True),
    Measure("evictions", "evictions", "difference"),
)
"""What is compared."""
DECISIVE = MEASURES[0]
"""What a scenario is counted by, as better or worse."""
KEPT = (
    *(measure.key for measure in MEASURES),
    *("mean_ttft_ms", "slo_goodput", "kept_up_share", "max_wait_s", "kv_use", "recomputed_tokens", "reused_tokens"),
    *("completed", "dropped", "iterations", "duration"),
)
"""Numbers that are kept of each run."""


@dataclass(frozen=True)
class Cell:
    """One run: a variant in a scenario with one seed."""

    scenario: str
    variant: str
    seed: int
    trace: str
    """Digest of the requests."""
    numbers: dict[str, float | None]
    """Of its report, those of KEPT."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells them apart."""
        return self.scenario, self.variant, self.seed


@dataclass(frozen=True)
class Change:
    """A measure of a variant against that of the baseline, seed by seed on the same requests."""

    change: Interval
    judgement: str
    """better, worse or no clear difference (`agents.evaluation.result.JUDGEMENTS`)."""


@dataclass(frozen=True)
class Row:
    """A variant in a scenario, over the seeds."""

    scenario: str
    rate: float
    """Requests/s."""
    variant: str
    values: dict[str, Interval]
    """By key of the measure."""
    changes: dict[str, Change]
    """Empty for the baseline."""


@dataclass(frozen=True)
class Total:
    """A variant over all scenarios."""

    variant: str
    changes: dict[str, Change]
    """Of each seed the mean over the scenarios, of ratios the geometric one; empty for the baseline."""
    better: tuple[str, ...]
    """Scenarios in which clearly more requests met their deadlines ..."""
    worse: tuple[str, ...]
    """... and clearly fewer."""


@dataclass(frozen=True)
class OptionComparison:
    """What came of it; `to_dict` is what compare.json holds."""

    config: dict[str, Any]
    """Suite, variants and seeds as plain data."""
    config_hash: str
    policy: str
    """Spec of the policy whose settings are compared."""
    options: dict[str, tuple[str, ...]]
    """Values by name."""
    baseline: str
    """Name of the variant that the others are compared with."""
    suite: str
    seeds: int
    requests: int
    versions: dict[str, str]
    variants: tuple[Variant, ...]
    suite_hash: str
    """Digest of requests, devices and servers: tables with equal ones can be compared."""
    frozen: int
    """Traces that the suite knows and that are as it knows them."""
    changed: tuple[str, ...]
    """Those that it knows otherwise, scenario and seed."""
    rows: tuple[Row, ...]
    """By scenario and variant."""
    totals: tuple[Total, ...]
    """By variant."""
    cells: tuple[Cell, ...]
    """Every run."""

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names of the scenarios."""
        return tuple(dict.fromkeys(row.scenario for row in self.rows))

    @property
    def policies(self) -> tuple[str, ...]:
        """What was compared, each as policy and setting."""
        return tuple(f"{self.policy}: {variant.name}" for variant in self.variants)

    @property
    def num_traces(self) -> int:
        """Requests that were served, one trace for each scenario and seed."""
        return len(self.scenarios) * self.seeds

    def of(self, scenario: str) -> Sequence[Row]:
        """The rows of one scenario."""
        return [row for row in self.rows if row.scenario == scenario]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return as_file(self, FORMAT)
