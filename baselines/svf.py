"""SVF: the smallest predicted volume of KV first, with the peak of each request set aside for it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.families.geometry import REQUEST, Shape, believed_of, next_newcomer, of_requests, of_server
from baselines.families.keyed import KEYS, Keyed, count_newcomers, newcomer, queue_by
from baselines.grids import TOKEN_BUDGETS
from baselines.parameters import Tokens
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record
from engine.server.kv import blocks_for
from engine.server.moves import admit, continue_prefills, decode_oldest_first
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View


@dataclass(frozen=True)
class SVF(Policy):
    """Newcomers by ascending volume s o + o (o + 1) / 2 for a prompt of s and a predicted output of o tokens.

    One is admitted while its peak, s + o, fits beside those of all who are there; nobody is preempted. Peaks count in
    KV blocks here. Chunks within a budget are ours, and that the youngest loses its KV where predictions were too low.
    """

    token_budget: Tokens = 2048
    """Tokens per iteration, decodes included."""

    name: ClassVar[str] = "svf"
    paper: ClassVar[str] = "SVF, arXiv 2606.22327"
    knows: ClassVar[str] = "output length, prompt length"
    prediction: ClassVar[str] = "oracle"
    eviction: ClassVar[str] = "none with true predictions, else youngest running request, recompute"
    evidence: ClassVar[str] = "rule as public notes on the paper have it; chunks and evictions are ours"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(KEYS)
    space: ClassVar[Space] = {"token_budget": TOKEN_BUDGETS}


_params = record(params_of(SVF))


@inner
def volume(prompt: float, output: float) -> float:
    """KV tokens times iterations that a request of these lengths (tokens) takes up."""
    return prompt * output + output * (output + 1.0) / 2.0


@inner
def _peak(view: View, shape: Shape, i: int) -> int:
    """KV blocks that request `i` is believed to hold at its end."""
    r = view.request[i]
    return int(blocks_for(r.length - r.generated + believed_of(view, shape, i), view.row[0].block_size))


@inner
def _set_volume(view: View, shape: Shape, i: int) -> None:
    """Queue request `i` by what it still takes up."""
    r: np.record = view.request[i]
    queue_by(view, shape.queue, i, volume(float(r.length), float(believed_of(view, shape, i) - r.generated)))


@kernel_of(SVF)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, requests, draft = view.row[0], of_requests(memory.request), plan.draft[0]
    budget = min(int(_params(memory.params).token_budget), row.max_batched_tokens)
    shape = Shape(Keyed(of_server(memory.row), requests.queued), requests, 1.0, budget)
    for k in range(count_newcomers(view, shape.queue)):
        _set_volume(view, shape, newcomer(view, shape.queue, k))
    last = decode_oldest_first(view, plan)
    continue_prefills(view, plan, last, budget)
    i = next_newcomer(view, plan, shape) if draft.victims == 0 else -1
    left = row.num_blocks - row.watermark_blocks
    for j in range(row.num_running if i >= 0 else 0):
        left -= _peak(view, shape, view.running[j])
    while i >= 0:
        left -= _peak(view, shape, i)
        if (left < 0 and draft.seats > 0) or not admit(view, plan, i, budget - draft.tokens):
            break
        i = next_newcomer(view, plan, shape)
