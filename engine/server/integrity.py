"""Whether the arrays of a server fit together: what compiled code relies on when it indexes with their contents.

Compiled code checks no index. Arrays that come from outside (a stored state, a checkpoint), or that foreign code could
write to (a policy in plain Python gets the live view), pass here first.
"""

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
def _outside(value: float, low: float, high: float) -> bool:
    """Whether a number is not among these; nan never is."""
    return not (low <= value and value <= high)


@inner
def _unbounded(value: float) -> bool:
    """Whether a number is not an amount: negative, infinite or nan."""
    return not (0.0 <= value and value < np.inf)


@inner
def _counts_fault(view: View) -> int:
    row, n = view.row[0], view.request.shape[0]
    broken = (row.num_requests != n) + _outside(row.next_arrival, 0, n) + (row.places < 0)
    broken += _outside(row.num_waiting, 0, n) + _outside(row.num_running, 0, min(n, row.max_num_seqs))
    broken += _outside(row.leaving, 0, row.finished) + (row.leaving_blocks < row.leaving)
    broken += (row.leaving > 0) & (row.async_scheduling == 0)
    broken += _outside(row.finished, 0, n) + _outside(row.dropped, 0, n) + _outside(row.released, row.next_arrival, n)
    broken += row.num_waiting + row.num_running + row.finished + row.dropped != row.next_arrival
    return _COUNTS if broken > 0 else 0


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


@inner
def _running_fault(view: View) -> int:
    row, last = view.row[0], -1
    for k in range(row.num_running):
        i = view.running[k]
        if _outside(i, last + 1, row.next_arrival - 1) or view.request[i].status != RUNNING:
            return _RUNNING
        last = i
    return 0


@inner
def _present_fault(view: View, tiers: int) -> int:
    """Tiers of the requests present, and what the server counts of them; both lists are sound."""
    row, prefilling, waiting_for_token, blocks, broken = view.row[0], 0, 0, 0, 0
    for k in range(row.num_running):
        r = view.request[view.running[k]]
        prefilling += r.prefilled < r.prompt
        waiting_for_token += r.has_token == 0
        blocks += r.blocks
        broken += _outside(r.tier, 0, tiers - 1)
    for k in range(row.num_waiting):
        r = view.request[view.queue[k]]
        waiting_for_token += r.has_token == 0
        broken += _outside(r.tier, 0, tiers - 1)
    if broken > 0:
        return _REQUEST
    if row.num_prefilling != prefilling or row.no_first_token != waiting_for_token:
        return _COUNTS
    held = row.num_blocks - row.free_blocks - row.leaving_blocks
    return _BLOCKS if held != blocks or row.free_blocks < 0 else 0


@hot
def lists_fault(view: View, tiers: int) -> int:
    """Code of what is wrong with the queue, the running list, their counts and their tiers; 0 if nothing is.

    Takes time with the requests present, not with the length of the trace. `view` is the same afterwards.
    """
    code = _counts_fault(view)
    if code == 0:
        code = _queue_fault(view)
    if code == 0:
        code = _running_fault(view)
    return code if code != 0 else _present_fault(view, tiers)


@inner
def _limits_fault(row: np.record, limits: np.record) -> int:
    differ = (row.num_blocks != limits.num_blocks) + (row.block_size != limits.block_size)
    differ += (row.watermark_blocks != limits.watermark_blocks) + (row.max_num_seqs != limits.max_num_seqs)
    differ += (row.max_batched_tokens != limits.max_batched_tokens) + (row.max_model_len != limits.max_model_len)
    differ += (row.prompt_emits != limits.prompt_emits) + (row.replans_at_once != limits.replans_at_once)
    differ += row.eviction_keeps_output != limits.eviction_keeps_output
    differ += row.decode_needs_free_block != limits.decode_needs_free_block
    differ += (row.finds_own != limits.finds_own) + (row.async_scheduling != limits.async_scheduling)
    differ += (row.refresh_every != limits.refresh_every) + (row.stale_half != limits.stale_half)
    return _LIMITS if differ > 0 else 0


