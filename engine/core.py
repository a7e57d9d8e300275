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


@njit(cache=True, inline="always")
def gap_bucket(gap: float) -> int:
    """Bucket of a gap in seconds: the leading bits of its float32 form, i.e. exponent and 9 bits of mantissa."""
    bucket = (np.float32(gap).view(np.int32) >> _MANTISSA_SHIFT) - _FIRST_BUCKET
    return min(max(bucket, 0), NUM_GAP_BUCKETS - 1)


@njit(cache=True, inline="always")
def blocks_for(tokens: int, block_size: int) -> int:
    """KV blocks that hold this many tokens."""
    return (tokens + block_size - 1) // block_size


@njit(cache=True, inline="always")
def decode_need(r: Any, block_size: int) -> int:
    """KV blocks that the next decode of request `r` takes: 1 if its last block is full, else 0."""
    return 1 if r.length > r.blocks * block_size else 0


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
def _evict(server: Server, i: int) -> None:
    view = server.visible
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
    if r.prefilled < r.prompt:
        row.num_prefilling -= 1
    else:
        row.recomputed_tokens -= row.prompt_emits  # the latest token has not been processed yet
    r.blocks = 0
    r.evictions += 1
    r.status = WAITING
    r.prompt = r.length
    r.prefilled = 0
    if not row.eviction_keeps_output:
        server.hidden.ledger[i].delivered += r.generated
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
    row.num_prefilling += 1
    row.free_blocks -= blocks
    r.blocks = blocks
    r.status = RUNNING


@njit(cache=True)
def _drop(server: Server, i: int) -> None:
    row, r, h = server.visible.row[0], server.visible.request[i], server.hidden.ledger[i]
    _leave_queue(server.visible, i)
    r.status = DROPPED
    row.dropped += 1
    if not r.has_token:
        row.no_first_token -= 1
    if h.first_scheduled < 0.0:
        h.first_scheduled = row.now
    h.completed = row.now


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
        return 6 if decode_need(r, row.block_size) > row.free_blocks else 0
    if tokens > r.prompt - r.prefilled:
        return 8
    if r.status == WAITING:
        if row.num_running >= row.max_num_seqs:
            return 5
        if max(reserve, blocks_for(r.prompt, row.block_size)) > row.free_blocks:
            return 6
    return 0


@njit(cache=True)
def _book(server: Server, k: int, used_tokens: int, strict: bool) -> tuple[int, int]:
    """Do what entry `k` asks for outside the batch itself: eviction, drop, admission, blocks.

    Returns:
        (tokens that the entry adds to the batch, error code); without `strict` there is no error, only 0 tokens.
    """
    view = server.visible
    row, entry = view.row[0], server.plan.entry[k]
    i, n = entry.request, entry.tokens
    if not strict and n > 0 and 0 <= i < row.next_arrival:
        r = view.request[i]
        if r.prefilled < r.prompt:
            n = min(n, min(r.prompt - r.prefilled, row.max_batched_tokens - used_tokens))
        elif r.status == RUNNING:
            n = 1
    code = _fault(view, i, n, entry.reserve, used_tokens)
    if code != 0:
        entry.tokens = 0
        return 0, code if strict else 0
    entry.tokens = n
    r = view.request[i]
    if n == EVICT:
        _evict(server, i)
    elif n == DROP:
        _drop(server, i)
    elif r.status == WAITING:
        _admit(view, i, max(entry.reserve, blocks_for(r.prompt, row.block_size)))
    elif r.prefilled == r.prompt:
        need = decode_need(r, row.block_size)
        r.blocks += need
        row.free_blocks -= need
    return max(n, 0), 0


@njit(cache=True)
def begin(server: Server, strict: bool) -> int:
    """Turn the plan into admissions, evictions, KV blocks and batch features.

    Entries are taken in their order. With `strict` the first illegal one stops and its code comes back; otherwise a
    chunk is cut to what remains of the prompt and of the token cap, an entry that still cannot be done is skipped
    (its tokens become 0), and the rest goes on: any plan becomes a legal one.

    Returns:
        0, or ``code + CODE_SHIFT * entry`` with ``ILLEGAL[code]`` saying what is wrong.
    """
    view, features = server.visible, server.features
    request, entries, row = view.request, server.plan.entry, view.row[0]
    iteration, block_size, num_requests = row.iterations, row.block_size, row.next_arrival
    tokens, requests, decodes, context, pairs = 0, 0, 0, 0, 0.0
    for k in range(server.plan.size[0]):
        entry = entries[k]
        i, n = entry.request, entry.tokens
        if n == 1 and 0 <= i < num_requests:
            r = request[i]
            need = decode_need(r, block_size)
            if (
                r.status == RUNNING
                and r.prefilled == r.prompt
                and r.last_run < iteration
                and need <= row.free_blocks
                and tokens < row.max_batched_tokens
            ):  # the common case, a decode that can be done
                r.blocks += need
                row.free_blocks -= need
                r.last_run = iteration
                context += r.length
                decodes += 1
                tokens += 1
                continue
        n, code = _book(server, k, tokens, strict)
        if code != 0:
            return code + CODE_SHIFT * k
        if n > 0:
            r = request[i]
            if r.prefilled < r.prompt:
                pairs += n * (r.prefilled + (n + 1) / 2)
                requests += 1
            else:
                context += r.length
                decodes += 1
            r.last_run = iteration
            tokens += n
    features.tokens[0], features.requests[0], features.decodes[0] = tokens, requests + decodes, decodes
    features.prefill_pairs[0], features.decode_context[0] = pairs, context
    return 0


