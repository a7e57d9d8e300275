"""Head to head: policies x loads x seeds, every policy on the same arrivals, with intervals.

A *cell* is one policy at one load with one seed. Cells are independent and deterministic, so the result does not depend
on the number of worker processes; finished ones are kept in ``cells.jsonl`` while the rest runs.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation.arrivals import arrivals_note, by_load
from agents.evaluation.behaviour import behave
from agents.evaluation.comparison import paired, summary
from agents.evaluation.looks import Behaviour, Look, Windows
from agents.evaluation.result import CDF_SHARES, Cell, Comparison, Contestant, Trace
from agents.evaluation.setup import Setup, requests_of, run_cells
from agents.evaluation.window import look
from agents.policies import fingerprint
from agents.work.cells import kept_cells
from agents.work.processes import run_in_order
from agents.work.progress import OnProgress, unseen
from agents.work.provenance import versions
from engine.device.bounds import bound_note
from engine.device.latency import LatencyModel
from engine.errors import InputError, expect
from engine.runs.metrics import ttft_samples


@dataclass(frozen=True, kw_only=True)
class Evaluation(Setup):
    """What to compare, and on what."""

    loads: tuple[float | None, ...]
    """Arrival rates (requests/s); None: the recorded times of the trace."""

    def __post_init__(self) -> None:
        """Check what the parts do not check themselves.

        Raises:
            InputError: no seed, a load twice, or a reference that is not among the policies.
        """
        super().__post_init__()
        expect(isinstance(self.loads, tuple | list) and bool(self.loads), "loads", "a tuple of rates", self.loads)
        if len(set(self.loads)) < len(self.loads):
            raise InputError(f"rates: expected each load once, got {self.loads}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return super().to_dict() | {"loads": list(self.loads)}


@dataclass(frozen=True)
class Task:
    """One policy at one load with one seed."""

    evaluation: Evaluation
    policy: str
    load: float | None
    seed: int

    @property
    def key(self) -> tuple[str, float | None, int]:
        """That of its cell."""
        return self.policy, self.load, self.seed


def run_task(task: Task) -> Cell:
    """Simulate one cell.

    Raises:
        InputError: the trace does not fit the server.
        PolicyError: the policy broke the rules.
    """
    record, report = task.evaluation.serve(*task.key)
    requests = requests_of(task.evaluation.source, task.load, task.seed)
    ttft = ttft_samples(record, warmup_s=task.evaluation.warmup_s)
    quantiles = np.quantile(ttft, CDF_SHARES) * 1000.0 if len(ttft) else np.array([])
    return Cell(
        policy=task.policy,
        load=task.load,
        seed=task.seed,
        trace=requests.digest(),
        rate=requests.rate if math.isfinite(requests.rate) and not requests.loop else None,
        source=requests.source,
        prediction=record.requests.forecast.channel,
        longest_request=int((requests.prompt + requests.output).max()),
        report=report.to_dict(),
        ttft_quantiles_ms=tuple(quantiles.round(3).tolist()),
    )


def evaluate(
    evaluation: Evaluation,
    *,
    workers: int = 1,
    cells_path: Path | None = None,
    resume: bool = False,
    with_windows: bool = True,
    with_behaviour: bool | None = None,
    progress: OnProgress = unseen,
) -> Comparison:
    """Run every cell and put the comparison together.

    Args:
        evaluation: what to run.
        workers: processes; the result is the same for any number.
        cells_path: keep finished cells in this jsonl file, so that an interrupted run can be resumed.
        resume: take the cells that the file already has.
        with_windows: also look at a minute of each policy step by step: timeline, time per decision.
        with_behaviour: also watch some minutes of each policy at each load; None: if `with_windows`.
        progress: called at each piece of each stage of the work; after each cell with ("cells", finished, all).

    Returns:
        The result. Times of decisions are in `windows`; everything else is the same whenever and wherever it is run.

    Raises:
        InputError: bad input, or a cells file of another configuration.
        PolicyError: a policy broke the rules.
    """
    evaluation.check(evaluation.loads[0])
    tasks = {task.key: task for task in _tasks(evaluation)}
    with kept_cells(cells_path, evaluation.digest(), Cell, resume) as file:
        on_cell = partial(progress, "cells")
        cells = run_cells(evaluation, run_task, tasks, file, workers=workers, on_cell=on_cell)
    traces = _traces(cells)
    windows = _windows(evaluation, progress) if with_windows else None
    watched = with_windows if with_behaviour is None else with_behaviour
    behaviour = _behaviour(evaluation, workers, progress) if watched else ()
    bound, remarks = evaluation.bound(evaluation.loads[0]), evaluation.training_remarks(evaluation.loads[0])
    return Comparison(
        config=evaluation.to_dict(),
        config_hash=evaluation.digest(),
        reference=str(evaluation.reference),
        bound=bound,
        versions=versions(),
        policies=tuple(describe(evaluation, label) for label in evaluation.policies),
        traces=traces,
        cells=tuple(cells),
        summary=summary(evaluation.labels, evaluation.loads, cells),
        paired=paired(evaluation.labels, evaluation.loads, cells, str(evaluation.reference)),
        windows=windows,
        behaviour=behaviour,
        notes=(*remarks, *_notes(evaluation, traces, bound)),
        warnings=tuple(validity_warnings(evaluation.profile, cells, windows)),
    )


def _tasks(evaluation: Evaluation) -> Iterator[Task]:
    """The cells of a comparison, in the order in which it lists them."""
    for load in evaluation.loads:
        for seed in range(evaluation.seeds):
            for policy in evaluation.policies:
                yield Task(evaluation, policy, load, seed)


def describe(evaluation: Evaluation, label: str) -> Contestant:
    """What a report says about a policy."""
    policy = evaluation.policy(label)
    parameters = {f.name: getattr(policy, f.name) for f in fields(policy)}
    return Contestant(
        label=str(label),
        name=policy.name,
        paper=policy.paper,
        knows=policy.knows,
        eviction=policy.eviction,
        evidence=policy.evidence,
        parameters={k: v for k, v in parameters.items() if isinstance(v, bool | int | float | str)},
        fingerprint=fingerprint(label),
    )


def _traces(cells: Sequence[Cell]) -> tuple[Trace, ...]:
    """One for each load and seed, checked to be common to all policies."""
    found: dict[tuple[float | None, int], Trace] = {}
    for cell in cells:
        trace = Trace.of(cell)
        if found.setdefault((cell.load, cell.seed), trace) != trace:
            raise AssertionError(f"policies met different traces at load {cell.load}, seed {cell.seed}")
    return tuple(found.values())


def _windows(evaluation: Evaluation, progress: OnProgress) -> Windows:
    load, looks = evaluation.loads[len(evaluation.loads) // 2], {}
    for done, label in enumerate(evaluation.policies):
        progress("a minute of each policy", done, len(evaluation.policies))
        requests = evaluation.requests_for(label, load, 0)
        looks[str(label)] = look(evaluation.policy(label), requests, evaluation.profile, evaluation.config)
    return Windows(load, 0, looks)


def _watch(task: Task) -> Behaviour:
    evaluation = task.evaluation
    policy, requests = evaluation.policy(task.policy), evaluation.requests_for(*task.key)
    seen = behave(policy, requests, evaluation.profile, evaluation.config, task.load)
    return replace(seen, policy=str(task.policy))


def _behaviour(evaluation: Evaluation, workers: int, progress: OnProgress) -> tuple[Behaviour, ...]:
    tasks = [Task(evaluation, policy, load, 0) for policy in evaluation.policies for load in evaluation.loads]
    return run_in_order(_watch, tasks, workers, partial(progress, "behaviour"))


def _notes(evaluation: Evaluation, traces: Sequence[Trace], bound: float | None) -> list[str]:
    notes = [evaluation.source.seed_note]
    if came := arrivals_note(by_load((trace.load, trace.rate) for trace in traces)):
        notes.append(came)
    notes.append(bound_note(bound))
    if evaluation.seeds == 1:
        notes.append("One seed: there are no intervals; run more seeds before believing a difference.")
    if evaluation.warmup_s:
        notes.append(f"Requests that arrive in the first {evaluation.warmup_s:g} s are not counted.")
    if math.isfinite(evaluation.horizon_s):
        notes.append(f"Stopped at {evaluation.horizon_s:g} s; what was not served then counts as unfinished.")
    else:
        notes.append("Every run goes on until all requests are served; its end is a drain without arrivals.")
    return notes


UNMEASURED_SHARE = 0.01
"""Of the prompt tokens, in chunks that a profile does not know: a smaller share goes without a word."""


def validity_warnings(profile: LatencyModel, cells: Sequence[Cell], windows: Windows | None) -> Iterator[str]:
    """Where the runs left the range in which the profile holds."""
    validity = profile.provenance.get("validity", {})
    if context := validity.get("context_tokens"):
        longest = max(cell.longest_request for cell in cells)
        if longest > context[1]:
            yield f"requests of up to {longest} tokens; profile {profile.name} holds to {context[1]}"
    looks = windows.policies.items() if windows else ()
    for name in ("tokens", "requests"):
        limits = validity.get(name) or (0, math.inf)
        for policy, seen in looks:
            largest = getattr(seen, f"largest_batch_{name}")
            if largest > limits[1]:
                yield f"{policy}: batches of up to {largest} {name}; profile {profile.name} holds to {limits[1]}"
    if "chunks_behind" in validity:
        yield from _chunk_warnings(profile.name, validity["chunks_behind"], looks)


def _chunk_warnings(profile: str, known: tuple[float, float], looks: Iterable[tuple[str, Look]]) -> Iterator[str]:
    """Policies whose prompts run in chunks that were not measured behind such contexts."""
    least, context = known
    for policy, seen in looks:
        if seen.unmeasured_share > UNMEASURED_SHARE:
            share = f"{seen.unmeasured_share:.0%} of the prompt tokens in chunks of fewer than {least:g}"
            yield f"{policy}: {share} behind more than {context:g}; profile {profile} is too fast there"
