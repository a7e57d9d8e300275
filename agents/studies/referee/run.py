"""Run the settings of an engine over a frozen suite, each seed on the same requests for all, and compare them."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from agents.evaluation.setup import Setup, requests_of
from agents.evaluation.suite_runs import HERE, RunOptions, config_of, serve_all, setup_in
from agents.studies.referee.judging import by_scenario, rows_of, totals_of
from agents.studies.referee.records import KEPT, Cell, OptionComparison
from agents.studies.referee.variants import Variant, baseline_of, variants_of
from agents.work.provenance import config_hash, versions
from agents.work.records import as_json
from engine.scenarios.suite import Suite


class Task(NamedTuple):
    """What a cell is measured of."""

    setup: Setup
    scenario: str
    rate: float
    """Requests/s."""
    variant: Variant
    seed: int


@dataclass(frozen=True)
class OptionStudy:
    """Which settings are compared on what."""

    suite: Suite
    """The scenarios; seeds and requests are its own."""
    policy: str
    """Spec of the policy."""
    options: Mapping[str, tuple[str, ...]]
    """Values by name; their combinations are compared."""
    against: str | None = None
    """Settings of the baseline; None: the first values."""

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """What is compared.

        Raises:
            InputError: an unknown policy or option, or a value that does not fit.
        """
        return variants_of(self.policy, self.options)

    @cached_property
    def baseline(self) -> str:
        """The name of the variant that the others are compared with.

        Raises:
            InputError: it is none of those.
        """
        return baseline_of(self.variants, self.options, self.against)

    @cached_property
    def setups(self) -> dict[tuple[str, str], Setup]:
        """One for each scenario and each server that a variant has, by name and settings."""
        servers: dict[str, list[Variant]] = {}
        for variant in self.variants:
            servers.setdefault(variant.server, []).append(variant)
        return {
            (one.name, server): setup_in(some[0].scenario(one), self.suite, _policies(some))
            for one in self.suite.scenarios
            for server, some in servers.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON form: suite and policies, what each scenario comes to, then the variants."""
        plain = {one.name: setup_in(one, self.suite, _policies(self.variants)) for one in self.suite.scenarios}
        return config_of(self.suite, plain) | {"variants": as_json(self.variants), "baseline": self.baseline}

    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the JSON form."""
        return config_hash(self.to_dict())

    def tasks(self) -> dict[Hashable, Task]:
        """Every run, by the key of its cell."""
        return {
            (one.name, variant.name, seed): Task(
                self.setups[one.name, variant.server], one.name, one.rate, variant, seed
            )
            for one in self.suite.scenarios
            for seed in range(self.suite.seeds)
            for variant in self.variants
        }


def _policies(variants: Sequence[Variant]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(variant.policy for variant in variants))


def run_task(task: Task) -> Cell:
    """Serve one scenario and seed with one variant."""
    report = task.setup.serve(task.variant.policy, task.rate, task.seed).report.to_dict()
    trace = requests_of(task.setup.source, task.rate, task.seed).digest()
    return Cell(task.scenario, task.variant.name, task.seed, trace, {key: report[key] for key in KEPT})


def compare_options(study: OptionStudy, how: RunOptions = HERE) -> OptionComparison:
    """Serve every scenario and seed with every variant, and compare.

    Raises:
        InputError: bad input, or kept runs of another configuration.
        PolicyError: a policy broke the rules.
    """
    baseline, config = study.baseline, study.to_dict()
    cells = serve_all(study.tasks(), run_task, Cell, study.digest(), how)
    runs = by_scenario(cells)
    rows = [row for one in study.suite.scenarios for row in rows_of(one.name, one.rate, runs[one.name], baseline)]
    traces = {(cell.scenario, cell.seed): cell.trace for cell in cells}
    changed = tuple(_unlike(study.suite, traces))
    known = sum(min(len(digests), study.suite.seeds) for digests in study.suite.traces.values())
    return OptionComparison(
        config=config,
        config_hash=study.digest(),
        policy=study.policy,
        options=dict(study.options),
        baseline=baseline,
        suite=study.suite.name,
        seeds=study.suite.seeds,
        requests=study.suite.requests,
        versions=versions(),
        variants=study.variants,
        suite_hash=config_hash({"worlds": config["worlds"], "traces": list(traces.values())}),
        frozen=known - len(changed),
        changed=changed,
        rows=tuple(rows),
        totals=tuple(totals_of(runs, rows, baseline)),
        cells=tuple(cells),
    )


def _unlike(suite: Suite, traces: Mapping[tuple[str, int], str]) -> Iterator[str]:
    """The traces that the suite knows otherwise."""
    for (scenario, seed), trace in traces.items():
        known = suite.traces.get(scenario, ())
        if seed < len(known) and known[seed] != trace:
            yield f"{scenario}, seed {seed}"
