"""Evolution of a router: one linear score of a replica's features, judged by the mean TTFT of whole runs.

Each generation draws new traces and serves every fleet at every load on them, the policy of the replicas and the age of
their reports drawn; all candidates and rivals meet the same arrivals. What counts is the logarithm of the mean TTFT,
less that of the best rival there, and being worse counts more than being better: no fleet is to be won at the cost of
another. The search begins at a rule (START), which is one of the rivals, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from agents.learning.heldout import TRAINING_SEED
from agents.learning.learned.router_bundle import RouterBundle
from agents.learning.recipe import Recipe
from agents.learning.search.rounds import Kind, Rounds, Search
from agents.learning.search.router_worlds import Spread, Trial, World, aged, mean_ttft_s, watch
from agents.learning.search.strategy import MARKS, marks, new_search, repeat
from agents.work.files import claimed
from agents.work.processes import run_tasks
from agents.work.provenance import TRAINS, source_hash, versions
from engine.cluster.features import REPLICA_NAMES
from engine.cluster.router import Age
from engine.errors import InputError
from engine.fields import checked
from engine.ranges import Rate, number, whole

RECIPE = "router.yml"
NOT_COMPARED = ("generations", "workers")
"""Fields that may differ when a search is resumed."""
START = {"prompt_work": 1.0, "own_prompt": 0.5}
"""Costs of the features where the search begins: the seconds that the first token of this request would wait for."""

Some = Annotated[int, whole(1, 10**9)]


@dataclass(frozen=True)
class RouterEvolutionConfig(Search, Recipe):
    """One search as one record; ``agents/learning/hyperparams/router.yml`` has the recipe of the shipped router."""

    run_dir: Path = Path("runs/router")
    """Folder of the run: the router in final, log.csv, and what it can be resumed from."""
    kind: Literal["router"] = "router"
    """What is searched; in a recipe this line tells it from one for a scheduler."""
    rivals: tuple[str, ...] = ("least_tokens:output_weight=0", "least_tokens", "max_weight")
    """Routers with which a candidate is compared, each with reports as old as the candidate's; the best one counts."""
    replicas: tuple[Some, ...] = (2, 4, 8)
    """Sizes of the fleets, each of equal replicas and of two speeds (`agents.learning.search.router_worlds`)."""
    loads: tuple[Rate, ...] = (1.4, 1.7, 2.0)
    """Requests/s for each replica of the usual speed."""
    policies: tuple[str, ...] = ("slai", "slackfit:tuned")
    """What schedules on the replicas."""
    ages: tuple[Age, ...] = (0.0, 0.1, 1.0, 5.0)
    """Seconds from one report of the replicas to the next."""
    requests: Some = 250
    """Requests in each trace for each replica of the usual speed, a faster one counting as several."""
    generations: Some = 20
    """New sets of candidates."""
    population: Annotated[int, whole(4, 10**6)] = 14
    """Candidates in each generation."""
    sigma: Annotated[float, number(0.0, 100.0, above=True, below=True)] = 0.3
    """Spread of the first generation, where 1 is the cost of a chunk of prompts, or a feature's spread for its own."""
    features: tuple[str, ...] = REPLICA_NAMES
    """Features of a replica that the score depends on."""
    loss_weight: Annotated[float, number(0.0, 1e9, below=True)] = 2.0
    """Weight, on top, of what is worse than the best rival in a world."""
    seed: Annotated[int, whole(0, 2**20 - 1)] = 0
    """Seed of the candidates and of the training traces."""
    workers: Some = 2
    """Processes; the result does not depend on it."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: one is out of range, or a feature or a rival is none.
        """
        checked(self, "")
        if unknown := [name for name in self.features if name not in REPLICA_NAMES]:
            raise InputError(f"features: expected names among {', '.join(REPLICA_NAMES)}, got {unknown[0]!r}")
        if lacking := [name for name in START if name not in self.features]:
            raise InputError(f"features: expected {' and '.join(START)} among them, got none of {lacking[0]!r}")
        for name in ("rivals", "replicas", "loads", "policies", "ages"):
            if not getattr(self, name):
                raise InputError(f"{name}: expected at least one, got none")
        for rival in self.rivals:
            aged(rival, 0.0)

    def trace_seed(self, generation: int, k: int) -> int:
        """The seed of a training trace."""
        return TRAINING_SEED + (self.seed << 20) + generation * 64 + k

    def trials(self, generation: int) -> list[Trial]:
        """Every fleet at every load, with a policy and an age that are drawn; the routers are still to come."""
        rng = np.random.default_rng([self.seed, generation])
        worlds = [
            World(*place, self.policies[rng.integers(len(self.policies))], self.ages[rng.integers(len(self.ages))])
            for place in product(self.replicas, (False, True), self.loads)
        ]
        return [
            Trial("", one, self.requests * one.speeds, self.trace_seed(generation, k)) for k, one in enumerate(worlds)
        ]


