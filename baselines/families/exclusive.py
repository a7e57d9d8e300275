"""The mathematics of exclusive batching (EB, EB+): when to stop decoding, how many run at once, and when not to do it.

A batch of prompts of L tokens takes a_p + b_p L seconds, one of k decodes a_d + b_d k, and a token of a mixed batch,
of which a share r are decodes, a + b r + c r^2 beside the fixed part.
"""

import numpy as np

from engine.compiled.jit import inner
from engine.compiled.records import record
from engine.device.latency import LatencyModel
from engine.device.predicting import DEVICE, device_cells, predicted
from engine.server.features import EMPTY, Features, add

COSTS = np.dtype([(name, "f8") for name in ("a_p", "b_p", "a_d", "b_d", "mix_a", "mix_b", "mix_c")], align=True)
"""Those costs, s."""

LEAST, MOST, MOST_TIMES = 0.01, 0.8, 5.0
"""Bounds of the threshold, and of the correction for hazards that rise, in thresholds."""
BISECTIONS = 60
LEAST_SURVIVORS, LEAST_WEIGHT = 5, 10.0
"""Outputs that reach a length for that length to count, and what all must weigh for a fit."""
PROMPT, CONTEXT = 1024, 1024.0
"""Tokens of the prompts and KV tokens of the decodes on which the costs are taken."""

_device = record(DEVICE)


