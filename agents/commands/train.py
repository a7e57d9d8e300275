"""`llmsched train`: PPO on one server."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Self

import tyro

from agents.learning.train_config import TrainConfig

DEFAULT = "LLMSched-v0"


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train a scheduler with PPO into a run folder (checkpoints, TensorBoard, policy bundles).

    Ctrl-C stops it; llmsched train --resume --run-dir RUN_DIR goes on from there, exactly: everything else is in the
    folder (--total-timesteps, --checkpoint-every, --keep-checkpoints and --eval-every may differ). Evaluate the run by
    naming its folder: llmsched evaluate --policies slai,sarathi,RUN_DIR
    """

    hyperparams: str = DEFAULT
    """Defaults of the other flags: an environment id with a shipped file, or a .yml file of the same shape."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig.from_yaml)
    """The run."""

    def preset(self) -> Self | None:
        """The same command with other defaults: of the run to resume, or of a hyperparameter file.

        Raises:
            InputError: no such run or file, or one that does not fit.
        """
        if self.hyperparams == DEFAULT:
            return replace(self, train=TrainConfig.of_run(self.train.run_dir)) if self.train.resume else None
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
            how = f"{kept[-1]}; llmsched train --resume --run-dir {folder} goes on from it" if kept else "none yet"
            print(f"last checkpoint: {how}")
            raise
        print(f"trained: {folder} (tensorboard --logdir {folder}; llmsched evaluate --policies sarathi,{folder})")
