"""What happens to the shadow of a vLLM server: arrivals, batches, preemptions, as compiled steps on a `View`.

The shadow is one batch ahead of what has been computed, as a policy sees a server with
`EngineConfig.async_scheduling`: a batch that vLLM has scheduled counts as done, at the time at which it is expected to
end; once it has ended, the times are corrected.
"""

import numpy as np

from engine.compiled.jit import hot, inner
from engine.device.latency import Latency, iteration_seconds
from engine.server.features import EMPTY, add, store
from engine.server.kv import blocks_for, join_running
from engine.server.state import DROP, FINISHED, RUNNING, WAITING, Plan, View

ILLEGAL = -1
"""What `read_plan` returns for a plan that names nobody who is there."""


@hot
def enter(view: View, arrival: float, prompt: int, tier: int, tbt: float, ttft: float, strict: int) -> int:
    """Put a request that has arrived at the end of the queue; returns its index."""
    row = view.row[0]
    i = row.next_arrival
    r = view.request[i]
    r.arrival = max(arrival, view.request[i - 1].arrival) if i > 0 else arrival
    r.last_token, r.last_run, r.prediction = -1.0, -1, np.nan
    r.tbt, r.ttft, r.tier, r.strict = tbt, ttft, tier, strict
    r.prompt, r.length, r.status = prompt, prompt, WAITING
    view.queue[row.num_waiting] = i
    row.num_waiting += 1
    row.next_arrival += 1
    row.no_first_token += 1
    return i


@inner
def _out_of(members: np.ndarray, count: int, i: int) -> int:
    """Take `i` out of a list that keeps its order; returns its new length."""
    kept = 0
    for k in range(count):
        if members[k] != i:
            members[kept] = members[k]
            kept += 1
    return kept


@inner
def _stop_running(view: View, i: int) -> None:
    row, r = view.row[0], view.request[i]
    row.num_running = _out_of(view.running, row.num_running, i)
    if r.prefilled < r.prompt:
        row.num_prefilling -= 1


@hot
def leave(view: View, i: int) -> None:
    """A request is gone: it has finished, or was aborted."""
    row, r = view.row[0], view.request[i]
    if r.status == FINISHED:
        row.leaving -= 1
    elif r.status == RUNNING:
        _stop_running(view, i)
    else:
        row.num_waiting = _out_of(view.queue, row.num_waiting, i)
    if not r.has_token:
        row.no_first_token -= 1
    r.status = FINISHED
    row.finished += 1


@hot
def evict(view: View, i: int) -> None:
    """The server has preempted a request: it is at the head of the queue, prompt and output to be computed again."""
    row, r = view.row[0], view.request[i]
    if r.status == FINISHED:
        row.leaving -= 1
    else:
        _stop_running(view, i)
    for k in range(row.num_waiting, 0, -1):
        view.queue[k] = view.queue[k - 1]
    view.queue[0] = i
    row.num_waiting += 1
    row.evictions += 1
    r.evictions += 1
    r.status, r.blocks, r.prefilled, r.prompt = WAITING, 0, 0, r.length


@inner
def _start_running(view: View, i: int) -> None:
    row, r = view.row[0], view.request[i]
    row.num_waiting = _out_of(view.queue, row.num_waiting, i)
    join_running(view, i)
    row.num_prefilling += 1
    r.status = RUNNING


@hot
def admit(view: View, i: int, computed: int) -> None:
    """The server has given a waiting request KV blocks, and has found so many of its tokens in the prefix cache."""
    _start_running(view, i)
    view.request[i].prefilled = computed


