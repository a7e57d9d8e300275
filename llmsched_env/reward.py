"""Reward: named terms over one step, then a weighted sum.

Each term is a difference of running totals that the engine keeps, so the terms of an episode add up to a number of the
report: `ttft` to minus the total time to first token, `e2e` to minus the total latency, `goodput` to the requests that
met every deadline, `tbt` to minus the total lateness of gaps (in deadlines, weighted by tier).
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from engine.compiled.jit import inner
from engine.fields import NOT_NEGATIVE, checked
from engine.server.state import Server

REWARD_TERMS = ("ttft", "tbt", "e2e", "goodput", "starvation")
"""Order of the terms in arrays."""
NUM_TERMS = len(REWARD_TERMS)


@dataclass(frozen=True)
class RewardWeights:
    """Weight of each reward term, and what starvation means."""

    ttft: float = 1.0
    """Weight of -(requests without a first token) x seconds."""
    tbt: float = 1.0
    """Weight of -(lateness of each late gap in deadlines, times the weight of its tier)."""
    e2e: float = 0.0
    """Weight of -(requests present) x seconds."""
    goodput: float = 0.0
    """Weight of each finished request that met every deadline."""
    starvation: float = 0.0
    """Weight of -(waiting requests older than starvation_s) x seconds."""
    starvation_s: float = 10.0
    """Wait in seconds from which a request counts as starving."""
    function: str = ""
    """A function of yours instead of the weighted sum: module:function or FILE.py:function (`llmsched_env.own`)."""
    function_sha256: str = ""
    """Hash that its source must have ("": any); noted where an environment is saved."""

    def __post_init__(self) -> None:
        """Check that weights are finite and not negative.

        Raises:
            InputError: one is not.
        """
        checked(
            self, "reward", dict.fromkeys((f.name for f in fields(self) if f.type in (float, "float")), NOT_NEGATIVE)
        )

    def vector(self) -> np.ndarray:
        """Weights in the order of REWARD_TERMS, then starvation_s: float64[6]."""
        return np.array([getattr(self, name) for name in (*REWARD_TERMS, "starvation_s")], np.float64)


@inner
def add_totals(server: Server, tier_weight: np.ndarray, sign: float, out: np.ndarray) -> None:
    """Add `sign` times the running totals behind the terms; before a step with -1, after it with +1.

    Args:
        server: one row.
        tier_weight: float64[tiers].
        sign: +1 or -1.
        out: float64[NUM_TERMS]; starvation is not a difference of totals and stays as it is.
    """
    row: Any = server.visible.row[0]
    late, good = 0.0, 0
    for k in range(tier_weight.shape[0]):
        t = server.hidden.tier[k]
        late += tier_weight[k] * t.late_sum
        good += t.good
    out[0] -= sign * row.queue_time
    out[1] -= sign * late
    out[2] -= sign * row.present_time
    out[3] += sign * good


@inner
def starving(server: Server, limit_s: float) -> int:
    """Waiting requests without a first token that arrived more than `limit_s` seconds ago."""
    view = server.visible
    row, count = view.row[0], 0
    for k in range(row.num_waiting):
        r = view.request[view.queue[k]]
        if not r.has_token and row.now - r.arrival > limit_s:
            count += 1
    return count
