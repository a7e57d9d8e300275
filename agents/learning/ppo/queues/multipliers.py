"""Deadlines between tokens as constraints: what a late gap costs is learned, tier by tier.

    minimise the cost   subject to   late gaps of a tier <= limit x its finished requests

by dual ascent on the Lagrangian, one step after each rollout (PPO-Lagrangian: Ray, Achiam and Amodei, *Benchmarking
safe exploration in deep reinforcement learning*, 2019; Tessler et al., ICLR 2019). A multiplier is the cost of one late
gap in request-seconds; it rises while the tier's constraint is broken and falls while there is room.
"""

import numpy as np

MOST = 1e3
"""Largest multiplier, request-seconds for one late gap."""


class Multipliers:
    """The multipliers of all tiers."""

    def __init__(self, tiers: int, limit: float, rate: float) -> None:
        """Begin at 0.

        Args:
            tiers: how many there are.
            limit: late gaps for each finished request.
            rate: request-seconds that a multiplier rises by in one rollout with twice as many late gaps as allowed.
        """
        self.value = np.zeros(tiers)
        self.limit, self.rate = limit, rate

    def cost(self, late: np.ndarray) -> np.ndarray:
        """What late gaps cost, request-seconds: float64[..., tiers] -> float64[...]."""
        return np.asarray(late @ self.value)

    def ascend(self, late: np.ndarray, finished: np.ndarray) -> None:
        """Take a step of dual ascent after a rollout.

        Args:
            late: float64[tiers], late gaps.
            finished: float64[tiers], requests; tiers without any stay as they are.
        """
        known = finished > 0.0
        excess = late[known] / finished[known] / self.limit - 1.0
        self.value[known] = np.clip(self.value[known] + self.rate * np.minimum(excess, 1.0), 0.0, MOST)
