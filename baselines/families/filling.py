"""Batches of a predicted duration, decodes by slack (seconds until the deadline of their next token), prompts by SRPT.

slackfit and the allocation codec share these moves. The predicted duration is that of a latency profile, times how much
slower than predicted the device has been of late; a policy that uses it keeps the five numbers of the profile at one
place of its parameters (`OVERHEAD` ...) and `CLOCK_CELLS` cells of its row memory.
"""

from typing import Any

import numpy as np

from baselines._fill import (
    AGEING,
    FORESIGHT,
    TAKEN,
    WEIGHED,
    evict_into,
    fits_decode,
    is_decode,
    next_waiting,
    schedule_decode,
    take,
    weighed,
)
from engine.compiled.jit import inner
from engine.device.latency import LatencyModel
from engine.server.kv import blocks_to_admit, tokens_left
from engine.server.plan import schedule
from engine.server.state import Memory, Plan, View

OVERHEAD, FLOOR, PER_TOKEN, PER_PAIR, PER_CONTEXT, PROFILE_PARAMS = range(6)
"""The profile in the parameters, from its first number on."""
SCALE, PREDICTED, SEEN, CLOCK_CELLS = range(4)
"""Cells from the first one on: running mean of measured / predicted seconds, the last prediction, its batch."""
FORGET = 0.05
"""Weight of the last batch in the running mean."""
LEAST_CHUNK = 64
"""Tokens of a prompt that run even if the batch is full already, so that prompts always go on."""


def profile_params(model: LatencyModel) -> tuple[float, ...]:
    """A profile as PROFILE_PARAMS numbers (s); of a table the ends are kept."""
    floor, per_token = model.floor, model.per_token
    if model.table:
        (_, floor), (most, seconds) = model.table[0], model.table[-1]
        per_token = seconds / most
    return model.overhead, floor, per_token, model.per_pair, model.per_context


@inner
def learn_scale(view: View, memory: Memory, cell: int) -> float:
    """Compare the last batch with its prediction; returns the device's seconds per predicted second."""
    row, m = view.row[0], memory.row
    if m[cell + SCALE] == 0.0:
        m[cell + SCALE] = 1.0
    if m[cell + PREDICTED] > 0.0 and row.iterations == m[cell + SEEN] + 1.0:
        m[cell + SCALE] += FORGET * (row.last_duration / m[cell + PREDICTED] - m[cell + SCALE])
    m[cell + SEEN], m[cell + PREDICTED] = row.iterations, 0.0
    return m[cell + SCALE]


@inner
def _seconds(p: Any, at: int, tokens: int, attention: float) -> float:
    return p[at + OVERHEAD] + max(p[at + FLOOR], p[at + PER_TOKEN] * tokens) + attention


@inner
def _largest_chunk(p: Any, at: int, tokens: int, attention: float, done: int, limit: float) -> int:
    """Prompt tokens that fit a batch of so many tokens and attention seconds, behind `done` tokens of their request."""
    over = p[at + OVERHEAD] + attention + p[at + PER_TOKEN] * tokens - limit
    if over >= 0.0 or p[at + OVERHEAD] + attention + p[at + FLOOR] > limit:
        return 0
    a, b = 0.5 * p[at + PER_PAIR], p[at + PER_TOKEN] + p[at + PER_PAIR] * (done + 0.5)
    return int(-2.0 * over / (b + np.sqrt(b * b - 4.0 * a * over)))


@inner
def _youngest_unplanned(view: View, memory: Memory, i: int) -> int:
    """The youngest request with KV that this plan has not touched yet; `i` itself if there is none."""
    row = view.row[0]
    for j in range(row.num_running - 1, -1, -1):
        v = view.running[j]
        if memory.request[v, TAKEN] != row.iterations + 1:
            return v
    return i


