"""Observation: one fixed float32 vector of scale-free aggregates of the server.

Counts and token amounts are square roots or shares of the server's limits, slack is in units of the recent batch time,
waits in units of the TTFT deadline, predicted seconds in deadlines or shortest batches, so that the same numbers mean
the same on a faster card or with longer deadlines. What a single snapshot cannot show (recent batch time, recent
arrival rate, the outputs of those that are done) is kept in the policy's own memory; what the device is comes first
among its parameters.

A new entry is a line in OBSERVATION and the line that writes it; names, order and size come from there. Trained
policies go by the names, so that they stay as they are (`agents.learning.learned.bundle`).
"""

from typing import NamedTuple

import numpy as np

from baselines.families.durations import decodes_of
from engine.compiled.jit import hot, inner
from engine.compiled.records import cells_of, record
from engine.device.predicting import DEVICE, predicted
from engine.server.features import EMPTY, add
from engine.server.state import DROPPED, FINISHED, Memory, View

PROMPT_BUCKETS = (128, 512, 1024, 2048, 4096)
"""Upper edges of the prompt-length buckets, tokens; the last bucket is open."""
SLACK_BUCKETS = (1.0, 2.0, 3.0, 4.0, 6.0)
"""Upper edges of the slack buckets, recent batch times; the last bucket is open."""
SCARCEST = 6.0
"""Halvings after which free blocks and seats are not told apart from none."""
USUAL_CHUNK = 512.0
"""Tokens of the prompt chunk by which it is told what chunks cost."""

TIERS = ("relaxed", "strict")
"""The two kinds of users, in the order of the flag `strict` of a request."""
_NUM_PROMPT, _NUM_SLACK = len(PROMPT_BUCKETS) + 1, len(SLACK_BUCKETS) + 1

OBSERVATION = np.dtype(
    (
        np.record,
        [
            ("waiting", "f4", (2, _NUM_PROMPT)),  # sqrt of the waiting requests, by TIERS and bucket of the prompt
            ("decodes", "f4", (2, _NUM_SLACK)),  # 4 x share of max_num_seqs, by TIERS and bucket of the slack
            ("kv_use", "f4"),  # share of the KV blocks that is in use
            ("kv_room_for_head", "f4"),  # 1: the prompt of the queue's head fits above the watermark
            ("running_share", "f4"),  # requests that hold KV, share of max_num_seqs
            ("started_prompts", "f4"),  # sqrt of the started prompts
            ("started_tokens", "f4"),  # sqrt of the tokens that they lack / 512
            ("waiting_tokens", "f4"),  # sqrt of the prompt tokens in the queue / 512
            ("oldest_wait_relaxed", "f4"),  # sqrt of the longest wait for a first token, in deadlines
            ("oldest_wait_strict", "f4"),  # the same of the strict users
            ("least_slack_relaxed", "f4"),  # least time left of a decode, in deadlines; 1: nobody decodes
            ("least_slack_strict", "f4"),  # the same of the strict users
            ("shortest_prompt", "f4"),  # sqrt of the shortest waiting prompt's tokens / 512
            ("head_prompt", "f4"),  # sqrt of the tokens of the queue's head / 512
            ("mean_context", "f4"),  # mean tokens in a decode's KV / 1024
            ("arrivals_per_batch", "f4"),  # arrivals in the time of a recent batch, at the recent rate
            ("batch_time", "f4"),  # running mean of the recent batches, in 0.1 s
            ("last_batch_time", "f4"),  # the last batch, in recent batches
            ("last_batch_tokens", "f4"),  # tokens of the last batch / 512
            ("mean_output_so_far", "f4"),  # mean tokens that a decode has given / 256
            ("arrivals_per_batch_slow", "f4"),  # the same, at the rate over a longer time
            ("kv_use_slow", "f4"),  # KV use at arrivals, over a longer time
            ("running_share_slow", "f4"),  # running_share at arrivals, over a longer time
            ("kv_per_seat", "f4"),  # sqrt of the KV tokens for each of max_num_seqs / 512
            ("mean_output", "f4"),  # mean output tokens of those that are done, by arrival / 256
            ("output_spread", "f4"),  # their standard deviation, in means
            ("tightest_deadline", "f4"),  # shortest deadline between tokens of a decode, in the longest; 1: no decode
            ("tightest_decodes", "f4"),  # share of the decodes that have it
            ("decodes_time", "f4"),  # predicted batch of all decodes, in their shortest deadline; 0: nobody decodes
            ("chunk_time", "f4"),  # what a chunk of 512 tokens adds to it, in predicted batches of one token / 4
            ("mixing_loss", "f4"),  # share of a batch of both that is saved by two batches (< 0: that costs more)
            ("kv_scarcity", "f4"),  # log2 of the KV blocks for each free one, at most SCARCEST
            ("seat_scarcity", "f4"),  # the same of the seats (max_num_seqs)
        ],
    )
)
"""The observation by name: ``out.view(OBSERVATION)[0].kv_use`` of a float32[OBSERVATION_SIZE]."""
_BUCKETS = {"waiting": ("waiting_{}_{}", PROMPT_BUCKETS), "decodes": ("decodes_{}_slack_{}", SLACK_BUCKETS)}


