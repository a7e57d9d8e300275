"""PPO on `LLMSchedRouter-v0`: a scoring network is trained in front of equal and mixed fleets at several loads.

    python3 -m agents.learning.ppo.router.train [--recipe FILE.yml] [--seed 0] [--run-dir runs/router-ppo]

The router begins as the rule at which evolution begins, too (`agents.learning.search.router_evolution.START`). What is
kept is the network after the last update, as a bundle in ``final``.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from agents.learning.learned.router_bundle import RouterBundle
from agents.learning.ppo.rollout import TimedPPO
from agents.learning.ppo.router.policy import CLIP, ScoreFrame, ScorePolicy
from agents.learning.ppo.router.rows import RouterFleets
from agents.learning.ppo.vec_env import SB3VecEnv
from agents.learning.recipe import Recipe
from agents.learning.run_folder import plain, write_about
from agents.learning.search.router_evolution import Frame, RouterEvolutionConfig, frame
from agents.learning.search.router_worlds import FAST, Trial, World, mean_ttft_s
from agents.work.files import claimed
from agents.work.provenance import TRAINS, source_hash, versions
from engine.cluster.features import REQUEST_NAMES
from engine.cluster.router import Age
from engine.cluster.seats import Kind
from engine.demand.workload import Workload
from engine.errors import InputError
from engine.fields import checked
from engine.ranges import Rate, number, whole
from llmsched_env.routing.config import RouterConfig
from llmsched_env.routing.vector import LLMSchedRouterVectorEnv

Some = Annotated[int, whole(1, 10**9)]
Positive = Annotated[float, number(0.0, 1e9, above=True, below=True)]


@dataclass(frozen=True)
class RouterPPOConfig(Recipe):
    """One training as one record; ``agents/learning/hyperparams/router-ppo.yml`` has the recipe."""

    run_dir: Path = Path("runs/router-ppo")
    """Folder of the run: the router in final, config.json, log.csv."""
    replicas: Annotated[int, whole(2, 256)] = 4
    """Of each fleet; what is trained works for any number."""
    loads: tuple[Rate, ...] = (1.4, 1.7, 2.0)
    """Requests/s for each replica of the usual speed."""
    policy: str = "slackfit:tuned"
    """What schedules on the replicas."""
    ages: tuple[Age, ...] = (0.0, 0.1, 1.0, 5.0)
    """Seconds from one report of the replicas to the next, drawn for each episode."""
    requests: Some = 150
    """Requests of an episode for each replica of the usual speed."""
    rows: Some = 12
    """Clusters of each kind of fleet and load."""
    steps: Some = 256
    """Decisions of each cluster between two updates."""
    updates: Some = 60
    """Rollouts, each with its update."""
    epochs: Some = 4
    """Passes over a rollout."""
    batch: Some = 4608
    """Decisions of a minibatch."""
    learning_rate: Positive = 1e-3
    """Of Adam, falling to 0."""
    discount_s: Positive = 10.0
    """Seconds in which a reward loses 63 % of its value."""
    trace: Annotated[float, number(0.0, 1.0)] = 0.97
    """Lambda of generalised advantage estimation, per decision."""
    entropy: Annotated[float, number(0.0, 1e3)] = 0.002
    """Weight of the entropy."""
    sharpness: Positive = 2.0
    """Logits for each unit of the first rule's cost."""
    width: Some = 16
    """Of the hidden layer."""
    critic: Some = 64
    """Of the critic's."""
    seed: Annotated[int, whole(0, 2**20 - 1)] = 0
    """Of networks, actions and traces."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: one is out of range.
        """
        checked(self, "")
        if not self.loads:
            raise InputError("loads: expected at least one, got none")

    @property
    def worlds(self) -> list[World]:
        """The kinds of fleet at each load, with reports of the mean age."""
        age = float(np.mean(self.ages))
        return [World(self.replicas, mixed, load, self.policy, age) for mixed in (False, True) for load in self.loads]

    @property
    def search(self) -> RouterEvolutionConfig:
        """The search whose beginning is that of the training."""
        return RouterEvolutionConfig(
            replicas=(self.replicas,),
            loads=self.loads,
            policies=(self.policy,),
            ages=self.ages,
            requests=self.requests,
            seed=self.seed,
        )


def shipped_recipe() -> Path:
    """The recipe that ships with the package."""
    return Path(str(resources.files("agents.learning") / "hyperparams" / "router-ppo.yml"))


