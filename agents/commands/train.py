"""`llmsched train`: PPO on one server."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Self

import tyro

from agents.learning.train_config import TrainConfig

DEFAULT = "LLMSched-v0"


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train a scheduler with PPO into a run folder (checkpoints, TensorBoard, policy bundles).

    Ctrl-C stops it; --resume goes on from the last checkpoint, exactly. Evaluate the run by naming its folder:
    llmsched evaluate --policies slai,sarathi,RUN_DIR
    """

    hyperparams: str = DEFAULT
    """Defaults of the other flags: an environment id with a shipped file, or a .yml file of the same shape."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig.from_yaml)
    """The run."""

    def preset(self) -> Self | None:
        """The same command with the defaults of the chosen hyperparameter file, if it is another than the shipped.

        Raises:
            InputError: no such file, or one that does not fit.
        """
        if self.hyperparams == DEFAULT:
            return None
        return replace(self, train=TrainConfig.from_yaml(self.hyperparams))

    def run(self) -> None:
        """Train and say where the result is.

        Raises:
            InputError: options that do not fit, or a folder that cannot be used.
            KeyboardInterrupt: stopped; says how to go on.
        """
        from agents.learning.checkpoint import checkpoints
        from agents.learning.train import CHECKPOINTS, train

        folder = self.train.run_dir
        try:
            train(self.train)
        except KeyboardInterrupt:
            kept = checkpoints(folder / CHECKPOINTS)
            print(f"last checkpoint: {kept[-1]}; --resume goes on from it" if kept else "no checkpoint was due yet")
            raise
        print(f"trained: {folder} (tensorboard --logdir {folder}; llmsched evaluate --policies sarathi,{folder})")
