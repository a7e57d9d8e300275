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
from engine.server.plan import clear, is_named, name
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


@inner
def _compute(view: View, features: np.ndarray, batch: np.ndarray, ends: np.ndarray) -> None:
    """Count a batch as computed, but for its times; sets its features."""
    row, f = view.row[0], EMPTY
    tokens = 0
    for k in range(batch.shape[0]):
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
    row.batch_requests += batch.shape[0]
    row.iterations += 1


@inner
def _set_times(view: View, batch: np.ndarray, iteration: int, end: float) -> None:
    for k in range(batch.shape[0]):
        r = view.request[batch[k, 0]]
        if r.last_run == iteration and r.status != WAITING and r.prefilled == r.prompt:
            r.last_token = end


@hot
def begin(
    view: View,
    features: np.ndarray,
    batch: np.ndarray,
    ends: np.ndarray,
    latency: Latency,
    ratio: np.ndarray,
    start: float,
) -> tuple[float, float]:
    """Count a batch that vLLM has scheduled as computed, at the time at which it is expected to end.

    Args:
        view: the shadow.
        features: FEATURES[1], set to those of the batch.
        batch: int64[requests, 2], index and tokens of each request.
        ends: int32[requests], output tokens at which a request is certain to end.
        latency: predicts its seconds.
        ratio: float64[2], seconds of batches over predicted ones, without prompts and with; 0: not known.
        start: s, when it begins.

    Returns:
        Seconds that the profile predicts, and those that are expected.
    """
    _compute(view, features, batch, ends)
    predicted = iteration_seconds(latency, features)
    seen = ratio[int(features[0].requests > features[0].decodes)]
    expected = predicted * (seen if seen > 0.0 else 1.0)
    _set_times(view, batch, view.row[0].iterations - 1, start + expected)
    return predicted, expected


@hot
def end(view: View, batch: np.ndarray, iteration: int, now: float) -> None:
    """Say when a batch has ended: that is when its tokens came, where a request has had none since."""
    _set_times(view, batch, iteration, now)


@hot
def look(view: View, plan: Plan, now: float, duration: float, free: int) -> tuple[int, int]:
    """Bring the shadow to the time of a decision, and open an empty plan.

    Args:
        view: the shadow.
        plan: emptied.
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
    clear(view, plan)
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


@inner
def _taken(view: View, plan: Plan, steps: np.ndarray) -> tuple[int, int, int]:
    """Those to be admitted, into `steps`: how many, tokens of the batch, new prompts cut though others follow."""
    admitted, budget, apart, cut = 0, 0, 0, 0
    for k in range(plan.size[0]):
        i, n = plan.entry[k].request, plan.entry[k].tokens
        if n > 0:
            name(plan, i)
            r = view.request[i]
            lacks = max(1, r.prompt - r.prefilled)
            budget += min(n, lacks)
            if r.status == WAITING:
                steps[admitted, 0] = i
                admitted += 1
                apart += cut
                cut = int(n < lacks)
    return admitted, budget, apart


@inner
def _shortened(view: View, plan: Plan, steps: np.ndarray, filled: int) -> int:
    """Started prompts that get a part of what they lack, into `steps` behind what is filled; returns how many."""
    count = 0
    for k in range(plan.size[0]):
        i, n = plan.entry[k].request, plan.entry[k].tokens
        fewer = view.request[i].prompt - view.request[i].prefilled - n
        if n > 0 and fewer > 0 and view.request[i].status == RUNNING:
            steps[filled + count, 0], steps[filled + count, 1] = i, fewer
            count += 1
    return count


@inner
def _left_out(view: View, plan: Plan, steps: np.ndarray, filled: int) -> tuple[int, int]:
    """Those held back and those that lose their KV, into `steps` behind what is filled; returns how many."""
    held, victims, is_victim = 0, 0, -plan.draft[0].number
    for k in range(plan.size[0]):
        if plan.entry[k].tokens < 0 and plan.entry[k].tokens != DROP:
            plan.named[plan.entry[k].request] = is_victim
    for k in range(view.row[0].num_running):
        i = view.running[k]
        if not is_named(plan, i) and plan.named[i] != is_victim:
            steps[filled + held, 0] = i
            held += 1
    for k in range(plan.size[0]):
        if plan.entry[k].tokens < 0 and plan.entry[k].tokens != DROP:
            steps[filled + held + victims, 0] = plan.entry[k].request
            victims += 1
    return held, victims


@hot
def read_plan(view: View, plan: Plan, steps: np.ndarray) -> tuple[int, int, int, int, int, int]:
    """What a plan asks of vLLM.

    Args:
        view: the shadow.
        plan: made by a policy.
        steps: int64[.., 2], set to what differs from everyone going on: indices of the requests to be admitted, of the
            started prompts that get a part of what they lack (and how many tokens fewer), of those with KV that are
            held back, and of those that are to lose it.

    Returns:
        How many of each kind; tokens of the batch (ILLEGAL: a plan that cannot be read); how many new prompts get fewer
        than they lack though others come behind them.
    """
    if not _is_readable(view, plan):
        return 0, 0, 0, 0, ILLEGAL, 0
    admitted, budget, apart = _taken(view, plan, steps)
    cut = _shortened(view, plan, steps, admitted)
    held, victims = _left_out(view, plan, steps, admitted + cut)
    return admitted, cut, held, victims, budget, apart
