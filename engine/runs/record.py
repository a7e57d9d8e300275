"""`Record`: what happened to every request of a run."""

from dataclasses import dataclass

import numpy as np

from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.runs.steps import StepLog


@dataclass(frozen=True, eq=False)
class Record:
    """Everything that happened to every request; numbers are made of it by `summarize`."""

    policy: str  # spec of the policy
    requests: Requests
    config: EngineConfig
    request: np.ndarray  # REQUEST[requests], final state
    ledger: np.ndarray  # LEDGER[requests], times and counts
    tier: np.ndarray  # TIER[tiers], totals
    gaps: np.ndarray  # int32[tiers, buckets], histogram of gaps between tokens
    row: np.ndarray  # ROW[1], totals
    steps: StepLog | None = None
    fallbacks: int = 0  # decisions that the fallback policy took

    def __repr__(self) -> str:
        """The policy, what was served, medians; not the arrays (`summarize` has the numbers)."""
        from engine.runs.metrics import summarize

        return f"Record({summarize(self).outline()}; {int(self.row['iterations'][0])} iterations)"
