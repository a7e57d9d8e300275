"""A closer look at one stretch of a run: what each iteration did, and how long the policy took to decide it."""

import functools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
from numba import types

from agents.evaluation.looks import DecisionTime, Look, Timeline
from engine.compiled.kept import kept
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.plan import clear
from engine.server.policy import KERNEL_SIGNATURE, Policy
from engine.server.state import EVICT, MEMORY_TYPE, PLAN_TYPE, VIEW_TYPE, Memory, Plan, View

RUN_S = 60.0
"""Seconds of the run that are looked at."""
SHOWN_S = 12.0
"""Of these, the last seconds that the timeline shows."""
EVERY = 11
"""One of so many decisions is timed ..."""
REPEATS, BLOCKS = 100, 7
"""... so many times in a row, in so many blocks of which the fastest counts: others use the machine, too."""


@functools.cache
def _repeat() -> Any:
    """A compiled loop that n times restores the memory and, unless it only restores, lets a kernel plan."""

    def repeat(
        kernel: Callable[[View, Memory, Plan], None],
        view: View,
        memory: Memory,
        before: Memory,
        plan: Plan,
        n: int,
        plans: bool,
    ) -> None:
        for _ in range(n):
            memory.request[:] = before.request
            memory.row[:] = before.row
            clear(view, plan)
            if plans:
                kernel(view, memory, plan)

    kernel_type = types.FunctionType(KERNEL_SIGNATURE)
    arguments = (kernel_type, VIEW_TYPE, MEMORY_TYPE, MEMORY_TYPE, PLAN_TYPE, types.int64, types.boolean)
    return kept(repeat, types.void(*arguments))


class _Timed(Policy):
    """A policy with a stopwatch; `plan` is overridden, so the run is driven from Python."""

    name: ClassVar[str] = "timed"

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.seconds: list[float] = []
        self.calls = 0

    def on(self, model: LatencyModel) -> Self:
        """Tell the inner policy."""
        self.inner = self.inner.on(model)
        return self

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """The memory of the inner policy."""
        return self.inner.memory(config, num_requests)

    @property
    def spec(self) -> str:
        """The spec of the inner policy."""
        return self.inner.spec

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        """Let the inner policy plan; every few iterations note how long that takes."""
        self.calls += 1
        # The first call may load or compile something.
        due = self.calls % EVERY == 0
        if due and self.inner.runs_compiled:
            self.seconds.append(decision_seconds(self.inner, view, memory, plan))
            clear(view, plan)
        start = time.perf_counter()
        self.inner.plan(view, memory, plan)
        if due and not self.inner.runs_compiled:
            self.seconds.append(time.perf_counter() - start)


def decision_seconds(policy: Policy, view: View, memory: Memory, plan: Plan) -> float:
    """Seconds in which a compiled policy decides in this state; `plan` then holds that decision, `memory` is untouched.

    Each repetition starts from the memory as it is: a policy marks there what it has seen, and what it would decide
    after its own decision is another one. The time that restoring takes is measured alone and subtracted.
    """
    kernel = policy.kernel
    assert kernel is not None
    repeat, copy = _repeat(), Memory(*(column.copy() for column in memory))
    fastest = {}
    for plans in (False, True):
        arguments = (kernel.compiled, view, copy, memory, plan)
        repeat(*arguments, 1, plans)  # whatever has to be compiled or loaded is, before the clock runs
        times = []
        for _ in range(BLOCKS):
            start = time.perf_counter()
            repeat(*arguments, REPEATS, plans)
            times.append(time.perf_counter() - start)
        fastest[plans] = min(times)
    return max(0.0, fastest[True] - fastest[False]) / REPEATS


def _timeline(steps: StepLog, num_blocks: int, since_s: float) -> Timeline:
    first = int(np.searchsorted(steps.start_s, since_s))
    return Timeline(
        start_s=tuple(steps.start_s[first:].round(6).tolist()),
        duration_s=tuple(steps.duration_s[first:].round(6).tolist()),
        prefill_tokens=tuple(int(batch[batch[:, 2] == 1, 1].sum()) for batch in steps.batches[first:]),
        decode_tokens=tuple(int(np.count_nonzero(batch[:, 2] == 0)) for batch in steps.batches[first:]),
        kv_use=tuple((steps.used_blocks[first:] / num_blocks).round(4).tolist()),
        waiting=tuple(steps.waiting[first:].tolist()),
        running=tuple(steps.running[first:].tolist()),
    )


def _decision_us(cost: np.ndarray) -> DecisionTime | None:
    if len(cost) == 0:
        return None
    return DecisionTime(float(cost.mean()), float(np.median(cost)), float(np.quantile(cost, 0.99)))


def _unmeasured_share(steps: StepLog, model: LatencyModel) -> float:
    """Share of the prompt tokens in chunks that are too short behind their context for what the profile is made of.

    What a prefix cache gives back of a context after an eviction is not counted as such.
    """
    limits = model.provenance.get("validity", {}).get("chunks_behind")
    if limits is None:
        return 0.0
    done: Counter[int] = Counter()
    beyond = 0
    for request, tokens, kind in steps.item.tolist():
        if kind == EVICT:
            done[request] = 0
        elif kind == 1:
            beyond += tokens if tokens < limits[0] and done[request] > limits[1] else 0
            done[request] += tokens
    prompts = steps.item[:, 2] == 1
    return beyond / max(1, int(steps.item[prompts, 1].sum()))


def look(policy: Policy, requests: Requests, model: LatencyModel, config: EngineConfig) -> Look:
    """Drive the first minute of a run step by step, and time decisions meanwhile."""
    requests = requests.head(max(1, int(np.searchsorted(requests.arrival, RUN_S))))
    timed = _Timed(policy)
    record = simulate(timed, requests, model, config, horizon_s=RUN_S, log_steps=True)
    steps = record.steps
    assert steps is not None
    end = float(record.row["now"][0])
    decision = _decision_us(np.array(timed.seconds) * 1e6)
    sizes = [batch[:, 1].sum() for batch in steps.batches]
    return Look(
        timeline=_timeline(steps, config.num_blocks, max(0.0, end - SHOWN_S)),
        decision_us=decision,
        largest_batch_tokens=int(max(sizes, default=0)),
        largest_batch_requests=max((len(batch) for batch in steps.batches), default=0),
        unmeasured_share=_unmeasured_share(steps, model),
    )
