"""`llmsched workloads`: where requests can come from."""

from dataclasses import dataclass

from agents.reporting.grid import Grid, Head, Part, show, terminal_console
from engine.demand.predictions import channel_descriptions
from engine.demand.trace_formats import FORMATS
from engine.demand.workload import length_descriptions, workload_descriptions
from engine.scenarios.suite import load_suite, suite_names


def _part(title: str, lines: dict[str, str]) -> Part:
    return Part([*lines.items()], title)


@dataclass(frozen=True)
class Command:
    """List the workloads, length models, prediction channels, trace formats and suites of scenarios."""

    def run(self) -> None:
        """Print them."""
        parts = [
            _part("Arrivals, as --workload name:key=value,...", workload_descriptions()),
            _part("Lengths, as --workload poisson:lengths=...", length_descriptions()),
            _part("Predictions of output lengths, as --prediction name:key=value,...", channel_descriptions()),
            _part("Trace files, as --trace FILE", {form.name: form.about for form in FORMATS}),
            _part("Suites of scenarios, as --suite NAME", {name: load_suite(name).about for name in suite_names()}),
        ]
        for part in parts:
            show(Grid((Head("name", "name"), Head("what it is", "prose")), [part]), terminal_console())
