"""What comparisons start from, policies, requests and a server, and how their cells are run and kept."""

import json
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from agents.evaluation.trained_for import remark
from agents.policies import PolicyLabel, check_sendable, fingerprint, label_of, labels_of, resolve
from agents.source import Source
from agents.work.cells import CellFile, Keyed, cell_of
from agents.work.processes import run_tasks, start_method
from agents.work.provenance import config_hash
from agents.work.records import as_json
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.bounds import capacity_bound, least_seconds
from engine.device.latency import LatencyModel
from engine.errors import InputError, expect
from engine.own_code import parse_place
from engine.ranges import COUNT
from engine.runs.goodput import Goodput
from engine.runs.report import REPORT_FORMAT
from engine.runs.serve import Deployment, RequestSource, Run, serve
from engine.runs.simulate import simulate
from engine.server.policy import Policy

Key = TypeVar("Key", bound=Hashable)
Task = TypeVar("Task")
Cell = TypeVar("Cell", bound=Keyed)

OnCell = Callable[[int, int], None]
"""Called with (cells finished, all cells) after each cell."""


@lru_cache(maxsize=4)
def requests_of(source: Source, load: float | None, seed: int) -> Requests:
    """The requests of one load and seed, made once for all policies."""
    return source.requests(load, seed)


@lru_cache(maxsize=8)
def _predicted(source: Source, load: float | None, seed: int, channel: str) -> Requests:
    """The same with predictions, made once for all policies with this channel."""
    return predict(requests_of(source, load, seed), channel, seed)


@dataclass(frozen=True)
class _Shared(RequestSource):
    """A source whose requests and predictions are made once for all policies."""

    source: Source

    def requests(self, rate: float | None, seed: int) -> Requests:
        return requests_of(self.source, rate, seed)

    def channel(self, policy: Policy) -> str:
        return self.source.channel(policy)

    def told(self, policy: Policy, rate: float | None, seed: int) -> Requests:
        channel = self.channel(policy)
        return _predicted(self.source, rate, seed, channel) if channel else self.requests(rate, seed)


@lru_cache(maxsize=32)
def _resolved(spec: str, digest: str) -> Policy:
    return resolve(spec)


def _policy(label: str, digest: str) -> Policy:
    """A policy, read once until its files change; one of a user's class anew for each run, for it may keep a state."""
    is_own = isinstance(label, PolicyLabel) or parse_place(label) is not None
    return resolve(label) if is_own else _resolved(label, digest)


