"""The `mixture` action: which of several baselines builds the next batch."""

from dataclasses import dataclass
from typing import ClassVar

import baselines
from engine.errors import InputError
from engine.server.policy import Policy
from llmsched_env.actions.action import Action, Codec
from llmsched_env.actions.allocation import Allocation


@dataclass(frozen=True)
class Mixture(Action):
    """Which of several baselines builds the next batch."""

    name: ClassVar[str] = "mixture"

    arms: tuple[str, ...] = ("slai", "sarathi", "sarathi:order=spf", "vllm")
    """Baselines that `mixture` chooses from."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: one does not fit.
        """
        super().__post_init__()
        if not self.arms:
            raise InputError("env.arms: expected at least one baseline for the mixture action, got none")

    @property
    def heads(self) -> dict[str, int]:
        """One dimension: the arm."""
        return {"arm": len(self.arms)}

    @property
    def codec(self) -> Codec:
        """That of token budgets."""
        return Allocation()

    def policies(self, prediction: str) -> tuple[Policy, ...]:
        """The baselines, ready to run.

        Args:
            prediction: channel of the environment's predictions of output lengths ("": there are none).

        Raises:
            InputError: one that does not exist, runs in Python only, or needs predictions where there are none.
        """
        made = tuple(baselines.make(spec) for spec in self.arms)
        for policy in made:
            if not policy.runs_compiled:
                raise InputError(f"env.arms: expected policies with a compiled kernel, got {policy.spec!r}")
            if policy.channel and not prediction:
                raise InputError(
                    f"env.prediction: expected a channel such as {policy.channel} for {policy.spec!r}, got none"
                )
        return made
