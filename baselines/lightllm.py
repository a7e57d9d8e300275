"""LightLLM: admission by the peak memory of the outputs that users allow."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.families.peak import (
    PEAK,
    add_to_future,
    capacity_tokens,
    decode_without_prompts,
    has_room,
    is_due,
    next_candidate,
    own_maximum,
    peak_tokens,
    prompt_limit,
    running_limit,
)
from baselines.grids import BATCH_CAPS
from baselines.parameters import IterationsFrom0, Requests, ShareFrom0, Tokens, TokensFrom0
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.moves import enter
from engine.server.policy import Policy, Space, kernel_of
from engine.server.sorting import SORTED
from engine.server.state import Memory, Plan, View


@dataclass(frozen=True)
class LightLLM(Policy):
    """Admits a prompt only if the memory that all outputs need together, at its peak, stays below the capacity.

    With request i holding c_i tokens of KV and r_i to come, longest r first, the peak is max_i (i r_i + c_1 + ... +
    c_i). A batch is whole prompts or one token for every running request. Code: ModelTC/lightllm
    lightllm/server/router/req_queue/chunked_prefill/impl.py as with --disable_aggressive_schedule (without it, new
    prompts are considered in every iteration: max_wait_tokens=0). The head of the queue is always admitted to an idle
    server, and a prompt longer than an iteration may be goes alone, in chunks.
    """

    max_new_tokens: Tokens = 1024
    """Output tokens that users ask for at most (the model length also applies); an output may exceed it."""
    token_ratio: ShareFrom0 = 0.0
    """Share of the KV in use from which every output counts as max_new_tokens; 0: always (safe mode, no evictions)."""
    expected_tokens: Tokens = 1024
    """Below token_ratio, an output counts as this or 1.1 x the tokens so far, whichever is more."""
    batch_max_tokens: TokensFrom0 = 0
    """Prompt tokens per iteration; 0: the model length."""
    batch_cap: Requests = 128
    """Requests that run at the same time (the server's max_num_seqs also applies)."""
    max_wait_tokens: IterationsFrom0 = 6
    """Decode iterations from a refusal until new prompts are considered again."""

    name: ClassVar[str] = "lightllm"
    paper: ClassVar[str] = "LightLLM, github.com/ModelTC/lightllm"
    knows: ClassVar[str] = "prompt length, limit of the output"
    eviction: ClassVar[str] = "none in safe mode, else youngest running request, recompute"
    evidence: ClassVar[str] = "public code"
    request_memory: ClassVar[int] = cells_of(SORTED)
    row_memory: ClassVar[int] = cells_of(PEAK)
    space: ClassVar[Space] = {
        "max_new_tokens": (256, 512, 1024, 2048),
        "token_ratio": (0.0, 0.5, 0.8, 1.0),
        "batch_cap": BATCH_CAPS,
        "max_wait_tokens": (2, 4, 6, 10),
    }


_params, _peak, _future = record(params_of(LightLLM)), record(PEAK), records(SORTED)


@inner
def _assumed_output(view: View, p: np.record, i: int) -> int:
    """Output of a request: all it may have if the pool is busy, else a guess that grows with what it has."""
    row, r = view.row[0], view.request[i]
    most = own_maximum(row, r, int(p.max_new_tokens))
    if (row.num_blocks - row.free_blocks) / row.num_blocks >= p.token_ratio:
        return most
    return min(most, max(int(1.1 * r.generated), int(p.expected_tokens)))


@inner
def _admit(view: View, plan: Plan, p: np.record, future: np.recarray, limit: int) -> None:
    """New prompts in arrival order while the peak stays below the capacity."""
    row, draft = view.row[0], plan.draft[0]
    cap = running_limit(row, int(p.batch_cap))
    if row.num_waiting == 0 or draft.seats >= cap:
        return
    for j in range(row.num_running):
        i = view.running[j]
        add_to_future(view, future, j, i, _assumed_output(view, p, i))
    while True:
        i = next_candidate(view, plan)
        if i < 0 or not has_room(view, plan, i, limit, cap):
            return
        add_to_future(view, future, draft.seats, i, _assumed_output(view, p, i))
        if draft.seats > 0 and peak_tokens(view, future, draft.seats + 1) >= capacity_tokens(row):
            return
        enter(view, plan, i, min(view.request[i].prompt, limit))


@kernel_of(LightLLM)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, peak = _params(memory.params), _peak(memory.row)
    limit, max_wait = prompt_limit(view.row[0], int(p.batch_max_tokens)), int(p.max_wait_tokens)
    due = is_due(view, plan, peak, limit, max_wait)
    if due:
        _admit(view, plan, p, _future(memory.request), limit)
    decode_without_prompts(view, plan, peak, due, max_wait)