@njit(cache=True, inline="always")
def _settle(r: Any, h: Any) -> None:
    """Copy what a request's own record gathered into its ledger."""
    h.max_gap = r.max_gap
    h.late_gaps = r.late_gaps
    h.delivered += r.generated


@njit(cache=True, inline="always")
def _retire(row: Any, r: Any, h: Any, t: Any) -> None:
    """Take a request that has all its tokens out of the server, at the present time."""
    _settle(r, h)
    h.completed = row.now
    r.status = FINISHED
    row.finished += 1
    row.free_blocks += r.blocks
    r.blocks = 0
    t.finished += 1
    if r.late_gaps == 0 and h.first_token - r.arrival <= r.ttft:
        t.good += 1


@njit(cache=True)
def close(server: Server) -> None:
    """Complete the ledgers of requests that are still present; call once when a run ends."""
    for i in range(server.visible.row[0].next_arrival):
        r = server.visible.request[i]
        if r.status != FINISHED:
            _settle(r, server.hidden.ledger[i])


@njit(cache=True)
def _drop_finished(view: Any) -> None:
    row, kept = view.row[0], 0
    for j in range(row.num_running):
        i = view.running[j]
        if view.request[i].status == RUNNING:
            view.running[kept] = i
            kept += 1
    row.num_running = kept


@njit(cache=True)
def finish(server: Server, seconds: float) -> None:
    """Let `seconds` pass and give the batch of the last `begin` its effects, then queue new arrivals."""
    request, ledger, output = server.visible.request, server.hidden.ledger, server.hidden.output
    tiers, gaps = server.hidden.tier, server.hidden.gaps
    entries, row = server.plan.entry, server.visible.row[0]
    start = row.now
    _advance(row, start + seconds)
    now = row.now
    row.last_duration = now - start
    row.busy += row.last_duration
    finished, prefill_tokens, decode_tokens = 0, 0, 0
    same_tier, same_gap, same_count = 0, 0.0, 0  # most gaps of a batch are alike: the histogram takes runs of them
    for k in range(server.plan.size[0]):
        n = entries[k].tokens
        if n <= 0:
            continue
        i = entries[k].request
        r = request[i]
        if r.prefilled < r.prompt:
            h = ledger[i]
            if h.first_scheduled < 0.0:
                h.first_scheduled = start
            r.prefilled += n
            prefill_tokens += n
            if r.prefilled < r.prompt:
                continue
            h.prompt_done = now
            row.num_prefilling -= 1
            if not row.prompt_emits:
                r.last_token = r.last_token if r.has_token else now
                continue
        else:
            decode_tokens += 1
        if r.has_token:
            gap = now - r.last_token
            if gap != same_gap or r.tier != same_tier:
                if same_count > 0:
                    gaps[same_tier, gap_bucket(same_gap)] += same_count
                    tiers[same_tier].gap_sum += same_count * same_gap
                same_tier, same_gap, same_count = r.tier, gap, 0
            same_count += 1
            if gap > r.max_gap:
                r.max_gap = gap
                tiers[r.tier].max_gap = max(tiers[r.tier].max_gap, gap)
            if gap > r.tbt:
                r.late_gaps += 1
                tiers[r.tier].late_gaps += 1
                tiers[r.tier].late_sum += gap / r.tbt - 1.0
        else:
            r.has_token = 1
            ledger[i].first_token = now
            row.no_first_token -= 1
            tiers[r.tier].first_tokens += 1
        r.last_token = now
        r.generated += 1
        r.length += 1
        if r.generated >= output[i]:
            _retire(row, r, ledger[i], tiers[r.tier])
            finished += 1
    if same_count > 0:
        gaps[same_tier, gap_bucket(same_gap)] += same_count
        tiers[same_tier].gap_sum += same_count * same_gap
    if finished > 0:
        _drop_finished(server.visible)
    row.prefill_tokens += prefill_tokens
    row.decode_tokens += decode_tokens
    row.batch_requests += server.features.requests[0]
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
def empty(server: Server) -> None:
    """Take everything out of the plan."""
    server.plan.size[0] = 0
    server.plan.wake[0] = np.inf


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