@inner
def _no_time(value: float, now: float) -> bool:
    """Whether a number is neither -1 (not yet) nor a time until now."""
    return value != -1.0 and _outside(value, 0.0, now)


@inner
def _blocks_fault(r: np.record, row: np.record) -> int:
    """The KV of a request that has arrived: only running ones have it on the device, waiting ones on the host."""
    runs = r.status == RUNNING
    held = r.prefilled if r.prefilled < r.prompt else r.length - row.block_size
    short = (held > r.blocks * row.block_size) & (not r.reserved)
    broken = _outside(r.blocks, 0, row.num_blocks) + (r.host < 0) + ((r.host > 0) & (r.status != WAITING))
    loses = (r.status == WAITING) & (r.prompt == r.length) & (row.finds_own == 1)  # what it may find again is less
    broken += _outside(r.kept, 0, (r.length - 1) // row.block_size if loses else 0)
    broken += (r.kept > 0) & _outside(r.returned, 0, row.returned)
    broken += (runs & ((r.blocks == 0) | short)) + ((not runs) & (r.blocks != 0))
    return _BLOCKS if broken > 0 else 0


@inner
def _progress_fault(r: np.record, output: int, row: np.record) -> int:
    """How far a request is that has arrived."""
    present = (r.status == WAITING) | (r.status == RUNNING)
    broken = _outside(r.status, WAITING, DROPPED) + (r.prompt < 1) + _outside(r.prefilled, 0, r.prompt)
    broken += _outside(r.length, r.prompt, _MOST) + (r.generated < 0) + (present & (r.generated >= output))
    broken += (r.evictions < 0) + (r.late_gaps < 0) + _outside(r.last_run, -1, row.iterations - 1)
    broken += _unbounded(r.max_gap) + ((r.status == FINISHED) & (r.has_token == 0))
    return _REQUEST if broken > 0 else 0


@inner
def _ledger_fault(r: np.record, h: np.record, now: float) -> int:
    """What is written down of a request that has arrived."""
    broken = _no_time(r.last_token, now) + _no_time(h.first_token, now) + _no_time(h.completed, now)
    broken += _no_time(h.first_scheduled, now) + _no_time(h.prompt_done, now)
    broken += (h.delivered < 0) + (h.late_gaps < 0) + _unbounded(h.max_gap)
    broken += (h.first_token >= 0.0) != (r.has_token == 1)
    return _LEDGER if broken > 0 else 0


@inner
def _constants_fault(r: np.record, h: np.record, output: int, tiers: int) -> int:
    """What never changes of a request, arrived or not."""
    broken = _outside(r.tier, 0, tiers - 1) + _outside(r.strict, 0, 1) + _outside(r.has_token, 0, 1)
    broken += _unbounded(r.tbt) + (r.tbt == 0.0) + _unbounded(r.ttft) + (r.ttft == 0.0)
    broken += (r.prediction <= 0.0) + (r.prediction == np.inf)
    if broken > 0:
        return _REQUEST
    broken = _outside(output, 1, _MOST) + (h.output < output) + _outside(h.original_prompt, 1, _MOST)
    return _LEDGER if broken > 0 else 0


@inner
def _refresh_fault(h: np.record, output: int, every: int, refreshes: int) -> int:
    """Where a request's refreshed predictions lie, one for every so many of its tokens."""
    if every <= 0:
        return 0
    last = h.refresh + (output - 1) // every
    return _LEDGER if _outside(h.refresh, 0, refreshes) or last > refreshes else 0


@inner
def _is_touched(r: np.record, h: np.record) -> bool:
    """Whether something has happened to a request that has not arrived."""
    differ = (r.status != FUTURE) + (r.prompt != h.original_prompt) + (r.length != r.prompt) + (r.prefilled != 0)
    differ += (
        (r.generated != 0) + (r.blocks != 0) + (r.host != 0) + (r.kept != 0) + (r.last_run != -1) + (r.has_token != 0)
    )
    differ += (r.evictions != 0) + (r.late_gaps != 0) + (r.max_gap != 0.0) + (r.last_token != -1.0)
    differ += r.returned != 0
    return differ + (h.first_token != -1.0) + (h.completed != -1.0) + (h.first_scheduled != -1.0) > 0


@inner
def _totals_fault(server: Server) -> int:
    row = server.visible.row[0]
    broken = 0 + (row.moved < 0)
    for value in (row.now, row.last_duration, row.busy, row.kv_time, row.queue_time, row.present_time):
        broken += _unbounded(value)
    for count in (row.iterations, row.evictions, row.prefill_tokens, row.decode_tokens, row.recomputed_tokens):
        broken += _outside(count, 0, 1 << 53)
    for count in (row.reused_tokens, row.returned):
        broken += _outside(count, 0, 1 << 53)
    for count in (row.swaps, row.swapped_out, row.swapped_in, row.batch_requests, row.batch_tokens, row.max_waiting):
        broken += _outside(count, 0, 1 << 53)
    for k in range(server.hidden.tier.shape[0]):
        t = server.hidden.tier[k]
        broken += (t.late_gaps < 0) + (t.first_tokens < 0) + (t.finished < 0) + (t.good < 0)
        broken += _unbounded(t.gap_sum + t.late_sum + t.max_gap)
    return _TOTALS if broken > 0 else 0


@inner
def _arrival_fault(server: Server, i: int, before: float) -> int:
    """Whether request `i`, which comes after one of `before`, is where its arrival time puts it."""
    view, row, release = server.visible, server.visible.row[0], server.hidden.release[i]
    r = view.request[i]
    is_late = (i >= row.next_arrival) & (r.arrival <= row.now) & (not row.async_scheduling)
    broken = (not before <= r.arrival) + is_late + ((i < row.next_arrival) & (r.arrival > row.now))
    broken += ((r.arrival < np.inf) != (i < row.released)) + _unbounded(release)
    if i >= row.next_arrival:
        broken += _is_touched(r, server.hidden.ledger[i])
    return _ARRIVAL if broken > 0 else 0


@inner
def _request_fault(server: Server, i: int, before: float) -> int:
    """Everything about request `i`."""
    hidden, row, r = server.hidden, server.visible.row[0], server.visible.request[i]
    h, output = hidden.ledger[i], hidden.output[i]
    code = _constants_fault(r, h, output, hidden.tier.shape[0])
    if code == 0:
        code = _refresh_fault(h, output, row.refresh_every, hidden.refresh.shape[0])
    if code == 0:
        code = _arrival_fault(server, i, before)
    if code != 0 or i >= row.next_arrival:
        return code
    code = _progress_fault(r, output, row)
    if code == 0:
        code = _blocks_fault(r, row)
    return code if code != 0 else _ledger_fault(r, h, row.now)


@inner
def _requests_fault(server: Server, free_host: int) -> int:
    """Every request, and what the server counts of them."""
    view, row = server.visible, server.visible.row[0]
    before, finished, dropped, host = 0.0, 0, 0, 0
    for i in range(row.num_requests):
        code = _request_fault(server, i, before)
        if code != 0:
            return code
        r = view.request[i]
        before = r.arrival
        finished += r.status == FINISHED
        dropped += r.status == DROPPED
        host += r.host
    if finished != row.finished or dropped != row.dropped:
        return _COUNTS
    return _BLOCKS if row.free_host < 0 or row.free_host + host != free_host else 0


@hot
def server_fault(server: Server, limits: np.record) -> int:
    """Code of what is wrong with the arrays of a server between two iterations; 0 if compiled code can go on with them.

    Args:
        server: one server; its plan and its histogram of gaps are not looked at.
        limits: ROW[1] with the limits of its configuration (`engine.server.state.set_limits`).
    """
    code = max(_limits_fault(server.visible.row[0], limits[0]), _totals_fault(server))
    if code == 0:
        code = lists_fault(server.visible, server.hidden.tier.shape[0])
    return code if code != 0 else _requests_fault(server, limits[0].free_host)


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
