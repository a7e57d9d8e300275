"""vLLM v0: prefill first, paged KV, eviction by recompute."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.grids import BATCH_CAPS
from baselines.parameters import Requests, TokensFrom0
from engine.compiled.jit import inner
from engine.compiled.records import params_of, record
from engine.demand.requests import INT32_MAX
from engine.server.moves import continue_prefills, decode_oldest_first, enter, fits
from engine.server.plan import drop
from engine.server.policy import Policy, Space, kernel_of
from engine.server.queue import first_waiting
from engine.server.state import Memory, Plan, View


@dataclass(frozen=True)
class VLLM(Policy):
    """A batch is either whole prompts (whenever one can be admitted) or one token for every running request.

    Code: vLLM v0 as in agrimUT/SLAI sarathi/core/scheduler/vllm_scheduler.py and microsoft/vidur
    vllm_replica_scheduler.py. Decodes stall for as long as prompts keep coming.
    """

    max_batched_tokens: TokensFrom0 = 0
    """Prompt tokens per iteration; 0: the model length, as vLLM without chunked prefill (the server's
    max_batched_tokens also applies). A longer prompt is dropped."""
    batch_cap: Requests = 128
    """Requests that hold KV at the same time (the server's max_num_seqs also applies)."""

    name: ClassVar[str] = "vllm"
    paper: ClassVar[str] = "vLLM, SOSP 2023, arXiv 2309.06180"
    knows: ClassVar[str] = "prompt length"
    eviction: ClassVar[str] = "youngest running request, recompute"
    evidence: ClassVar[str] = "public code, replayed step by step"
    space: ClassVar[Space] = {"batch_cap": BATCH_CAPS, "max_batched_tokens": (0, 2048, 4096, 8192)}


_params = record(params_of(VLLM))


@inner
def _admit_whole(view: View, plan: Plan, p: np.record) -> None:
    """Whole prompts of waiting requests while they fit."""
    row, draft = view.row[0], plan.draft[0]
    limit = int(p.max_batched_tokens) if p.max_batched_tokens > 0 else row.max_model_len
    limit = min(limit, row.max_batched_tokens)
    seats = min(int(p.batch_cap), min(row.max_num_seqs, row.max_batched_tokens))
    while True:
        i = first_waiting(view, plan)
        if i < 0:
            break
        prompt = view.request[i].prompt
        if prompt > min(limit, row.max_model_len):
            drop(plan, i)
        elif draft.tokens + prompt > limit or draft.seats >= seats or not fits(view, plan, i):
            break
        else:
            enter(view, plan, i, prompt)


@kernel_of(VLLM)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    continue_prefills(view, plan, view.row[0].num_running, INT32_MAX)
    _admit_whole(view, plan, _params(memory.params))
    if plan.size[0] == 0:
        decode_oldest_first(view, plan)
