"""Distributions over bins of lengths, as TRAIL's predictors give them (harvard-cns/TRAIL-llm-scheduling).

A length is seen through normal noise; the distribution over the bins follows from it, and the noise is as large as it
takes for the mean absolute error of the expectation that is asked for.
"""

from collections.abc import Callable

import numpy as np

from engine.demand.columns import FloatArray

BINS_TOKENS = 512
"""Upper end of the lengths that TRAIL's predictors can express (tokens); longer ones fall into the last bin."""
NUM_BINS = 10
_WIDTH = BINS_TOKENS / NUM_BINS
_MIDPOINTS = (np.arange(NUM_BINS) + 0.5) * _WIDTH
_SIGMAS = np.geomspace(0.25, 8192.0, 16)


def distribution(seen: FloatArray, sigma: float, log_prior: FloatArray) -> FloatArray:
    """Distributions over the bins, float64[bins, m], that follow from lengths seen with normal noise (tokens)."""
    weight = (seen - _MIDPOINTS[:, None]) / sigma
    weight *= weight
    weight *= -0.5
    weight += log_prior[:, None]
    weight -= weight.max(axis=0)
    np.exp(weight, out=weight)
    weight /= weight.sum(axis=0)
    return weight


def expectation(belief: FloatArray) -> FloatArray:
    """Means (tokens) of distributions over the bins; einsum, unlike @, has the same bits at any number of threads."""
    return np.asarray(np.einsum("b,bm->m", _MIDPOINTS, belief), np.float64)


def calibrate(length: FloatArray, noise: FloatArray, mae: float, log_prior: FloatArray) -> float:
    """The noise (tokens) at which expected bins are off by `mae` in the mean, or as near to it as can be."""
    if not length.size:
        return float(_SIGMAS[0])

    def excess(sigma: float) -> float:
        expected = expectation(distribution(length + sigma * noise, sigma, log_prior))
        return float(np.abs(expected - length).mean()) - mae

    return _root(excess, 1e-3 * mae)


def _root(excess: Callable[[float], float], tolerance: float) -> float:
    """Where a function of the noise is zero, by bisection from a grid; if nowhere, where it is nearest on the grid."""
    at = np.array([excess(sigma) for sigma in _SIGMAS])
    changes = np.flatnonzero((at[:-1] < 0.0) != (at[1:] < 0.0))
    if not changes.size:
        return float(_SIGMAS[np.argmin(np.abs(at))])
    low, high = float(_SIGMAS[changes[0]]), float(_SIGMAS[changes[0] + 1])
    starts_below = bool(at[changes[0]] < 0.0)
    for _ in range(40):
        middle = (low + high) / 2.0
        value = excess(middle)
        if abs(value) <= tolerance:
            return middle
        low, high = (middle, high) if (value < 0.0) == starts_below else (low, middle)
    return (low + high) / 2.0


def first_distribution(output: FloatArray, mae: float, noise: FloatArray) -> FloatArray:
    """Distributions over the bins from the prompt alone, float64[bins, n]."""
    length = np.minimum(output, BINS_TOKENS)
    member = np.minimum(length // _WIDTH, NUM_BINS - 1).astype(np.int64)
    share = np.bincount(member, minlength=NUM_BINS) / length.size
    log_prior = np.log(share, out=np.full(NUM_BINS, -np.inf), where=share > 0.0)
    sigma = calibrate(length, noise, mae, log_prior)
    return distribution(length + sigma * noise, sigma, log_prior)


def one_token() -> FloatArray:
    """Probabilities [from, to] that what remains changes its bin while one token is generated."""
    step = np.eye(NUM_BINS) * (1.0 - 1.0 / _WIDTH) + np.eye(NUM_BINS, k=-1) / _WIDTH
    step[0, 0] = 1.0
    return step
