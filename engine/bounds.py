"""What no scheduler can beat: the seconds of a device that requests need at least."""

import numpy as np

from engine.config import EngineConfig
from engine.latency import LatencyModel
from engine.requests import Requests


def least_seconds(model: LatencyModel, config: EngineConfig, requests: Requests) -> np.ndarray:
    """Seconds of the device that each request takes in the best company, float64[requests].

    Each token pays its share of a batch of `config.max_batched_tokens`, the largest there is, in which overhead and
    the reading of the weights weigh least; attention is paid in full. So one over the mean is an arrival rate that no
    scheduler sustains (the bound 1/E[w] of queues with one server), whatever the deadlines and however much KV there
    is. Evictions, waiting for memory and deadlines come on top.
    """
    most = float(config.max_batched_tokens)
    linear = _least_per_token(model, most)
    prompt, output = requests.prompt.astype(np.float64), requests.output.astype(np.float64)
    decodes = output - 1.0
    pairs = prompt * (prompt + 1.0) / 2.0
    context = decodes * prompt + decodes * (decodes - 1.0) / 2.0
    shares = (linear + model.overhead / most) * (prompt + decodes)
    return np.asarray(shares + model.per_pair * pairs + model.per_context * context + model.per_request * decodes)


def _least_per_token(model: LatencyModel, most: float) -> float:
    """Seconds of the linear layers per token in the batch size, up to `most`, where they are least."""
    if not model.table:
        return max(model.per_token, model.floor / most)
    tokens, seconds = np.array(model.table).T
    beyond = seconds[-1] + (seconds[-1] - seconds[-2]) / (tokens[-1] - tokens[-2]) * max(0.0, most - tokens[-1])
    at_most = beyond if most > tokens[-1] else float(np.interp(most, tokens, seconds))
    knots = (tokens > 0.0) & (tokens < most)
    # Between knots the seconds are linear, so their share per token is least at an end.
    return float(min([at_most / most, *(seconds[knots] / tokens[knots])]))
