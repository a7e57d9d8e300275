"""Whether the arrays of a server fit together: what compiled code relies on when it indexes with their contents.

Compiled code checks no index. Arrays that come from outside (a stored state, a checkpoint), or that foreign code could
write to (a policy in plain Python gets the live view), pass here first.
"""

from typing import Any

import numpy as np

from engine.compiled.jit import hot, inner
from engine.errors import InputError
from engine.server.state import DROPPED, FINISHED, FUTURE, RUNNING, WAITING, Server, View

FAULTS = (
    "",
    "counts of requests that do not fit together",
    "limits of another configuration",
    "a queue that does not list the waiting requests, each once",
    "a running list that does not list the running requests in order of arrival",
    "a request with numbers out of range",
    "KV blocks that do not add up",
    "a request that is ahead of its arrival",
    "a ledger that does not fit its requests",
    "times or totals out of range",
)
"""What is wrong; the index is the code that the functions below return, 0 for sound arrays."""
_COUNTS, _LIMITS, _QUEUE, _RUNNING, _REQUEST, _BLOCKS, _ARRIVAL, _LEDGER, _TOTALS = range(1, len(FAULTS))
_SEEN = 64
"""Added to the status of a queued request while the queue is looked through, so that a second entry shows."""
_MOST = 1 << 30
"""Largest number of tokens or blocks of a request: sums of two stay within 32 bits."""


@inner
def _counts_fault(view: View) -> int:
    row, n = view.row[0], view.request.shape[0]
    if row.num_requests != n or row.next_arrival < 0 or row.next_arrival > n:
        return _COUNTS
    if row.num_waiting < 0 or row.num_running < 0 or row.finished < 0 or row.dropped < 0:
        return _COUNTS
    if row.places < 0 or row.released < row.next_arrival or row.released > n:
        return _COUNTS
    if row.num_waiting > n or row.num_running > n or row.finished > n or row.dropped > n:
        return _COUNTS
    if row.num_waiting + row.num_running + row.finished + row.dropped != row.next_arrival:
        return _COUNTS
    return _COUNTS if row.num_running > row.max_num_seqs else 0


@inner
def _queue_fault(view: View) -> int:
    row, code, marked = view.row[0], 0, 0
    for k in range(row.num_waiting):
        i = view.queue[k]
        if i < 0 or i >= row.next_arrival or view.request[i].status != WAITING:
            code = _QUEUE
            break
        view.request[i].status = WAITING + _SEEN
        marked = k + 1
    for k in range(marked):
        view.request[view.queue[k]].status = WAITING
    return code


@hot
def lists_fault(view: View, tiers: int) -> int:
    """Code of what is wrong with the queue, the running list, their counts and their tiers; 0 if nothing is.

    Takes time with the requests present, not with the length of the trace. `view` is the same afterwards.
    """
    code = _counts_fault(view)
    if code != 0:
        return code
    code = _queue_fault(view)
    if code != 0:
        return code
    row, last, prefilling, waiting_for_token, blocks = view.row[0], -1, 0, 0, 0
    for k in range(row.num_running):
        i = view.running[k]
        if i <= last or i >= row.next_arrival or view.request[i].status != RUNNING:
            return _RUNNING
        last = i
        r = view.request[i]
        prefilling += r.prefilled < r.prompt
        waiting_for_token += r.has_token == 0
        blocks += r.blocks
        if r.tier < 0 or r.tier >= tiers:
            return _REQUEST
    for k in range(row.num_waiting):
        r = view.request[view.queue[k]]
        waiting_for_token += r.has_token == 0
        if r.tier < 0 or r.tier >= tiers:
            return _REQUEST
    if row.num_prefilling != prefilling or row.no_first_token != waiting_for_token:
        return _COUNTS
    return _BLOCKS if row.num_blocks - row.free_blocks != blocks or row.free_blocks < 0 else 0


