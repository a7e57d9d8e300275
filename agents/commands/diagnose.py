"""`llmsched diagnose`: whether a trainer's gradient points where the cost falls."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from agents.learning.ppo.train_config import TrainConfig, queue_recipe
from agents.options import ProgressOptions, TableOptions
from agents.reporting.grid import Grid, Head, Part, print_lines, show, terminal_console
from agents.work.files import check_writable, write_json
from agents.work.progress import bars
from engine.errors import InputError
from engine.extras import need
from engine.ranges import Count, Rate

if TYPE_CHECKING:
    from agents.learning.ppo.queues.diagnosis import Gradient


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions, ProgressOptions):
    """Compare the policy gradient of a recipe with the true one: the cost's derivative by finite differences.

    Both are with respect to a constant offset of every level, around the teacher's levels, at one arrival rate. A
    cosine of 1 is the true direction, one below 0 makes the policy worse. Beside the recipe: plain PPO's estimate
    (discount of 5 s, lambda .9, critic on the observation), and with `--variants all` the recipe without each piece.
    """

    what: Annotated[Literal["gradient"], tyro.conf.Positional] = "gradient"
    """What to diagnose."""
    hyperparams: Path | None = None
    """Recipe with `queue` settings (default: agents/learning/hyperparams/queue.yml)."""
    variants: str = "recipe,plain"
    """Estimates, comma separated, or all: recipe, plain, observed critic, unpaired, no differences, no resync, whole
    trace, noise of steps."""
    rate: Rate = 2.0
    """Arrival rate in requests/s."""
    traces: Count = 64
    """Traces of the reference gradient."""
    warm_up: Count = 20
    """Rollouts in which the critic learns before."""
    rollouts: Count = 40
    """Rollouts whose gradients are compared."""
    json: Path | None = None
    """Also write the result to this file."""

    def run(self) -> None:
        """Measure, print, write.

        Raises:
            InputError: options that do not fit, or a file that cannot be written.
        """
        need("train", "diagnose")
        from agents.learning.ppo.queues.diagnosis import Gradient, at_rate, estimated_gradients, reference_gradient
        from agents.learning.ppo.train import torch_settings

        check_writable(self.json)
        config = at_rate(TrainConfig.from_yaml(self.hyperparams or queue_recipe()), self.rate)
        chosen = self._chosen(config)
        if self.traces < 2 or self.rollouts < 2:
            raise InputError("traces, rollouts: expected at least 2 of each")
        with bars(self.progress) as progress, torch_settings(1):
            reference = reference_gradient(config, self.traces, lambda k, n: progress("reference", k, n))
            found = {}
            for name, variant in chosen.items():
                single = []
                for gradient in estimated_gradients(variant, self.warm_up, self.rollouts):
                    single.append(gradient)
                    progress(name, len(single), self.rollouts)
                found[name] = Gradient(np.array(single))
        heads = list(config.env.action.heads)
        console = terminal_console()
        show(_reference_grid(reference, heads, self.rate), console, self.wide)
        show(_grid(found, reference, heads), console, self.wide)
        print_lines(console, ["Gradients are of the cost: a level that is to fall has a positive one."])
        write_json(self.json, _plain(found, reference))

    def _chosen(self, config: TrainConfig) -> dict[str, TrainConfig]:
        from agents.learning.ppo.queues.diagnosis import variants

        known = variants(config)
        names = [*known] if self.variants == "all" else [name.strip() for name in self.variants.split(",")]
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"variants: expected some of {', '.join(known)}, got {unknown[0]!r}")
        return {name: known[name] for name in names}


def _reference_grid(reference: "Gradient", heads: list[str], rate: float) -> Grid:
    cells = [f"{mean:+.4f} +- {error:.4f}" for mean, error in zip(reference.mean, reference.error, strict=True)]
    title = f"True gradient at {rate:g} requests/s: cost per second for one level, {len(reference.single)} traces"
    return Grid([Head(head) for head in heads], [Part([cells], title)])


def _grid(found: "dict[str, Gradient]", reference: "Gradient", heads: list[str]) -> Grid:
    rows = []
    for name, gradient in found.items():
        of_mean, of_one, error = gradient.cosine(reference)
        cells = [f"{m:+.4f} +- {e:.4f}" for m, e in zip(gradient.mean, gradient.error, strict=True)]
        rows.append([name, f"{of_mean:+.2f}", f"{of_one:+.2f} +- {error:.2f}", *cells])
    titles = (Head("estimate", "name"), Head("cosine of the mean"), Head("of one rollout"), *(Head(h) for h in heads))
    return Grid(titles, [Part(rows, "Estimated gradients (of the surrogate loss)")])


def _plain(found: "dict[str, Gradient]", reference: "Gradient") -> dict[str, Any]:
    cosines = {name: dict(zip(("mean", "one", "error"), g.cosine(reference), strict=True)) for name, g in found.items()}
    gradients = {"reference": reference, **found}
    return {"cosine": cosines, "gradients": {name: g.single.tolist() for name, g in gradients.items()}}