@inner
def take_urgent(
    view: View, memory: Memory, plan: Plan, slack_s: float, free: int, victims: int
) -> tuple[int, int, int]:
    """Decodes with less slack than this, oldest first; one that finds no block evicts the youngest unplanned request.

    Returns:
        (tokens, free blocks, victims).
    """
    row = view.row[0]
    stamp = row.iterations + 1
    tokens = 0
    for j in range(row.num_running):
        if plan.size[0] - victims >= row.max_batched_tokens:
            break
        i = view.running[j]
        r = view.request[i]
        if not is_decode(r) or r.last_token + r.tbt - row.now >= slack_s or memory.request[i, TAKEN] == stamp:
            continue
        memory.request[i, TAKEN] = stamp
        fits = fits_decode(row, r, free)
        while not fits:
            v = _youngest_unplanned(view, memory, i)
            take(view, memory, v)
            free += evict_into(plan, memory, view, v, victims)
            victims += 1
            if v == i:
                break
            fits = fits_decode(row, r, free)
        if fits:
            free -= schedule_decode(plan, row, i, r)
            tokens += 1
    return tokens, free, victims


@inner
def take_large(view: View, memory: Memory, plan: Plan, times_mean: float, free: int) -> tuple[int, int]:
    """Decodes with more KV than so many times the mean: they free the most memory. Returns (tokens, free blocks)."""
    row = view.row[0]
    total = 0
    for j in range(row.num_running):
        total += view.request[view.running[j]].length
    tokens = 0
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        large = is_decode(r) and r.length * row.num_running > times_mean * total
        large = large and plan.size[0] < row.max_batched_tokens
        if large and memory.request[i, TAKEN] != row.iterations + 1 and fits_decode(row, r, free):
            free -= schedule_decode(plan, row, i, r)
            take(view, memory, i)
            tokens += 1
    return tokens, free


@inner
def _shortest_started(view: View, memory: Memory) -> int:
    """The started prompt with the fewest tokens left, as `weighed`, that this plan has not taken; -1: there is none."""
    row = view.row[0]
    best, least = -1, np.inf
    if row.num_prefilling > 0:
        for j in range(row.num_running):
            i = view.running[j]
            r = view.request[i]
            left = weighed(memory, r, r.prompt - r.prefilled)
            if left < least and not is_decode(r) and memory.request[i, TAKEN] != row.iterations + 1:
                best, least = i, left
    return best


@inner
def _shortest_remaining(view: View, memory: Memory, started: int, victims: int, taken: int) -> int:
    """The waiting request with fewer tokens (`weighed`) than `started` lacks, else `started`; -1: there is neither."""
    i = next_waiting(view, memory, WEIGHED, victims, taken)
    if i < 0 or memory.request[i, TAKEN] == view.row[0].iterations + 1:
        return started
    if started >= 0:
        r, s = view.request[i], view.request[started]
        if weighed(memory, r, r.prompt) >= weighed(memory, s, s.prompt - s.prefilled):
            return started
    return i


@inner
def _take_prompts(
    view: View,
    memory: Memory,
    plan: Plan,
    at: int,
    limit: float,
    tokens: int,
    attention: float,
    free: int,
    victims: int,
    close: float,
) -> tuple[int, float, int, bool]:
    """Chunks by shortest remaining prompt while predicted time is left.

    Once prompts are done, the batch is closed if `close` times the seconds that their users save are more than the
    overhead of another iteration for each prompt behind; with none behind it is closed to decodes that can wait.

    Returns:
        (tokens, attention, free blocks, whether the batch is closed).
    """
    row, p = view.row[0], memory.params
    taken, blocked, first = 0, False, True
    active = row.num_running - victims
    behind, done_prompts = row.num_waiting + row.num_prefilling + victims, 0
    while row.num_waiting + row.num_prefilling > 0:
        started = _shortest_started(view, memory)
        best = started if blocked else _shortest_remaining(view, memory, started, victims, taken)
        if best < 0:
            break
        r = view.request[best]
        done, left = (r.prefilled, tokens_left(r)) if best == started else (0, r.prompt)
        chunk = max(_largest_chunk(p, at, tokens, attention, done, limit), LEAST_CHUNK if first else 0)
        chunk = min(left, row.max_batched_tokens - tokens, chunk)
        if chunk <= 0:
            break
        if best != started:
            need = blocks_to_admit(r, row.block_size)
            if free - need < row.watermark_blocks or active >= row.max_num_seqs:
                blocked = True
                continue
            free -= need
            active += 1
            taken += 1
        schedule(plan, best, chunk)
        take(view, memory, best)
        tokens += chunk
        attention += p[at + PER_PAIR] * chunk * (done + 0.5 * (chunk + 1))
        first = False
        if chunk < left:
            break
        done_prompts += 1
        behind -= 1
        left_s = limit - _seconds(p, at, tokens, attention)
        if behind > 0 and close * done_prompts * left_s > p[at + OVERHEAD] * behind:
            return tokens, attention, free, True
    return tokens, attention, free, done_prompts > 0 and close > 0.0


