"""`llmsched evolve`: policy search on whole runs."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from agents.options import ProgressOptions, TierTexts, WorkerOptions
from agents.work.processes import workers_for
from agents.work.progress import bars
from engine.demand.tiers import parse_tiers
from engine.extras import need
from engine.ranges import Seed, whole


@dataclass(frozen=True, kw_only=True)
class Command(ProgressOptions, WorkerOptions):
    """Search a small policy by evolution on common traces, from a baseline on; the recipes of what ships."""

    recipe: str = "pretrained"
    """A shipped recipe (pretrained: of the policy, pretrained-router: of the router) or a YAML file: a mapping of the
    fields of `EvolutionConfig`, or of `RouterEvolutionConfig` with `kind: router` among them."""
    run_dir: Path = Path("runs/evolution")
    """Folder of the run: the policy in final, log.csv."""
    seed: Seed = 0
    """Seed of the candidates and of the training traces."""
    generations: Annotated[int, whole(1, 10**9)] | None = None
    """Sets of candidates, instead of the recipe's."""
    tier: TierTexts = ()
    """A service tier, once for each, instead of the recipe's: name=paid,share=0.05,tbt=0.1,ttft=2 (seconds)."""
    resume: bool = False
    """Go on with the search in the run folder, from which all other options are taken (--generations may be more)."""

    def preset(self) -> Self | None:
        """The same command with the settings of the search to resume as defaults.

        Raises:
            InputError: there is none.
        """
        from agents.learning.search.recipes import saved_search

        if not self.resume:
            return None
        saved = saved_search(self.run_dir)
        return replace(self, seed=saved.seed, generations=saved.generations)

    def run(self) -> None:
        """Search, print a line for each generation.

        Raises:
            InputError: no such recipe, a value that does not fit, or a folder that holds another run.
        """
        from agents.learning.search.recipes import next_command, read_search, run_search, saved_search
        from agents.learning.search.rounds import going_on

        need("train", "evolve")
        changes: dict[str, Any] = {} if self.generations is None else {"generations": self.generations}
        if self.tier:
            changes["tiers"] = parse_tiers(self.tier, "tier")
        changes |= {"run_dir": self.run_dir, "seed": self.seed, "workers": workers_for(self.workers)}
        if self.resume and self.recipe == "pretrained":
            config = saved_search(self.run_dir, **changes)
        else:
            config = read_search(self.recipe, **changes)
        with bars(self.progress) as bar, going_on(self.run_dir, "evolve"):
            folder = run_search(config, bar.counting("generations", config.generations), _command(), self.resume)
        print(f"found: {folder}/final ({next_command(config)})")


def _command() -> str:
    return " ".join(["llmsched", *sys.argv[1:]])