def _names(field: str) -> list[str]:
    """The names of the entries of a field: its own, or one for each bucket of each tier."""
    if field not in _BUCKETS:
        return [field]
    template, edges = _BUCKETS[field]
    return [template.format(tier, edge) for tier in TIERS for edge in (*edges, "more")]


OBSERVATION_NAMES = tuple(name for field in OBSERVATION.names or () for name in _names(field))
"""Name of each entry of the observation."""
OBSERVATION_SIZE = len(OBSERVATION_NAMES)
"""How many there are."""
OBSERVATION_LIMIT = 10.0
"""Every entry is clipped to +- this."""

SEEN = np.dtype(
    [
        ("iterations", "f8"),  # of the server, at the last look
        ("batch_time", "f8"),  # s, running mean over the latest batches
        ("arrived", "f8"),  # requests, at the last look
        ("arrival_gap", "f8"),  # s, running mean between arrivals
        ("arrival_time", "f8"),  # s, of the last look that saw new arrivals
        ("arrival_gap_slow", "f8"),  # s, over a longer time
        ("kv_use_slow", "f8"),  # share of the KV blocks at arrivals, over a longer time
        ("seats_slow", "f8"),  # the same of the seats
        ("done", "f8"),  # requests, at the last look
        ("looked_at", "f8"),  # requests, by arrival: all of them are done
        ("outputs", "f8"),  # of them, those that were served
        ("output", "f8"),  # tokens that these were given, running mean
        ("shortest", "f8"),  # s, predicted batch of one token (0: not asked yet)
        ("chunk", "f8"),  # s, the same of a chunk of USUAL_CHUNK tokens
        ("output_square", "f8"),  # tokens^2, the same of the squares
    ],
    align=True,
)
"""What `remember` keeps between decisions, at the beginning of the row memory."""
OBSERVER_ROW_MEMORY = cells_of(SEEN)
_device = record(DEVICE)
seen_before = record(SEEN)
"""``seen_before(memory.row)`` is what `remember` has kept, in place."""
_FORGET, _FORGET_SLOWLY = 0.1, 0.01
"""Weight of the last batch or arrival in running means; the slow ones begin as means of all so far."""
_FIRST_BATCH_TIME_S = 0.03


@inner
def _count_outputs(view: View, seen: np.record) -> None:
    """Update the running means of outputs: by arrival, for of those that are done first most are short."""
    row = view.row[0]
    if row.finished + row.dropped == seen.done:
        return
    seen.done = row.finished + row.dropped
    looked_at, arrived = int(seen.looked_at), row.next_arrival
    while looked_at < arrived and view.request[looked_at].status >= FINISHED:
        r = view.request[looked_at]
        if r.status != DROPPED:
            outputs, tokens = float(seen.outputs) + 1.0, float(r.generated)
            weight = max(_FORGET_SLOWLY, 1.0 / outputs)
            seen.outputs = outputs
            seen.output += weight * (tokens - seen.output)
            seen.output_square += weight * (tokens * tokens - seen.output_square)
        looked_at += 1
    seen.looked_at = looked_at


