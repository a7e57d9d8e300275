"""Learning curves: what trainings were worth on the way, on held-out traces and over suites of scenarios."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agents.evaluation.suite_runs import HERE, RunOptions
from agents.learning.ppo.train_config import TrainConfig
from agents.studies.score.run import Contest, run_contest
from engine.errors import InputError
from engine.scenarios.suite import Suite

_SEED = re.compile(r"-\d+$")
_TTFT = "relative/mean_ttft/"
"""How TensorBoard's tags of the trainer for queues begin that have the logarithm of the ratio to the judge."""


@dataclass(frozen=True)
class Line:
    """One training in one panel."""

    run: str
    """Name of its folder."""
    decisions: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def kind(self) -> str:
        """The name without the seed at its end: lines of one kind are seeds of one recipe."""
        return _SEED.sub("", self.run)


@dataclass(frozen=True)
class Panel:
    """What is shown of all trainings against the decisions that they had made."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    levels: Mapping[str, float]
    """The same of policies that do not learn here."""


def heldout_panels(runs: Sequence[Path]) -> list[Panel]:
    """Mean TTFT against the judge's on the held-out traces of each training, %, a panel for each world.

    Raises:
        InputError: a folder without the evaluations of a training by the recipe for queues.
    """
    judge = TrainConfig.of_run(runs[0]).queue.judge
    found = {run.name: _evaluations(run) for run in runs}
    worlds = list(dict.fromkeys(world for by_world in found.values() for world in by_world))
    return [
        Panel(
            title=f"{world} requests/s" if world.replace(".", "").isdecimal() else world,
            unit=f"mean TTFT against {judge}, %",
            lines=tuple(replace(by_world[world], run=run) for run, by_world in found.items() if world in by_world),
            levels={judge: 0.0},
        )
        for world in worlds
    ]


def _evaluations(run: Path) -> dict[str, Line]:
    """Mean TTFT against the judge's by world, %, from TensorBoard's files."""
    import numpy as np
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        if tag.startswith(_TTFT):
            points = events.Scalars(tag)
            values = tuple(100.0 * float(np.expm1(point.value)) for point in points)
            found[tag.removeprefix(_TTFT)] = Line(run.name, tuple(point.step for point in points), values)
    if not found:
        raise InputError(f"{run}: expected TensorBoard's files with {_TTFT}..., found none")
    return found


def save_past(runs: Sequence[Path], folder: Path) -> dict[Path, dict[int, str]]:
    """Write the policy of each checkpoint of each training as a bundle: run -> decisions -> its folder.

    Raises:
        InputError: a training without checkpoints of the trainer for queues, or a place that cannot be written.
    """
    from agents.learning.ppo.queues.past import past_policies

    found: dict[Path, dict[int, str]] = {}
    for run in runs:
        found[run] = {}
        for bundle in past_policies(run):
            place = folder / run.name / f"{bundle.timesteps}"
            bundle.save(place)
            found[run][bundle.timesteps] = str(place)
    return found


def suite_panel(
    suite: Suite, past: Mapping[Path, Mapping[int, str]], others: Sequence[str], how: RunOptions = HERE
) -> Panel:
    """Scores over a suite of what trainings were on the way.

    Args:
        suite: the scenarios.
        past: run -> decisions -> policy.
        others: policies that do not learn here.
        how: where runs are made and kept.

    Raises:
        InputError: bad input, or kept runs of another configuration.
    """
    policies = [*others, *(policy for by_step in past.values() for policy in by_step.values())]
    scores = {row.policy: row.score.mean for row in run_contest(Contest(suite, tuple(policies)), how).totals}
    lines = [
        Line(run.name, tuple(by_step), tuple(scores[policy] for policy in by_step.values()))
        for run, by_step in past.items()
    ]
    return Panel(f"suite {Path(suite.name).stem}", "score", tuple(lines), {name: scores[name] for name in others})
