"""The best setting of a baseline on a workload: coordinate descent over its own parameters on training traces.

What is minimised is what learners maximise the negative of: seconds of TTFT plus late gaps in deadlines, per request
(`llmsched_env.reward`), as the geometric mean over the loads, so that the heaviest does not decide alone. Training
traces have seeds of their own, far from those of evaluations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import baselines
from agents.learning.heldout import record_return
from agents.policies import fingerprint
from agents.source import Source
from agents.work.cells import CellFile
from agents.work.files import locked, write_json
from agents.work.processes import run_tasks
from agents.work.progress import OnProgress, unseen
from agents.work.provenance import config_hash
from agents.work.records import READ
from engine.config import EngineConfig
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.fields import convert
from engine.files.reading import read_mapping
from engine.own_code import parse_place
from engine.ranges import number
from engine.runs.driving import PolicyError, PolicyFault
from engine.runs.serve import Deployment, serve
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
    ground: "Ground"
    rate: float
    seed: int

    @property
    def key(self) -> "Key":
        """What tells it apart on its ground."""
        return fingerprint(self.spec), self.rate, self.seed


@dataclass(frozen=True)
class Ground:
    """The training traces and the server on which settings are tried."""

    source: Source
    """Where the requests come from."""
    rates: tuple[float, ...]
    """Arrival rates in requests/s; each counts the same."""
    seeds: int
    """Training traces at each rate."""
    model: LatencyModel
    """Seconds of an iteration."""
    config: EngineConfig
    """Limits and semantics of the server."""

    def trials(self, spec: str) -> list[Trial]:
        """A setting on every trace, by rate and seed."""
        return [Trial(spec, self, rate, TUNING_SEED + seed) for rate in self.rates for seed in range(self.seeds)]

    def realised_rates(self) -> list[tuple[float, float]]:
        """(asked, realised) arrival rate of each trace, requests/s."""
        seeds = range(TUNING_SEED, TUNING_SEED + self.seeds)
        return [(rate, self.source.requests(rate, seed).rate) for rate in self.rates for seed in seeds]

    def digest(self) -> str:
        """What the costs belong to: requests, device, server, and how they are weighed."""
        parts = {"source": self.source.to_dict(), "profile": asdict(self.model), "engine": asdict(self.config)}
        return config_hash(parts | {"reward": asdict(RewardWeights())})


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

    @property
    def line(self) -> str:
        """The setting behind its cost."""
        return f"{self.cost:.4f}  {self.spec}" if math.isfinite(self.cost) else f"breaks down  {self.spec}"


Key = tuple[str, float, int]
"""Fingerprint of a setting, rate, seed."""


def _cost(value: object, where: str) -> float:
    """Seconds, or inf for null."""
    return math.inf if value is None else float(number().check(value, where))


@dataclass(frozen=True)
class Cost:
    """What one setting costs on one trace, as it is kept while others are measured."""

    policy: str
    """Fingerprint of the setting."""
    rate: float
    seed: int
    cost: float = field(metadata={READ: _cost})
    """Seconds per request; inf (null in the file) where the policy broke down."""

    @property
    def key(self) -> Key:
        """What tells the cells of a tuning apart."""
        return self.policy, self.rate, self.seed

    def to_dict(self) -> dict[str, str | float | None]:
        """JSON form."""
        return vars(self) | {"cost": self.cost if self.cost < math.inf else None}


def cost(trial: Trial) -> float:
    """Seconds of TTFT plus late gaps in deadlines, per request; inf for a policy that breaks rules or drops one."""
    policy = baselines.make(trial.spec)
    deployment = Deployment(executor=trial.ground.model, config=trial.ground.config)
    try:
        record, report = serve(policy, trial.ground.source, trial.rate, trial.seed, deployment)
    except PolicyFault:
        raise
    except PolicyError:
        return math.inf
    return math.inf if report.dropped else -record_return(record, RewardWeights()) / len(record.requests)


class _Tried:
    """The settings that were tried, in this order, and what they cost."""

    def __init__(self, ground: Ground, workers: int, kept: CellFile[Cost] | None) -> None:
        self.ground, self.workers, self.kept = ground, workers, kept
        self.settings: dict[str, Setting] = {}
        self._costs = {cell.key: cell.cost for cell in kept.cells} if kept else {}

    def measure(self, specs: Sequence[str], on_run: Callable[[int, int], object]) -> list[Setting]:
        """Try those that are new; returns them.

        Args:
            specs: the settings.
            on_run: called after each run with (runs done, all runs of these settings).
        """
        new = [spec for spec in specs if spec not in self.settings]
        trials = {trial.key: trial for spec in new for trial in self.ground.trials(spec)}
        self._run({key: trial for key, trial in trials.items() if key not in self._costs}, on_run)
        found = [self._setting(spec) for spec in new]
        self.settings |= {setting.spec: setting for setting in found}
        return found

    def _setting(self, spec: str) -> Setting:
        """A setting whose trials are measured: the means over the seeds."""
        costs = np.array([self._costs[trial.key] for trial in self.ground.trials(spec)])
        return Setting(spec, tuple(costs.reshape(len(self.ground.rates), self.ground.seeds).mean(1).tolist()))

    def _run(self, trials: Mapping[Key, Trial], on_run: Callable[[int, int], object]) -> None:
        """Measure what trials cost, and keep that."""
        keys = list(trials)
        for done, (index, value) in enumerate(run_tasks(cost, list(trials.values()), self.workers), 1):
            self._costs[keys[index]] = value
            if self.kept:
                self.kept.append(Cost(*keys[index], value))
            on_run(done, len(trials))


def tune(
    name: str,
    ground: Ground,
    workers: int,
    progress: Callable[[str], object],
    on_run: OnProgress = unseen,
    kept: CellFile[Cost] | None = None,
) -> list[Setting]:
    """Every setting that was tried, the default first, the best last.

    Args:
        name: a baseline, or the place of a user's class.
        ground: where settings are tried.
        workers: processes.
        progress: called with a line for each setting.
        on_run: called after each run of the settings that are being tried.
        kept: costs that an earlier run found, which are not measured again; new ones are added.

    Raises:
        InputError: a policy without a search space.
    """
    space, tried = space_of(name), _Tried(ground, workers, kept)

    def best_of(policies: Sequence[Policy]) -> Policy:
        stage = f"{name}: {len(tried.settings)} settings tried"
        for setting in tried.measure([spec_of(name, policy) for policy in policies], partial(on_run, stage)):
            progress(setting.line)
        return min(policies, key=lambda policy: tried.settings[spec_of(name, policy)].cost)

    best = best_of([baselines.make(name)])
    for _ in range(PASSES):
        before = best
        for parameter, values in space.items():
            best = best_of([best, *(other for value in values if (other := _changed(best, parameter, value)))])
        if best == before:
            break
    default = spec_of(name, baselines.make(name))
    return [tried.settings[default], *tried.settings.values(), tried.settings[spec_of(name, best)]]


def space_of(name: str) -> dict[str, tuple[Any, ...]]:
    """What to try of each parameter: the attribute `space` of the class.

    Raises:
        InputError: there is none, or it does not fit the class.
    """
    if name not in baselines.POLICIES and parse_place(name) is None:
        known = ", ".join(baselines.names())
        raise InputError(f"policies: expected names among {known}, module:Class or all, got {name!r}")
    policy = baselines.make(name)
    space = policy.space
    if not isinstance(space, Mapping) or not space:
        raise InputError(f"policy {name}: expected a class with the attribute space = {{parameter: values to try}}")
    _check_space(f"policy {name}: space", space, [f.name for f in fields(policy)])
    return dict(space)


def _check_space(where: str, space: Mapping[str, object], known_fields: Sequence[str]) -> None:
    for parameter, values in space.items():
        is_list = isinstance(values, Sequence) and not isinstance(values, str)
        if parameter not in known_fields or not is_list or not values:
            raise InputError(
                f"{where}: expected a list of values for parameters among {', '.join(known_fields) or 'none'}, "
                f"got {parameter!r}: {values!r}"
            )


def spec_of(name: str, policy: Policy) -> str:
    """The spec that builds this policy again, whose class is called by the name (a baseline's, or a place)."""
    return str(Spec(baselines.base_of(name)[0], Spec.parse(policy.spec).rest))


def _changed(policy: Policy, parameter: str, value: object) -> Policy | None:
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
        write_json(path, {name: dict(sorted(row.items())) for name, row in sorted(table.items())})


def saved(path: Path) -> dict[str, dict[str, str]]:
    """What a file for `save` holds, nothing if it is not there yet.

    Raises:
        InputError: another kind of file.
    """
    if not path.exists():
        return {}
    return convert(read_mapping(path, "a table of tuned settings"), dict[str, dict[str, str]], str(path))