@hot
def remember(view: View, memory: Memory) -> None:
    """Update the running means of batch time, time between arrivals and outputs; call once before each decision."""
    row, seen = view.row[0], seen_before(memory.row)
    if seen.batch_time == 0.0:
        seen.batch_time, seen.arrival_gap = _FIRST_BATCH_TIME_S, 1.0
    if row.iterations > seen.iterations:
        seen.batch_time += _FORGET * (row.last_duration - seen.batch_time)
        seen.iterations = row.iterations
    arrived = row.next_arrival - seen.arrived
    if arrived > 0:
        gap = (row.now - seen.arrival_time) / arrived
        keep = (1.0 - _FORGET) ** arrived
        seen.arrival_gap = keep * seen.arrival_gap + (1.0 - keep) * gap
        slow = max(_FORGET_SLOWLY, 1.0 / row.next_arrival)
        kept = (1.0 - slow) ** arrived
        seen.arrival_gap_slow = kept * seen.arrival_gap_slow + (1.0 - kept) * gap
        use = 1.0 - row.free_blocks / row.num_blocks
        seen.kv_use_slow = kept * seen.kv_use_slow + (1.0 - kept) * use
        seen.seats_slow = kept * seen.seats_slow + (1.0 - kept) * row.num_running / row.max_num_seqs
        seen.arrived = row.next_arrival
        seen.arrival_time = row.now
    _count_outputs(view, seen)


@inner
def _show_waiting(view: View, o: np.record) -> None:
    """The queue: prompts, waits, the head."""
    row = view.row[0]
    tokens, relaxed, strict, shortest = 0, 0.0, 0.0, 1 << 30
    for k in range(row.num_waiting):
        r = view.request[view.queue[k]]
        bucket = 0
        for edge in PROMPT_BUCKETS:
            bucket += r.prompt > edge
        o.waiting[r.strict, bucket] += 1.0
        tokens += r.prompt
        shortest = min(shortest, r.prompt)
        if not r.has_token:
            wait = (row.now - r.arrival) / r.ttft
            if r.strict:
                strict = max(strict, wait)
            else:
                relaxed = max(relaxed, wait)
    for tier in range(2):
        for bucket in range(_NUM_PROMPT):
            o.waiting[tier, bucket] = np.sqrt(o.waiting[tier, bucket])
    head = view.request[view.queue[0]].prompt if row.num_waiting > 0 else 0
    room = (row.free_blocks - row.watermark_blocks) * row.block_size
    o.kv_room_for_head = 1.0 if room >= head else 0.0
    o.waiting_tokens = np.sqrt(tokens / 512.0)
    o.oldest_wait_relaxed, o.oldest_wait_strict = np.sqrt(relaxed), np.sqrt(strict)
    o.shortest_prompt = np.sqrt(shortest / 512.0) if row.num_waiting > 0 else 0.0
    o.head_prompt = np.sqrt(head / 512.0)


class Decodes(NamedTuple):
    """Those who decode."""

    number: float
    context: float  # tokens that their next batch reads
    tightest: float  # s, shortest deadline between tokens (inf: nobody decodes)
    loosest: float  # s, longest
    tight: float  # how many have the shortest


