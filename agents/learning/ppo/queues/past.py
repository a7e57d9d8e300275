"""The past of a run of the trainer for queues: the policy that each kept checkpoint would have been exported as."""

from dataclasses import replace
from pathlib import Path

from agents.learning.learned.bundle import Bundle
from agents.learning.ppo.checkpoint import checkpoints
from agents.learning.ppo.checkpoint_file import count_of, read
from agents.learning.ppo.queues.build import exported_layers
from engine.errors import InputError
from engine.files.reading import LARGE

_ACTOR = "policy.averaged.module."
"""Where a checkpoint has the running mean of the actor: its hidden layers under 0, the last under 1."""


def past_policies(run: Path) -> list[Bundle]:
    """The bundle of each checkpoint of a run, oldest first.

    What does not change in a training (normalisation, codec, environment) is that of the last policy.

    Raises:
        InputError: the run is not finished, has no checkpoint, is of another trainer, or a file is damaged.
    """
    final = Bundle.load(Path(run) / "final")
    found = checkpoints(Path(run) / "checkpoints")
    if not found:
        raise InputError(f"{run}: expected a training with checkpoints, found none")
    return [_bundle_of(path, final) for path in found]


def _bundle_of(path: Path, final: Bundle) -> Bundle:
    arrays, about = read(path, LARGE)
    names = sorted(
        name.removesuffix("weight") for name in arrays if name.startswith(_ACTOR) and name.endswith("weight")
    )
    if not names:
        raise InputError(f"{path}: expected a checkpoint of the trainer for queues, got one of another")
    layers = [(arrays[f"{name}weight"], arrays[f"{name}bias"]) for name in names]
    return replace(
        final, layers=exported_layers(layers, final.env.action.sizes), timesteps=count_of(about, "num_timesteps")
    )
