"""The runs of a suite: every scenario and seed with every policy, on the same requests; finished ones are kept."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from agents.evaluation.setup import Setup, run_cells
from agents.source import Source
from agents.work.cells import Keyed, kept_cells
from agents.work.progress import OnProgress, unseen
from engine.scenarios.scenario import Scenario
from engine.scenarios.suite import Suite


class Placed(Protocol):
    """A piece of work in a setup."""

    @property
    def setup(self) -> Setup:
        """Who serves what on which server."""


Cell = TypeVar("Cell", bound=Keyed)
Work = TypeVar("Work", bound=Placed)


class Task(NamedTuple):
    """What a cell is measured of."""

    setup: Setup
    scenario: str
    rate: float
    """Requests/s."""
    policy: str
    seed: int


def source_in(scenario: Scenario, suite: Suite) -> Source:
    """Where the requests of a scenario come from, as many as the suite says."""
    return Source(workload=scenario.workload, num_requests=suite.requests, tiers=scenario.tiers)


def setup_in(scenario: Scenario, suite: Suite, policies: tuple[Any, ...]) -> Setup:
    """The policies in a scenario, which need not be one of the suite's own; seeds and requests are the suite's."""
    return Setup(
        policies=policies,
        source=source_in(scenario, suite),
        seeds=suite.seeds,
        reference=policies[0],
        profile=scenario.model,
        config=scenario.engine,
    )


def config_of(suite: Suite, setups: Mapping[str, Setup]) -> dict[str, Any]:
    """JSON form of runs: the suite, the policies, then what each scenario comes to.

    Args:
        suite: the scenarios.
        setups: one for each of them, by its name, with the same policies.
    """
    places = [{"rate": one.rate} | setups[one.name].to_dict() for one in suite.scenarios]
    common = {"policies": places[0]["policies"], "seeds": suite.seeds, "report": places[0]["report"]}
    own = ("rate", "source", "profile", "engine", "tiers")
    return {"suite": suite.to_dict(), **common, "worlds": [{key: one[key] for key in own} for one in places]}


@dataclass(frozen=True)
class RunOptions:
    """How runs are made and kept: nothing that the result depends on."""

    workers: int = 1
    """Processes."""
    folder: Path | None = None
    """Keep finished runs in cells.jsonl there."""
    resume: bool = False
    """Take what this file already has."""
    progress: OnProgress = unseen
    """Called after each run."""


HERE = RunOptions()
"""In this process, nothing kept."""


def serve_all(
    tasks: Mapping[Hashable, Work], function: Callable[[Work], Cell], kind: type[Cell], digest: str, how: RunOptions
) -> list[Cell]:
    """Run every task that is not finished already.

    Args:
        tasks: every run, by the key of its cell.
        function: module-level function of one task, gives its cell.
        kind: the record of a cell.
        digest: the configuration that the cells belong to.
        how: where runs are made and kept.

    Returns:
        The cells in the order of the tasks.

    Raises:
        InputError: bad input, or kept runs of another configuration.
        PolicyError: a policy broke the rules.
    """
    setups = list({id(task.setup): task.setup for task in tasks.values()}.values())
    for setup in setups:
        setup.check(None)
    with kept_cells(how.folder and how.folder / "cells.jsonl", digest, kind, how.resume) as file:
        on_cell = partial(how.progress, "runs")
        return run_cells(setups[0], function, tasks, file, workers=how.workers, on_cell=on_cell)