@inner
def _limits_fault(row: Any, limits: Any) -> int:
    same = row.num_blocks == limits.num_blocks and row.block_size == limits.block_size
    same = same and row.watermark_blocks == limits.watermark_blocks and row.max_num_seqs == limits.max_num_seqs
    same = same and row.max_batched_tokens == limits.max_batched_tokens and row.max_model_len == limits.max_model_len
    same = same and row.prompt_emits == limits.prompt_emits and row.replans_at_once == limits.replans_at_once
    same = same and row.eviction_keeps_output == limits.eviction_keeps_output
    same = same and row.decode_needs_free_block == limits.decode_needs_free_block
    same = same and row.refresh_every == limits.refresh_every and row.stale_half == limits.stale_half
    return 0 if same else _LIMITS


@inner
def _is_time(value: float, now: float) -> bool:
    return bool(value == -1.0 or (0.0 <= value and value <= now))


@inner
def _request_fault(r: Any, h: Any, output: int, row: Any) -> int:
    """Numbers of one request that has arrived."""
    if r.status < WAITING or r.status > DROPPED or r.prompt < 1 or r.prefilled < 0 or r.prefilled > r.prompt:
        return _REQUEST
    if r.length < r.prompt or r.length > _MOST or r.generated < 0 or r.evictions < 0 or r.late_gaps < 0:
        return _REQUEST
    if r.last_run < -1 or r.last_run >= row.iterations or not (0.0 <= r.max_gap and r.max_gap < np.inf):
        return _REQUEST
    if r.blocks < 0 or r.blocks > row.num_blocks or r.host < 0 or (r.status != RUNNING and r.blocks != 0):
        return _BLOCKS
    if r.host > 0 and r.status != WAITING:
        return _BLOCKS
    short = r.length > (r.blocks + 1) * row.block_size and not r.reserved
    if r.status == RUNNING and (r.blocks == 0 or short):
        return _BLOCKS
    if (r.status == WAITING or r.status == RUNNING) and r.generated >= output:
        return _REQUEST
    if r.status == FINISHED and r.has_token == 0:
        return _REQUEST
    times = _is_time(r.last_token, row.now) and _is_time(h.first_token, row.now) and _is_time(h.completed, row.now)
    times = times and _is_time(h.first_scheduled, row.now) and _is_time(h.prompt_done, row.now)
    if not times or h.delivered < 0 or h.late_gaps < 0 or not (0.0 <= h.max_gap and h.max_gap < np.inf):
        return _LEDGER
    return _LEDGER if (h.first_token >= 0.0) != (r.has_token == 1) else 0


@inner
def _constants_fault(r: Any, h: Any, output: int, tiers: int, refresh_every: int, refreshes: int) -> int:
    """What never changes of a request, arrived or not."""
    if r.tier < 0 or r.tier >= tiers or r.strict < 0 or r.strict > 1 or r.has_token < 0 or r.has_token > 1:
        return _REQUEST
    if not (0.0 < r.tbt and r.tbt < np.inf and 0.0 < r.ttft and r.ttft < np.inf):
        return _REQUEST
    if r.prediction <= 0.0 or r.prediction == np.inf:
        return _REQUEST
    if output < 1 or output > _MOST or h.output < output or h.original_prompt < 1 or h.original_prompt > _MOST:
        return _LEDGER
    if refresh_every > 0:
        last = h.refresh + (output - 1) // refresh_every
        return _LEDGER if h.refresh < 0 or h.refresh > refreshes or last > refreshes else 0
    return 0


@inner
def _is_untouched(r: Any, h: Any) -> bool:
    """A request that has not arrived: nothing has happened to it."""
    fresh = r.status == FUTURE and r.prompt == h.original_prompt and r.length == r.prompt and r.prefilled == 0
    fresh = fresh and r.generated == 0 and r.blocks == 0 and r.host == 0 and r.last_run == -1 and r.has_token == 0
    fresh = fresh and r.evictions == 0 and r.late_gaps == 0 and r.max_gap == 0.0 and r.last_token == -1.0
    return bool(fresh and h.first_token == -1.0 and h.completed == -1.0 and h.first_scheduled == -1.0)