@hot
def begin(view: View, features: np.ndarray, batch: np.ndarray, size: int, ends: np.ndarray) -> None:
    """Count a batch that vLLM has scheduled as computed, but for its times.

    Args:
        view: the shadow.
        features: FEATURES[1], set to those of the batch.
        batch: int64[.., 2], index and tokens of each request.
        size: filled part of it.
        ends: int32[requests], output tokens at which a request is certain to end.
    """
    row, f = view.row[0], EMPTY
    tokens = 0
    for k in range(size):
        i, n = batch[k, 0], batch[k, 1]
        r = view.request[i]
        r.last_run = row.iterations
        tokens += n
        if r.prefilled < r.prompt:
            f = add(f, r.prefilled, n, False)
            r.prefilled = min(r.prefilled + n, r.prompt)
            row.prefill_tokens += n
            if r.prefilled < r.prompt:
                continue
            row.num_prefilling -= 1
        else:
            f = add(f, r.length - 1, 1, True)
            row.decode_tokens += 1
        if not r.has_token:
            r.has_token = 1
            row.no_first_token -= 1
        r.generated += 1
        r.length += 1
        if r.generated >= ends[i]:
            _stop_running(view, i)
            r.status = FINISHED
            row.leaving += 1
    store(f, 0.0, features)
    row.batch_tokens = tokens
    row.batch_requests += size
    row.iterations += 1


@hot
def expect(view: View, latency: Latency, features: np.ndarray) -> float:
    """Seconds that the profile predicts for a batch."""
    return iteration_seconds(latency, features)


@hot
def set_times(view: View, batch: np.ndarray, size: int, iteration: int, end: float) -> None:
    """Say when a batch ended, or will: that is when its tokens came, where a request has had none since."""
    for k in range(size):
        r = view.request[batch[k, 0]]
        if r.last_run == iteration and r.status != WAITING and r.prefilled == r.prompt:
            r.last_token = end


@hot
def look(view: View, now: float, duration: float, free: int) -> tuple[int, int]:
    """Bring the shadow to the time of a decision.

    Args:
        view: the shadow.
        now: s, when the batch to be planned can begin.
        duration: s, of the batch before.
        free: KV blocks that vLLM has free.

    Returns:
        Requests that vLLM should have running, and waiting.
    """
    row = view.row[0]
    reserved = 0  # vLLM takes blocks chunk by chunk; policies count on those of a whole prompt
    for k in range(row.num_running):
        r = view.request[view.running[k]]
        if r.prefilled < r.prompt:
            r.blocks = blocks_for(r.length, row.block_size)
            reserved += r.blocks - blocks_for(r.prefilled, row.block_size)
        else:
            r.blocks = blocks_for(r.length - 1, row.block_size)
    row.free_blocks = max(0, free - reserved)
    row.now = max(row.now, now)
    row.last_duration = duration
    return row.num_running + row.leaving, row.num_waiting


@inner
def _is_readable(view: View, plan: Plan) -> bool:
    """Whether every entry of a plan is of a request that is there."""
    if plan.size[0] > plan.entry.shape[0]:
        return False
    for k in range(plan.size[0]):
        i, n = plan.entry[k].request, plan.entry[k].tokens
        if i < 0 or i >= view.row[0].next_arrival or n == 0:
            return False
        status = view.request[i].status
        if status != RUNNING and (status != WAITING or (n < 0 and n != DROP)):
            return False
    return True


@hot
def read_plan(view: View, plan: Plan, steps: np.ndarray) -> tuple[int, int, int, int]:
    """What a plan asks of vLLM.

    Args:
        view: the shadow.
        plan: made by a policy.
        steps: int64[.., 3], set to (index, tokens, tokens that the request lacks) of each request that is served, then
            (index, 0, 0) of each that is to lose its KV.

    Returns:
        How many are served, how many lose their KV, how many of those served decode, and how many vLLM has running;
        ILLEGAL first for a plan that cannot be read.
    """
    if not _is_readable(view, plan):
        return ILLEGAL, 0, 0, 0
    served, victims, decodes = 0, 0, 0
    for k in range(plan.size[0]):
        i, n = plan.entry[k].request, plan.entry[k].tokens
        if n > 0:
            r = view.request[i]
            lacks = max(1, r.prompt - r.prefilled)
            steps[served, 0], steps[served, 1], steps[served, 2] = i, min(n, lacks), lacks
            served += 1
            decodes += r.status == RUNNING and r.prefilled == r.prompt
    for k in range(plan.size[0]):
        if plan.entry[k].tokens < 0 and plan.entry[k].tokens != DROP:
            steps[served + victims, 0] = plan.entry[k].request
            victims += 1
    return served, victims, decodes, view.row[0].num_running + view.row[0].leaving
