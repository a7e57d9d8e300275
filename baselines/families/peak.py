"""Admission by peak memory: the KV that the requests will need together, given an assumed output of each.

An assumed future is a list of requests with the decodes that each has left after its next one. The longest-lived come
last; the peak falls at the moment when one of them ends.
"""

from typing import Any

from baselines._fill import FCFS, FILL_REQUEST_MEMORY, continue_prefills, insert_sorted, is_decode, next_waiting
from engine.compiled.jit import inner
from engine.server.kv import blocks_for
from engine.server.plan import drop, schedule
from engine.server.state import Memory, Plan, View

KV, FUTURES = FILL_REQUEST_MEMORY, FILL_REQUEST_MEMORY + 1
"""Columns of the request memory: KV tokens at the next decode, then LISTED and LEFT of each future."""
LISTED, LEFT, FUTURE_WIDTH = 0, 1, 2
"""Columns of one future: the requests with the least left first, decodes left after the next one by request."""

WAITED, PEAK_ROW_MEMORY = 0, 1
"""Cells of the row memory: decode iterations since new prompts were last considered."""


@inner
def own_maximum(row: Any, r: Any, max_new_tokens: int) -> int:
    """Output tokens of a request at most: its limit or what the model length leaves; more than it has so far."""
    return max(min(max_new_tokens, row.max_model_len - (r.length - r.generated)), r.generated + 1)


@inner
def add_to_future(view: View, memory: Memory, future: int, n: int, i: int, output: int) -> None:
    """Put request `i` into a future.

    Args:
        view: the server.
        memory: the policy's memory.
        future: which future.
        n: requests in it before.
        i: the request, running or about to be admitted.
        output: tokens that it generates in all.
    """
    row, r = view.row[0], view.request[i]
    emits = 0 if is_decode(r) else row.prompt_emits
    column = FUTURES + FUTURE_WIDTH * future
    # Memory comes in blocks: an unfilled last one counts in full.
    memory.request[i, KV] = r.length + emits + row.block_size - 1
    memory.request[i, column + LEFT] = max(output - r.generated - emits - 1, 0)
    insert_sorted(memory.request, column + LISTED, column + LEFT, n, i)


@inner
def peak_tokens(memory: Memory, future: int, n: int) -> float:
    """Most KV tokens that the `n` requests of a future will hold at the same time."""
    cells, column = memory.request, FUTURES + FUTURE_WIDTH * future
    held, peak = 0.0, 0.0
    for k in range(n):
        i = int(cells[n - 1 - k, column + LISTED])
        held += cells[i, KV]
        peak = max(peak, held + (k + 1) * cells[i, column + LEFT])
    return peak


@inner
def capacity_tokens(row: Any) -> int:
    """KV tokens that admission may fill."""
    return (row.num_blocks - row.watermark_blocks) * row.block_size


@inner
def prompt_limit(row: Any, batch_max_tokens: int) -> int:
    """Prompt tokens that one iteration may process."""
    return min(batch_max_tokens if batch_max_tokens > 0 else row.max_model_len, row.max_batched_tokens)


@inner
def running_limit(row: Any, batch_cap: int) -> int:
    """Requests that may run: every one of them must find room in an iteration of decodes."""
    return min(batch_cap, min(row.max_num_seqs, row.max_batched_tokens))


@inner
def is_due(view: View, memory: Memory, max_wait_tokens: int) -> bool:
    """Whether this iteration considers new prompts."""
    return bool(view.row[0].num_running == 0 or memory.row[WAITED] >= max_wait_tokens)


@inner
def continue_prompt(view: View, plan: Plan, limit: int) -> int:
    """The next chunk of a prompt that is longer than an iteration may be; returns the tokens planned."""
    row = view.row[0]
    return continue_prefills(view, plan, row.num_running, 0, limit) if row.num_prefilling > 0 else 0


@inner
def next_candidate(view: View, memory: Memory, plan: Plan, taken: int) -> tuple[int, int]:
    """The waiting request after the first `taken`; those that can never be served are dropped on the way.

    Returns:
        (request or -1, requests taken from the queue with this one).
    """
    row = view.row[0]
    while True:
        i = next_waiting(view, memory, FCFS, 0, taken)
        if i < 0:
            return -1, taken
        prompt, taken = view.request[i].prompt, taken + 1
        possible = blocks_for(prompt, row.block_size) + row.decode_needs_free_block <= row.num_blocks
        if prompt <= row.max_model_len and possible:
            return i, taken
        drop(plan, i)


@inner
def has_room(row: Any, r: Any, tokens: int, limit: int, active: int, cap: int, free: int) -> bool:
    """Whether a candidate may start now: prompt tokens (one that is longer than allowed goes alone), slots, blocks."""
    fits_iteration = tokens == 0 or tokens + r.prompt <= limit
    return bool(fits_iteration and active < cap and blocks_for(r.prompt, row.block_size) <= free)


@inner
def admit_prompt(view: View, plan: Plan, i: int, limit: int) -> int:
    """Plan the prompt of a new request, or its first chunk; returns its tokens."""
    tokens = min(view.request[i].prompt, limit)
    schedule(plan, i, tokens)
    return tokens
