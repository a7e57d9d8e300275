"""Head to head: policies x loads x seeds, every policy on the same arrivals, with intervals.

A *cell* is one policy at one load with one seed. Cells are independent and deterministic, so the result does not depend
on the number of worker processes; finished ones are kept in ``cells.jsonl`` while the rest runs.
"""

import hashlib
import json
import math
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from agents.cells import CellFile, run_tasks
from agents.comparison import paired, summary
from agents.options import Source
from agents.resolve import fingerprint, resolve
from agents.window import look
from engine.config import EngineConfig
from engine.errors import InputError
from engine.latency import LatencyModel
from engine.metrics import summarize, ttft_samples
from engine.policy import Policy
from engine.requests import Requests
from engine.simulate import simulate
from engine.workload import Workload

FORMAT = "llmsched-evaluation/1"

CDF_SHARES = np.concatenate([np.linspace(0.0, 0.99, 100), [0.995, 0.999, 1.0]])
"""Shares at which the TTFT distribution of a cell is kept."""


@dataclass(frozen=True)
class Evaluation:
    """What to compare, and on what."""

    policies: tuple[str, ...]
    """Specs of the policies."""
    source: Source
    """Where the requests come from."""
    loads: tuple[float | None, ...]
    """Arrival rates (requests/s); None: the recorded times of the trace."""
    seeds: int
    """Seeds 0 ... seeds - 1 are run."""
    reference: str
    """The policy that the others are compared with."""
    profile: LatencyModel
    """Seconds of an iteration."""
    config: EngineConfig
    """Limits and semantics of the server."""
    horizon_s: float = math.inf
    """The clock stops at this time."""
    warmup_s: float = 0.0
    """Requests that arrive before this time are not counted."""

    def __post_init__(self) -> None:
        """Check what the parts do not check themselves.

        Raises:
            InputError: no seed, a load twice, or a reference that is not among the policies.
        """
        if self.seeds < 1:
            raise InputError(f"seeds: expected a whole number >= 1, got {self.seeds}")
        if len(set(self.loads)) < len(self.loads):
            raise InputError(f"rates: expected each load once, got {self.loads}")
        if self.reference not in self.policies:
            raise InputError(
                f"reference: expected one of the policies {', '.join(self.policies)}, got {self.reference!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; two evaluations with the same form have the same cells."""
        horizon = self.horizon_s if math.isfinite(self.horizon_s) else None
        return {
            "policies": [fingerprint(spec) for spec in self.policies],
            "source": self.source.to_dict(),
            "loads": list(self.loads),
            "seeds": self.seeds,
            "profile": asdict(self.profile),
            "engine": asdict(self.config),
            "horizon_s": horizon,
            "warmup_s": self.warmup_s,
        }

    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the JSON form."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


@lru_cache(maxsize=4)
def _requests(source: Source, load: float | None, seed: int) -> Requests:
    return source.requests(load, seed)


@lru_cache(maxsize=32)
def _resolved(spec: str, digest: str) -> Policy:
    return resolve(spec)


def _policy(spec: str) -> Policy:
    return _resolved(spec, fingerprint(spec))


def run_cell(cell: Cell) -> dict[str, Any]:
    """Simulate one cell: its report, trace digest and TTFT distribution, as JSON.

    Raises:
        InputError: the trace does not fit the server.
        PolicyError: the policy broke the rules.
    """
    setup = cell.evaluation
    requests = _requests(setup.source, cell.load, cell.seed)
    policy = _policy(cell.policy)
    record = simulate(policy, requests, setup.profile, setup.config, horizon_s=setup.horizon_s)
    report = summarize(record, warmup_s=setup.warmup_s).to_dict()
    ttft = ttft_samples(record, warmup_s=setup.warmup_s)
    quantiles = np.quantile(ttft, CDF_SHARES) * 1000.0 if len(ttft) else np.array([])
    return {
        "policy": cell.policy,
        "load": cell.load,
        "seed": cell.seed,
        "trace": requests.digest(),
        "rate": requests.rate if math.isfinite(requests.rate) else None,
        "source": requests.source,
        "longest_request": int((requests.prompt + requests.output).max()),
        "report": report,
        "ttft_quantiles_ms": quantiles.round(3).tolist(),
    }


def _key(cell: dict[str, Any]) -> tuple[str, float | None, int]:
    return cell["policy"], cell["load"], cell["seed"]


def prepare(policies: Iterable[str], profile: LatencyModel, config: EngineConfig) -> None:
    """Resolve every policy and compile (or load) its kernel, so that forked workers inherit it.

    Raises:
        InputError: a policy that cannot be resolved.
    """
    toy = Workload(arrivals="toy", rate=0.5, num_requests=2, lengths="fixed:16,2").generate(0)
    for spec in policies:
        simulate(_policy(spec), toy, profile, config.replace(max_model_len=max(config.max_model_len, 18)))


def evaluate(
    evaluation: Evaluation,
    *,
    workers: int = 1,
    cells_path: Path | None = None,
    resume: bool = False,
    on_cell: Callable[[int, int], None] | None = None,
    with_windows: bool = True,
) -> dict[str, Any]:
    """Run every cell and put the comparison together.

    Args:
        evaluation: what to run.
        workers: processes; the result is the same for any number.
        cells_path: keep finished cells in this jsonl file, so that an interrupted run can be resumed.
        resume: take the cells that the file already has.
        on_cell: called with (cells finished, all cells) after each one.
        with_windows: also look at one minute of each policy step by step: timeline and time per decision.

    Returns:
        The result as JSON: `config`, `versions`, `policies`, `traces`, `cells` (load, seed, policy order), `summary`,
        `paired` (differences to the reference), `windows`, `notes`, `warnings`. Times of decisions are in `windows`;
        everything else is the same whenever and wherever it is run.

    Raises:
        InputError: bad input, or a cells file of another configuration.
        PolicyError: a policy broke the rules.
    """
    for spec in evaluation.policies:
        _policy(spec)
    _requests(evaluation.source, evaluation.loads[0], 0)
    file = CellFile(cells_path, evaluation.digest(), resume) if cells_path else None
    order = [
        Cell(evaluation, policy, load, seed)
        for load in evaluation.loads
        for seed in range(evaluation.seeds)
        for policy in evaluation.policies
    ]
    finished = {_key(cell): cell for cell in file.cells} if file else {}
    todo = [cell for cell in order if cell.key not in finished]
    if min(workers, len(todo)) > 1:
        prepare(evaluation.policies, evaluation.profile, evaluation.config)
    for _, cell in run_tasks(run_cell, todo, workers):
        finished[_key(cell)] = cell
        if file:
            file.append(cell)
        if on_cell:
            on_cell(len(finished), len(order))
    # Through JSON text, so that resumed and fresh cells are equal to the last digit and type.
    cells = json.loads(json.dumps([finished[cell.key] for cell in order]))
    windows = _windows(evaluation) if with_windows else {}
    return {
        "format": FORMAT,
        "config": evaluation.to_dict(),
        "config_hash": evaluation.digest(),
        "reference": evaluation.reference,
        "versions": versions(),
        "policies": [describe(spec) for spec in evaluation.policies],
        "traces": _traces(cells),
        "cells": cells,
        "summary": summary(evaluation.policies, evaluation.loads, cells),
        "paired": paired(evaluation.policies, evaluation.loads, cells, evaluation.reference),
        "windows": windows,
        "notes": _notes(evaluation),
        "warnings": validity_warnings(evaluation, cells, windows),
    }


def versions() -> dict[str, str]:
    """Versions of everything that could change a result."""
    found = {"python": platform.python_version()}
    for name in ("llmsched", "numpy", "numba"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe(spec: str) -> dict[str, Any]:
    """What a report says about a policy."""
    policy = _policy(spec)
    parameters = {f.name: getattr(policy, f.name) for f in fields(policy)}
    plain = {k: v for k, v in parameters.items() if isinstance(v, bool | int | float | str)}
    texts = {name: getattr(policy, name) for name in ("paper", "knows", "eviction", "evidence")}
    return {"label": spec, "name": policy.name, **texts, "parameters": plain, "fingerprint": fingerprint(spec)}


def _traces(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each (load, seed), checked to be common to all policies."""
    lines: dict[tuple[float | None, int], dict[str, Any]] = {}
    for cell in cells:
        line = {key: cell[key] for key in ("load", "seed", "trace", "rate", "source")}
        if lines.setdefault((cell["load"], cell["seed"]), line) != line:
            raise AssertionError(f"policies met different traces at load {cell['load']}, seed {cell['seed']}")
    return list(lines.values())


def _windows(evaluation: Evaluation) -> dict[str, Any]:
    load = evaluation.loads[len(evaluation.loads) // 2]
    requests = _requests(evaluation.source, load, 0)
    looks = {p: look(_policy(p), requests, evaluation.profile, evaluation.config) for p in evaluation.policies}
    return {"load": load, "seed": 0, "policies": looks}


def _notes(evaluation: Evaluation) -> list[str]:
    notes = [evaluation.source.seed_note]
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