@inner
def _totals_fault(server: Server) -> int:
    row = server.visible.row[0]
    for value in (row.now, row.last_duration, row.busy, row.kv_time, row.queue_time, row.present_time):
        if not (0.0 <= value and value < np.inf):
            return _TOTALS
    for count in (row.iterations, row.evictions, row.prefill_tokens, row.decode_tokens, row.recomputed_tokens):
        if count < 0 or count > 1 << 53:
            return _TOTALS
    for count in (row.swaps, row.swapped_out, row.swapped_in, row.batch_requests, row.batch_tokens, row.max_waiting):
        if count < 0 or count > 1 << 53:
            return _TOTALS
    if server.features.swapped[0] < 0:
        return _TOTALS
    for k in range(server.hidden.tier.shape[0]):
        t = server.hidden.tier[k]
        if t.late_gaps < 0 or t.first_tokens < 0 or t.finished < 0 or t.good < 0:
            return _TOTALS
        if not (0.0 <= t.gap_sum + t.late_sum + t.max_gap and t.gap_sum + t.late_sum + t.max_gap < np.inf):
            return _TOTALS
    return 0


@hot
def server_fault(server: Server, limits: Any) -> int:
    """Code of what is wrong with the arrays of a server between two iterations; 0 if compiled code can go on with them.

    Args:
        server: one server; its plan and its histogram of gaps are not looked at.
        limits: ROW[1] with the limits of its configuration (`engine.server.state.set_limits`).
    """
    view, hidden, row = server.visible, server.hidden, server.visible.row[0]
    code = max(_limits_fault(row, limits[0]), _totals_fault(server))
    if code != 0:
        return code
    code = lists_fault(view, hidden.tier.shape[0])
    if code != 0:
        return code
    tiers, before, finished, dropped, host = hidden.tier.shape[0], 0.0, 0, 0, 0
    for i in range(row.num_requests):
        r, h = view.request[i], hidden.ledger[i]
        code = _constants_fault(r, h, hidden.output[i], tiers, row.refresh_every, hidden.refresh.shape[0])
        if code != 0:
            return code
        if not (before <= r.arrival) or (r.arrival <= row.now) != (i < row.next_arrival):
            return _ARRIVAL
        if (r.arrival < np.inf) != (i < row.released) or not (0.0 <= hidden.release[i] and hidden.release[i] < np.inf):
            return _ARRIVAL
        before = r.arrival
        if i >= row.next_arrival:
            if not _is_untouched(r, h):
                return _ARRIVAL
            continue
        code = _request_fault(r, h, hidden.output[i], row)
        if code != 0:
            return code
        finished += r.status == FINISHED
        dropped += r.status == DROPPED
        host += r.host
    if finished != row.finished or dropped != row.dropped:
        return _COUNTS
    return _BLOCKS if row.free_host < 0 or row.free_host + host != limits[0].free_host else 0


def check_server(server: Server, limits: np.ndarray, where: str) -> None:
    """Check that compiled code can go on with the arrays of a server.

    Args:
        server: one server between two iterations (its plan is not looked at).
        limits: ROW[1] with the limits of its configuration.
        where: what the arrays are, for the message.

    Raises:
        InputError: they do not fit together.
    """
    code = server_fault(server, limits)
    if code == 0 and int(server.hidden.gaps.min(initial=0)) < 0:
        code = _TOTALS
    if code != 0:
        raise InputError(f"{where}: expected the arrays of a server that fit together, got {FAULTS[code]}")


@hot
def checksum(words: np.ndarray) -> int:
    """Fletcher's checksum of int64[k], modulo 2**64: a changed, swapped or missing word shows."""
    total, sums = 0, 0
    for k in range(words.shape[0]):
        total += words[k]
        sums += total
    return total ^ (sums << 1)


__all__ = ["FAULTS", "check_server", "checksum", "lists_fault", "server_fault"]
