"""Random numbers for compiled code: numbered ones, so that what is drawn depends on nothing that was drawn before."""

import numpy as np

from engine.compiled.jit import hot

GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""By how much the state of SplitMix64 grows with each number."""


@hot
def splitmix64(x: np.uint64) -> np.uint64:
    """One output of SplitMix64 (Steele, Lea, Flood 2014) for the state `x`."""
    x = np.uint64(x + GAMMA)
    x = np.uint64((x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    x = np.uint64((x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64(x ^ (x >> np.uint64(31)))


@hot
def uniform(seed: int, counter: int) -> float:
    """Number `counter` of the random sequence `seed`, in [0, 1)."""
    state = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(counter) * GAMMA
    return float(splitmix64(np.uint64(state)) >> np.uint64(11)) * 2.0**-53
