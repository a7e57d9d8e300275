"""Policy search by evolution (CMA-ES): a small policy is judged by what it costs in whole runs, on common traces.

What a choice costs in memory shows minutes later, and with the few per cent that are to be gained PPO's advantages
drown in the noise of arrivals. Here every candidate of a generation serves the same traces to their end, so that
differences are those of the policies, and the next generation gets new traces, so that none is learned by heart.

The policy is one linear layer: each head's level is ``base + weights x features``, rounded, as logits
(`agents.learning.learned.levels`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from agents.learning.heldout import TRAINING_SEED
from agents.learning.learned.bundle import Bundle
from agents.learning.learned.levels import level_layer
from agents.learning.learned.load import policy_of
from agents.learning.learned.policy import LearnedPolicy
from agents.learning.recipe import Recipe
from agents.learning.search.rounds import Kind, Rounds, Search
from agents.learning.search.strategy import MARKS, marks, new_search, repeat
from agents.learning.search.whole_runs import Trial, measure
from agents.learning.teachers import as_taught, teacher
from agents.work.files import claimed
from agents.work.processes import run_tasks
from agents.work.provenance import TRAINS, source_hash, versions
from baselines.families.aims import FEW_SEATS
from engine.demand.requests import DEFAULT_TIERS
from engine.demand.tiers import parse_tiers
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.fields import checked
from engine.ranges import Rate, Share, number, whole
from engine.scenarios.scenario import Scenario
from engine.scenarios.suite import read_scenarios
from llmsched_env.actions import Slackfit
from llmsched_env.config import EnvConfig
from llmsched_env.fleet import Fleet
from llmsched_env.observation import OBSERVATION_NAMES, OBSERVATION_SIZE

FEATURES = (
    "kv_use",
    "kv_use_slow",
    "arrivals_per_batch_slow",
    "waiting_tokens",
    "started_tokens",
    "running_share",
    "oldest_wait_relaxed",
    "shortest_prompt",
)
"""Observations that the levels depend on, if a configuration names no others."""
RECIPE = "evolution.yml"
NOT_COMPARED = ("generations", "workers")
"""Fields that may differ when a search is resumed."""
SIZES = Slackfit().sizes
"""Levels of each head."""
WEIGHTS = (1.0, 0.5, -2.0)
"""Of the logarithms of cost, median TTFT and goodput: a better mean must not cost the others."""
CLIP = 5.0
"""Largest absolute value of a normalised feature."""

Some = Annotated[int, whole(1, 10**9)]
Weight = Annotated[float, number(0.0, 1e9, below=True)]


@dataclass(frozen=True)
class EvolutionConfig(Search, Recipe):
    """One search as one record; ``agents/learning/hyperparams/evolution.yml`` has the recipe of the shipped policy."""

    run_dir: Path = Path("runs/evolution")
    """Folder of the run: the policy in final, log.csv, and what it can be resumed from."""
    teacher: str = "slackfit:tuned"
    """Baseline to start from."""
    rates: tuple[Rate, ...] = (1.4, 1.6, 1.8, 2.0)
    """Arrival rates of the default workload; each counts the same, one that is named twice twice."""
    scenarios: tuple[Scenario, ...] = field(default=(), metadata={"read": read_scenarios})
    """Further worlds, each of which counts as one rate does: a suite's name or file, or a list of scenarios
    (``gamma:rate=1.4,cv=2``, ``poisson:rate=6.7@h100-mistral-7b``; `engine.scenarios`)."""
    tiers: tuple[Any, ...] = ()
    """Service tiers of all that have none of their own (`engine.demand.tiers.parse_tiers`; none: the default ones)."""
    requests: Some = 3000
    """Requests in each trace."""
    traces: Some = 1
    """Traces of each rate that a generation is judged on."""
    generations: Some = 150
    """New sets of candidates."""
    population: Annotated[int, whole(4, 10**6)] = 16
    """Candidates in each generation."""
    sigma: Annotated[float, number(0.0, 100.0, above=True, below=True)] = 0.4
    """Spread of the first generation, in levels."""
    hold: Some = 8
    """Iterations for which a choice holds (`llmsched_env.Slackfit`)."""
    ageing: Weight = 0.0
    """Tokens that a prompt counts less for each second since its arrival (`llmsched_env.Slackfit`)."""
    close: Weight = 1.0
    """When a batch ends early with a finished prompt (`llmsched_env.Slackfit`)."""
    close_until: Share = FEW_SEATS
    """Share of the seats in use up to which batches end early (`llmsched_env.Slackfit`)."""
    features: tuple[str, ...] = FEATURES
    """Observations that the levels depend on (none: constant levels)."""
    loss_weight: Weight = 2.0
    """Weight, on top, of what is worse than the teacher at a load: one load must not be won at the cost of another."""
    seed: Annotated[int, whole(0, 2**20 - 1)] = 0
    """Seed of the candidates and of the training traces."""
    workers: Some = 2
    """Processes; the result does not depend on it."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: one is out of range.
        """
        checked(self, "")
        if unknown := [name for name in self.features if name not in OBSERVATION_NAMES]:
            raise InputError(f"features: expected names among {', '.join(OBSERVATION_NAMES)}, got {unknown[0]!r}")
        if not self.rates:
            raise InputError("rates: expected at least one rate in requests/s, got none")
        parse_tiers(self.tiers)

    @property
    def loads(self) -> list[Workload]:
        """What the policies serve: the default workload at every rate, and that of every scenario."""
        tiers = parse_tiers(self.tiers)
        own = [Workload(rate=rate, num_requests=self.requests, tiers=tiers) for rate in self.rates]
        further = [one.requests(self.requests) for one in self.scenarios]
        return own + [replace(load, tiers=tiers) if load.tiers == DEFAULT_TIERS else load for load in further]

    def envs(self, env: EnvConfig) -> list[EnvConfig]:
        """Where each of the loads is served: profile and limits of its device."""
        further = [replace(env, profile=one.profile, engine=one.engine) for one in self.scenarios]
        return [env] * len(self.rates) + further

    def env(self) -> EnvConfig:
        """The environment whose action and observation the policy has."""
        return EnvConfig(
            action=Slackfit(hold=self.hold, ageing=self.ageing, close=self.close, close_until=self.close_until),
            skip_decode_only=True,
            rates=self.rates,
            workload=self.loads[0],
        )


@dataclass(frozen=True)
class Frame:
    """What all candidates share: environment, normalisation, the teacher's levels."""

    env: EnvConfig
    mean: np.ndarray  # float64[features]
    std: np.ndarray  # float64[features]
    base: np.ndarray  # float64[heads]
    features: tuple[str, ...] = FEATURES
    about: dict[str, Any] = field(default_factory=dict)

    def policy(self, x: np.ndarray, name: str = "candidate") -> LearnedPolicy:
        """The policy of a parameter vector, float64[heads * (1 + features)]: offsets and weights in levels."""
        knobs = x.reshape(len(SIZES), 1 + len(self.features))
        # The sums of the network are always taken in the order of the observation.
        order = np.argsort([OBSERVATION_NAMES.index(feature) for feature in self.features]).astype(np.int64)
        layer = level_layer(knobs[:, 1:][:, order], self.base + knobs[:, 0], SIZES)
        bundle = Bundle(
            layers=(layer,),
            activation="tanh",
            mean=self.mean[order],
            std=self.std[order],
            clip=CLIP,
            codec=self.env.action.codec.params(load_profile(self.env.profile)),
            env=self.env,
            observation=tuple(self.features[k] for k in order),
            **self.about,
        )
        return policy_of(bundle, name)


