"""The physics of one server: `arrive`, `begin`, `finish`, `idle`. Everybody who moves a server calls these.

One iteration is ``begin`` (the plan becomes KV blocks and batch features, or an error code), some seconds on a device,
``finish`` (clock, progress, tokens, completions, arrivals). KV is counted in blocks: a request is admitted with the
blocks of its whole prompt, a decode takes one more when its last block is full, an eviction gives all of them back and
puts the request at the head of the queue to prefill prompt + generated tokens again.
"""

from typing import Any

import numpy as np
from numba import njit

from engine.state import (
    DROP,
    DROPPED,
    EVICT,
    FINISHED,
    GAP_BUCKETS_PER_OCTAVE,
    GAP_MIN_EXPONENT,
    NUM_GAP_BUCKETS,
    RUNNING,
    WAITING,
    Server,
)

ILLEGAL = (
    "",
    "evicts a request that holds no KV",
    "drops a request that is not waiting",
    "schedules a request twice in one iteration",
    "schedules a request that has not arrived or has left",
    "asks for more than max_num_seqs requests with KV",
    "asks for more KV blocks than are free",
    "asks for more tokens than max_batched_tokens",
    "asks for more prompt tokens than remain",
    "asks a decode for a number of tokens other than 1",
    "has a token count that is neither positive, EVICT nor DROP",
)
"""What a plan entry did wrong; the index is the error code of `begin`."""
CODE_SHIFT = len(ILLEGAL)

_MANTISSA_SHIFT = 23 - (GAP_BUCKETS_PER_OCTAVE.bit_length() - 1)
_FIRST_BUCKET = (127 + GAP_MIN_EXPONENT) * GAP_BUCKETS_PER_OCTAVE - 1


@njit(cache=True)
def gap_bucket(gap: float) -> int:
    """Bucket of a gap in seconds: the leading bits of its float32 form, i.e. exponent and 9 bits of mantissa."""
    bucket = (np.float32(gap).view(np.int32) >> _MANTISSA_SHIFT) - _FIRST_BUCKET
    return min(max(bucket, 0), NUM_GAP_BUCKETS - 1)


@njit(cache=True)
def blocks_for(tokens: int, block_size: int) -> int:
    """KV blocks that hold this many tokens."""
    return (tokens + block_size - 1) // block_size


@njit(cache=True)
def _advance(row: Any, time: float) -> None:
    """Move the clock and the time integrals; `row` is one ROW record."""
    span = time - row.now
    row.kv_time += span * (row.num_blocks - row.free_blocks)
    row.queue_time += span * row.no_first_token
    row.present_time += span * (row.num_waiting + row.num_running)
    row.now = time


@njit(cache=True)
def arrive(server: Server) -> None:
    """Queue every request with arrival <= now."""
    view = server.visible
    row = view.row[0]
    while row.next_arrival < row.num_requests:
        i = row.next_arrival
        r = view.request[i]
        if r.arrival > row.now:
            break
        r.status = WAITING
        view.queue[row.num_waiting] = i
        row.num_waiting += 1
        row.next_arrival += 1
        row.no_first_token += 1
        row.queue_time += row.now - r.arrival
        row.present_time += row.now - r.arrival
    row.max_waiting = max(row.max_waiting, row.num_waiting)


@njit(cache=True)
def _leave_queue(view: Any, i: int) -> None:
    row = view.row[0]
    k = 0
    while view.queue[k] != i:
        k += 1
    for j in range(k, row.num_waiting - 1):
        view.queue[j] = view.queue[j + 1]
    row.num_waiting -= 1


@njit(cache=True)
def _evict(view: Any, i: int) -> None:
    row, r = view.row[0], view.request[i]
    k = 0
    while view.running[k] != i:
        k += 1
    for j in range(k, row.num_running - 1):
        view.running[j] = view.running[j + 1]
    row.num_running -= 1
    for j in range(row.num_waiting, 0, -1):
        view.queue[j] = view.queue[j - 1]
    view.queue[0] = i
    row.num_waiting += 1
    row.free_blocks += r.blocks
    row.evictions += 1
    row.recomputed_tokens += r.prefilled + (r.length - r.prompt)
    r.blocks = 0
    r.evictions += 1
    r.status = WAITING
    r.prompt = r.length
    r.prefilled = 0
    if not row.eviction_keeps_output:
        r.generated = 0