@inner
def _show_running(view: View, unit: float, o: np.record) -> Decodes:
    """The requests that hold KV: started prompts, decodes by slack in units of a recent batch; returns the latter."""
    row = view.row[0]
    left, context, output, tight = 0, 0, 0, 0
    relaxed, strict, tightest, loosest = 1.0, 1.0, np.inf, 0.0
    per_unit = 1.0 / unit
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        if r.prefilled < r.prompt:
            left += r.prompt - r.prefilled
            continue
        slack = r.last_token + r.tbt - row.now
        units = slack * per_unit
        bucket = 0
        for edge in SLACK_BUCKETS:
            bucket += units > edge
        o.decodes[r.strict, bucket] += 1.0
        context += r.length
        output += r.generated
        tight = 1 if r.tbt < tightest else tight + (r.tbt == tightest)
        tightest, loosest = min(tightest, r.tbt), max(loosest, r.tbt)
        if r.strict:
            strict = min(strict, slack / r.tbt)
        else:
            relaxed = min(relaxed, slack / r.tbt)
    for tier in range(2):
        for bucket in range(_NUM_SLACK):
            o.decodes[tier, bucket] = 4.0 * o.decodes[tier, bucket] / row.max_num_seqs
    decodes = row.num_running - row.num_prefilling
    o.started_prompts = np.sqrt(float(row.num_prefilling))
    o.started_tokens = np.sqrt(left / 512.0)
    o.least_slack_relaxed, o.least_slack_strict = relaxed, strict
    o.mean_context = context / (1024.0 * decodes) if decodes > 0 else 0.0
    o.mean_output_so_far = output / (256.0 * decodes) if decodes > 0 else 0.0
    return Decodes(float(decodes), float(context), tightest, loosest, float(tight))


@inner
def _show_device(d: Decodes, device: np.record, seen: np.record, o: np.record) -> None:
    """What those who decode ask of the device: deadlines, predicted seconds of their batch, alone and with a chunk."""
    if seen.shortest == 0.0:
        seen.shortest = predicted(device, decodes_of(1.0, 1.0))
        seen.chunk = predicted(device, add(EMPTY, 0.0, USUAL_CHUNK, False))
    f = decodes_of(d.number, d.context)
    alone, together = predicted(device, f), predicted(device, add(f, 0.0, USUAL_CHUNK, False))
    o.chunk_time = (together - alone) / (4.0 * seen.shortest)
    o.tightest_deadline = 1.0
    if d.number > 0.0:
        o.tightest_deadline = d.tightest / d.loosest
        o.tightest_decodes = d.tight / d.number
        o.decodes_time = alone / d.tightest
        o.mixing_loss = 1.0 - (alone + seen.chunk) / together


@inner
def _scarcity(left: int, of: int) -> float:
    """How often what there was has been halved until so much is left, at most SCARCEST."""
    return np.log2(1.0 / max(left / of, 2.0**-SCARCEST))


@hot
def encode(view: View, memory: Memory, out: np.ndarray) -> None:
    """Write the observation of one server; call `remember` first.

    Args:
        view: what a policy may see.
        memory: holds what `remember` keeps, and among its parameters first the device (a record of DEVICE).
        out: float32[OBSERVATION_SIZE], overwritten.
    """
    row, seen, o = view.row[0], seen_before(memory.row), out.view(OBSERVATION)[0]
    unit = seen.batch_time
    out[:] = 0.0
    _show_waiting(view, o)
    _show_device(_show_running(view, unit, o), _device(memory.params), seen, o)
    o.kv_use = 1.0 - row.free_blocks / row.num_blocks
    o.running_share = row.num_running / row.max_num_seqs
    o.arrivals_per_batch = unit / max(seen.arrival_gap, 1e-3)
    o.batch_time = 10.0 * unit
    o.last_batch_time = row.last_duration / unit
    o.last_batch_tokens = row.batch_tokens / 512.0
    o.arrivals_per_batch_slow = unit / max(seen.arrival_gap_slow, 1e-3)
    o.kv_use_slow, o.running_share_slow = seen.kv_use_slow, seen.seats_slow
    o.kv_per_seat = np.sqrt(row.num_blocks * row.block_size / (512.0 * row.max_num_seqs))
    o.mean_output = seen.output / 256.0
    if seen.output > 0.0:
        o.output_spread = np.sqrt(max(0.0, seen.output_square - seen.output**2)) / seen.output
    o.kv_scarcity = _scarcity(row.free_blocks, row.num_blocks)
    o.seat_scarcity = _scarcity(row.max_num_seqs - row.num_running, row.max_num_seqs)
    for k in range(OBSERVATION_SIZE):
        out[k] = min(max(out[k], -OBSERVATION_LIMIT), OBSERVATION_LIMIT)
