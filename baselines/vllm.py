"""vLLM v0: prefill first, paged KV, eviction by recompute."""

from dataclasses import dataclass
from typing import ClassVar

from baselines._fill import FCFS, FILL_REQUEST_MEMORY, is_decode, next_waiting, take_decodes_oldest_first
from baselines.grids import BATCH_CAPS
from engine.compiled.jit import inner
from engine.server.kv import blocks_to_admit
from engine.server.plan import drop, schedule
from engine.server.policy import HotKernel, Kernel, Policy, Space, check_parameters, require
from engine.server.state import Memory, Plan, View

MAX_BATCHED_TOKENS, BATCH_CAP = 0, 1


@inner
def _prefill_batch(view: View, memory: Memory, plan: Plan) -> bool:
    """Whole prompts of waiting requests while they fit; True if anything was planned."""
    row, p = view.row[0], memory.params
    limit = int(p[MAX_BATCHED_TOKENS]) if p[MAX_BATCHED_TOKENS] > 0 else row.max_model_len
    limit = min(limit, row.max_batched_tokens)
    cap = min(int(p[BATCH_CAP]), min(row.max_num_seqs, row.max_batched_tokens))
    tokens, taken, free, active = 0, 0, row.free_blocks, row.num_running
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        if not is_decode(r):
            schedule(plan, view.running[j], r.prompt - r.prefilled)
            tokens += r.prompt - r.prefilled
    while True:
        i = next_waiting(view, memory, FCFS, 0, taken)
        if i < 0:
            break
        r = view.request[i]
        taken += 1
        if r.prompt > min(limit, row.max_model_len):
            drop(plan, i)
            continue
        need = blocks_to_admit(r, row.block_size)
        if free - need < row.watermark_blocks or tokens + r.prompt > limit or active >= cap:
            break
        schedule(plan, i, r.prompt)
        tokens += r.prompt
        free -= need
        active += 1
    return bool(plan.size[0] > 0)


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    if not _prefill_batch(view, memory, plan):
        take_decodes_oldest_first(view, memory, plan)


@dataclass(frozen=True)
class VLLM(Policy):
    """A batch is either whole prompts (whenever one can be admitted) or one token for every running request.

    Code: vLLM v0 as in agrimUT/SLAI sarathi/core/scheduler/vllm_scheduler.py and microsoft/vidur
    vllm_replica_scheduler.py. Decodes stall for as long as prompts keep coming.
    """

    max_batched_tokens: int = 0
    """Prompt tokens per iteration; 0: the model length, as vLLM without chunked prefill (the server's
    max_batched_tokens also applies). A longer prompt is dropped."""
    batch_cap: int = 128
    """Requests that hold KV at the same time (the server's max_num_seqs also applies)."""

    name: ClassVar[str] = "vllm"
    paper: ClassVar[str] = "vLLM, SOSP 2023, arXiv 2309.06180"
    knows: ClassVar[str] = "prompt length"
    eviction: ClassVar[str] = "youngest running request, recompute"
    evidence: ClassVar[str] = "public code, replayed step by step"
    request_memory: ClassVar[int] = FILL_REQUEST_MEMORY
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {"batch_cap": BATCH_CAPS, "max_batched_tokens": (0, 2048, 4096, 8192)}

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self)
        require(self.max_batched_tokens >= 0, self, "max_batched_tokens", "tokens >= 0")
        require(self.batch_cap >= 1, self, "batch_cap", "requests >= 1")