@njit(cache=True)
def _admit(view: Any, i: int, blocks: int) -> None:
    row, r = view.row[0], view.request[i]
    _leave_queue(view, i)
    k = row.num_running
    while k > 0 and view.running[k - 1] > i:
        view.running[k] = view.running[k - 1]
        k -= 1
    view.running[k] = i
    row.num_running += 1
    row.free_blocks -= blocks
    r.blocks = blocks
    r.status = RUNNING


@njit(cache=True)
def _fault(view: Any, i: int, tokens: int, reserve: int, used_tokens: int) -> int:
    """Error code (index into ILLEGAL) of one entry in the present state; 0 if it can be done."""
    row = view.row[0]
    if i < 0 or i >= row.next_arrival:
        return 4
    r = view.request[i]
    if tokens == EVICT:
        return (0 if r.last_run < row.iterations else 3) if r.status == RUNNING else 1
    if tokens == DROP:
        return 0 if r.status == WAITING else 2
    if tokens <= 0:
        return 10
    if r.status != WAITING and r.status != RUNNING:
        return 4
    if r.last_run == row.iterations:
        return 3
    if used_tokens + tokens > row.max_batched_tokens:
        return 7
    if r.prefilled == r.prompt:
        if tokens != 1:
            return 9
        return 6 if blocks_for(r.length, row.block_size) - r.blocks > row.free_blocks else 0
    if tokens > r.prompt - r.prefilled:
        return 8
    if r.status == WAITING:
        if row.num_running >= row.max_num_seqs:
            return 5
        if max(reserve, blocks_for(r.prompt, row.block_size)) > row.free_blocks:
            return 6
    return 0


@njit(cache=True)
def begin(server: Server, strict: bool) -> int:
    """Turn the plan into admissions, evictions, KV blocks and batch features.

    Entries are taken in their order. With `strict` the first illegal one stops and its code comes back; otherwise a
    chunk is cut to what remains of the prompt and of the token cap, an entry that still cannot be done is skipped
    (its tokens become 0), and the rest goes on: any plan becomes a legal one.

    Returns:
        0, or ``code + CODE_SHIFT * entry`` with ``ILLEGAL[code]`` saying what is wrong.
    """
    view, plan, features = server.visible, server.plan, server.features
    row = view.row[0]
    tokens, requests, decodes, context, pairs = 0, 0, 0, 0, 0.0
    for k in range(plan.size[0]):
        entry = plan.entry[k]
        i, n = entry.request, entry.tokens
        if not strict and n > 0 and 0 <= i < row.next_arrival:
            r = view.request[i]
            if r.prefilled < r.prompt:
                n = min(n, min(r.prompt - r.prefilled, row.max_batched_tokens - tokens))
            elif r.status == RUNNING:
                n = 1
            entry.tokens = n
        code = _fault(view, i, n, entry.reserve, tokens)
        if code != 0:
            if strict:
                return code + CODE_SHIFT * k
            entry.tokens = 0
            continue
        r = view.request[i]
        if n == EVICT:
            _evict(view, i)
            continue
        if n == DROP:
            _leave_queue(view, i)
            r.status = DROPPED
            row.dropped += 1
            row.no_first_token -= 1 if server.hidden.ledger[i].first_token < 0.0 else 0
            server.hidden.ledger[i].completed = row.now
            if server.hidden.ledger[i].first_scheduled < 0.0:
                server.hidden.ledger[i].first_scheduled = row.now
            continue
        if r.status == WAITING:
            _admit(view, i, max(entry.reserve, blocks_for(r.prompt, row.block_size)))
        if r.prefilled < r.prompt:
            pairs += n * (r.prefilled + (n + 1) / 2)
        else:
            need = blocks_for(r.length, row.block_size) - r.blocks
            if need > 0:
                r.blocks += need
                row.free_blocks -= need
            context += r.length
            decodes += 1
        r.last_run = row.iterations
        tokens += n
        requests += 1
    features.tokens[0], features.requests[0], features.decodes[0] = tokens, requests, decodes
    features.prefill_pairs[0], features.decode_context[0] = pairs, context
    return 0


