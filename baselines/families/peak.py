"""Admission by peak memory: the KV that the requests will need together, given an assumed output of each.

An assumed future is a list of requests (SORTED) with the decodes that each has left after its next one as the key. The
longest-lived come last; the peak falls at the moment when one of them ends.
"""

import numpy as np

from engine.compiled.jit import inner
from engine.server.kv import blocks_for
from engine.server.moves import continue_prefills, decode_oldest_first, is_decode
from engine.server.plan import drop
from engine.server.queue import first_waiting
from engine.server.sorting import insert_sorted
from engine.server.state import Plan, View

PEAK = np.dtype([("waited", "i8")])
"""What is remembered of the server: decode iterations since new prompts were last considered."""


@inner
def own_maximum(row: np.record, r: np.record, max_new_tokens: int) -> int:
    """Output tokens of a request at most: its limit or what the model length leaves; more than it has so far."""
    return max(min(max_new_tokens, row.max_model_len - (r.length - r.generated)), r.generated + 1)


@inner
def _emits(row: np.record, r: np.record) -> int:
    """Output tokens that come with the end of the prompt that request `r` has still to do."""
    return 0 if is_decode(r) else row.prompt_emits


@inner
def add_to_future(view: View, future: np.recarray, n: int, i: int, output: int) -> None:
    """Put request `i` into a future.

    Args:
        view: the server.
        future: SORTED[requests].
        n: requests in it before.
        i: the request, running or about to be admitted.
        output: tokens that it generates in all.
    """
    r = view.request[i]
    future[i].key = max(output - r.generated - _emits(view.row[0], r) - 1, 0)
    insert_sorted(future, n, i)


@inner
def peak_tokens(view: View, future: np.recarray, n: int) -> float:
    """Most KV tokens that the `n` requests of a future will hold at the same time."""
    row, held, peak = view.row[0], 0.0, 0.0
    for k in range(n):
        i = future[n - 1 - k].listed
        r = view.request[i]
        # Memory comes in blocks: an unfilled last one counts in full.
        held += r.length + _emits(row, r) + row.block_size - 1
        peak = max(peak, held + (k + 1) * future[i].key)
    return peak


@inner
def capacity_tokens(row: np.record) -> int:
    """KV tokens that admission may fill."""
    return (row.num_blocks - row.watermark_blocks) * row.block_size


@inner
def prompt_limit(row: np.record, batch_max_tokens: int) -> int:
    """Prompt tokens that one iteration may process."""
    return min(batch_max_tokens if batch_max_tokens > 0 else row.max_model_len, row.max_batched_tokens)


@inner
def running_limit(row: np.record, batch_cap: int) -> int:
    """Requests that may run: every one of them must find room in an iteration of decodes."""
    return min(batch_cap, min(row.max_num_seqs, row.max_batched_tokens))


@inner
def is_due(view: View, plan: Plan, peak: np.record, limit: int, max_wait: int) -> bool:
    """Go on with a prompt that is longer than an iteration may be, else say whether new ones are considered now."""
    row = view.row[0]
    continue_prefills(view, plan, row.num_running, limit)
    return bool(plan.draft[0].tokens == 0 and (row.num_running == 0 or peak.waited >= max_wait))


@inner
def decode_without_prompts(view: View, plan: Plan, peak: np.record, was_due: bool, after_prompts: int) -> None:
    """All decodes, unless there are prompts to run; after a refusal new ones are considered some iterations later.

    Args:
        view: the server.
        plan: receives the decodes.
        peak: what is remembered of the server.
        was_due: whether new prompts were considered.
        after_prompts: iterations that count as waited for once some were admitted.
    """
    prompts = plan.draft[0].tokens > 0
    if was_due:
        peak.waited = after_prompts if prompts else 0
    if not prompts:
        decode_oldest_first(view, plan)
        if plan.draft[0].victims > 0:  # pausing requests is a step of its own, and the count begins anew
            peak.waited = 0
        peak.waited += 1


@inner
def next_candidate(view: View, plan: Plan) -> int:
    """The next waiting request, -1 if there is none; those that can never be served are dropped on the way."""
    row = view.row[0]
    while True:
        i = first_waiting(view, plan)
        if i < 0:
            return -1
        prompt = view.request[i].prompt
        possible = blocks_for(prompt, row.block_size) + row.decode_needs_free_block <= row.num_blocks
        if prompt <= row.max_model_len and possible:
            return i
        drop(plan, i)


@inner
def has_room(view: View, plan: Plan, i: int, limit: int, cap: int) -> bool:
    """Whether a candidate may start now: prompt tokens (one that is longer than allowed goes alone), slots, blocks."""
    draft, prompt = plan.draft[0], view.request[i].prompt
    fits_iteration = draft.tokens == 0 or draft.tokens + prompt <= limit
    return bool(fits_iteration and draft.seats < cap and blocks_for(prompt, view.row[0].block_size) <= draft.free)
