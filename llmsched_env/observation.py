"""Observation: one fixed float32 vector of scale-free aggregates of the server.

Counts and token amounts are square roots or shares of the server's limits, slack is in units of the recent batch time,
waits in units of the TTFT deadline, so that the same numbers mean the same on a faster card or with longer deadlines.
What a single snapshot cannot show (recent batch time, recent arrival rate) is kept in the policy's own memory.
"""

from typing import Any

import numpy as np

from baselines._fill import FILL_ROW_MEMORY
from engine.compiled.jit import hot, inner
from engine.server.state import Memory, View

PROMPT_BUCKETS = (128, 512, 1024, 2048, 4096)
"""Upper edges of the prompt-length buckets, tokens; the last bucket is open."""
SLACK_BUCKETS = (1.0, 2.0, 3.0, 4.0, 6.0)
"""Upper edges of the slack buckets, recent batch times; the last bucket is open."""

NUM_PROMPT, NUM_SLACK = len(PROMPT_BUCKETS) + 1, len(SLACK_BUCKETS) + 1
_WAITING, _SLACK = 0, 2 * NUM_PROMPT
_GLOBAL = _SLACK + 2 * NUM_SLACK

GLOBAL_FEATURES = (
    "kv_use",
    "kv_room_for_head",
    "running_share",
    "started_prompts",
    "started_tokens",
    "waiting_tokens",
    "oldest_wait_relaxed",
    "oldest_wait_strict",
    "least_slack_relaxed",
    "least_slack_strict",
    "shortest_prompt",
    "head_prompt",
    "mean_context",
    "arrivals_per_batch",
    "batch_time",
    "last_batch_time",
    "last_batch_tokens",
    "mean_output_so_far",
    "arrivals_per_batch_slow",
    "kv_use_slow",
)
OBSERVATION_NAMES = (
    *(f"waiting_{c}_{k}" for c in ("relaxed", "strict") for k in (*PROMPT_BUCKETS, "more")),
    *(f"decodes_{c}_slack_{k}" for c in ("relaxed", "strict") for k in (*SLACK_BUCKETS, "more")),
    *GLOBAL_FEATURES,
)
"""Name of each entry of the observation."""
OBSERVATION_SIZE = len(OBSERVATION_NAMES)
OBSERVATION_LIMIT = 10.0
"""Every entry is clipped to +- this."""

SEEN_ITERATIONS, BATCH_TIME, SEEN_ARRIVED, ARRIVAL_GAP, LAST_SEEN, SLOW_GAP, SLOW_USE = range(
    FILL_ROW_MEMORY, FILL_ROW_MEMORY + 7
)
"""Cells of the row memory: what `remember` keeps between decisions."""
OBSERVER_ROW_MEMORY = FILL_ROW_MEMORY + 7
_FORGET, _FORGET_SLOWLY = 0.1, 0.01
"""Weight of the last batch or arrival in running means; the slow ones begin as means of all so far."""
_FIRST_BATCH_TIME_S = 0.03


@hot
def remember(view: View, memory: Memory) -> None:
    """Update the running means of batch time and time between arrivals; call once before each decision."""
    row, m = view.row[0], memory.row
    if m[BATCH_TIME] == 0.0:
        m[BATCH_TIME], m[ARRIVAL_GAP] = _FIRST_BATCH_TIME_S, 1.0
    if row.iterations > m[SEEN_ITERATIONS]:
        m[BATCH_TIME] += _FORGET * (row.last_duration - m[BATCH_TIME])
        m[SEEN_ITERATIONS] = row.iterations
    arrived = row.next_arrival - m[SEEN_ARRIVED]
    if arrived > 0:
        gap = (row.now - m[LAST_SEEN]) / arrived
        keep = (1.0 - _FORGET) ** arrived
        m[ARRIVAL_GAP] = keep * m[ARRIVAL_GAP] + (1.0 - keep) * gap
        slow = max(_FORGET_SLOWLY, 1.0 / row.next_arrival)
        kept = (1.0 - slow) ** arrived
        m[SLOW_GAP] = kept * m[SLOW_GAP] + (1.0 - kept) * gap
        use = 1.0 - row.free_blocks / row.num_blocks
        m[SLOW_USE] = kept * m[SLOW_USE] + (1.0 - kept) * use
        m[SEEN_ARRIVED] = row.next_arrival
        m[LAST_SEEN] = row.now


