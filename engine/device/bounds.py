"""What no scheduler can beat: the seconds of a device that requests need at least."""

import math

import numpy as np

from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel
from engine.device.terms import interpolate


def capacity_bound(seconds: np.ndarray) -> float | None:
    """Arrival rate (requests/s) that no scheduler sustains: 1/E[w], w the `least_seconds` of a request.

    None where there is no such bound: where the requests need no time at all.
    """
    mean = float(np.mean(seconds))
    return 1.0 / mean if mean > 0.0 and math.isfinite(1.0 / mean) else None


def bound_note(bound: float | None, place: str = "this device") -> str:
    """The bound in words; `place` is what serves."""
    if bound is None:
        return "No bound on the load that a scheduler sustains: on this profile iterations may take no time."
    return f"No scheduler sustains more than {bound:.2f} requests/s of this kind on {place} (1/E(w))."


def least_seconds(model: LatencyModel, config: EngineConfig, requests: Requests) -> np.ndarray:
    """Seconds of the device that each request takes in the best company, float64[requests].

    Each token pays its share of the batch in which linear layers, overhead and the charge for a decision weigh least;
    each output token after the first and at least one prompt chunk pay for their places in a batch; attention is paid
    in full, and of the KV that prompt chunks read what tiles full of queries would. Durations that are rounded to ticks
    may be shorter by the largest share that rounding takes. So one over the mean is an arrival rate that no scheduler
    sustains (the bound 1/E[w] of queues with one server), whatever the deadlines and however much KV there is.
    Evictions, swapping, waiting for memory and deadlines come on top, and so do the second launch of a batch with
    prompts and KV beyond the caches. A request that is too long to be served needs nothing.
    """
    most = float(config.max_batched_tokens)
    room = config.max_request_tokens - requests.prompt
    prompt = np.where(room > 0, requests.prompt, 0).astype(np.float64)
    decodes = np.clip(np.minimum(requests.output, room) - 1, 0, None).astype(np.float64)
    pairs = prompt * (prompt + 1.0) / 2.0
    context = decodes * prompt + decodes * (decodes - 1.0) / 2.0
    tokens, chunks = prompt + decodes, (prompt > 0.0).astype(np.float64)
    device = (_least_per_token(model, most) + model.overhead / most) * tokens
    device += model.per_pair * pairs + model.per_context * context + model.per_read * pairs / model.query_tile
    device += model.per_request * (decodes + chunks) + model.per_chunk * chunks
    charged = config.decision_s / most * tokens + config.decision_per_request_s * (decodes + chunks)
    return np.asarray(_kept_by_rounding(model, most) * device + charged)


def _sizes(model: LatencyModel, most: float) -> np.ndarray:
    """Tokens through the linear layers at which an iteration may be cheapest: the ends, and the knots of a table.

    Between them the seconds are linear, so that they and their share per token are least at an end.
    """
    largest = math.ceil(most / model.tile) * model.tile
    knots = [tokens for tokens, _ in model.table if 1.0 < tokens < largest]
    return np.array([float(max(1, model.tile)), *(k for k in knots if k > model.tile), float(largest)])


def _linear(model: LatencyModel, tokens: float) -> float:
    if not model.table:
        return max(model.floor, model.per_token * tokens)
    return float(interpolate(np.array(model.table), len(model.table), tokens))


def _least_per_token(model: LatencyModel, most: float) -> float:
    """Seconds of the linear layers per token in the batch size, up to `most`, where they are least."""
    return float(min(_linear(model, tokens) / tokens for tokens in _sizes(model, most)))


def _kept_by_rounding(model: LatencyModel, most: float) -> float:
    """Part of the seconds of an iteration that is left, at least, when they are rounded to a multiple of `tick`."""
    if model.tick == 0.0:
        return 1.0
    shortest = model.overhead + model.per_request + min(_linear(model, tokens) for tokens in _sizes(model, most))
    ticks = float(np.rint(shortest / model.tick))
    return ticks / (ticks + 0.5)
