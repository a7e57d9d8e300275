"""Features of a router's decision: what of a `RouterView` says where a request should go, scale-free and by name.

Work is counted in chunks: the seconds of a prompt chunk of CHUNK tokens on the fastest replica. So the same numbers
mean the same on faster cards, and of replicas that differ the slower one has more work for the same tokens. What is
reported is corrected by what the router has counted itself since, so that a replica to which much was sent after its
report does not look as it did then. Every replica is looked at in the same way and in no order: whoever scores each of
them by one function of its features prefers none for its place, and works for any number of replicas.

A new feature is a line in one of the records and the line that writes it; names, order and size come from there.
"""

import math
from typing import NamedTuple

import numpy as np

from engine.cluster.prices import CHUNK
from engine.cluster.state import RouterView
from engine.cluster.work import output_left, requests_at
from engine.compiled.jit import hot, inner

REPLICA_FEATURES = np.dtype(
    (
        np.record,
        [
            ("prompt_work", "f4"),  # prompt tokens to compute before this request's, reported and corrected, in chunks
            ("output_work", "f4"),  # output tokens still to come, reported and corrected, in chunks
            ("unanswered_work", "f4"),  # prompts without a first token, own count, in chunks
            ("own_prompt", "f4"),  # this request's prompt, in chunks
            ("own_output", "f4"),  # its output, predicted, in chunks
            ("weighted_work", "f4"),  # all work x this request's own, over its own where that is least (MaxWeight)
            ("in_flight", "f4"),  # requests sent and not finished, own count, share of the seats
            ("waiting", "f4"),  # requests without KV, those sent since the report among them, share of the seats
            ("running", "f4"),  # requests with KV, reported, share of the seats
            ("kv_free", "f4"),  # KV blocks free, reported, share of all
            ("kv_wanted", "f4"),  # KV blocks that the waiting ones and this request's prompt need, share of all
            ("batch_time", "f4"),  # its latest batch, in chunks
            ("slowness", "f4"),  # its seconds per prompt token, in those of the fastest
            ("sent_since", "f4"),  # requests sent since its report
        ],
    )
)
"""The features of one replica by name: ``out.view(REPLICA_FEATURES)[0].waiting`` of a float32 line."""
REQUEST_FEATURES = np.dtype(
    (
        np.record,
        [
            ("prompt", "f4"),  # prompt tokens / 512
            ("output", "f4"),  # predicted output tokens / 256; 1 without a prediction
            ("strict", "f4"),  # 1: paying user
            ("age", "f4"),  # of the reports, in chunks
            ("replicas", "f4"),  # one over their number
        ],
    )
)
"""The features of the request and of the moment, the same for all replicas."""
REPLICA_NAMES, REQUEST_NAMES = tuple(REPLICA_FEATURES.names or ()), tuple(REQUEST_FEATURES.names or ())
MEAN_OUTPUT = 256.0
"""Output tokens expected of a request without a prediction."""
FEATURE_LIMIT = 1e4
"""No feature is larger, and none is less than 0."""


class Scale(NamedTuple):
    """What the features of all replicas are measured by."""

    chunk_s: float  # s, a chunk of CHUNK prompt tokens on the fastest replica
    prefill_s: float  # s, a prompt token on it
    brings_s: float  # s, work that the request brings to the replica where that is least
    output: float  # output tokens expected of the request


@inner
def scale_of(view: RouterView) -> Scale:
    """The measures of one decision."""
    request = view.request[0]
    output = MEAN_OUTPUT if math.isnan(request.prediction) else float(request.prediction)
    fastest, brings = np.inf, np.inf
    for j in range(view.replica.shape[0]):
        r = view.replica[j]
        fastest = min(fastest, r.prefill_s)
        brings = min(brings, request.prompt * r.prefill_s + output * r.decode_s)
    return Scale(fastest * CHUNK, fastest, brings, output)


@inner
def _clip(values: np.ndarray) -> None:
    for k in range(values.shape[0]):
        values[k] = min(max(values[k], 0.0), FEATURE_LIMIT)


@inner
def show_replica(view: RouterView, j: int, scale: Scale, out: np.ndarray) -> None:
    """Write the features of one replica.

    Args:
        view: what a router may see.
        j: the replica.
        scale: of this decision (`scale_of`).
        out: float32[REPLICA_NAMES], overwritten.
    """
    r, request, f = view.replica[j], view.request[0], out.view(REPLICA_FEATURES)[0]
    since = r.in_flight - requests_at(r)  # requests more (or less) than the replica knew of when it reported
    prompts = max(0, r.prompt_left + r.unanswered - r.unanswered_then) * r.prefill_s
    outputs = max(output_left(r, MEAN_OUTPUT) + since * MEAN_OUTPUT, float(r.in_flight)) * r.decode_s
    prompt, output = request.prompt * r.prefill_s, scale.output * r.decode_s
    f.prompt_work, f.output_work = prompts / scale.chunk_s, outputs / scale.chunk_s
    f.unanswered_work = r.unanswered * r.prefill_s / scale.chunk_s
    f.own_prompt, f.own_output = prompt / scale.chunk_s, output / scale.chunk_s
    f.weighted_work = (prompts + outputs) * (prompt + output) / (scale.brings_s * scale.chunk_s)
    f.in_flight, f.running = r.in_flight / r.seats, r.running / r.seats
    f.waiting = (r.waiting + r.sent - r.reported) / r.seats
    f.kv_free = r.free_blocks / r.num_blocks
    f.kv_wanted = (r.blocks_wanted + request.prompt / r.block_size) / r.num_blocks
    f.batch_time = r.batch_s / scale.chunk_s
    f.slowness = r.prefill_s / scale.prefill_s
    f.sent_since = r.sent - r.reported
    _clip(out)


@inner
def show_request(view: RouterView, scale: Scale, out: np.ndarray) -> None:
    """Write the features of the request.

    Args:
        view: what a router may see.
        scale: of this decision (`scale_of`).
        out: float32[REQUEST_NAMES], overwritten.
    """
    request, row, f = view.request[0], view.row[0], out.view(REQUEST_FEATURES)[0]
    f.prompt, f.output = request.prompt / CHUNK, scale.output / MEAN_OUTPUT
    f.strict = request.strict
    f.age = (row.now - row.as_of) / scale.chunk_s
    f.replicas = 1.0 / view.replica.shape[0]
    _clip(out)


@hot
def encode(view: RouterView, replicas: np.ndarray, request: np.ndarray) -> None:
    """Write all features of one decision.

    Args:
        view: what a router may see.
        replicas: float32[replicas, REPLICA_NAMES], overwritten.
        request: float32[REQUEST_NAMES], overwritten.
    """
    scale = scale_of(view)
    show_request(view, scale, request)
    for j in range(view.replica.shape[0]):
        show_replica(view, j, scale, replicas[j])
