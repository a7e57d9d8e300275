"""A closer look at one stretch of a run: what each iteration did, and how long the policy took to decide it."""

import functools
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numba import types

from engine._kept import kept
from engine.config import EngineConfig
from engine.latency import LatencyModel
from engine.policy import KERNEL_SIGNATURE, Policy
from engine.requests import Requests
from engine.simulate import simulate
from engine.state import MEMORY_TYPE, PLAN_TYPE, VIEW_TYPE, Memory, Plan, View
from engine.steps import StepLog

RUN_S = 60.0
"""Seconds of the run that are looked at."""
SHOWN_S = 12.0
"""Of these, the last seconds that the timeline shows."""
EVERY, REPEATS = 11, 1000
"""Every so many decisions one is timed, repeated so many times."""


@functools.cache
def _repeat() -> Any:
    """A compiled loop that lets a kernel plan the same iteration n times."""

    def repeat(kernel: Any, view: Any, memory: Any, plan: Any, n: int) -> None:
        for _ in range(n):
            plan.size[0] = 0
            kernel(view, memory, plan)
        plan.size[0] = 0

    kernel_type = types.FunctionType(KERNEL_SIGNATURE)
    return kept(repeat, types.void(kernel_type, VIEW_TYPE, MEMORY_TYPE, PLAN_TYPE, types.int64))


@dataclass(frozen=True)
class _Timed(Policy):
    """The policy `inner` with a stopwatch; `plan` is overridden, so the run is driven from Python."""

    inner: Policy
    seconds: list[float] = field(default_factory=list)
    calls: list[int] = field(default_factory=lambda: [0])
    name: ClassVar[str] = "timed"

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """The memory of the inner policy."""
        return self.inner.memory(config, num_requests)

    @property
    def spec(self) -> str:
        """The spec of the inner policy."""
        return self.inner.spec

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        """Let the inner policy plan; every few iterations note how long that takes."""
        self.calls[0] += 1
        # The first call may load or compile something.
        due = self.calls[0] % EVERY == 0
        if due and self.inner.runs_compiled:
            self.seconds.append(_kernel_seconds(self.inner, view, memory, plan))
        start = time.perf_counter()
        self.inner.plan(view, memory, plan)
        if due and not self.inner.runs_compiled:
            self.seconds.append(time.perf_counter() - start)


def _kernel_seconds(policy: Policy, view: View, memory: Memory, plan: Plan) -> float:
    """Seconds of one call of a compiled policy in this state."""
    kernel = policy.kernel
    assert kernel is not None
    copies = Memory(*(column.copy() for column in memory))
    _repeat()(kernel.compiled, view, copies, plan, 1)  # whatever has to be compiled or loaded is, before the clock runs
    start = time.perf_counter()
    _repeat()(kernel.compiled, view, copies, plan, REPEATS)
    return (time.perf_counter() - start) / REPEATS


def _timeline(steps: StepLog, num_blocks: int, since_s: float) -> dict[str, list[float]]:
    first = int(np.searchsorted(steps.start_s, since_s))
    prefill = [int(batch[batch[:, 2] == 1, 1].sum()) for batch in steps.batches[first:]]
    decode = [int(np.count_nonzero(batch[:, 2] == 0)) for batch in steps.batches[first:]]
    return {
        "start_s": steps.start_s[first:].round(6).tolist(),
        "duration_s": steps.duration_s[first:].round(6).tolist(),
        "prefill_tokens": prefill,
        "decode_tokens": decode,
        "kv_use": (steps.used_blocks[first:] / num_blocks).round(4).tolist(),
        "waiting": steps.waiting[first:].tolist(),
        "running": steps.running[first:].tolist(),
    }


def look(policy: Policy, requests: Requests, model: LatencyModel, config: EngineConfig) -> dict[str, Any]:
    """Drive the first minute of a run step by step.

    Returns:
        `timeline`: columns per iteration of the last seconds; `decision_us`: median and 99th percentile of the time
        of one decision (None if there were too few to measure); `largest_batch_tokens`, `largest_batch_requests`.
    """
    requests = requests.head(max(1, int(np.searchsorted(requests.arrival, RUN_S))))
    timed = _Timed(policy)
    record = simulate(timed, requests, model, config, horizon_s=RUN_S, log_steps=True)
    steps = record.steps
    assert steps is not None
    end = float(record.row["now"][0])
    cost = np.array(timed.seconds) * 1e6
    decision = {"median": float(np.median(cost)), "p99": float(np.quantile(cost, 0.99))} if len(cost) else None
    sizes = [batch[:, 1].sum() for batch in steps.batches]
    return {
        "timeline": _timeline(steps, config.num_blocks, max(0.0, end - SHOWN_S)),
        "decision_us": decision,
        "largest_batch_tokens": int(max(sizes, default=0)),
        "largest_batch_requests": max((len(batch) for batch in steps.batches), default=0),
    }