def shipped_recipe() -> Path:
    """The recipe that ships with the package."""
    return Path(str(resources.files("agents.learning") / "hyperparams" / RECIPE))


def frame(config: EvolutionConfig, command: str = "") -> Frame:
    """Watch the teacher at every load for the normalisation.

    Raises:
        InputError: a teacher outside the action space.
    """
    env = config.env()
    taught = as_taught(config.teacher, env)
    choose = teacher(config.teacher, taught)
    seen = []
    for k, (load, place) in enumerate(zip(config.loads, config.envs(taught), strict=True)):
        fleet = Fleet(1, replace(place, rates=(), workload=load))
        fleet.start(0, fleet.draw(np.random.default_rng(_trace_seed(config, 0, k))))
        while not fleet.outcome.terminated[0]:
            seen.append(fleet.outcome.observation[0].astype(np.float64))
            fleet.step(choose(fleet.outcome.observation))
    observations = np.array(seen)
    columns = [observations[:, OBSERVATION_NAMES.index(feature)] for feature in config.features]
    mean = np.array([column.mean() for column in columns])
    std = np.array([max(1e-3, column.std()) for column in columns])
    base = choose(np.zeros((1, OBSERVATION_SIZE), np.float32))[0].astype(np.float64)
    about = {"command": command, "versions": versions(TRAINS), "sources": source_hash()}
    return Frame(env, mean, std, base, config.features, about)