@inner
def _count_waiting(view: View, out: Any) -> tuple[int, float, float, int]:
    row = view.row[0]
    tokens, relaxed, strict, shortest = 0, 0.0, 0.0, 1 << 30
    for k in range(row.num_waiting):
        r = view.request[view.queue[k]]
        bucket = 0
        for edge in PROMPT_BUCKETS:
            bucket += r.prompt > edge
        out[_WAITING + r.strict * NUM_PROMPT + bucket] += 1.0
        tokens += r.prompt
        shortest = min(shortest, r.prompt)
        if not r.has_token:
            wait = (row.now - r.arrival) / r.ttft
            if r.strict:
                strict = max(strict, wait)
            else:
                relaxed = max(relaxed, wait)
    return tokens, relaxed, strict, shortest


@inner
def _count_running(view: View, unit: float, out: Any) -> tuple[int, int, int, float, float]:
    """Slack histogram; returns (tokens left in started prompts, context and output of decodes, least slacks)."""
    row = view.row[0]
    left, context, output = 0, 0, 0
    relaxed, strict = 1.0, 1.0
    per_unit = 1.0 / unit
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        if r.prefilled < r.prompt:
            left += r.prompt - r.prefilled
            continue
        slack = r.last_token + r.tbt - row.now
        units = slack * per_unit
        bucket = _SLACK + r.strict * NUM_SLACK
        for edge in SLACK_BUCKETS:
            bucket += units > edge
        out[bucket] += 1.0
        context += r.length
        output += r.generated
        if r.strict:
            strict = min(strict, slack / r.tbt)
        else:
            relaxed = min(relaxed, slack / r.tbt)
    return left, context, output, relaxed, strict


@hot
def encode(view: View, memory: Memory, out: np.ndarray) -> None:
    """Write the observation of one server; call `remember` first.

    Args:
        view: what a policy may see.
        memory: holds what `remember` keeps.
        out: float32[OBSERVATION_SIZE], overwritten.
    """
    row, m = view.row[0], memory.row
    unit = m[BATCH_TIME]
    out[:] = 0.0
    tokens, wait_relaxed, wait_strict, shortest = _count_waiting(view, out)
    left, context, output, slack_relaxed, slack_strict = _count_running(view, unit, out)
    decodes = row.num_running - row.num_prefilling
    for k in range(_SLACK):
        out[k] = np.sqrt(out[k])
    for k in range(_SLACK, _GLOBAL):
        out[k] = 4.0 * out[k] / row.max_num_seqs
    g = _GLOBAL
    head = view.request[view.queue[0]].prompt if row.num_waiting > 0 else 0
    room = (row.free_blocks - row.watermark_blocks) * row.block_size
    out[g] = 1.0 - row.free_blocks / row.num_blocks
    out[g + 1] = 1.0 if room >= head else 0.0
    out[g + 2] = row.num_running / row.max_num_seqs
    out[g + 3] = np.sqrt(float(row.num_prefilling))
    out[g + 4] = np.sqrt(left / 512.0)
    out[g + 5] = np.sqrt(tokens / 512.0)
    out[g + 6] = np.sqrt(wait_relaxed)
    out[g + 7] = np.sqrt(wait_strict)
    out[g + 8] = slack_relaxed
    out[g + 9] = slack_strict
    out[g + 10] = np.sqrt(shortest / 512.0) if row.num_waiting > 0 else 0.0
    out[g + 11] = np.sqrt(head / 512.0)
    out[g + 12] = context / (1024.0 * decodes) if decodes > 0 else 0.0
    out[g + 13] = unit / max(m[ARRIVAL_GAP], 1e-3)
    out[g + 14] = 10.0 * unit
    out[g + 15] = row.last_duration / unit
    out[g + 16] = row.batch_tokens / 512.0
    out[g + 17] = output / (256.0 * decodes) if decodes > 0 else 0.0
    out[g + 18] = unit / max(m[SLOW_GAP], 1e-3)
    out[g + 19] = m[SLOW_USE]
    for k in range(OBSERVATION_SIZE):
        out[k] = min(max(out[k], -OBSERVATION_LIMIT), OBSERVATION_LIMIT)
