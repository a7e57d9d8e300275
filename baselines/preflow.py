"""PREFLOW: prompts, started or not, by the attention work that they are and that they lack, and by age."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from baselines.families.keyed import KEYED, KEYS, Keyed, count_newcomers, first_by_key, newcomer, queue_by
from baselines.grids import TOKEN_BUDGETS
from baselines.parameters import Seconds, Tokens
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.moves import admit, chunk, decode_oldest_first, is_decode
from engine.server.plan import drop, is_named
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import RUNNING, Memory, Plan, View


@dataclass(frozen=True)
class PREFLOW(Policy):
    """All decodes, then chunks of the prompts with the largest 2^(age / D) / (P R), up to one budget of tokens.

    P is the attention work of a whole prompt, n (n + 1) / 2 for n tokens, and R what is left of it: short prompts go
    first, and of equals the one that is nearly done, but every D seconds of age halve what a prompt counts. One that
    finds no KV keeps out those behind it. Rule: vllm-project/vllm-ascend PR 16360 (open), made there for servers that
    only prefill, on vLLM's constraints; the decodes in front, KV of whole prompts at admission and D are ours.
    """

    doubling_s: Seconds = 120.0
    """D: seconds of age that double a prompt's priority."""
    token_budget: Tokens = 2048
    """Tokens per iteration, decodes included."""

    name: ClassVar[str] = "preflow"
    paper: ClassVar[str] = "PREFLOW, github.com/vllm-project/vllm-ascend PR 16360"
    knows: ClassVar[str] = "prompt length"
    eviction: ClassVar[str] = "youngest running request, recompute"
    evidence: ClassVar[str] = "rule as its pull request states it; decodes and D are ours"
    request_memory: ClassVar[int] = cells_of(KEYED)
    row_memory: ClassVar[int] = cells_of(KEYS)
    space: ClassVar[Space] = {"token_budget": TOKEN_BUDGETS, "doubling_s": (5.0, 30.0, 120.0)}


_params, _keys, _keyed = record(params_of(PREFLOW)), record(KEYS), records(KEYED)


class Flow(NamedTuple):
    """What one plan is made with."""

    rule: Any  # parameters
    queue: Keyed
    last: int  # those of `running` that still hold KV


@inner
def attention_work(tokens: float) -> float:
    """Pairs of tokens that the attention of a prompt of so many has."""
    return tokens * (tokens + 1.0) / 2.0


@inner
def flow_key(doubling_s: float, r: np.record) -> float:
    """The negative logarithm of a prompt's priority, less what time adds to all: smaller goes first."""
    whole = attention_work(float(r.prompt))
    left = max(whole - attention_work(float(r.prefilled)), 1.0)
    return float(r.arrival / doubling_s + np.log2(max(whole, 1.0)) + np.log2(left))


@inner
def _first_started(view: View, plan: Plan, flow: Flow) -> int:
    """The started prompt with the highest priority that the plan has not taken; -1: there is none."""
    best, least = -1, np.inf
    for j in range(flow.last if view.row[0].num_prefilling > 0 else 0):
        i = view.running[j]
        r = view.request[i]
        if not is_decode(r) and not is_named(plan, i) and flow_key(flow.rule.doubling_s, r) < least:
            best, least = i, flow_key(flow.rule.doubling_s, r)
    return best


@inner
def _first(view: View, plan: Plan, flow: Flow, closed: bool) -> int:
    """The prompt with the highest priority, waiting only while the queue is not closed; -1: there is none."""
    started = _first_started(view, plan, flow)
    waiting = -1 if closed else first_by_key(view, plan, flow.queue)
    if started < 0 or waiting < 0:
        return max(started, waiting)
    d = flow.rule.doubling_s
    return started if flow_key(d, view.request[started]) <= flow_key(d, view.request[waiting]) else waiting


@kernel_of(PREFLOW)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p, draft = view.row[0], _params(memory.params), plan.draft[0]
    queue, closed = Keyed(_keys(memory.row), _keyed(memory.request)), False
    for k in range(count_newcomers(view, queue)):
        i = newcomer(view, queue, k)
        queue_by(view, queue, i, flow_key(p.doubling_s, view.request[i]))
    flow = Flow(p, queue, decode_oldest_first(view, plan))
    budget = min(int(p.token_budget), row.max_batched_tokens)
    while draft.tokens < budget:
        i = _first(view, plan, flow, closed)
        if i < 0:
            break
        r = view.request[i]
        if r.status == RUNNING:
            chunk(view, plan, i, budget - draft.tokens)
        elif r.prompt > row.max_model_len:
            drop(plan, i)
        else:
            closed = not admit(view, plan, i, budget - draft.tokens)
