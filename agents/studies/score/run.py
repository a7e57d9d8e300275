"""Run policies over a suite of scenarios, each seed on the same requests for all, and judge them."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from agents.evaluation.points import measure
from agents.evaluation.setup import Setup
from agents.evaluation.standing import ByPolicy
from agents.evaluation.suite_runs import HERE, RunOptions, Task, config_of, serve_all, setup_in
from agents.policies import labels_of
from agents.studies.score.judging import (
    by_scenario,
    is_feasible,
    is_saturated,
    kept_tiers,
    standings_of,
    totals_of,
)
from agents.studies.score.records import REFERENCES, Cell, Score, World
from agents.work.provenance import config_hash, versions
from engine.errors import InputError
from engine.scenarios.scenario import Scenario
from engine.scenarios.suite import Suite


@dataclass(frozen=True)
class Contest:
    """Who is scored on what."""

    suite: Suite
    """The scenarios; seeds and requests are its own."""
    policies: tuple[Any, ...]
    """Policies: specs, or objects of subclasses of `engine.Policy`. The references run beside them."""

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The policies, then those of the references that are not among them."""
        given = labels_of(self.policies)
        return (*given, *(name for name in REFERENCES if name not in given))

    @cached_property
    def setups(self) -> dict[str, Setup]:
        """One for each scenario, by its name."""
        return {one.name: setup_in(one, self.suite, self.labels) for one in self.suite.scenarios}

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the suite, then what each scenario comes to."""
        return config_of(self.suite, self.setups)

    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the JSON form."""
        return config_hash(self.to_dict())


def run_task(task: Task) -> Cell:
    """Serve one scenario and seed with one policy."""
    point = measure(task.setup, task.policy, task.seed, task.rate)
    return Cell(task.scenario, str(task.policy), task.seed, point)


def run_contest(contest: Contest, how: RunOptions = HERE) -> Score:
    """Serve every scenario and seed with every policy, and judge.

    Raises:
        InputError: bad input, kept runs of another configuration, or no scenario that anybody serves.
        PolicyError: a policy broke the rules.
    """
    return _judged(contest, serve_contest(contest, how))


def serve_contest(contest: Contest, how: RunOptions = HERE) -> list[Cell]:
    """Serve every scenario and seed with every policy.

    Raises:
        InputError: bad input, or kept runs of another configuration.
        PolicyError: a policy broke the rules.
    """
    return serve_all(_tasks(contest), run_task, Cell, contest.digest(), how)


def _tasks(contest: Contest) -> dict[Hashable, Task]:
    """Every run, by the key of its cell."""
    return {
        (one.name, str(policy), seed): Task(contest.setups[one.name], one.name, one.rate, policy, seed)
        for one in contest.suite.scenarios
        for seed in range(contest.suite.seeds)
        for policy in contest.labels
    }


def _judged(contest: Contest, cells: list[Cell]) -> Score:
    found = by_scenario(cells)
    runs = {name: runs for name, runs in found.items() if is_feasible(runs, contest.suite.overload)}
    if not runs:
        raise InputError(f"suite {contest.suite.name!r}: expected a scenario that some policy serves, got none")
    worlds = tuple(_world(contest, one, runs[one.name]) for one in contest.suite.scenarios if one.name in runs)
    standings = tuple(row for world in worlds for row in standings_of(world, runs[world.scenario]))
    return Score(
        config=contest.to_dict(),
        config_hash=contest.digest(),
        suite=contest.suite.name,
        seeds=contest.suite.seeds,
        requests=contest.suite.requests,
        versions=versions(),
        scored=tuple(map(str, labels_of(contest.policies))),
        worlds=worlds,
        skipped=tuple(name for name in found if name not in runs),
        standings=standings,
        totals=tuple(totals_of(runs, standings)),
        cells=tuple(cells),
    )


def _world(contest: Contest, scenario: Scenario, found: ByPolicy) -> World:
    deadlines = {tier.name: tier.tbt_s for tier in scenario.tiers}
    return World(
        scenario=scenario.name,
        text=scenario.text,
        rate=scenario.rate,
        deadlines=deadlines,
        kept=kept_tiers(found, deadlines),
        saturated=is_saturated(found),
        notes=tuple(contest.setups[scenario.name].training_remarks(None)),
    )