def _prompts(tokens: int) -> Features:
    """A batch of so many tokens of prompts."""
    f = EMPTY
    for _ in range(tokens // PROMPT):
        f = add(f, 0.0, float(PROMPT), False)
    return f


def _mixed(decodes: int, tokens: int) -> Features:
    """A batch of so many decodes and one chunk of so many tokens, if any."""
    f = EMPTY
    for _ in range(decodes):
        f = add(f, CONTEXT, 1.0, True)
    return add(f, 0.0, float(tokens), False) if tokens else f


def costs_of(model: LatencyModel) -> np.ndarray:
    """A device's COSTS, from what its profile predicts for batches like those of the published calibration.

    Straight lines through two batches each (4 and 8 prompts, 32 and 128 decodes); for mixed batches the slope between
    256 and 512 tokens at five shares of decodes, and a parabola through these.
    """
    device = _device(device_cells(model))

    def line(small: Features, large: Features, x: float, y: float) -> tuple[float, float]:
        low, high = predicted(device, small), predicted(device, large)
        slope = (high - low) / (y - x)
        return max(low - slope * x, 0.0), slope

    a_p, b_p = line(_prompts(4 * PROMPT), _prompts(8 * PROMPT), 4.0 * PROMPT, 8.0 * PROMPT)
    a_d, b_d = line(_mixed(32, 0), _mixed(128, 0), 32.0, 128.0)
    shares, slopes = (0.1, 0.3, 0.5, 0.7, 0.9), []
    for r in shares:
        small, large = (_mixed(round(r * n), n - round(r * n)) for n in (1024, 2048))
        slopes.append(line(small, large, 1024.0, 2048.0)[1])
    mix_c, mix_b, mix_a = np.polyfit(shares, slopes, 2)
    return np.array([a_p, b_p, max(a_d, 1e-9), b_d, mix_a, mix_b, mix_c], np.float64)


@inner
def _rises(theta: float) -> float:
    """What the threshold solves for: 0 at 0, without end towards 1."""
    return float(theta / (1.0 - theta) + np.log(1.0 - theta))


@inner
def base_threshold(costs: np.record, p0: float) -> float:
    """The share of a batch that finishes before prompts are run, for outputs that end at a constant rate `p0`."""
    goal = p0 * costs.a_p / costs.a_d
    if goal <= 1e-6:
        return LEAST
    low, high = 0.001, 0.999
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        if _rises(middle) < goal:
            low = middle
        else:
            high = middle
    return float(min(max(0.5 * (low + high), LEAST), 0.99))


@inner
def correction(costs: np.record, theta: float, p0: float, eta: float, batch: float) -> float:
    """What is added to the threshold where the rate at which outputs end rises by `eta` with every token."""
    if eta <= 0.0:
        return 0.0
    depth = -np.log(1.0 - theta)
    per_token = costs.b_d * batch / costs.a_d
    effect = depth * (theta / (1.0 - theta) - depth / 2.0) + per_token * (depth - theta)
    found = eta * (1.0 - theta) ** 2 / (p0 * p0 * theta) * effect
    return float(min(max(found, 0.0), MOST_TIMES * theta))


@inner
def fit_hazard(ranked: np.ndarray, held: int) -> tuple[float, float]:
    """The rate at which outputs end, p0 + eta x tokens, by weighted least squares over their 5th to 95th percentile.

    Args:
        ranked: VALUE[>= held], whose `ranked` are the outputs in order.
        held: how many.

    Returns:
        p0 (at least one over the mean) and eta (at least 0).
    """
    total = 0.0
    for k in range(held):
        total += ranked[k].ranked
    first = max(int(ranked[int(held * 0.05)].ranked), 1)
    last = min(max(int(ranked[int(held * 0.95)].ranked), first + 10), int(ranked[held - 1].ranked))
    w, wt, wtt, wh, wth, k = 0.0, 0.0, 0.0, 0.0, 0.0, 0
    for t in range(first, last + 1):
        while k < held and ranked[k].ranked < t:
            k += 1
        alive, ends = held - k, k
        while ends < held and ranked[ends].ranked == t:
            ends += 1
        if alive >= LEAST_SURVIVORS:  # each length weighs as much as outputs reach it
            w, wt, wtt = w + alive, wt + alive * t, wtt + alive * t * t
            wh, wth = wh + (ends - k), wth + (ends - k) * t
    least, spread = held / total, w * wtt - wt * wt
    if w < LEAST_WEIGHT or abs(spread) < 1e-10:
        return least, 0.0
    return max((wtt * wh - wt * wth) / spread, least), max((w * wth - wt * wh) / spread, 0.0)


@inner
def safe_batch(theta: float, p0: float, prompt: float, capacity: float, tolerance: float) -> float:
    """Requests whose KV fits with a probability of 1 - `tolerance`: the largest N with N D + s sqrt(N ln(1/e)) <= C.

    Args:
        theta: the threshold.
        p0: rate at which outputs end, per token.
        prompt: mean prompt, tokens.
        capacity: KV tokens.
        tolerance: share of cycles that may run out of KV.
    """
    depth = -np.log(1.0 - theta)
    mean = prompt + (1.0 - theta) / (theta * p0) * depth
    variance = 2.0 * depth * (1.0 + (p0 * prompt + depth / theta) ** 2) / (p0 * p0)
    spread = np.log(1.0 / tolerance)
    root = (-np.sqrt(variance * spread) + np.sqrt(variance * spread + 4.0 * mean * capacity)) / (2.0 * mean)
    return float(np.floor(root * root))


@inner
def gain_of_exclusive(costs: np.record, theta: float, batch: float, prompt: float, output: float) -> float:
    """Seconds per token that exclusive batches save against mixed ones of `batch` requests; negative: they lose.

    Args:
        costs: of the device.
        theta: the threshold.
        batch: requests that run at once.
        prompt: mean prompt, tokens.
        output: mean output, tokens.
    """
    r = output / (prompt + output)
    mixed = costs.mix_a + costs.mix_b * r + costs.mix_c * r * r
    apart = (costs.b_p * prompt + costs.b_d * output) / (prompt + output)
    fixed_apart = (costs.a_p - costs.a_d * np.log(1.0 - theta) * output) / (theta * batch)
    fixed_mixed = costs.a_p * (1.0 + output) / batch
    return float((mixed - apart) - (fixed_apart - fixed_mixed) / (prompt + output))