@inner
def _take_others(
    view: View, memory: Memory, plan: Plan, at: int, limit: float, tokens: int, attention: float, free: int
) -> tuple[int, float]:
    """Decodes that could wait, oldest first, while predicted time is left; returns (tokens, attention)."""
    row, p = view.row[0], memory.params
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r) and memory.request[i, TAKEN] != row.iterations + 1 and fits_decode(row, r, free):
            more = p[at + PER_CONTEXT] * r.length
            if tokens >= row.max_batched_tokens or _seconds(p, at, tokens + 1, attention + more) > limit:
                break
            free -= schedule_decode(plan, row, i, r)
            take(view, memory, i)
            tokens += 1
            attention += more
    return tokens, attention


@inner
def _context_seconds(view: View, memory: Memory, at: int) -> float:
    """Predicted attention seconds of the decodes taken so far."""
    row, total = view.row[0], 0
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r) and memory.request[i, TAKEN] == row.iterations + 1:
            total += r.length
    return memory.params[at + PER_CONTEXT] * total


@inner
def fill_for(
    view: View,
    memory: Memory,
    plan: Plan,
    at: int,
    cell: int,
    limit: float,
    slack_s: float,
    times_mean: float,
    close: float,
) -> None:
    """A batch of about `limit` seconds: urgent decodes, large decodes, prompts by SRPT, then the other decodes.

    Args:
        view: the server.
        memory: the policy's memory.
        plan: receives the batch.
        at: where the profile is in the parameters.
        cell: where the clock's cells are in the row memory.
        limit: seconds, > 0.
        slack_s: a decode with less slack must run (inf: all of them).
        times_mean: one with more KV than this many times the mean runs, too (inf: none).
        close: weight of the seconds that an early end of the batch saves users of finished prompts (0: no early end).
    """
    row = view.row[0]
    limit /= learn_scale(view, memory, cell)
    prompts = row.num_waiting + row.num_prefilling > 0
    if not prompts:
        slack_s = np.inf
    tokens, free, victims = take_urgent(view, memory, plan, slack_s, row.free_blocks, 0)
    if prompts and victims == 0 and times_mean < np.inf:
        more, free = take_large(view, memory, plan, times_mean, free)
        tokens += more
    attention = _context_seconds(view, memory, at)
    if prompts:
        tokens, attention, free, closed = _take_prompts(
            view, memory, plan, at, limit, tokens, attention, free, victims, close
        )
        if victims == 0 and not closed:
            tokens, attention = _take_others(view, memory, plan, at, limit, tokens, attention, free)
    if plan.size[0] == victims:
        tokens, free, victims = take_urgent(view, memory, plan, np.inf, free, victims)
        attention = _context_seconds(view, memory, at)
    memory.row[cell + PREDICTED] = _seconds(memory.params, at, tokens, attention)


@inner
def fill_as_slackfit(
    view: View,
    memory: Memory,
    plan: Plan,
    at: int,
    cell: int,
    strict_limit: float,
    relaxed_limit: float,
    longest: float,
    slack: float,
    eager_from: float,
    memory_limit: float,
    ageing: float,
    close: float,
    foresight: float,
) -> None:
    """The rule of `baselines.slackfit.Slackfit` with these parameters; `at` and `cell` as for `fill_for`.

    `longest` is the largest limit that the next batch may have (s).
    """
    row = view.row[0]
    memory.row[AGEING], memory.row[FORESIGHT] = ageing, foresight
    strict = False
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        strict = strict or (r.strict > 0 and is_decode(r))
    limit = strict_limit if strict else relaxed_limit
    use = 1.0 - row.free_blocks / row.num_blocks
    slack_s, times_mean = limit + (slack - 1.0) * longest, np.inf
    if use >= memory_limit:
        slack_s = np.inf
        close = 0.0
    elif use > eager_from:
        close = 0.0
        times_mean = 2.0 * (memory_limit - use) / (memory_limit - eager_from)
    fill_for(view, memory, plan, at, cell, limit, slack_s, times_mean, close)
