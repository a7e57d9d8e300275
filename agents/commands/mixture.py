"""`llmsched mixture`: one distribution over baselines, learned by policy gradient (the improper mixture)."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from agents.options import ProgressOptions, TierTexts, UpToMillion, WorkerOptions, parse_rates
from agents.policies import split_policies
from agents.work.processes import workers_for
from agents.work.progress import bars
from engine.demand.tiers import parse_tiers
from engine.ranges import Count, Seed, whole


@dataclass(frozen=True, kw_only=True)
class Command(ProgressOptions, WorkerOptions):
    """Learn with which odds to draw the baseline that builds the next batch, the same odds in every state.

    Its contextual form, a network that chooses by state, is `llmsched train --hyperparams LLMSchedMixture-v0`.
    """

    run_dir: Path = Path("runs/mixture")
    """Folder of the run: the policy in final, log.csv."""
    arms: str = "slai,sarathi,sarathi:order=spf,vllm"
    """Baselines to mix, comma separated."""
    rates: str = "1.4,1.6,1.8,2.0"
    """Arrival rates in requests/s of the training traces, taken in turn."""
    tier: TierTexts = ()
    """A service tier, once for each, instead of the default ones: name=paid,share=0.05,tbt=0.1,ttft=2 (seconds)."""
    updates: Annotated[int, whole(1, 10**9)] = 50
    """Steps of the gradient."""
    pairs: UpToMillion = 8
    """Perturbations in each step, each on a trace of its own."""
    requests: Count = 500
    """Requests in each trace."""
    seed: Seed = 0
    """Seed of the perturbations and of the training traces."""
    resume: bool = False
    """Go on with the search in the run folder, from which all other options are taken (--updates may be more)."""

    def preset(self) -> Self | None:
        """The same command with the settings of the search to resume as defaults.

        Raises:
            InputError: there is none.
        """
        from agents.learning.search.static_mixture import MixtureConfig

        if not self.resume:
            return None
        saved = MixtureConfig.of_run(self.run_dir)
        given: dict[str, Any] = {name: getattr(saved, name) for name in ("updates", "pairs", "requests", "seed")}
        return replace(self, arms=",".join(saved.arms), rates=",".join(map(repr, saved.rates)), **given)

    def run(self) -> None:
        """Learn, print a line for each update.

        Raises:
            InputError: a value that does not fit, or a folder that holds another run.
        """
        from agents.learning.search.rounds import going_on
        from agents.learning.search.static_mixture import MixtureConfig, learn_mixture

        base = MixtureConfig.of_run(self.run_dir) if self.resume else MixtureConfig()
        config = replace(
            base,
            run_dir=self.run_dir,
            arms=split_policies(self.arms),
            rates=parse_rates(self.rates),
            tiers=parse_tiers(self.tier, "tier") if self.tier else base.tiers,
            requests=self.requests,
            pairs=self.pairs,
            updates=self.updates,
            seed=self.seed,
            workers=workers_for(self.workers),
        )
        command = " ".join(["llmsched", *sys.argv[1:]])
        with bars(self.progress) as bar, going_on(self.run_dir, "mixture"):
            folder = learn_mixture(config, bar.counting("updates", config.updates), command, self.resume)
        print(f"learned: {folder}/final (llmsched evaluate --policies {self.arms},{folder}/final)")
