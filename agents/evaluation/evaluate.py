"""Head to head: policies x loads x seeds, every policy on the same arrivals, with intervals.

A *cell* is one policy at one load with one seed. Cells are independent and deterministic, so the result does not depend
on the number of worker processes; finished ones are kept in ``cells.jsonl`` while the rest runs.
"""

import math
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation.arrivals import arrivals_note, by_load
from agents.evaluation.behaviour import behave
from agents.evaluation.comparison import paired, summary
from agents.evaluation.setup import OnCell, Setup, requests_of, run_cells
from agents.evaluation.window import look
from agents.policies import fingerprint
from agents.work.processes import run_tasks
from agents.work.progress import OnProgress, unseen
from agents.work.provenance import versions
from engine.device.bounds import bound_note
from engine.errors import InputError
from engine.runs.metrics import summarize, ttft_samples

FORMAT = "llmsched-evaluation/2"

CDF_SHARES = np.concatenate([np.linspace(0.0, 0.99, 100), [0.995, 0.999, 1.0]])
"""Shares at which the TTFT distribution of a cell is kept."""


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
        if len(set(self.loads)) < len(self.loads):
            raise InputError(f"rates: expected each load once, got {self.loads}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return super().to_dict() | {"loads": list(self.loads)}


@dataclass(frozen=True)
class Cell:
    """One policy at one load with one seed."""

    evaluation: Evaluation
    policy: str
    load: float | None
    seed: int

    @property
    def key(self) -> tuple[str, float | None, int]:
        """What tells cells of one evaluation apart."""
        return self.policy, self.load, self.seed


def run_cell(cell: Cell) -> dict[str, Any]:
    """Simulate one cell: its report, trace digest and TTFT distribution, as JSON.

    Raises:
        InputError: the trace does not fit the server.
        PolicyError: the policy broke the rules.
    """
    record, warmup_s = cell.evaluation.serve(*cell.key), cell.evaluation.warmup_s
    requests = requests_of(cell.evaluation.source, cell.load, cell.seed)
    report = summarize(record, warmup_s=warmup_s, goodput=cell.evaluation.goodput).to_dict()
    ttft = ttft_samples(record, warmup_s=warmup_s)
    quantiles = np.quantile(ttft, CDF_SHARES) * 1000.0 if len(ttft) else np.array([])
    return {
        "policy": cell.policy,
        "load": cell.load,
        "seed": cell.seed,
        "trace": requests.digest(),
        "rate": requests.rate if math.isfinite(requests.rate) and not requests.loop else None,
        "source": requests.source,
        "prediction": record.requests.forecast.channel,
        "longest_request": int((requests.prompt + requests.output).max()),
        "report": report,
        "ttft_quantiles_ms": quantiles.round(3).tolist(),
    }


def _key(cell: dict[str, Any]) -> tuple[str, float | None, int]:
    return cell["policy"], cell["load"], cell["seed"]


def evaluate(
    evaluation: Evaluation,
    *,
    workers: int = 1,
    cells_path: Path | None = None,
    resume: bool = False,
    on_cell: OnCell | None = None,
    with_windows: bool = True,
    with_behaviour: bool | None = None,
    progress: OnProgress = unseen,
) -> dict[str, Any]:
    """Run every cell and put the comparison together.

    Args:
        evaluation: what to run.
        workers: processes; the result is the same for any number.
        cells_path: keep finished cells in this jsonl file, so that an interrupted run can be resumed.
        resume: take the cells that the file already has.
        on_cell: called with (cells finished, all cells) after each one.
        with_windows: also look at a minute of each policy step by step: timeline, time per decision.
        with_behaviour: also watch some minutes of each policy at each load; None: if `with_windows`.
        progress: called at each piece of each stage of the work.

    Returns:
        The result as JSON: `config`, `versions`, `bound` (requests/s that no scheduler sustains), `policies`,
        `traces`, `cells` (load, seed, policy order), `summary`, `paired` (differences to the reference), `windows`,
        `behaviour`, `notes`, `warnings`. Times of decisions are in `windows`; everything else is the same whenever and
        wherever it is run.

    Raises:
        InputError: bad input, or a cells file of another configuration.
        PolicyError: a policy broke the rules.
    """
    evaluation.check(evaluation.loads[0])
    order = [
        Cell(evaluation, policy, load, seed)
        for load in evaluation.loads
        for seed in range(evaluation.seeds)
        for policy in evaluation.policies
    ]
    tasks = {cell.key: cell for cell in order}
    cells = run_cells(
        evaluation,
        run_cell,
        tasks,
        _key,
        workers=workers,
        cells_path=cells_path,
        resume=resume,
        on_cell=on_cell or partial(progress, "cells"),
    )
    traces = _traces(cells)
    windows = _windows(evaluation, progress) if with_windows else {}
    watched = with_windows if with_behaviour is None else with_behaviour
    behaviour = _behaviour(evaluation, workers, progress) if watched else []
    return {
        "format": FORMAT,
        "config": evaluation.to_dict(),
        "config_hash": evaluation.digest(),
        "reference": evaluation.reference,
        "bound": evaluation.bound(evaluation.loads[0]),
        "versions": versions(),
        "policies": [describe(evaluation, label) for label in evaluation.policies],
        "traces": traces,
        "cells": cells,
        "summary": summary(evaluation.policies, evaluation.loads, cells),
        "paired": paired(evaluation.policies, evaluation.loads, cells, evaluation.reference),
        "windows": windows,
        "behaviour": behaviour,
        "notes": [*evaluation.training_remarks(evaluation.loads[0]), *_notes(evaluation, traces)],
        "warnings": validity_warnings(evaluation, cells, windows),
    }


def describe(evaluation: Evaluation, label: str) -> dict[str, Any]:
    """What a report says about a policy."""
    policy = evaluation.policy(label)
    parameters = {f.name: getattr(policy, f.name) for f in fields(policy)}
    plain = {k: v for k, v in parameters.items() if isinstance(v, bool | int | float | str)}
    texts = {name: getattr(policy, name) for name in ("paper", "knows", "eviction", "evidence")}
    return {"label": label, "name": policy.name, **texts, "parameters": plain, "fingerprint": fingerprint(label)}


def _traces(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each (load, seed), checked to be common to all policies."""
    lines: dict[tuple[float | None, int], dict[str, Any]] = {}
    for cell in cells:
        line = {key: cell[key] for key in ("load", "seed", "trace", "rate", "source")}
        if lines.setdefault((cell["load"], cell["seed"]), line) != line:
            raise AssertionError(f"policies met different traces at load {cell['load']}, seed {cell['seed']}")
    return list(lines.values())


def _windows(evaluation: Evaluation, progress: OnProgress) -> dict[str, Any]:
    load, looks = evaluation.loads[len(evaluation.loads) // 2], {}
    for done, p in enumerate(evaluation.policies):
        progress("a minute of each policy", done, len(evaluation.policies))
        requests = evaluation.requests_for(p, load, 0)
        looks[p] = look(evaluation.policy(p), requests, evaluation.profile, evaluation.config)
    return {"load": load, "seed": 0, "policies": looks}


def _watch(cell: Cell) -> dict[str, Any]:
    evaluation = cell.evaluation
    requests = evaluation.requests_for(*cell.key)
    seen = behave(evaluation.policy(cell.policy), requests, evaluation.profile, evaluation.config)
    return {"policy": cell.policy, "load": cell.load, **seen}


def _behaviour(evaluation: Evaluation, workers: int, progress: OnProgress) -> list[dict[str, Any]]:
    cells = [Cell(evaluation, policy, load, 0) for policy in evaluation.policies for load in evaluation.loads]
    found: dict[int, dict[str, Any]] = {}
    progress("behaviour", 0, len(cells))
    for index, seen in run_tasks(_watch, cells, workers):
        found[index] = seen
        progress("behaviour", len(found), len(cells))
    return [found[k] for k in range(len(cells))]


def _notes(evaluation: Evaluation, traces: list[dict[str, Any]]) -> list[str]:
    notes = [evaluation.source.seed_note]
    if came := arrivals_note(by_load((trace["load"], trace["rate"]) for trace in traces)):
        notes.append(came)
    notes.append(bound_note(evaluation.bound(evaluation.loads[0])))
    if evaluation.seeds == 1:
        notes.append("One seed: there are no intervals; run more seeds before believing a difference.")
    if evaluation.warmup_s:
        notes.append(f"Requests that arrive in the first {evaluation.warmup_s:g} s are not counted.")
    if math.isfinite(evaluation.horizon_s):
        notes.append(f"Stopped at {evaluation.horizon_s:g} s; what was not served then counts as unfinished.")
    else:
        notes.append("Every run goes on until all requests are served; its end is a drain without arrivals.")
    return notes


def validity_warnings(evaluation: Evaluation, cells: list[dict[str, Any]], windows: dict[str, Any]) -> list[str]:
    """Where the runs left the range in which the profile holds."""
    profile = evaluation.profile
    validity = profile.provenance.get("validity", {})
    looks = windows.get("policies", {}).items()
    found = []
    if context := validity.get("context_tokens"):
        longest = max(cell["longest_request"] for cell in cells)
        if longest > context[1]:
            found.append(f"requests of up to {longest} tokens; profile {profile.name} holds to {context[1]}")
    for name, key in (("tokens", "largest_batch_tokens"), ("requests", "largest_batch_requests")):
        limits = validity.get(name)
        for policy, seen in looks if limits else ():
            if seen[key] > limits[1]:
                found.append(
                    f"{policy}: batches of up to {seen[key]} {name}; profile {profile.name} holds to {limits[1]}"
                )
    return found
