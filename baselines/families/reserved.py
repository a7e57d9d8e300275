"""Admission with reservation: the KV of the longest possible request is taken at once, so nothing is ever evicted."""

from baselines._fill import FCFS, is_decode, next_waiting
from engine.compiled.jit import inner
from engine.server.kv import blocks_for
from engine.server.plan import drop, schedule
from engine.server.state import Memory, Plan, View


@inner
def run_all(view: View, plan: Plan) -> int:
    """One decode, or all that is left of the prompt, for every request that holds KV; returns the tokens planned."""
    tokens = 0
    for j in range(view.row[0].num_running):
        i = view.running[j]
        r = view.request[i]
        n = 1 if is_decode(r) else r.prompt - r.prefilled
        schedule(plan, i, n)
        tokens += n
    return tokens


@inner
def admit_whole(view: View, memory: Memory, plan: Plan, batch_cap: int, tokens: int) -> None:
    """Whole prompts in arrival order while a reservation of the model length fits and the batch is below its cap.

    A prompt that is longer than an iteration of the server (max_batched_tokens) can never run and is dropped; `tokens`
    are planned already.
    """
    row = view.row[0]
    reserve = blocks_for(row.max_model_len, row.block_size)
    free, active, taken = row.free_blocks, row.num_running, 0
    while True:
        i = next_waiting(view, memory, FCFS, 0, taken)
        if i < 0:
            return
        r = view.request[i]
        taken += 1
        if r.prompt > min(row.max_model_len, row.max_batched_tokens):
            drop(plan, i)
            continue
        full = active >= min(min(batch_cap, row.max_num_seqs), row.max_batched_tokens)
        if full or free < reserve or tokens + r.prompt > row.max_batched_tokens:
            return
        schedule(plan, i, r.prompt, -reserve)
        free -= reserve
        active += 1
        tokens += r.prompt
