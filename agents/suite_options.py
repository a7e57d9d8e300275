"""Options that say over which scenarios something is run."""

from dataclasses import dataclass

from agents.options import RunsOptions, UpToMillion
from engine.ranges import Count
from engine.scenarios.suite import Suite, load_suite


@dataclass(frozen=True, kw_only=True)
class SuiteOptions(RunsOptions):
    """Options of the commands that run over a suite."""

    suite: str = "default"
    """Scenarios: default, devices, overload, heldout, referee, training, or a .yml file of yours
    (`engine.scenarios.suite`)."""
    seeds: UpToMillion | None = None
    """Seeds 0 ... N-1 (default: as many as the suite says); 3 are enough for a first look."""
    num_requests: Count | None = None
    """Requests of each run (default: as the suite says; with others results are not those of the frozen suite)."""

    def scenarios(self) -> Suite:
        """The suite.

        Raises:
            InputError: there is no such suite, or a number out of range.
        """
        return load_suite(self.suite, self.seeds, self.num_requests)
