"""TensorRT-LLM: requests are taken in while their KV is sure to last, or while the next tokens fit; then a batch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from baselines.families.peak import own_maximum
from baselines.parameters import Requests, Tokens
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.demand.requests import INT32_MAX
from engine.server.kv import blocks_for, blocks_to_admit, decode_need
from engine.server.members import MEMBER
from engine.server.moves import chunk, decode, enter, is_decode, left_to_compute, take_kv
from engine.server.plan import drop
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import RUNNING, Memory, Plan, View

NO_EVICT, UTILIZATION = 0, 1
NOBODY = INT32_MAX
POLICIES = {"guaranteed_no_evict": NO_EVICT, "max_utilization": UTILIZATION}

WALK = np.dtype(
    [
        ("listed", "i8"),  # requests that may run
        ("running", "i8"),  # place of the next one among those that run
        ("waiting", "i8"),  # and among those that wait
        ("last", "i8"),  # those that run from this place on pause
        ("free", "i8"),  # KV blocks
        ("holders", "i8"),  # requests with KV
    ],
    align=True,
)
"""How far the walk over everybody in the order of arrival has come, of this plan."""


@dataclass(frozen=True)
class TensorRTLLM(Policy):
    """First the requests that may run, by KV, in the order of arrival; of these decodes and then prompts, by tokens.

    guaranteed_no_evict: a prompt is taken in if the blocks of it and of all output that its user allows are free beside
    those that all others may still need. max_utilization: everybody whose next tokens find blocks runs; whoever finds
    none pauses the last started request behind it, in the end itself. Code: NVIDIA/TensorRT-LLM 02a10fe
    cpp/tensorrt_llm/batch_manager/capacityScheduler.cpp and 0a949d3 microBatchScheduler.cpp. There a prompt above
    max_num_tokens is refused without chunked context, and an output ends at what its user allows; here the one runs in
    chunks, and the other goes on, which may pause the last request under guaranteed_no_evict, too. The chunk unit is a
    KV block; reuse of blocks and draft tokens are left out, and static batches are `fastertransformer`.
    """

    capacity_scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    """Who may run: guaranteed_no_evict or max_utilization."""
    max_num_tokens: Tokens = 8192
    """Tokens per iteration, decodes included."""
    max_batch_size: Requests = 2048
    """Requests that run at the same time (the server's max_num_seqs also applies)."""
    enable_chunked_context: bool = False
    """Prompts are cut where tokens end, first come first served; else the first that does not fit ends the batch."""
    max_new_tokens: Tokens = 1024
    """Output tokens that users ask for at most (the model length also applies); an output may exceed it."""

    name: ClassVar[str] = "trtllm"
    paper: ClassVar[str] = "TensorRT-LLM, github.com/NVIDIA/TensorRT-LLM"
    knows: ClassVar[str] = "prompt length, limit of the output"
    eviction: ClassVar[str] = "none within the limit of the output; max_utilization: last started request, recompute"
    evidence: ClassVar[str] = "public code, read"
    request_memory: ClassVar[int] = cells_of(MEMBER)
    row_memory: ClassVar[int] = cells_of(WALK)
    space: ClassVar[Space] = {
        "capacity_scheduler_policy": ("guaranteed_no_evict", "max_utilization"),
        "max_num_tokens": (512, 1024, 2048, 4096, 8192),
        "enable_chunked_context": (False, True),
        "max_new_tokens": (512, 1024, 2048),
    }

    def encode(self, name: str, value: float | str) -> float:
        """The capacity policy as the number that the kernel compares."""
        return float(POLICIES[str(value)] if name == "capacity_scheduler_policy" else value)


_params, _members, _walk = record(params_of(TensorRTLLM)), records(MEMBER), record(WALK)


class Fitting(NamedTuple):
    """What one plan is made with."""

    rule: Any  # the parameters
    walk: Any  # WALK
    listed: Any  # MEMBER[requests]: the first `walk.listed` are those that may run
    seats: int  # requests that may run


@inner
def _left_to_completion(view: View, p: np.record, i: int) -> int:
    """KV blocks that request `i` takes until it has all the output that its user allows."""
    row, r = view.row[0], view.request[i]
    longest = r.length - r.generated + own_maximum(row, r, int(p.max_new_tokens))
    return max(blocks_for(longest, row.block_size) - r.blocks, 0)


@inner
def _list(fitting: Fitting, i: int) -> None:
    """Request `i` may run."""
    fitting.listed[fitting.walk.listed].listed = i
    fitting.walk.listed += 1


@inner
def _list_started(view: View, fitting: Fitting, last: int) -> int:
    """All of ``running[:last]`` may run; returns the KV blocks that are free beside all that they may still need."""
    free = view.row[0].free_blocks
    for j in range(last):
        _list(fitting, view.running[j])
        free -= _left_to_completion(view, fitting.rule, view.running[j])
    return int(free)


@inner
def _list_newcomers(view: View, plan: Plan, fitting: Fitting, free: int) -> None:
    """Those of the queue for whose completion there are blocks; on an idle server, the first one in any case."""
    row, walk = view.row[0], fitting.walk
    for k in range(row.num_waiting):
        i = view.queue[k]
        if view.request[i].prompt > row.max_model_len:
            drop(plan, i)
            continue
        free -= _left_to_completion(view, fitting.rule, i)
        if walk.listed >= fitting.seats or (free < 0 and (walk.listed > 0 or row.leaving > 0)):
            break
        _list(fitting, i)


@inner
def _need(view: View, i: int) -> int:
    """KV blocks that request `i` takes if it runs next: a prompt those of all its tokens at its first chunk."""
    r, size = view.request[i], view.row[0].block_size
    if r.status != RUNNING:
        return int(blocks_to_admit(r, size))
    return int(decode_need(r, size)) if is_decode(r) else 0


@inner
def _next(view: View, walk: np.record) -> int:
    """The next request in the order of arrival, NOBODY if the walk has come to its end or to those that pause."""
    row = view.row[0]
    running = view.running[walk.running] if walk.running < row.num_running else NOBODY
    waiting = view.queue[walk.waiting] if walk.waiting < row.num_waiting else NOBODY
    end = view.running[walk.last] if walk.last < row.num_running else NOBODY
    return int(min(running, waiting)) if min(running, waiting) < end else NOBODY


@inner
def _step(view: View, walk: np.record, i: int) -> None:
    """Go on behind request `i`."""
    if view.request[i].status == RUNNING:
        walk.running += 1
    else:
        walk.waiting += 1


@inner
def _may_run(view: View, fitting: Fitting, i: int) -> bool:
    """Whether there are blocks for the next tokens of request `i`, and a seat."""
    walk, taken = fitting.walk, fitting.walk.holders + (view.request[i].status != RUNNING)
    return bool(walk.listed < fitting.seats and taken <= fitting.seats and _need(view, i) <= walk.free)


@inner
def _pause_last(view: View, plan: Plan, walk: np.record) -> None:
    """Take the KV of the last one that runs."""
    last = int(walk.last) - 1
    i = view.running[last]
    take_kv(view, plan, i)
    walk.last = last
    walk.free += view.request[i].blocks
    walk.holders -= 1


@inner
def _list_to_the_full(view: View, plan: Plan, fitting: Fitting) -> None:
    """In the order of arrival those whose next tokens find blocks, for whom the last started ones pause."""
    row, walk = view.row[0], fitting.walk
    walk.running, walk.waiting, walk.last = 0, 0, row.num_running
    walk.free, walk.holders = row.free_blocks, row.num_running
    while True:
        i = _next(view, walk)
        if i == NOBODY:
            return
        if view.request[i].status != RUNNING and view.request[i].prompt > row.max_model_len:
            drop(plan, i)
            _step(view, walk, i)
        elif _may_run(view, fitting, i):
            walk.free -= _need(view, i)
            walk.holders += view.request[i].status != RUNNING
            _list(fitting, i)
            _step(view, walk, i)
        elif walk.last > walk.running:
            _pause_last(view, plan, walk)
        else:
            return


@inner
def _run_prompt(view: View, plan: Plan, i: int, tokens: int) -> None:
    """So many tokens of a prompt, started or not."""
    if view.request[i].status == RUNNING:
        chunk(view, plan, i, tokens)
    else:
        enter(view, plan, i, tokens)


@inner
def _left(view: View, plan: Plan, i: int) -> int:
    """Tokens of the prompt of request `i` that are left to compute."""
    r = view.request[i]
    return int(r.prompt - r.prefilled if r.status == RUNNING else left_to_compute(view, plan, i))


@inner
def _decodes(view: View, i: int) -> bool:
    """Whether request `i` is in its output."""
    return bool(view.request[i].status == RUNNING and is_decode(view.request[i]))


@inner
def _run_whole(view: View, plan: Plan, fitting: Fitting, budget: int) -> None:
    """The requests listed, in their order, prompts whole, until one has more tokens than are left."""
    for k in range(fitting.walk.listed):
        i = fitting.listed[k].listed
        room, decodes = budget - plan.draft[0].tokens, _decodes(view, i)
        left = 1 if decodes else _left(view, plan, i)
        in_chunks = left > budget or (not decodes and view.request[i].prefilled > 0)  # too long: refused there
        if room <= 0 or (left > room and not in_chunks):
            break
        if decodes:
            decode(view, plan, i)
        else:
            _run_prompt(view, plan, i, min(left, room))


@inner
def _run_decodes(view: View, plan: Plan, fitting: Fitting, budget: int) -> None:
    """A token for each decode of those listed."""
    for k in range(fitting.walk.listed):
        i = fitting.listed[k].listed
        if _decodes(view, i) and plan.draft[0].tokens < budget:
            decode(view, plan, i)


@inner
def _run_chunks(view: View, plan: Plan, fitting: Fitting, budget: int) -> None:
    """Prompts of those listed; one that does not fit is cut to whole blocks, unless it would be all of the batch."""
    draft, unit = plan.draft[0], view.row[0].block_size
    for k in range(fitting.walk.listed):
        i = fitting.listed[k].listed
        if not _decodes(view, i):
            left, room = _left(view, plan, i), budget - draft.tokens
            cut = room if draft.tokens == 0 and room < unit else room // unit * unit
            tokens = left if left <= room else cut
            if tokens > 0:
                _run_prompt(view, plan, i, tokens)


@inner
def _pause_for_decodes(view: View, plan: Plan) -> int:
    """Where outputs outgrow what was reserved: the KV of the last ones away until all decodes fit.

    Returns:
        How many of `running` still hold KV.
    """
    row, draft, last = view.row[0], plan.draft[0], view.row[0].num_running
    need = row.decode_needs_free_block
    for j in range(last):
        need += _need(view, view.running[j])
    while need > draft.free and last > 1:
        last -= 1
        need -= _need(view, view.running[last])
        take_kv(view, plan, view.running[last])
    return int(last)


@kernel_of(TensorRTLLM)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p, walk = view.row[0], _params(memory.params), _walk(memory.row)
    fitting = Fitting(p, walk, _members(memory.request), min(int(p.max_batch_size), row.max_num_seqs - row.leaving))
    budget = min(int(p.max_num_tokens), row.max_batched_tokens)
    walk.listed = 0
    if p.capacity_scheduler_policy == UTILIZATION:
        _list_to_the_full(view, plan, fitting)
    else:
        free = _list_started(view, fitting, _pause_for_decodes(view, plan))
        if plan.draft[0].victims == 0:
            _list_newcomers(view, plan, fitting, free)
    if p.enable_chunked_context:
        _run_decodes(view, plan, fitting, budget)
        _run_chunks(view, plan, fitting, budget)
    else:
        _run_whole(view, plan, fitting, budget)
