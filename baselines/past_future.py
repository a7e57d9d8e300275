"""The past-future scheduler: peak memory under outputs drawn from those of requests that finished lately."""

from dataclasses import dataclass
from typing import ClassVar

from baselines._fill import take_decodes_oldest_first
from baselines.families.peak import (
    FUTURE_WIDTH,
    FUTURES,
    PEAK_ROW_MEMORY,
    WAITED,
    add_to_future,
    admit_prompt,
    capacity_tokens,
    continue_prompt,
    has_room,
    is_due,
    next_candidate,
    own_maximum,
    peak_tokens,
    prompt_limit,
    running_limit,
)
from baselines.grids import BATCH_CAPS
from baselines.parameters import IterationsFrom0, Requests, Seed, Share, Tokens, TokensFrom0
from engine.compiled.jit import inner
from engine.compiled.random import uniform
from engine.server.kv import blocks_for
from engine.server.policy import HotKernel, Kernel, Policy, Space
from engine.server.state import DROPPED, FINISHED, Memory, Plan, View

MAX_NEW_TOKENS, LIMIT, SEED, BATCH_MAX_TOKENS, BATCH_CAP, MAX_WAIT_TOKENS = range(6)

WINDOW, MAX_FUTURES = 200, 5
"""Output lengths remembered, futures drawn at most."""

WATCHED, IS_WATCHED, PAST_FUTURE_REQUEST_MEMORY = (FUTURES + FUTURE_WIDTH * MAX_FUTURES + k for k in range(3))
"""Columns of the request memory: requests that were admitted and have not left, whether a request is among them."""
NUM_WATCHED, SEEN_LEFT, DRAWS, LENGTHS, OLDEST, RING = (PEAK_ROW_MEMORY + k for k in range(6))
"""Cells of the row memory: watched requests, requests that had left when they were last looked at, random numbers
drawn, lengths in the history, place of the oldest; then the history as it came, and sorted."""
SORTED, PAST_FUTURE_ROW_MEMORY = RING + WINDOW, RING + 2 * WINDOW


@inner
def _draw(memory: Memory) -> float:
    """The next random number of this run."""
    memory.row[DRAWS] += 1.0
    return uniform(int(memory.params[SEED]), int(memory.row[DRAWS]))


@inner
def remember(memory: Memory, output: int) -> None:
    """Append an output length to the history; the oldest one leaves when the window is full."""
    cells, n, place = memory.row, int(memory.row[LENGTHS]), int(memory.row[OLDEST])
    if n == WINDOW:
        gone, k = cells[RING + place], SORTED
        while cells[k] != gone:
            k += 1
        for m in range(k, SORTED + n - 1):
            cells[m] = cells[m + 1]
        n -= 1
    k = SORTED + n
    while k > SORTED and cells[k - 1] > output:
        cells[k] = cells[k - 1]
        k -= 1
    cells[k] = output
    cells[RING + place] = output
    cells[LENGTHS] = n + 1
    cells[OLDEST] = (place + 1) % WINDOW


@inner
def _watch(memory: Memory, i: int) -> None:
    """From now on look whether request `i` has finished."""
    if not memory.request[i, IS_WATCHED]:
        memory.request[i, IS_WATCHED] = 1.0
        memory.request[int(memory.row[NUM_WATCHED]), WATCHED] = i
        memory.row[NUM_WATCHED] += 1.0


