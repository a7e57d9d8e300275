"""LightLLM: admission by the peak memory of the outputs that users allow."""

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
from baselines.parameters import IterationsFrom0, Requests, ShareFrom0, Tokens, TokensFrom0
from engine.compiled.jit import inner
from engine.server.kv import blocks_for
from engine.server.policy import HotKernel, Kernel, Policy, Space
from engine.server.state import Memory, Plan, View

MAX_NEW_TOKENS, TOKEN_RATIO, EXPECTED_TOKENS, BATCH_MAX_TOKENS, BATCH_CAP, MAX_WAIT_TOKENS = range(6)


@inner
def _assumed_output(view: View, memory: Memory, i: int) -> int:
    """Output of a request: all it may have if the pool is busy, else a guess that grows with what it has."""
    row, r, p = view.row[0], view.request[i], memory.params
    most = own_maximum(row, r, int(p[MAX_NEW_TOKENS]))
    if (row.num_blocks - row.free_blocks) / row.num_blocks >= p[TOKEN_RATIO]:
        return most
    return min(most, max(int(1.1 * r.generated), int(p[EXPECTED_TOKENS])))


@inner
def _admit(view: View, memory: Memory, plan: Plan, limit: int) -> int:
    """New prompts in arrival order while the peak stays below the capacity; returns the tokens planned."""
    row = view.row[0]
    cap, free, active = running_limit(row, int(memory.params[BATCH_CAP])), row.free_blocks, row.num_running
    tokens, taken = 0, 0
    if row.num_waiting == 0 or active >= cap:
        return 0
    for j in range(active):
        add_to_future(view, memory, 0, j, view.running[j], _assumed_output(view, memory, view.running[j]))
    while True:
        i, taken = next_candidate(view, memory, plan, taken)
        if i < 0 or not has_room(row, view.request[i], tokens, limit, active, cap, free):
            return tokens
        add_to_future(view, memory, 0, active, i, _assumed_output(view, memory, i))
        active += 1
        if active > 1 and peak_tokens(memory, 0, active) >= capacity_tokens(row):
            return tokens
        tokens += admit_prompt(view, plan, i, limit)
        free -= blocks_for(view.request[i].prompt, row.block_size)


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    limit, max_wait = (
        prompt_limit(view.row[0], int(memory.params[BATCH_MAX_TOKENS])),
        int(memory.params[MAX_WAIT_TOKENS]),
    )
    tokens = continue_prompt(view, plan, limit)
    if tokens == 0 and is_due(view, memory, max_wait):
        tokens = _admit(view, memory, plan, limit)
        memory.row[WAITED] = max_wait if tokens > 0 else 0
    if tokens == 0:
        take_decodes_oldest_first(view, memory, plan)
        memory.row[WAITED] += 1.0


@dataclass(frozen=True)
class LightLLM(Policy):
    """Admits a prompt only if the memory that all outputs need together, at its peak, stays below the capacity.

    With request i holding c_i tokens of KV and r_i to come, longest r first, the peak is max_i (i r_i + c_1 + ... +
    c_i). A batch is whole prompts or one token for every running request. Code: ModelTC/lightllm
    lightllm/server/router/req_queue/chunked_prefill/impl.py. The head of the queue is always admitted to an idle
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
    request_memory: ClassVar[int] = FUTURES + FUTURE_WIDTH
    row_memory: ClassVar[int] = PEAK_ROW_MEMORY
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {
        "max_new_tokens": (256, 512, 1024, 2048),
        "token_ratio": (0.0, 0.5, 0.8, 1.0),
        "batch_cap": BATCH_CAPS,
        "max_wait_tokens": (2, 4, 6, 10),
    }
