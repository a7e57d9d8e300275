"""The best setting of a baseline on a workload: coordinate descent over its own parameters on training traces.

What is minimised is what learners maximise the negative of: seconds of TTFT plus late gaps in deadlines, per request
(`llmsched_env.reward`), as the geometric mean over the loads, so that the heaviest does not decide alone. Training
traces have seeds of their own, far from those of evaluations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import baselines
from agents.learning.heldout import record_return
from agents.policies import fingerprint
from agents.source import Source
from agents.work.cells import CellFile
from agents.work.files import json_text, locked, write_atomically
from agents.work.processes import run_tasks
from agents.work.progress import OnProgress, unseen
from agents.work.provenance import config_hash
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.fields import convert
from engine.files.reading import read_mapping
from engine.own_code import parse_place
from engine.runs.metrics import summarize
from engine.runs.simulate import PolicyError, PolicyFault, simulate
from engine.server.policy import Policy
from engine.spec import Spec
from llmsched_env.reward import RewardWeights

TUNING_SEED = 1 << 39
"""Traces for tuning are drawn from this seed on."""
PASSES = 2
"""Times that each parameter is gone through, at most."""


@dataclass(frozen=True)
class Trial:
    """One setting on one trace."""

    spec: str
    source: Source
    rate: float
    seed: int
    model: LatencyModel
    config: EngineConfig


@dataclass(frozen=True)
class Setting:
    """A setting and what it costs."""

    spec: str
    costs: tuple[float, ...]
    """Seconds per request at each load; inf where the policy broke down."""

    @property
    def cost(self) -> float:
        """Geometric mean over the loads."""
        return math.exp(float(np.mean([math.log(max(c, 1e-9)) for c in self.costs]))) if self.costs else math.inf


def cost(trial: Trial) -> float:
    """Seconds of TTFT plus late gaps in deadlines, per request; inf for a policy that breaks rules or drops one."""
    policy = baselines.make(trial.spec)
    requests = trial.source.requests(trial.rate, trial.seed)
    channel = trial.source.channel(policy)
    told = predict(requests, channel, trial.seed) if channel else requests
    try:
        record = simulate(policy, told, trial.model, trial.config)
    except PolicyFault:
        raise
    except PolicyError:
        return math.inf
    if summarize(record).dropped:
        return math.inf
    return -record_return(record, RewardWeights()) / len(requests)


def tune(
    name: str,
    source: Source,
    rates: Sequence[float],
    seeds: int,
    model: LatencyModel,
    config: EngineConfig,
    workers: int,
    progress: Callable[[str], object],
    on_run: OnProgress = unseen,
    kept: CellFile | None = None,
) -> list[Setting]:
    """Every setting that was tried, the default first, the best last.

    Args:
        name: a baseline, or the place of a user's class.
        source: where the requests come from.
        rates: arrival rates in requests/s; each counts the same.
        seeds: training traces at each rate.
        model: seconds of an iteration.
        config: limits and semantics of the server.
        workers: processes.
        progress: called with a line for each setting.
        on_run: called after each run of the settings that are being tried.
        kept: costs that an earlier run found, which are not measured again; new ones are added.

    Raises:
        InputError: a policy without a search space.
    """
    space = space_of(name)
    known: dict[str, Setting] = {}
    found_before = {cell_key(cell): cell["cost"] for cell in kept.cells} if kept else {}

    def measure(specs: list[str]) -> None:
        todo = [spec for spec in specs if spec not in known]
        trials = [
            Trial(spec, source, rate, TUNING_SEED + seed, model, config)
            for spec in todo
            for rate in rates
            for seed in range(seeds)
        ]
        names = [(fingerprint(t.spec), t.rate, t.seed) for t in trials]
        costs = np.array([_number(found_before.get(key, 0.0)) for key in names])
        missing = [k for k, key in enumerate(names) if key not in found_before]
        for done, (index, value) in enumerate(run_tasks(cost, [trials[k] for k in missing], workers), 1):
            costs[missing[index]] = value
            if kept:
                spec, rate, seed = names[missing[index]]
                kept.append({"policy": spec, "rate": rate, "seed": seed, "cost": value if value < math.inf else None})
            on_run(f"{name}: {len(known)} settings tried", done, len(missing))
        for spec, found in zip(todo, costs.reshape(-1, len(rates), seeds).mean(2), strict=True):
            known[spec] = Setting(spec, tuple(found.tolist()))
            cost_s = known[spec].cost
            progress(f"{cost_s:.4f}  {spec}" if math.isfinite(cost_s) else f"breaks down  {spec}")

    best = baselines.make(name)
    measure([spec_of(name, best)])
    for _ in range(PASSES):
        before = best
        for parameter, values in space.items():
            candidates = [other for value in values if (other := _changed(best, parameter, value))]
            measure([spec_of(name, policy) for policy in candidates])
            best = min([best, *candidates], key=lambda policy: known[spec_of(name, policy)].cost)
        if best == before:
            break
    return [known[spec_of(name, baselines.make(name))], *known.values(), known[spec_of(name, best)]]


def _number(cost_or_none: float | None) -> float:
    """A cost as it is kept: None stands for a policy that broke down."""
    return math.inf if cost_or_none is None else float(cost_or_none)


def cell_key(cell: dict[str, Any]) -> tuple[str, float, int]:
    """What tells the cells of a tuning apart.

    Raises:
        KeyError, TypeError: it is no such cell.
    """
    policy, rate, seed, value = cell["policy"], cell["rate"], cell["seed"], cell["cost"]
    if not isinstance(policy, str) or type(rate) not in (int, float) or type(seed) is not int:
        raise TypeError
    if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
        raise TypeError
    return policy, float(rate), seed


def tuning_hash(source: Source, model: LatencyModel, config: EngineConfig) -> str:
    """What the cells of a tuning belong to: requests, device, server, and how costs are weighed."""
    parts = {"source": source.to_dict(), "profile": asdict(model), "engine": asdict(config)}
    return config_hash(parts | {"reward": asdict(RewardWeights())})


def space_of(name: str) -> dict[str, tuple[Any, ...]]:
    """What to try of each parameter: the attribute `space` of the class.

    Raises:
        InputError: there is none, or it does not fit the class.
    """
    if name not in baselines.POLICIES and parse_place(name) is None:
        known = ", ".join(baselines.names())
        raise InputError(f"policies: expected names among {known}, module:Class or all, got {name!r}")
    policy = baselines.make(name)
    space, known_fields = policy.space, [f.name for f in fields(policy)]
    if not isinstance(space, Mapping) or not space:
        raise InputError(f"policy {name}: expected a class with the attribute space = {{parameter: values to try}}")
    for parameter, values in space.items():
        if parameter not in known_fields or isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(
                f"policy {name}: space: expected a list of values for parameters among "
                f"{', '.join(known_fields) or 'none'}, got {parameter!r}: {values!r}"
            )
    return dict(space)


def spec_of(name: str, policy: Policy) -> str:
    """The spec that builds this policy again, whose class is called by the name (a baseline's, or a place)."""
    return str(Spec(baselines.base_of(name)[0], Spec.parse(policy.spec).rest))


def realised_rates(source: Source, rates: Sequence[float], seeds: int) -> list[tuple[float, float]]:
    """(asked, realised) arrival rate of each training trace, requests/s."""
    return [(rate, source.requests(rate, TUNING_SEED + seed).rate) for rate in rates for seed in range(seeds)]


def _changed(policy: Policy, parameter: str, value: Any) -> Policy | None:
    """The policy with another value; None where the values exclude each other."""
    try:
        return type(policy)(**{**vars(policy), parameter: value})
    except InputError:
        return None


def save(path: Path, workload: str, spec: str) -> None:
    """Note the best setting of a policy on a workload in a file like the one that ships with the baselines.

    Raises:
        InputError: another kind of file, or one that cannot be written.
    """
    with locked(path, wait_s=60.0):
        table = saved(path)
        table.setdefault(workload, {})[baselines.base_of(spec)[0]] = spec
        write_atomically(path, json_text({name: dict(sorted(row.items())) for name, row in sorted(table.items())}))


def saved(path: Path) -> dict[str, dict[str, str]]:
    """What a file for `save` holds, nothing if it is not there yet.

    Raises:
        InputError: another kind of file.
    """
    if not path.exists():
        return {}
    return convert(read_mapping(path, "a table of tuned settings"), dict[str, dict[str, str]], str(path))
