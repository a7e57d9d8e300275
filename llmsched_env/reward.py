"""Reward: named terms over one step, then a weighted sum.

Each term is a difference of running totals, so the terms of an episode add up to a number of the report: `ttft` to
minus the total time to first token, `e2e` to minus the total latency, `goodput` to the requests that met every
deadline, `tbt` to minus the total lateness of gaps (in deadlines, weighted by tier), `starvation` to minus the total
wait beyond a limit. A new term is a weight in `RewardWeights` and its total in `add_totals`; everything else goes by
these names.
"""

from dataclasses import dataclass, fields

import numpy as np

from engine.compiled.jit import inner
from engine.fields import checked
from engine.ranges import NotNegative
from engine.runs.record import Record
from engine.server.state import Hidden, View


@dataclass(frozen=True)
class RewardWeights:
    """Weight of each reward term, and what starvation means."""

    ttft: NotNegative = 1.0
    """Weight of -(requests without a first token) x seconds."""
    tbt: NotNegative = 1.0
    """Weight of -(lateness of each late gap in deadlines, times the weight of its tier)."""
    e2e: NotNegative = 0.0
    """Weight of -(requests present) x seconds."""
    goodput: NotNegative = 0.0
    """Weight of each finished request that met every deadline."""
    starvation: NotNegative = 0.0
    """Weight of -(requests that wait for their first batch, older than starvation_s) x seconds."""
    starvation_s: NotNegative = 10.0
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
        checked(self, "reward")

    def vector(self) -> np.ndarray:
        """The numbers as one record of WEIGHTS: float64[6]."""
        return np.array([getattr(self, name) for name in WEIGHTS.names or ()], np.float64)


_NUMBERS = tuple(f.name for f in fields(RewardWeights) if f.name not in ("function", "function_sha256"))
REWARD_TERMS = tuple(name for name in _NUMBERS if name != "starvation_s")
"""Names of the terms, in the order that they have in arrays: that of their weights."""
NUM_TERMS = len(REWARD_TERMS)
TERMS = np.dtype((np.record, [(name, "f8") for name in REWARD_TERMS]))
"""The terms by name: ``terms.view(TERMS)[0].ttft`` of a float64[NUM_TERMS]."""
WEIGHTS = np.dtype((np.record, [(name, "f8") for name in _NUMBERS]))
"""The numbers of `RewardWeights` by name."""


@inner
def add_totals(
    visible: View | Record,
    hidden: Hidden | Record,
    tier_weight: np.ndarray,
    weights: np.ndarray,
    sign: float,
    out: np.ndarray,
) -> None:
    """Add `sign` times the running totals behind the terms; before a step with -1, after it with +1.

    Args:
        visible: of one server, or the record of a whole run.
        hidden: of the same server, or the same record.
        tier_weight: float64[tiers].
        weights: float64, `RewardWeights.vector`; what starvation is, and whether it counts (it takes a look at all).
        sign: +1 or -1.
        out: float64[NUM_TERMS].
    """
    row, w, terms = visible.row[0], weights.view(WEIGHTS)[0], out.view(TERMS)[0]
    late, good = 0.0, 0
    for k in range(tier_weight.shape[0]):
        tier = hidden.tier[k]
        late += tier_weight[k] * tier.late_sum
        good += tier.good
    terms.ttft -= sign * row.queue_time
    terms.tbt -= sign * late
    terms.e2e -= sign * row.present_time
    terms.goodput += sign * good
    if w.starvation > 0.0:
        terms.starvation -= sign * _starved(row, visible.request, hidden.ledger, w.starvation_s)


@inner
def _starved(row: np.record, request: np.ndarray, ledger: np.ndarray, limit_s: float) -> float:
    """Request-seconds beyond `limit_s` that those who arrived have waited for their first batch."""
    total = 0.0
    for i in range(row.next_arrival):
        started = ledger[i].first_scheduled
        waited = (started if started >= 0.0 else row.now) - request[i].arrival
        total += max(waited - limit_s, 0.0)
    return total


@inner
def weighted(weights: np.ndarray, terms: np.ndarray) -> float:
    """The weighted sum of the terms, float64[NUM_TERMS]."""
    reward = 0.0
    for t in range(NUM_TERMS):
        reward += weights[t] * terms[t]
    return reward
