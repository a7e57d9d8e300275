"""The physics of one server: `arrive`, `begin`, `finish`, `idle`. Everybody who moves a server calls these.

One iteration is ``begin`` (the plan becomes KV blocks and batch features, or an error code), some seconds on a device,
``finish`` (clock, progress, tokens, completions, arrivals). What an entry may ask for: `engine.server.entries`.
"""

import numpy as np

from engine.compiled.jit import hot, hot_inlined, inner
from engine.server.entries import CODE_SHIFT, ILLEGAL, TOO_MANY, book
from engine.server.features import EMPTY, add, store
from engine.server.kv import free_place, growth, leave, let_go
from engine.server.plan import clear, releases
from engine.server.state import (
    FINISHED,
    GAP_BUCKETS_PER_OCTAVE,
    GAP_MIN_EXPONENT,
    NUM_GAP_BUCKETS,
    RUNNING,
    WAITING,
    Server,
    View,
)

_MANTISSA_SHIFT = 23 - (GAP_BUCKETS_PER_OCTAVE.bit_length() - 1)
_FIRST_BUCKET = (127 + GAP_MIN_EXPONENT) * GAP_BUCKETS_PER_OCTAVE - 1


@hot
def gap_bucket(gap: float) -> int:
    """Bucket of a gap in seconds: the leading bits of its float32 form, i.e. exponent and 9 bits of mantissa."""
    bucket = int(np.float32(gap).view(np.int32) >> _MANTISSA_SHIFT) - _FIRST_BUCKET
    return min(max(bucket, 0), NUM_GAP_BUCKETS - 1)


@inner
def _advance(row: np.record, time: float) -> None:
    """Move the clock and the time integrals; `row` is one ROW record."""
    span = time - row.now
    row.kv_time += span * (row.num_blocks - row.free_blocks)
    row.queue_time += span * row.no_first_token
    row.present_time += span * (row.num_waiting + row.num_running)
    row.now = time


@inner
def _queue_until(server: Server, time: float) -> None:
    """Queue every request with arrival <= `time`."""
    view = server.visible
    row = view.row[0]
    while row.next_arrival < row.num_requests:
        i = row.next_arrival
        r = view.request[i]
        if r.arrival > time:
            break
        r.status = WAITING
        view.queue[row.num_waiting] = i
        row.num_waiting += 1
        row.next_arrival += 1
        row.no_first_token += 1
        row.queue_time += row.now - r.arrival
        row.present_time += row.now - r.arrival
    row.max_waiting = max(row.max_waiting, row.num_waiting)


@hot
def arrive(server: Server) -> None:
    """Queue every request with arrival <= now."""
    _queue_until(server, server.visible.row[0].now)


@hot_inlined
def begin(server: Server, strict: bool) -> int:
    """Turn the plan into admissions, evictions, KV blocks and batch features.

    Entries are taken in their order. With `strict` the first illegal one stops and its code comes back; otherwise a
    chunk is cut to what remains of the prompt and of the token cap, an entry that still cannot be done is skipped
    (its tokens become 0), and the rest goes on: any plan becomes a legal one.

    Returns:
        0, or ``code + CODE_SHIFT * entry`` with ``ILLEGAL[code]`` saying what is wrong.
    """
    view = server.visible
    request, entries, row = view.request, server.plan.entry, view.row[0]
    iteration, block_size, num_requests = row.iterations, row.block_size, row.next_arrival
    if server.plan.size[0] > entries.shape[0]:
        server.plan.size[0] = entries.shape[0]
        if strict:
            return TOO_MANY + CODE_SHIFT * (entries.shape[0] - 1)
    f, tokens = EMPTY, 0
    for k in range(server.plan.size[0]):
        entry = entries[k]
        i, n = entry.request, entry.tokens
        if n == 1 and 0 <= i < num_requests:
            r = request[i]
            need = growth(r, block_size)
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
                f = add(f, r.length - 1, 1, True)
                tokens += 1
                continue
        n, code = book(server, k, tokens, strict)
        if code != 0:
            return code + CODE_SHIFT * k
        if n > 0:
            r = request[i]
            if r.prefilled < r.prompt:
                f = add(f, r.prefilled, n, False)
            else:
                f = add(f, r.length - 1, 1, True)
            r.last_run = iteration
            tokens += n
    store(f, row.moved, server.features)
    return 0


@hot
def begin_decodes(server: Server) -> bool:
    """`begin` for the plan in which every running request decodes; False (nothing done) if KV is too short for sure.

    For servers with no prompt in progress: one pass instead of a policy's and `begin`'s.
    """
    view, row = server.visible, server.visible.row[0]
    running = row.num_running
    if row.free_blocks <= running or running > row.max_batched_tokens:
        return False
    f, taken = EMPTY, 0
    entries, iteration = server.plan.entry, row.iterations
    for k in range(running):
        i = view.running[k]
        r = view.request[i]
        need = growth(r, row.block_size)
        r.blocks += need
        taken += need
        r.last_run = iteration
        f = add(f, r.length - 1, 1, True)
        entry = entries[k]
        entry.request, entry.tokens, entry.reserve = i, 1, 0
    row.free_blocks -= taken
    server.plan.size[0] = running
    store(f, row.moved, server.features)
    return True


@inner
def _settle(r: np.record, h: np.record) -> None:
    """Copy what a request's own record gathered into its ledger."""
    h.max_gap = r.max_gap
    h.late_gaps = r.late_gaps
    h.delivered += r.generated


