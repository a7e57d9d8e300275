"""vLLM V1: one token budget for decodes and prompt chunks alike, running requests first."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.grids import BATCH_CAPS, TOKEN_BUDGETS
from baselines.parameters import Requests, Tokens, TokensFrom0
from engine.compiled.jit import inner
from engine.compiled.records import params_of, record
from engine.server.kv import blocks_to_admit, decode_need
from engine.server.moves import chunk, decode, enter, is_decode, left_to_compute, take_kv
from engine.server.plan import drop
from engine.server.policy import Policy, Space, kernel_of
from engine.server.queue import first_waiting
from engine.server.state import Memory, Plan, View


@dataclass(frozen=True)
class VLLMV1(Policy):
    """Hands one budget of tokens to running requests, oldest first, then, unless one was evicted, to waiting ones.

    Decodes count against the budget: where they exceed it, the youngest of them get nothing. Code: vllm-project/vllm
    00024d3 vllm/v1/core/sched/scheduler.py. There the list of running requests is in the order of admission and KV is
    taken chunk by chunk; here it is in the order of arrival, and admission takes the blocks of the whole prompt. As
    there, no watermark is kept.
    """

    token_budget: Tokens = 2048
    """Tokens per iteration, decodes included."""
    batch_cap: Requests = 256
    """Requests that hold KV at the same time (the server's max_num_seqs also applies)."""
    long_prefill_token_threshold: TokensFrom0 = 0
    """Prompt tokens of one request in one iteration at most; 0: no limit."""

    name: ClassVar[str] = "vllm_v1"
    paper: ClassVar[str] = "vLLM V1, github.com/vllm-project/vllm"
    knows: ClassVar[str] = "prompt length"
    eviction: ClassVar[str] = "youngest running request, recompute"
    evidence: ClassVar[str] = "public code; defaults depend on the GPU"
    space: ClassVar[Space] = {
        "token_budget": TOKEN_BUDGETS,
        "batch_cap": BATCH_CAPS,
        "long_prefill_token_threshold": (0, 256, 512, 1024),
    }


_params = record(params_of(VLLMV1))


@inner
def _most(p: np.record, room: int) -> int:
    """Prompt tokens that one request gets at most, of those that remain in the budget."""
    limit = int(p.long_prefill_token_threshold)
    return min(limit, room) if limit > 0 else room


@inner
def _run(view: View, plan: Plan, p: np.record, budget: int) -> None:
    """Running requests, oldest first; who finds no block takes that of the last one, in the end its own."""
    row, draft = view.row[0], plan.draft[0]
    last, j = row.num_running, 0
    while j < last and draft.tokens < budget:
        i = view.running[j]
        r = view.request[i]
        j += 1
        need = decode_need(r, row.block_size) if is_decode(r) else 0
        while draft.free < need and last >= j:
            last -= 1
            take_kv(view, plan, view.running[last])
        if last < j:
            break
        if is_decode(r):
            decode(view, plan, i)
        else:
            chunk(view, plan, i, _most(p, budget - draft.tokens))


@inner
def _admit(view: View, plan: Plan, p: np.record, budget: int) -> None:
    """Waiting requests in the order of the queue; the first that finds no blocks keeps out the rest."""
    row, draft = view.row[0], plan.draft[0]
    seats = min(int(p.batch_cap), row.max_num_seqs)
    while draft.tokens < budget and draft.seats < seats:
        i = first_waiting(view, plan)
        if i < 0:
            break
        r = view.request[i]
        if r.prompt > row.max_model_len:
            drop(plan, i)
        elif blocks_to_admit(r, row.block_size) > draft.free:
            break
        else:
            enter(view, plan, i, min(left_to_compute(view, plan, i), _most(p, budget - draft.tokens)))


@kernel_of(VLLMV1)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p = _params(memory.params)
    budget = min(int(p.token_budget), view.row[0].max_batched_tokens)
    _run(view, plan, p, budget)
    if plan.draft[0].victims == 0:
        _admit(view, plan, p, budget)