@njit(cache=True)
def _record_gap(server: Server, r: Any, h: Any, gap: float) -> None:
    t = server.hidden.tier[r.tier]
    server.hidden.gaps[r.tier, gap_bucket(gap)] += 1
    t.gaps += 1
    t.gap_sum += gap
    if gap > h.max_gap:
        h.max_gap = gap
        t.max_gap = max(t.max_gap, gap)
    if gap > r.tbt:
        h.late_gaps += 1
        t.late_gaps += 1
        t.late_sum += gap / r.tbt - 1.0


@njit(cache=True)
def _emit(server: Server, i: int) -> bool:
    """One output token for request `i` at the present time; True if it was the last."""
    row, r, h = server.visible.row[0], server.visible.request[i], server.hidden.ledger[i]
    now = row.now
    t = server.hidden.tier[r.tier]
    if h.first_token < 0.0:
        h.first_token = now
        row.no_first_token -= 1
        t.first_tokens += 1
    else:
        _record_gap(server, r, h, now - r.last_token)
    r.last_token = now
    r.generated += 1
    r.length += 1
    h.delivered += 1
    t.tokens += 1
    if r.generated < h.output:
        return False
    h.completed = now
    r.status = FINISHED
    row.finished += 1
    row.free_blocks += r.blocks
    r.blocks = 0
    t.finished += 1
    if h.late_gaps == 0 and h.first_token - r.arrival <= r.ttft:
        t.good += 1
    return True


@njit(cache=True)
def finish(server: Server, seconds: float) -> None:
    """Let `seconds` pass and give the batch of the last `begin` its effects, then queue new arrivals."""
    view, plan = server.visible, server.plan
    row = view.row[0]
    start = row.now
    _advance(row, start + seconds)
    row.last_duration = row.now - start
    row.busy += row.last_duration
    finished = 0
    for k in range(plan.size[0]):
        n = plan.entry[k].tokens
        if n <= 0:
            continue
        i = plan.entry[k].request
        r, h = view.request[i], server.hidden.ledger[i]
        if h.first_scheduled < 0.0:
            h.first_scheduled = start
        row.batch_requests += 1
        if r.prefilled == r.prompt:
            row.decode_tokens += 1
            finished += _emit(server, i)
            continue
        r.prefilled += n
        row.prefill_tokens += n
        if r.prefilled == r.prompt:
            h.prompt_done = row.now
            if row.prompt_emits:
                finished += _emit(server, i)
            elif h.first_token < 0.0:
                r.last_token = row.now
    if finished > 0:
        kept = 0
        for j in range(row.num_running):
            i = view.running[j]
            if view.request[i].status == RUNNING:
                view.running[kept] = i
                kept += 1
        row.num_running = kept
    row.batch_tokens = server.features.tokens[0]
    row.iterations += 1
    arrive(server)


@njit(cache=True)
def idle(server: Server) -> bool:
    """Jump to the next arrival (or the plan's wake time, if earlier); False if there is nothing to wait for."""
    row = server.visible.row[0]
    time = server.plan.wake[0]
    if row.next_arrival < row.num_requests:
        time = min(time, server.visible.request[row.next_arrival].arrival)
    if time == np.inf:
        return False
    if time > row.now:
        _advance(row, time)
    arrive(server)
    return True


@njit(cache=True)
def is_over(server: Server) -> bool:
    """Every request of the trace has been served or dropped."""
    row = server.visible.row[0]
    return bool(row.finished + row.dropped == row.num_requests)


def explain(server: Server, code: int) -> str:
    """One line for an error code of `begin`: which entry of the plan asked for what."""
    kind, k = code % CODE_SHIFT, code // CODE_SHIFT
    entry = server.plan.entry[k]
    row = server.visible.row[0]
    return (
        f"illegal plan at iteration {row.iterations}, t={row.now:.6f} s: entry {k} "
        f"(request {entry.request}, tokens {entry.tokens}) {ILLEGAL[kind]}"
    )
