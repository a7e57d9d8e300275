"""Fluid model of one server: time and memory that a mix of requests needs in the long run, and quotas for WAIT.

Requests of type j come at rate lambda_j with l_j prompt and l'_j output tokens and pass stages 0 (prefill) ... l'_j.
An iteration over M tokens of KV takes d0 + d1 M. In equilibrium every stage of type j holds lambda_j dT requests, where
dT is the length of an iteration. Source: WAIT, arXiv 2504.11320; calibration: Luoxiaogan/vidur_or (booking limits).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.demand.requests import Requests
from engine.device.latency import LatencyModel, iteration_seconds
from engine.errors import InputError
from engine.server.features import EMPTY, Features, add, new_features, store

POINTS = 32
"""Batch sizes at which the latency model is read for the line."""


@dataclass(frozen=True)
class Types:
    """Types of requests, one entry of each array a type, in order of output length."""

    bound: np.ndarray
    """Output tokens up to which a request is of this type (the last: the longest output)."""
    prompt: np.ndarray
    """Mean prompt tokens."""
    output: np.ndarray
    """Mean output tokens."""
    rate: np.ndarray
    """Arrivals in requests/s."""

    @property
    def stage_rate(self) -> float:
        """Requests that start an iteration of theirs per second, sum of rate x (output + 1)."""
        return float((self.rate * (self.output + 1.0)).sum())

    @property
    def kv_rate(self) -> float:
        """K of the paper: KV tokens in use per second that an iteration takes."""
        return float(kv_needed(self, self.rate))


def types_of(requests: Requests, rate: float, bounds: list[int]) -> Types:
    """Sort requests into types by output length.

    Args:
        requests: a sample of the workload.
        rate: arrivals of all types together, requests/s.
        bounds: output tokens up to which a request is of the first type, the second, ...; what is longer is the last.

    Raises:
        InputError: bounds that do not rise, or a rate that is not positive.
    """
    if any(b <= a for a, b in zip([0, *bounds], bounds, strict=False)):
        raise InputError(f"bounds: expected rising token counts > 0, got {','.join(map(str, bounds))}")
    if not 0.0 < rate < float("inf"):
        raise InputError(f"rate: expected requests/s > 0, got {rate}")
    kind = np.searchsorted(bounds, requests.output)
    count = np.bincount(kind, minlength=len(bounds) + 1)
    prompt, output = (np.bincount(kind, of, len(count)) / np.maximum(count, 1) for of in _lengths(requests))
    longest = max(int(requests.output.max()), (bounds or [0])[-1] + 1)
    return Types(np.array([*bounds, longest]), prompt, output, rate * count / len(requests))


def _lengths(requests: Requests) -> tuple[np.ndarray, np.ndarray]:
    return requests.prompt.astype(np.float64), requests.output.astype(np.float64)


class Line(NamedTuple):
    """Seconds of an iteration as a line in the KV tokens of its batch."""

    d0: float  # s
    d1: float  # s per KV token
    error: float  # largest relative error over the batch sizes of the fit


def fit_line(model: LatencyModel, types: Types, capacity_tokens: int) -> Line:
    """Least squares through the latency of equilibrium batches of all sizes that the KV holds.

    Args:
        model: the profile.
        types: the mix; at least one must arrive.
        capacity_tokens: KV tokens on the device.
    """
    latency, batch, shares = model.compiled(), new_features(), _stage_features(types)
    kv = np.linspace(capacity_tokens / POINTS, capacity_tokens, POINTS)
    seconds = np.empty(POINTS)
    for k, count in enumerate(np.outer(kv / types.kv_rate, types.rate)):
        exact = (count[:, None] * shares).sum(axis=0)
        store(Features(*np.rint(exact[:3]), *exact[3:]), 0.0, batch)  # tokens and requests are whole
        seconds[k] = iteration_seconds(latency, batch)
    d1, d0 = np.polyfit(kv, seconds, 1)
    return Line(float(d0), float(d1), float(np.abs((d0 + d1 * kv) / seconds - 1.0).max()))


def _stage_features(types: Types) -> np.ndarray:
    """What one request of each type in each of its stages adds to a batch, float64[types, features]."""
    shares = []
    for prompt, output in zip(types.prompt, types.output, strict=True):
        chunk = add(EMPTY, 0.0, prompt, False)
        decode = add(EMPTY, prompt + (output + 1.0) / 2.0 - 1.0, 1.0, True)  # the mean one: all is linear in its KV
        shares.append(np.add(chunk, np.multiply(output, decode)))
    return np.array(shares)


class Equilibrium(NamedTuple):
    """The server in the long run; infinite where the load is too high."""

    load: float  # d1 K, stable below 1
    iteration_s: float  # length of an iteration, d0 / (1 - d1 K)
    kv_tokens: float  # KV in use, d0 K / (1 - d1 K)
    per_stage: np.ndarray  # requests of each type in each of its stages

    def stable(self, capacity_tokens: float) -> bool:
        """Whether the server keeps up, in time and in memory."""
        return self.load < 1.0 and self.kv_tokens <= capacity_tokens


def equilibrium(types: Types, line: Line) -> Equilibrium:
    """The fluid equilibrium of WAIT's model."""
    load = line.d1 * types.kv_rate
    length = line.d0 / (1.0 - load) if load < 1.0 else float("inf")
    return Equilibrium(load, length, length * types.kv_rate, types.rate * length)


def kv_needed(types: Types, per_stage: np.ndarray) -> float:
    """KV tokens with this many requests of each type in each of its stages (M^pi for quotas)."""
    return float((per_stage * (types.output + 1.0) * (types.prompt + types.output / 2.0)).sum())


def keeps_up(types: Types, line: Line, quotas: np.ndarray) -> bool:
    """Whether a full batch of these quotas ends before as many new requests of any type have come."""
    arriving = types.rate > 0.0
    longest = line.d0 + line.d1 * kv_needed(types, quotas)
    return bool((longest <= quotas[arriving] / types.rate[arriving]).all())


def in_service(types: Types, capacity_tokens: float) -> float:
    """Requests of this mix, spread evenly over their stages, that the KV holds."""
    return capacity_tokens * types.stage_rate / types.kv_rate


def wait_quotas(types: Types, limit: float) -> np.ndarray:
    """Quota per stage of each type for `limit` requests in service: limit x rate / stage rate, whole, at least 1."""
    return np.maximum(1, np.floor(limit * types.rate / types.stage_rate + 1e-9)).astype(np.int64)


def nested_quotas(bounds: np.ndarray, rate: np.ndarray, limit: float) -> np.ndarray:
    """Quota per stage of each segment for `limit` requests in service, whole (rounded up), at least 1.

    Args:
        bounds: last output token of each segment, rising.
        rate: requests/s that end in each segment.
        limit: requests; a segment gets its share by stages x rate of the requests that reach it.
    """
    reaches = np.cumsum(rate[::-1])[::-1]
    weight = np.diff(bounds, prepend=0) * reaches
    return np.maximum(1, np.ceil(limit * reaches / weight.sum() - 1e-9)).astype(np.int64)


def quota_spec(bounds: np.ndarray, quotas: np.ndarray) -> str:
    """Bounds and quotas as the parameter that `wait` and `nested_wait` take; the last class is open."""
    texts = [*(str(int(bound)) for bound in bounds[:-1]), "inf"]
    return ";".join(f"{text}:{int(quota)}" for text, quota in zip(texts, quotas, strict=True))