def _trace_seed(config: EvolutionConfig, generation: int, k: int) -> int:
    return TRAINING_SEED + (config.seed << 20) + generation * 64 + k


def measure_all(
    policies: Sequence[LearnedPolicy | str], config: EvolutionConfig, env: EnvConfig, generation: int
) -> np.ndarray:
    """Each policy at each load on the traces of one generation, float64[policies, loads, 3] (see `measure`)."""
    loads = zip(config.loads, config.envs(env), strict=True)
    cells = [
        (load, place, k * config.traces + t) for k, (load, place) in enumerate(loads) for t in range(config.traces)
    ]
    trials = [
        Trial(policy, load, _trace_seed(config, 1 + generation, k), place)
        for policy in policies
        for load, place, k in cells
    ]
    found = np.zeros((len(trials), 3))
    for index, values in run_tasks(measure, trials, config.workers):
        found[index] = values
    return found.reshape(len(policies), -1, config.traces, 3).mean(2)


def score(found: np.ndarray, loss_weight: float = 0.0) -> np.ndarray:
    """What is minimised, float64[policies - 1]: WEIGHTS x logs relative to policy 0, mean over loads, losses dearer."""
    relative = np.log(np.maximum(found[1:], 1e-9) / np.maximum(found[0], 1e-9)) @ np.array(WEIGHTS)
    return np.asarray((relative + loss_weight * np.maximum(relative, 0.0)).mean(1))


def evolve(config: EvolutionConfig, progress: Callable[[str], object], command: str = "", resume: bool = False) -> Path:
    """Search; returns the run folder with the policy, the mean of the last generation, in ``final``.

    Args:
        config: everything that determines the result.
        progress: called with a line after each generation: the cost of the mean at each load, relative to the teacher.
        command: how the search was started, for the policy's description.
        resume: go on with the search that the folder holds; the result is what it would have been in one go.

    Raises:
        InputError: a configuration that does not fit, a folder that holds another run, or nothing to resume.
    """
    with claimed(config.run_dir, "evolve"):
        return _evolve(config, progress, command, resume)


def _evolve(config: EvolutionConfig, progress: Callable[[str], object], command: str, resume: bool) -> Path:
    names = [f"{rate:g}" for rate in config.rates]
    names += [f"scenario_{k}" for k in range(len(config.scenarios))]
    heading = ("generation", "seconds", "sigma", *(f"relative_{name}" for name in names))
    kind = Kind(heading, width=config.population + MARKS, counter="generations", free=NOT_COMPARED)
    rounds = Rounds(config, kind, command, resume)
    shared = frame(config, rounds.command)
    start = np.zeros(len(SIZES) * (1 + len(config.features)))
    search = new_search(start, config.sigma, config.population, config.seed)
    for numbers in rounds.finished:
        repeat(search, numbers, config.run_dir)
    for generation in range(len(rounds.finished), config.generations):
        points = search.ask()
        candidates = [shared.policy(np.array(x)) for x in [*points, search.result.xfavorite]]
        found = measure_all([config.teacher, *candidates], config, shared.env, generation)
        costs = score(found, config.loss_weight)[:-1].tolist()
        search.tell(points, costs)
        relative = found[-1, :, 0] / found[0, :, 0]
        rounds.add([*costs, *marks(points)], [search.sigma, *relative])
        progress(
            f"{generation + 1:4d}  sigma {search.sigma:.3f}  cost / teacher's "
            + " ".join(f"{value:.3f}" for value in relative)
        )
        if generation % 10 == 9:
            shared.policy(np.array(search.result.xfavorite)).bundle.save(config.run_dir / "final")
    shared.policy(np.array(search.result.xfavorite)).bundle.save(config.run_dir / "final")
    return config.run_dir