def shipped_router_recipe() -> Path:
    """The recipe that ships with the package."""
    return Path(str(resources.files("agents.learning") / "hyperparams" / RECIPE))


@dataclass(frozen=True)
class Frame:
    """What all candidates share: features and their spread, and how they came to be."""

    features: tuple[str, ...]
    spread: Spread
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> np.ndarray:
        """Where the search begins, float64[features]: the costs of START for the spread of each feature."""
        costs = np.array([START.get(name, 0.0) for name in self.features]) * self._of(self.spread.std)
        return np.asarray(costs / np.abs(costs).max())

    def _of(self, values: np.ndarray) -> np.ndarray:
        return values[[REPLICA_NAMES.index(name) for name in self.features]]

    def bundle(self, costs: np.ndarray) -> RouterBundle:
        """The router that goes by these costs of each feature's spread, float64[features]."""
        return RouterBundle(
            layers=((-costs[None].astype(np.float32), np.zeros(1, np.float32)),),
            mean=self._of(self.spread.mean),
            std=self._of(self.spread.std),
            features=self.features,
            **self.about,
        )


def frame(config: RouterEvolutionConfig, command: str = "") -> Frame:
    """Watch the rule where the search begins, in every fleet, for the spread of the features."""
    ones = np.ones(len(START))
    rule = RouterBundle(
        layers=((-np.array([list(START.values())], np.float32), np.zeros(1, np.float32)),),
        mean=0.0 * ones,
        std=ones,
        features=tuple(START),
    )
    trials = [trial._replace(router=rule, requests=min(trial.requests, 500)) for trial in config.trials(0)]
    about = {"command": command, "versions": versions(TRAINS), "sources": source_hash()}
    return Frame(config.features, watch(trials), about)


def relative(
    candidates: Sequence[RouterBundle], rivals: Sequence[str | RouterBundle], trials: Sequence[Trial], workers: int
) -> np.ndarray:
    """log(mean TTFT over that of the best rival), float64[candidates, trials]."""
    tasks = [trial._replace(router=router) for router in (*candidates, *rivals) for trial in trials]
    found = np.zeros(len(tasks))
    for index, value in run_tasks(mean_ttft_s, tasks, workers):
        found[index] = value
    logs = np.log(np.maximum(found, 1e-9)).reshape(-1, len(trials))
    return np.asarray(logs[: len(candidates)] - logs[len(candidates) :].min(0))


def score(logs: np.ndarray, loss_weight: float) -> np.ndarray:
    """What is minimised, float64[candidates]: the mean over the worlds, losses dearer."""
    return np.asarray((logs + loss_weight * np.maximum(logs, 0.0)).mean(1))


def evolve_router(
    config: RouterEvolutionConfig, progress: Callable[[str], object], command: str = "", resume: bool = False
) -> Path:
    """Search; returns the run folder with the router, the mean of the last generation, in ``final``.

    Args:
        config: everything that determines the result.
        progress: called with a line after each generation: the mean's TTFT over the best rival's, equal and mixed.
        command: how the search was started, for the router's description.
        resume: go on with the search that the folder holds; the result is what it would have been in one go.

    Raises:
        InputError: a configuration that does not fit, a folder that holds another run, or nothing to resume.
    """
    with claimed(config.run_dir, "evolve"):
        return _evolve(config, progress, command, resume)


def _evolve(config: RouterEvolutionConfig, progress: Callable[[str], object], command: str, resume: bool) -> Path:
    heading = ("generation", "seconds", "sigma", "relative_equal", "relative_mixed")
    kind = Kind(heading, width=config.population + MARKS, counter="generations", free=NOT_COMPARED)
    rounds = Rounds(config, kind, command, resume)
    shared = frame(config, rounds.command)
    rivals: list[str | RouterBundle] = [*config.rivals, shared.bundle(shared.start)]
    search = new_search(shared.start, config.sigma, config.population, config.seed)
    for numbers in rounds.finished:
        repeat(search, numbers, config.run_dir)
    for generation in range(len(rounds.finished), config.generations):
        points, trials = search.ask(), config.trials(1 + generation)
        candidates = [shared.bundle(np.array(x)) for x in [*points, search.result.xfavorite]]
        logs = relative(candidates, rivals, trials, config.workers)
        costs = score(logs, config.loss_weight)[:-1].tolist()
        search.tell(points, costs)
        is_mixed = np.array([trial.world.is_mixed for trial in trials])
        found = [float(np.exp(logs[-1, where].mean())) for where in (~is_mixed, is_mixed)]
        rounds.add([*costs, *marks(points)], [search.sigma, *found])
        progress(
            f"{generation + 1:4d}  sigma {search.sigma:.3f}  mean TTFT / best rival's {found[0]:.3f} {found[1]:.3f}"
        )
        shared.bundle(np.array(search.result.xfavorite)).save(config.run_dir / "final")
    return config.run_dir