@inner
def _retire(row: np.record, r: np.record, h: np.record, t: np.record) -> None:
    """Take a request that has all its tokens out of the server, at the present time."""
    _settle(r, h)
    h.completed = row.now
    r.status = FINISHED
    row.finished += 1
    leave(row, r)
    t.finished += 1
    if r.late_gaps == 0 and h.first_token - r.arrival <= r.ttft:
        t.good += 1


@hot
def close(server: Server) -> None:
    """Complete the ledgers of requests that are still present; call once when a run ends."""
    let_go(server.visible.row[0])
    for i in range(server.visible.row[0].next_arrival):
        r = server.visible.request[i]
        if r.status != FINISHED:
            _settle(r, server.hidden.ledger[i])


@inner
def _drop_finished(view: View) -> None:
    row, kept = view.row[0], 0
    for j in range(row.num_running):
        i = view.running[j]
        if view.request[i].status == RUNNING:
            view.running[kept] = i
            kept += 1
    row.num_running = kept


@inner
def _prefill(row: np.record, r: np.record, h: np.record, tokens: int, start: float) -> bool:
    """Add a chunk, run since `start`, to what is computed of a prompt; whether a token comes out of it."""
    if h.first_scheduled < 0.0:
        h.first_scheduled = start
    r.prefilled += tokens
    if r.prefilled < r.prompt:
        return False
    h.prompt_done = row.now
    row.num_prefilling -= 1
    if not row.prompt_emits and not r.has_token:
        r.last_token = row.now
    return bool(row.prompt_emits)


@inner
def _count_gaps(gaps: np.ndarray, t: np.record, tier: int, gap: float, count: int) -> None:
    """Add equal gaps of a tier to its histogram."""
    if count > 0:
        gaps[tier, gap_bucket(gap)] += count
        t.gap_sum += count * gap


@inner
def _end_iteration(server: Server, finished: int, prefill_tokens: int, decode_tokens: int) -> None:
    """Take who has finished from the batch, and count the iteration."""
    row = server.visible.row[0]
    if finished > 0:
        _drop_finished(server.visible)
        if row.places > 0:
            for _ in range(finished):
                free_place(server)
    row.prefill_tokens += prefill_tokens
    row.decode_tokens += decode_tokens
    row.batch_requests += int(server.features[0].requests)
    row.batch_tokens = int(server.features[0].tokens)
    row.moved = 0
    row.iterations += 1


@hot_inlined
def finish(server: Server, seconds: float) -> None:
    """Let `seconds` pass and give the batch of the last `begin` its effects, then queue new arrivals."""
    request, ledger, output = server.visible.request, server.hidden.ledger, server.hidden.output
    tiers, gaps = server.hidden.tier, server.hidden.gaps
    entries, row = server.plan.entry, server.visible.row[0]
    start = row.now
    if row.leaving > 0:
        let_go(row)
    _advance(row, start + seconds)
    now = row.now
    row.last_duration = now - start
    row.busy += row.last_duration
    finished, prefill_tokens, decode_tokens, refresh_every = 0, 0, 0, row.refresh_every
    same_tier, same_gap, same_count = 0, 0.0, 0  # most gaps of a batch are alike: the histogram takes runs of them
    for k in range(server.plan.size[0]):
        n = entries[k].tokens
        if n <= 0:
            continue
        i = entries[k].request
        r = request[i]
        if r.prefilled < r.prompt:
            prefill_tokens += n
            if not _prefill(row, r, ledger[i], n, start):
                continue
        else:
            decode_tokens += 1
        if r.has_token:
            gap = now - r.last_token
            if gap != same_gap or r.tier != same_tier:
                _count_gaps(gaps, tiers[same_tier], same_tier, same_gap, same_count)
                same_tier, same_gap, same_count = r.tier, gap, 0
            same_count += 1
            if gap > r.max_gap:  # not a function as the rest: what happens at every token would be 3 % slower
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
        if refresh_every > 0 and r.generated % refresh_every == 0 and r.generated < output[i]:
            r.prediction = server.hidden.refresh[ledger[i].refresh + r.generated // refresh_every - 1]
        if r.generated >= output[i]:
            _retire(row, r, ledger[i], tiers[r.tier])
            finished += 1
    _count_gaps(gaps, tiers[same_tier], same_tier, same_gap, same_count)
    _end_iteration(server, finished, prefill_tokens, decode_tokens)
    _queue_until(server, start if row.async_scheduling else now)


@hot
def idle(server: Server) -> bool:
    """Jump to the next arrival (or the plan's wake time, if earlier); False if there is nothing to wait for."""
    row = server.visible.row[0]
    time = server.plan.wake[0]
    if row.next_arrival < row.num_requests:
        time = min(time, server.visible.request[row.next_arrival].arrival)
    if time == np.inf:
        return False
    let_go(row)
    if time > row.now:
        _advance(row, time)
    arrive(server)
    return True


@inner
def plans_again(server: Server) -> bool:
    """Whether the server plans again at once after a plan without a batch, with nothing to wait for."""
    row = server.visible.row[0]
    return bool(row.leaving > 0 or (row.replans_at_once and releases(server.plan)))


@hot
def pause(server: Server) -> bool:
    """Go on after a plan without a batch: plan again if it evicted or dropped somebody, else wait; False if stuck."""
    row = server.visible.row[0]
    if plans_again(server):
        let_go(row)
        arrive(server)  # who takes the place of a dropped request in a closed loop, who came while the last batch ran
        return True
    return bool(idle(server)) or bool(releases(server.plan))


@hot
def empty(server: Server) -> None:
    """Take everything out of the plan."""
    clear(server.visible, server.plan)


@hot
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
