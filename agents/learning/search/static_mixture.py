"""The improper mixture: one distribution over baselines, the same in every state, learned by policy gradient.

Each iteration with prompt work draws the baseline that builds the batch from softmax(theta). theta follows the gradient
of the logarithm of the cost of whole runs, estimated by simultaneous perturbation (SPSA): both sides of a perturbation
serve the same trace with the same random numbers. Source: arXiv 2102.08201, 2207.09090 (softmax over base controllers,
state-independent; theta = 0 at first). The contextual form is PPO on ``LLMSchedMixture-v0``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.learning.heldout import TRAINING_SEED
from agents.learning.learned.bundle import Bundle
from agents.learning.learned.load import policy_of
from agents.learning.learned.policy import LearnedPolicy
from agents.learning.search.rounds import Kind, Rounds, Search
from agents.learning.search.whole_runs import Trial, measure
from agents.work.files import claimed
from agents.work.processes import run_tasks
from agents.work.provenance import TRAINS, source_hash, versions
from engine.demand.tiers import parse_tiers
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from llmsched_env.actions import Mixture
from llmsched_env.config import EnvConfig

NOT_COMPARED = ("updates", "workers")
"""Fields that may differ when a search is resumed."""


@dataclass(frozen=True)
class MixtureConfig(Search):
    """One search as one record."""

    run_dir: Path = Path("runs/mixture")
    """Folder of the run: the policy in final, log.csv."""
    arms: tuple[str, ...] = ("slai", "sarathi", "sarathi:order=spf", "vllm")
    """Baselines to mix."""
    rates: tuple[float, ...] = (1.4, 1.6, 1.8, 2.0)
    """Arrival rates, taken in turn."""
    tiers: tuple[Any, ...] = ()
    """Service tiers (`engine.demand.tiers.parse_tiers`; none: the default ones)."""
    requests: int = 500
    """Requests in each trace."""
    pairs: int = 8
    """Perturbations in each update, each on a trace of its own, both of its signs."""
    updates: int = 50
    """Steps of theta."""
    step: float = 1.0
    """Length of a step along the gradient."""
    spread: float = 0.5
    """Size of a perturbation."""
    seed: int = 0
    """Seed of the perturbations and of the training traces."""
    workers: int = 2
    """Processes; the result does not depend on it."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: one is out of range.
        """
        for name in ("requests", "pairs", "updates", "workers"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"{name}: expected a whole number >= 1, got {getattr(self, name)!r}")
        for name in ("step", "spread"):
            if not 0.0 < getattr(self, name) < 1e6:
                raise InputError(f"{name}: expected a number > 0, got {getattr(self, name)!r}")
        if not 0 <= self.seed < 1 << 20:
            raise InputError(f"seed: expected 0 to 2**20 - 1, got {self.seed!r}")
        if len(self.arms) < 2:
            raise InputError(f"arms: expected at least two baselines, got {', '.join(self.arms) or 'none'}")

    def env(self) -> EnvConfig:
        """The environment whose action is the choice of an arm."""
        workload = Workload(rate=self.rates[0], num_requests=self.requests, tiers=parse_tiers(self.tiers))
        return EnvConfig(action=Mixture(arms=self.arms), skip_decode_only=True, rates=self.rates, workload=workload)


def static_mixture(env: EnvConfig, theta: np.ndarray, name: str = "mixture", command: str = "") -> LearnedPolicy:
    """The policy that draws arms from softmax(theta), as a bundle: a network that sees nothing, theta its biases."""
    bundle = Bundle(
        layers=((np.zeros((len(theta), 0), np.float32), theta.astype(np.float32)),),
        activation="tanh",
        mean=np.zeros(0),
        std=np.ones(0),
        clip=1.0,
        codec=env.action.codec.params(load_profile(env.profile)),
        env=env,
        observation=(),
        sampled=True,
        command=command,
        versions=versions(TRAINS),
        sources=source_hash(),
    )
    return policy_of(bundle, name)


def shares(theta: np.ndarray) -> np.ndarray:
    """softmax(theta), float64[arms]."""
    odds = np.exp(theta - theta.max())
    return np.asarray(odds / odds.sum())


def learn_mixture(
    config: MixtureConfig, progress: Callable[[str], object], command: str = "", resume: bool = False
) -> Path:
    """Search; returns the run folder with the policy in ``final``.

    Args:
        config: everything that determines the result.
        progress: called with a line after each update: the shares of the arms.
        command: how the search was started, for the policy's description.
        resume: go on with the search that the folder holds; the result is what it would have been in one go.

    Raises:
        InputError: a configuration that does not fit, a folder that holds another run, or nothing to resume.
    """
    with claimed(config.run_dir, "mixture"):
        return _learn(config, progress, command, resume)


def _learn(config: MixtureConfig, progress: Callable[[str], object], command: str, resume: bool) -> Path:
    env, arms = config.env(), len(config.arms)
    static_mixture(env, np.zeros(arms)).memory(env.engine, 1)  # every arm exists
    heading = ("update", "seconds", "cost", *(f'"{arm}"' for arm in config.arms))
    kind = Kind(heading, width=arms, counter="updates", free=NOT_COMPARED)
    rounds = Rounds(config, kind, command, resume)
    rng, theta = np.random.default_rng(config.seed), np.zeros(arms)
    for numbers in rounds.finished:
        _draw_signs(rng, config)  # so that the generator goes on from here
        theta = np.array(numbers)
    for update in range(len(rounds.finished), config.updates):
        signs = _draw_signs(rng, config)
        costs = _costs(config, env, theta, signs, update)
        slope = np.log(costs[:, 0] / costs[:, 1]) / (2.0 * config.spread)
        theta = theta - config.step * (slope[:, None] * signs).mean(0)
        found = shares(theta)
        rounds.add(theta.tolist(), [costs.mean(), *found])
        progress(
            f"{update + 1:3d}  cost {costs.mean():.3f}  "
            + " ".join(f"{arm} {share:.2f}" for arm, share in zip(config.arms, found, strict=True))
        )
    learned = static_mixture(env, theta, str(config.run_dir), rounds.command)
    learned.bundle.save(config.run_dir / "final")
    return config.run_dir


def _draw_signs(rng: np.random.Generator, config: MixtureConfig) -> np.ndarray:
    return rng.choice([-1.0, 1.0], (config.pairs, len(config.arms)))


def _costs(config: MixtureConfig, env: EnvConfig, theta: np.ndarray, signs: np.ndarray, update: int) -> np.ndarray:
    """Seconds per request on both sides of each perturbation, float64[pairs, 2]."""
    trials = []
    for k, sign in enumerate(signs):
        rate = config.rates[(update * config.pairs + k) % len(config.rates)]
        seed = TRAINING_SEED + (config.seed << 20) + update * 64 + k
        for side in (1.0, -1.0):
            policy = static_mixture(env, theta + side * config.spread * sign)
            trials.append(Trial(policy, replace(env.workload, rate=rate), seed, env))
    costs = np.zeros(len(trials))
    for index, values in run_tasks(measure, trials, config.workers):
        costs[index] = max(values[0], 1e-9)
    return costs.reshape(-1, 2)