@inner
def _learn(view: View, memory: Memory) -> None:
    """Fill the history at the start; then append the outputs of requests that finished since the last look."""
    row, cells = view.row[0], memory.row
    if cells[LENGTHS] == 0:
        for _ in range(WINDOW // 2):
            remember(memory, int(memory.params[MAX_NEW_TOKENS]))
    if row.finished + row.dropped == cells[SEEN_LEFT]:
        return
    cells[SEEN_LEFT] = row.finished + row.dropped
    kept = 0
    for k in range(int(cells[NUM_WATCHED])):
        i = int(memory.request[k, WATCHED])
        r = view.request[i]
        if r.status == FINISHED:
            remember(memory, r.generated)
        if r.status == FINISHED or r.status == DROPPED:
            memory.request[i, IS_WATCHED] = 0.0
        else:
            memory.request[kept, WATCHED] = i
            kept += 1
    cells[NUM_WATCHED] = kept


@inner
def conditioned_output(memory: Memory, generated: int, most: int, u: float) -> int:
    """Quantile `u` of the outputs above `generated`: of history, and the request's own maximum after them.

    Linear between neighbours, the first of which is `generated` itself.
    """
    cells, n = memory.row, int(memory.row[LENGTHS])
    low, high = 0, n  # the first entry of the history above `generated`
    while low < high:
        middle = (low + high) // 2
        if cells[SORTED + middle] > generated:
            high = middle
        else:
            low = middle + 1
    larger = n - low
    at = u * (larger + 1)
    k = int(at)
    left = float(generated) if k == 0 else cells[SORTED + low + k - 1]
    right = float(most) if k == larger else cells[SORTED + low + k]
    return max(int(left + (right - left) * (at - k) + 0.5), generated + 1)


@inner
def _assume_running(view: View, memory: Memory, futures: int) -> None:
    """Draw the futures of the running requests."""
    row = view.row[0]
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        _watch(memory, i)
        most = own_maximum(row, r, int(memory.params[MAX_NEW_TOKENS]))
        for s in range(futures):
            add_to_future(view, memory, s, j, i, conditioned_output(memory, r.generated, most, _draw(memory)))


@inner
def _peak_with(view: View, memory: Memory, futures: int, n: int, i: int) -> float:
    """Add candidate `i` to the `n` requests of each future, with any output of the history; the highest peak."""
    peak = 0.0
    for s in range(futures):
        k = int(_draw(memory) * memory.row[LENGTHS])
        add_to_future(view, memory, s, n, i, int(memory.row[SORTED + k]))
        peak = max(peak, peak_tokens(memory, s, n + 1))
    return peak


@inner
def _admit(view: View, memory: Memory, plan: Plan, limit: int) -> int:
    """New prompts in arrival order while the peak of every future stays low; returns the tokens planned."""
    row = view.row[0]
    cap, free, active = running_limit(row, int(memory.params[BATCH_CAP])), row.free_blocks, row.num_running
    tokens, taken = 0, 0
    if row.num_waiting == 0 or active >= cap:
        return 0
    futures = min(MAX_FUTURES, WINDOW // active + 1) if active > 0 else 1
    _assume_running(view, memory, futures)
    while True:
        i, taken = next_candidate(view, memory, plan, taken)
        if i < 0 or not has_room(row, view.request[i], tokens, limit, active, cap, free):
            return tokens
        peak = _peak_with(view, memory, futures, active, i)
        if active > 0 and peak >= memory.params[LIMIT] * capacity_tokens(row):
            return tokens
        active += 1
        tokens += admit_prompt(view, plan, i, limit)
        free -= blocks_for(view.request[i].prompt, row.block_size)
        _watch(memory, i)


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    limit, max_wait = (
        prompt_limit(view.row[0], int(memory.params[BATCH_MAX_TOKENS])),
        int(memory.params[MAX_WAIT_TOKENS]),
    )
    _learn(view, memory)
    tokens = continue_prompt(view, plan, limit)
    if tokens == 0 and is_due(view, memory, max_wait):
        tokens = _admit(view, memory, plan, limit)
        memory.row[WAITED] = max_wait if tokens > 0 else 0
    if tokens == 0:
        take_decodes_oldest_first(view, memory, plan)
        memory.row[WAITED] += 1.0


@dataclass(frozen=True)
class PastFuture(Policy):
    """LightLLM's admission, with outputs drawn from the last 200 finished ones instead of the users' limits.

    A running request draws among the outputs longer than its own so far, a candidate among all; a prompt is admitted
    only if the highest peak of up to five such futures stays below a share of the capacity. Code: ModelTC/lightllm
    branch future_past_router, lightllm/server/router/req_queue.py. Batches, idle server and long prompts as in
    LightLLM here.
    """

    max_new_tokens: Tokens = 1024
    """Output tokens that users ask for at most: also what the history holds before requests finish (100 times)."""
    limit: Share = 0.95
    """Share of the capacity below which the highest peak must stay; above 1 overcommits the memory."""
    seed: Seed = 0
    """Seed of the draws."""
    batch_max_tokens: TokensFrom0 = 0
    """Prompt tokens per iteration; 0: the model length."""
    batch_cap: Requests = 128
    """Requests that run at the same time (the server's max_num_seqs also applies)."""
    max_wait_tokens: IterationsFrom0 = 6
    """Decode iterations from a refusal until new prompts are considered again."""

    name: ClassVar[str] = "past_future"
    paper: ClassVar[str] = "Past-Future Scheduler, ASPLOS 2025, doi 10.1145/3676641.3716011"
    knows: ClassVar[str] = "prompt length, limit of the output, outputs of finished requests"
    eviction: ClassVar[str] = "youngest running request, recompute"
    evidence: ClassVar[str] = "public code"
    request_memory: ClassVar[int] = PAST_FUTURE_REQUEST_MEMORY
    row_memory: ClassVar[int] = PAST_FUTURE_ROW_MEMORY
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {
        "max_new_tokens": (512, 1024, 2048),
        "limit": (0.8, 0.9, 0.95, 1.0),
        "batch_cap": BATCH_CAPS,
        "max_wait_tokens": (2, 4, 6, 10),
    }
