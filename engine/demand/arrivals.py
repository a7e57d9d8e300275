"""Arrival processes: renewal gaps of unit mean, stretched by a rate that may change over time.

Every process first draws its gaps in operational time (where the rate is one request per unit) and then
maps their sums back through the inverse of the cumulative rate. For exponential gaps that is the exact
construction of an inhomogeneous Poisson process; for Gamma gaps it keeps the coefficient of variation at
every rate.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.ranges import MOST_SECONDS, number
from engine.spec import Spec

FloatArray = npt.NDArray[np.float64]

_SECONDS = number(0.0, MOST_SECONDS)


def operational_times(rng: np.random.Generator, n: int, cv: float = 1.0, gap_cap: float = 0.0) -> FloatArray:
    """Return the sums of n independent gaps of mean 1, float64[n].

    Args:
        rng: source of all randomness.
        n: number of arrivals.
        cv: coefficient of variation of the gaps: 1 draws exponential gaps (Poisson), another value Gamma
            gaps of shape 1 / cv^2, as Vidur and BurstGPT's generator do.
        gap_cap: gaps are cut to this multiple of the mean gap; 0 = no cut. The public SLAI code cuts at 3,
            which raises the mean rate by 5.2 % over the nominal one; that is not corrected here, so that
            results compare.
    """
    if cv == 1.0:
        gaps = rng.standard_exponential(n)
    else:
        shape = 1.0 / cv**2
        gaps = rng.standard_gamma(shape, n) / shape
    if gap_cap > 0.0:
        np.minimum(gaps, gap_cap, out=gaps)
    return np.cumsum(gaps)


def ramp(operational: FloatArray, rate: float, end_rate: float) -> FloatArray:
    """Map operational times to seconds under a rate going linearly from `rate` to `end_rate` (requests/s).

    The ramp lasts 2 n / (rate + end_rate) seconds, the time in which n requests are expected; `end_rate`
    holds afterwards.
    """
    n = operational.shape[0]
    length_s = 2.0 * n / (rate + end_rate)
    slope = (end_rate - rate) / length_s
    on_ramp = np.minimum(operational, n)
    # The root of rate t + slope t^2 / 2 = operational, in the form that does not cancel for small slopes.
    times = 2.0 * on_ramp / (rate + np.sqrt(np.maximum(rate**2 + 2.0 * slope * on_ramp, 0.0)))
    result: FloatArray = times + (operational - on_ramp) / end_rate
    return result


def on_off(
    rng: np.random.Generator,
    operational: FloatArray,
    rates: tuple[float, float],
    sojourns_s: tuple[float, float],
) -> FloatArray:
    """Map operational times to seconds under a rate that jumps between two values.

    With exponential gaps this is a Markov-modulated Poisson process of two states (MMPP-2). The time spent
    at each rate is exponential; the first state is drawn from the stationary distribution.

    Args:
        rng: source of all randomness.
        operational: sums of gaps of unit mean, float64[n].
        rates: rate in the first and in the second state (requests/s), not both zero.
        sojourns_s: mean time spent in the first and in the second state (s).
    """
    first = int(rng.random() * sum(sojourns_s) >= sojourns_s[0])
    pair_rates = np.array([rates[first], rates[1 - first]])
    pair_means = np.array([sojourns_s[first], sojourns_s[1 - first]])
    needed = operational[-1]
    pairs = int(needed / float(pair_rates @ pair_means)) + 8
    stays = np.empty((0, 2))
    mass = 0.0
    while mass <= needed:
        more = rng.standard_exponential((pairs, 2)) * pair_means
        stays = np.concatenate([stays, more])
        mass += float((more @ pair_rates).sum())
    knots_s = np.concatenate([[0.0], np.cumsum(stays.ravel())])
    arrivals = np.concatenate([[0.0], np.cumsum((stays * pair_rates).ravel())])
    return np.interp(operational, arrivals, knots_s)


def steps(operational: FloatArray, rates: tuple[float, float], sojourns_s: tuple[float, float]) -> FloatArray:
    """Map operational times to seconds under a rate that alternates between two values at fixed times.

    Args:
        operational: sums of gaps of unit mean, float64[n].
        rates: rate outside and inside the steps (requests/s), > 0.
        sojourns_s: seconds of each, the time outside first.
    """
    period, before = sum(sojourns_s), rates[0] * sojourns_s[0]
    mass = before + rates[1] * sojourns_s[1]
    whole, rest = np.divmod(operational, mass)
    inside = np.where(rest < before, rest / rates[0], sojourns_s[0] + (rest - before) / rates[1])
    result: FloatArray = whole * period + inside
    return result


def parse_think(spec: str, where: str = "think") -> tuple[str, float]:
    """Return what think times a spec describes: their kind and their mean (s); `where` is for messages.

    Raises:
        InputError: neither exp:SECONDS nor fixed:SECONDS.
    """
    parsed = Spec.parse(spec)
    if parsed.name not in ("exp", "fixed") or not parsed.rest:
        raise InputError(f"{where}: expected exp:SECONDS (exponential, of this mean) or fixed:SECONDS, got {spec!r}")
    return parsed.name, float(_SECONDS.parse(parsed.rest, where))


def think_times(rng: np.random.Generator, n: int, spec: str) -> FloatArray:
    """Return n think times (s), float64[n]; with a fixed one nothing is drawn."""
    kind, mean = parse_think(spec)
    return np.full(n, mean) if kind == "fixed" else mean * rng.standard_exponential(n)


def evenly_spaced(n: int, rate: float) -> FloatArray:
    """Return n arrival times (s) at exact distances of 1 / rate, the first at 0."""
    return np.arange(n) / rate