def fleets(config: RouterPPOConfig, first: RouterBundle) -> RouterFleets:
    """The clusters, and as the unit of each reward what requests wait behind the first router."""
    envs, units = [], []
    for k, world in enumerate(config.worlds):
        requests = config.requests * world.speeds
        fast = config.replicas // 2 if world.is_mixed else 0
        kinds = (Kind(count=config.replicas - fast), Kind(fast, FAST.profile, FAST.server)) if fast else ()
        made = RouterConfig(
            replicas=config.replicas,
            policy=config.policy,
            fleet=kinds,
            workload=Workload(rate=world.rate, num_requests=requests),
            ages=config.ages,
        )
        envs.append(LLMSchedRouterVectorEnv(config.rows, made))
        trial = Trial(first, world, requests, config.search.trace_seed(0, k))
        units.append(float(np.mean([mean_ttft_s(trial._replace(seed=trial.seed + 64 * s)) for s in range(4)])))
    return RouterFleets(envs, units)


def score_frame(shared: Frame, sharpness: float) -> ScoreFrame:
    """The rule of a search as the beginning of a network that sees the request, too."""
    more = len(REQUEST_NAMES)
    return ScoreFrame(
        np.concatenate([shared.spread.mean, np.zeros(more)]),
        np.concatenate([shared.spread.std, np.ones(more)]),
        np.concatenate([shared.start, np.zeros(more)]),
        sharpness,
    )


def exported(model: TimedPPO, shared: ScoreFrame, command: str) -> RouterBundle:
    """The actor as a bundle."""
    net: Any = model.policy.mlp_extractor
    about: dict[str, Any] = {"command": command, "versions": versions(TRAINS), "sources": source_hash()}
    return RouterBundle(net.layers(), shared.mean, shared.std, activation="relu", clip=CLIP, **about)


class _Log(BaseCallback):
    """Says after each rollout what a decision has cost on average, in units of the first router's."""

    def __init__(self, progress: Callable[[str], object]) -> None:
        super().__init__()
        self.progress, self.lines = progress, ["update,reward"]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        reward = float(self.locals["rollout_buffer"].rewards.mean())
        self.lines.append(f"{len(self.lines) - 1},{reward:.5g}")
        self.progress(f"{len(self.lines) - 1:4d}  wait of a request / the rule's {-reward:.3f}")


def train_router(config: RouterPPOConfig, progress: Callable[[str], object], command: str = "") -> Path:
    """Train; returns the run folder with the router in ``final``.

    Raises:
        InputError: the folder is in use, or the networks did not stay finite.
    """
    with claimed(config.run_dir, "train"):
        th.manual_seed(config.seed)
        shared = frame(config.search)
        start = score_frame(shared, config.sharpness)
        env = SB3VecEnv(fleets(config, shared.bundle(shared.start)))
        model = TimedPPO(
            ScorePolicy,
            env,
            learning_rate=lambda left: config.learning_rate * left,
            n_steps=config.steps,
            batch_size=config.batch,
            n_epochs=config.epochs,
            gae_lambda=config.trace,
            ent_coef=config.entropy,
            discount_s=config.discount_s,
            seed=config.seed,
            device="cpu",
            policy_kwargs={
                "frame": start,
                "replicas": config.replicas,
                "width": config.width,
                "critic": config.critic,
            },
        )
        log = _Log(progress)
        model.learn(config.updates * config.steps * env.num_envs, callback=log)
        about = plain({name: str(v) if isinstance(v, Path) else v for name, v in asdict(config).items()})
        write_about(config.run_dir, {"config": about, "command": command, "versions": versions(TRAINS)})
        (config.run_dir / "log.csv").write_text("\n".join(log.lines) + "\n", encoding="utf-8")
        exported(model, start, command).save(config.run_dir / "final")
    return config.run_dir


def main() -> None:
    """Train by a recipe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--recipe", type=Path, default=shipped_recipe(), help="YAML file with fields of RouterPPOConfig"
    )
    parser.add_argument("--seed", type=int, default=0, help="of networks, actions and traces")
    parser.add_argument("--run-dir", type=Path, default=RouterPPOConfig.run_dir, help="folder of the run")
    options = parser.parse_args()
    config = RouterPPOConfig.from_yaml(options.recipe, seed=options.seed, run_dir=options.run_dir)
    command = " ".join(["python3 -m agents.learning.ppo.router.train", *sys.argv[1:]])
    folder = train_router(config, print, command)
    print(f"trained: {folder}/final (llmsched route --routers least_tokens,{folder}/final)")


if __name__ == "__main__":
    main()