def policy_of(spec: str) -> Policy:
    """The policy of a spec."""
    return _policy(spec, fingerprint(spec))


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Who serves what on which server."""

    policies: tuple[Any, ...]
    """The policies: specs, or objects of subclasses of `engine.Policy`; once built, their labels (strings)."""
    source: Source
    """Where the requests come from."""
    seeds: int
    """Seeds 0 ... seeds - 1 are run."""
    reference: Any
    """The policy that the others are compared with."""
    profile: LatencyModel
    """Seconds of an iteration."""
    config: EngineConfig
    """Limits and semantics of the server."""
    horizon_s: float = math.inf
    """The clock stops at this time."""
    warmup_s: float = 0.0
    """Requests that arrive before this time are not counted."""
    goodput: Goodput | None = None
    """Limits of vLLM's `request_goodput`."""

    def __post_init__(self) -> None:
        """Check what the parts do not check themselves.

        Raises:
            InputError: a part of another kind, no seed, a policy twice, or a reference that is not among the policies.
        """
        expect(isinstance(self.policies, tuple | list), "policies", "a tuple of policies", self.policies)
        expect(isinstance(self.source, Source), "source", "a Source", self.source)
        expect(isinstance(self.profile, LatencyModel), "profile", "a profile of load_profile(NAME)", self.profile)
        expect(isinstance(self.config, EngineConfig), "config", "an EngineConfig", self.config)
        COUNT.check(self.seeds, "seeds")
        # Frozen: what was given becomes what is kept, once.
        object.__setattr__(self, "policies", labels_of(self.policies))
        object.__setattr__(self, "reference", label_of(self.reference))
        object.__setattr__(self, "_labels", {str(label): label for label in self.policies})
        object.__setattr__(self, "_sources", {str(label): fingerprint(label) for label in self.policies})
        if self.reference not in self.policies:
            raise InputError(
                f"reference: expected one of the policies {', '.join(self.policies)}, got {self.reference!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; two setups with the same form have the same cells."""
        return {
            "policies": list(vars(self)["_sources"].values()),
            "source": self.source.to_dict(),
            "tiers": [asdict(tier) for tier in self.source.tiers],
            "seeds": self.seeds,
            "profile": asdict(self.profile),
            "engine": asdict(self.config),
            "horizon_s": self.horizon_s if math.isfinite(self.horizon_s) else None,
            "warmup_s": self.warmup_s,
            "goodput": asdict(self.goodput) if self.goodput else None,
            "report": REPORT_FORMAT,
        }

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels as plain text, as results have them."""
        return tuple(str(label) for label in self.policies)

    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the JSON form."""
        return config_hash(self.to_dict())

    def check(self, load: float | None) -> None:
        """Find bad input before anything is written.

        Raises:
            InputError: a policy that cannot be resolved, or requests that cannot be made at this load.
        """
        for label in self.policies:
            self.policy(label)
        requests_of(self.source, load, 0)

    def policy(self, label: str) -> Policy:
        """The policy behind one of the labels.

        Raises:
            InputError: it cannot be resolved, or its files are no longer those that this comparison began with.
        """
        label = vars(self)["_labels"].get(label, label)
        digest = fingerprint(label)
        if vars(self)["_sources"].get(label, digest) != digest:
            raise InputError(f"policy {str(label)!r}: its files changed while the comparison ran; start it again")
        return _policy(label, digest)

    @property
    def deployment(self) -> Deployment:
        """The server, and what of its runs counts."""
        return Deployment(
            executor=self.profile,
            config=self.config,
            horizon_s=self.horizon_s,
            warmup_s=self.warmup_s,
            goodput=self.goodput,
        )

    def serve(self, policy: str, load: float | None, seed: int) -> Run:
        """Serve the requests of one load and seed with one policy: the record and its report.

        Raises:
            InputError: the requests do not fit the server.
            PolicyError: the policy broke the rules.
        """
        return serve(self.policy(policy), _Shared(self.source), load, seed, self.deployment)

    def requests_for(self, policy: str, load: float | None, seed: int) -> Requests:
        """The requests of one load and seed, with predictions for a policy that needs them."""
        return _Shared(self.source).told(self.policy(policy), load, seed)

    def bound(self, load: float | None) -> float | None:
        """Requests/s that nobody sustains (`engine.device.bounds`), over the requests of all seeds; None: no bound."""
        work = [self.least_seconds(requests_of(self.source, load, seed)) for seed in range(self.seeds)]
        return capacity_bound(np.concatenate(work))

    def least_seconds(self, requests: Requests) -> np.ndarray:
        """Seconds of what serves that each request takes at least, float64[requests]."""
        return least_seconds(self.profile, self.config, requests)

    def training_remarks(self, load: float | None) -> list[str]:
        """A line for each learned policy that was trained for something else (`agents.evaluation.trained_for`)."""
        tiers = requests_of(self.source, load, 0).tiers
        found = [remark(policy_of(spec), tiers, self.profile, self.config, self.source) for spec in self.policies]
        return list(filter(None, found))

    def compile(self) -> None:
        """Get ready for workers: compile (or load) the kernel of every policy, so that forked ones inherit it.

        Raises:
            InputError: a policy that workers cannot get.
        """
        for label in self.policies:
            check_sendable(label, start_method())
        toy = Workload(arrivals="toy", rate=0.5, num_requests=2, lengths="fixed:16,2").generate(0)
        toy = predict(toy, "oracle", 0)
        config = self.config.replace(max_model_len=max(self.config.max_model_len, 18))
        for label in self.policies:
            if self.policy(label).runs_compiled:
                simulate(self.policy(label), toy, self.profile, config)


def run_cells(
    setup: Setup,
    function: Callable[[Task], Cell],
    tasks: Mapping[Key, Task],
    file: CellFile[Cell] | None = None,
    *,
    workers: int,
    on_cell: OnCell | None,
) -> list[Cell]:
    """Run every task that is not finished already; the result is the same for any number of workers.

    Args:
        setup: what the tasks belong to.
        function: module-level function of one task, gives its cell.
        tasks: by the key of their cell.
        file: holds the cells that are finished, and gets the others.
        workers: processes.
        on_cell: called after each cell.

    Returns:
        The cells in the order of the tasks.

    Raises:
        InputError: bad input.
        PolicyError: a policy broke the rules.
    """
    finished = {cell.key: cell for cell in file.cells} if file else {}
    todo = [task for key, task in tasks.items() if key not in finished]
    if min(workers, len(todo)) > 1:
        setup.compile()
    for _, cell in run_tasks(function, todo, workers):
        finished[cell.key] = cell
        if file:
            file.append(cell)
        if on_cell:
            on_cell(len(finished), len(tasks))
    return [_as_kept(finished[key]) for key in tasks]


def _as_kept(cell: Cell) -> Cell:
    """A cell as it comes out of a file, so that resumed and fresh ones are equal to the last digit and type."""
    return cell_of(type(cell), json.loads(json.dumps(as_json(cell))))
