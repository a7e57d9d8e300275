"""Admission with reservation: the KV of the longest possible request is taken at once, so nothing is ever evicted."""

from engine.compiled.jit import inner
from engine.server.kv import blocks_for, tokens_left
from engine.server.moves import enter, give
from engine.server.plan import drop
from engine.server.queue import first_waiting
from engine.server.state import Plan, View


@inner
def run_all(view: View, plan: Plan) -> None:
    """One decode, or all that is left of the prompt, for every request that holds KV; its KV is reserved already."""
    for j in range(view.row[0].num_running):
        i = view.running[j]
        give(plan, i, tokens_left(view.request[i]))


@inner
def admit_whole(view: View, plan: Plan, batch_cap: int) -> None:
    """Whole prompts in arrival order while a reservation of the model length fits and the batch is below its cap.

    A prompt that is longer than an iteration of the server (max_batched_tokens) can never run and is dropped.
    """
    row, draft = view.row[0], plan.draft[0]
    reserve = blocks_for(row.max_model_len, row.block_size)
    seats = min(min(batch_cap, row.max_num_seqs), row.max_batched_tokens)
    while True:
        i = first_waiting(view, plan)
        if i < 0:
            return
        prompt = view.request[i].prompt
        if prompt > min(row.max_model_len, row.max_batched_tokens):
            drop(plan, i)
        elif draft.seats >= seats or draft.free < reserve or draft.tokens + prompt > row.max_batched_tokens:
            return
        else:
            enter(view, plan, i, prompt, -reserve)
