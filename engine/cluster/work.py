"""What a router reckons of the work that is at a replica: requests, tokens, seconds."""

import math

import numpy as np

from engine.compiled.jit import inner


@inner
def requests_at(replica: np.record) -> int:
    """Requests at a replica, as reported."""
    return int(replica.waiting + replica.running)


@inner
def kv_use(replica: np.record) -> float:
    """Share of the KV blocks that are in use, as reported."""
    return float(1.0 - replica.free_blocks / replica.num_blocks)


@inner
def output_left(replica: np.record, mean_output: float) -> float:
    """Output tokens that the requests at a replica have still to come, at least one each.

    Args:
        replica: as reported.
        mean_output: expected of a request without a prediction.
    """
    expected = replica.predicted + replica.unpredicted * mean_output - replica.generated
    return float(max(expected, float(requests_at(replica))))


@inner
def seconds_left(replica: np.record, mean_output: float) -> float:
    """Seconds of work at a replica, by its prices."""
    return float(replica.prompt_left * replica.prefill_s + output_left(replica, mean_output) * replica.decode_s)


@inner
def seconds_of(request: np.record, replica: np.record, mean_output: float) -> float:
    """Seconds of work that a request brings to a replica, by its prices."""
    output = mean_output if math.isnan(request.prediction) else request.prediction
    return float(request.prompt * replica.prefill_s + output * replica.decode_s)
