"""vLLM V1: one token budget for decodes and prompt chunks alike, running requests first."""

from dataclasses import dataclass
from typing import ClassVar

from baselines._fill import FCFS, FILL_REQUEST_MEMORY, is_decode, next_waiting
from baselines.grids import BATCH_CAPS, TOKEN_BUDGETS
from engine.compiled.jit import inner
from engine.server.kv import blocks_to_admit, decode_need, tokens_left
from engine.server.plan import drop, evict, schedule
from engine.server.policy import HotKernel, Kernel, Policy, Space, check_parameters, require
from engine.server.state import Memory, Plan, View

TOKEN_BUDGET, BATCH_CAP, LONG_PREFILL = 0, 1, 2


@inner
def _chunk(memory: Memory, left: int, budget: int) -> int:
    """Tokens that a request gets: what it lacks, the limit for long prompts, what remains of the budget."""
    limit = int(memory.params[LONG_PREFILL])
    return min(left if limit == 0 else min(left, limit), budget)


@inner
def _run(view: View, memory: Memory, plan: Plan, budget: int) -> tuple[int, int, bool]:
    """Running requests, oldest first; who finds no block takes that of the last one, in the end its own.

    Returns:
        (tokens left in the budget, KV blocks free, whether anybody was evicted).
    """
    row = view.row[0]
    free, last, j = row.free_blocks, row.num_running, 0
    while j < last and budget > 0:
        i = view.running[j]
        r = view.request[i]
        j += 1
        need = decode_need(r, row.block_size) if is_decode(r) else 0
        while free < need and last >= j:
            last -= 1
            evict(plan, view.running[last])
            free += view.request[view.running[last]].blocks
        if last < j:
            break
        free -= need
        chunk = _chunk(memory, tokens_left(r), budget)
        schedule(plan, i, chunk)
        budget -= chunk
    return budget, free, last < row.num_running


@inner
def _admit(view: View, memory: Memory, plan: Plan, budget: int, free: int) -> None:
    """Waiting requests in the order of the queue; the first that finds no blocks keeps out the rest."""
    row = view.row[0]
    active, taken = row.num_running, 0
    cap = min(int(memory.params[BATCH_CAP]), row.max_num_seqs)
    while budget > 0 and active < cap:
        i = next_waiting(view, memory, FCFS, 0, taken)
        if i < 0:
            break
        taken += 1
        r = view.request[i]
        if r.prompt > row.max_model_len:
            drop(plan, i)
            continue
        need = blocks_to_admit(r, row.block_size)
        if need > free:
            break
        chunk = _chunk(memory, tokens_left(r), budget)
        schedule(plan, i, chunk)
        budget -= chunk
        free -= need
        active += 1


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    budget = min(int(memory.params[TOKEN_BUDGET]), view.row[0].max_batched_tokens)
    budget, free, evicted = _run(view, memory, plan, budget)
    if not evicted:
        _admit(view, memory, plan, budget, free)


@dataclass(frozen=True)
class VLLMV1(Policy):
    """Hands one budget of tokens to running requests, oldest first, then, unless one was evicted, to waiting ones.

    Decodes count against the budget: where they exceed it, the youngest of them get nothing. Code: vllm-project/vllm
    00024d3 vllm/v1/core/sched/scheduler.py. There the list of running requests is in the order of admission and KV is
    taken chunk by chunk; here it is in the order of arrival, and admission takes the blocks of the whole prompt. As
    there, no watermark is kept.
    """

    token_budget: int = 2048
    """Tokens per iteration, decodes included."""
    batch_cap: int = 256
    """Requests that hold KV at the same time (the server's max_num_seqs also applies)."""
    long_prefill_token_threshold: int = 0
    """Prompt tokens of one request in one iteration at most; 0: no limit."""

    name: ClassVar[str] = "vllm_v1"
    paper: ClassVar[str] = "vLLM V1, github.com/vllm-project/vllm"
    knows: ClassVar[str] = "prompt length"
    eviction: ClassVar[str] = "youngest running request, recompute"
    evidence: ClassVar[str] = "public code; defaults depend on the GPU"
    request_memory: ClassVar[int] = FILL_REQUEST_MEMORY
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {
        "token_budget": TOKEN_BUDGETS,
        "batch_cap": BATCH_CAPS,
        "long_prefill_token_threshold": (0, 256, 512, 1024),
    }

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self)
        require(self.token_budget >= 1, self, "token_budget", "tokens >= 1")
        require(self.batch_cap >= 1, self, "batch_cap", "requests >= 1")
        require(self.long_prefill_token_threshold >= 0, self, "long_prefill_token_threshold", "tokens >= 0")
