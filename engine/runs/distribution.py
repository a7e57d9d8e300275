"""A sample in a few numbers: mean, percentiles, largest; of single values, or of gaps counted in a histogram."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.server.state import GAP_BUCKETS_PER_OCTAVE, GAP_MIN_EXPONENT, NUM_GAP_BUCKETS

Floats = npt.NDArray[np.float64]

SHARES = np.array([0.5, 0.9, 0.95, 0.99, 0.999])
"""The percentiles of every sample."""


def _gap_edges() -> Floats:
    """Lower edges of the gap buckets and the end of the last regular one, float64[NUM_GAP_BUCKETS] (s)."""
    k = np.arange(NUM_GAP_BUCKETS - 1)
    octave, step = np.divmod(k, GAP_BUCKETS_PER_OCTAVE)
    edges = np.ldexp(1.0 + step / GAP_BUCKETS_PER_OCTAVE, GAP_MIN_EXPONENT + octave)
    return np.concatenate([[0.0], edges])


_EDGES = _gap_edges()


@dataclass(frozen=True)
class Distribution:
    """A sample in a few numbers (s); everything but `count` is nan for an empty sample."""

    count: int
    mean: float
    std: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, values: Floats) -> "Distribution":
        """Exact numbers of a sample; percentiles interpolate between order statistics as numpy's."""
        n = values.shape[0]
        if n == 0:
            return _EMPTY
        ordered = np.sort(values)
        p50, p90, p95, p99, p999 = _between(ordered, SHARES * (n - 1)).tolist()
        return cls(n, float(ordered.mean()), float(ordered.std()), p50, p90, p95, p99, p999, float(ordered[-1]))

    @classmethod
    def of_gaps(cls, histogram: npt.NDArray[np.int64], total: float, largest: float) -> "Distribution":
        """Numbers of the gaps counted in a histogram.

        Args:
            histogram: int64[NUM_GAP_BUCKETS] as the engine keeps it.
            total: sum of the gaps (s).
            largest: the longest gap (s).
        """
        used = np.flatnonzero(histogram != 0)
        if used.shape[0] == 0:
            return _EMPTY
        counts = histogram[used]
        lower, last = _EDGES[used], len(_EDGES) - 1
        # The first bucket holds zeros; the last one is open, so the longest gap closes it.
        width = np.maximum(np.where(used < last, _EDGES[np.minimum(used + 1, last)], largest) - lower, 0.0)
        if used[0] == 0:
            width[0] = 0.0
        n = int(counts.sum())
        before = np.cumsum(counts) - counts
        p50, p90, p95, p99, p999 = _order_statistics(SHARES * (n - 1), lower, width, counts, before, largest)
        mean = total / n
        spread = float((counts * (lower + 0.5 * width - mean) ** 2).sum()) / n
        return cls(n, mean, math.sqrt(spread), p50, p90, p95, p99, p999, largest)

    def to_dict(self, name: str) -> dict[str, float | None]:
        """The numbers in milliseconds under vLLM's keys (`mean_ttft_ms`, `p99.9_itl_ms`); None for nan."""
        keys = ("mean", "std", "median", "p90", "p95", "p99", "p99.9", "max")
        values = (self.mean, self.std, self.p50, self.p90, self.p95, self.p99, self.p999, self.max)
        return {f"{key}_{name}_ms": finite(1000.0 * value) for key, value in zip(keys, values, strict=True)}


_EMPTY = Distribution(0, *[math.nan] * 8)


def _between(ordered: Floats, position: Floats) -> Floats:
    """Values of a sorted sample at fractional ranks, linear between its members."""
    below = position.astype(np.int64)
    above = np.minimum(below + 1, ordered.shape[0] - 1)
    low = ordered[below]
    return np.asarray(low + (ordered[above] - low) * (position - below))


def _order_statistics(
    position: Floats,
    lower: Floats,
    width: Floats,
    counts: npt.NDArray[np.int64],
    before: npt.NDArray[np.int64],
    largest: float,
) -> list[float]:
    """Values at fractional ranks, the members of a bucket being spread evenly over it."""
    ranks = np.stack((np.floor(position), np.ceil(position)))
    k = np.searchsorted(before, ranks, side="right") - 1
    low, high = np.minimum(lower[k] + width[k] * (ranks - before[k] + 0.5) / counts[k], largest)
    return np.asarray(low + (high - low) * (position - ranks[0])).tolist()


def finite(value: float) -> float | None:
    """The value, or None where strict JSON has no number for it (nan, inf)."""
    return value if math.isfinite(value) else None
