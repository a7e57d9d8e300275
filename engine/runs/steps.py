"""What each iteration of a run did: the log, and the compiled loop that fills it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numba import typeof, types

from engine.compiled.jit import hot, inner
from engine.device.latency import LATENCY_TYPE, Latency, iteration_seconds
from engine.server.core import arrive, begin, empty, finish, is_over, pause
from engine.server.policy import KERNEL_SIGNATURE
from engine.server.state import DROP, EVICT, MEMORY_TYPE, SERVER_TYPE, SWAP, Memory, Server

OVER, STALLED, LIMIT, HORIZON = 0, -1, -2, -3
"""How a run ended: trace done, nothing planned and nothing to wait for, too many decisions, time is up."""
FULL = -100
"""A compiled loop stopped because its log has no room for another iteration; it goes on when called again."""
STEPS, ITEMS = 4096, 1 << 18
"""Room of a compiled loop's log: iterations, and entries of their plans."""

KERNEL_TYPE = types.FunctionType(KERNEL_SIGNATURE)


@dataclass(frozen=True, eq=False)
class StepLog:
    """What happened in each iteration, for timelines and step-by-step comparison."""

    start_s: np.ndarray  # float64[iterations]
    duration_s: np.ndarray  # float64[iterations]
    used_blocks: np.ndarray  # int64[iterations], after the iteration
    waiting: np.ndarray  # int64[iterations], after the iteration
    running: np.ndarray  # int64[iterations], after the iteration
    emitted: np.ndarray  # int64[iterations], output tokens of the iteration
    item: (
        np.ndarray
    )  # int32[items, 3]: request, tokens, 1 for a prefill chunk, 0 for a decode, else EVICT ... of the plan
    first: np.ndarray  # int64[iterations + 1], place of each iteration's items

    def __repr__(self) -> str:
        """How many iterations, and when."""
        until = float(self.start_s[-1] + self.duration_s[-1]) if len(self.start_s) else 0.0
        return f"StepLog({len(self.start_s)} iterations until {until:.1f} s)"

    @cached_property
    def batches(self) -> list[np.ndarray]:
        """Per iteration int64[items, 3]: request, tokens, 1 for a prefill chunk."""
        in_batch = self.item[:, 2] >= 0
        ends = np.append(0, np.cumsum(in_batch))[self.first[1:]]
        return np.split(self.item[in_batch].astype(np.int64), ends[:-1]) if len(ends) else []

    @cached_property
    def evicted(self) -> list[list[int]]:
        """Per iteration, in order, the requests that lost their KV."""
        return self._requests(self.item[:, 2] == EVICT)

    @cached_property
    def dropped(self) -> list[list[int]]:
        """Per iteration, in order, the requests that were refused."""
        return self._requests(self.item[:, 2] == DROP)

    @cached_property
    def swapped(self) -> list[list[int]]:
        """Per iteration, in order, the requests whose KV went to the host."""
        return self._requests(self.item[:, 2] <= SWAP)

    def _requests(self, chosen: np.ndarray) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in self.start_s]
        places = np.flatnonzero(chosen)
        iterations = np.searchsorted(self.first, places, side="right") - 1
        for iteration, request in zip(iterations.tolist(), self.item[places, 0].tolist(), strict=True):
            found[iteration].append(request)
        return found


class Log(NamedTuple):
    """Room for some iterations."""

    time: np.ndarray  # float64[steps, 2]: start, duration (s)
    counts: np.ndarray  # int64[steps, 5]: KV blocks in use, waiting, running, number of items, output tokens
    item: np.ndarray  # int32[items, 3], as in `StepLog`
    size: np.ndarray  # int64[3]: iterations in the log, items in it, decisions so far


def new_log(num_requests: int, steps: int = STEPS, items: int = ITEMS) -> Log:
    """An empty log with room for at least one plan of so many requests."""
    items = max(items, 2 * num_requests + 1)
    return Log(
        np.zeros((steps, 2)), np.zeros((steps, 5), np.int64), np.zeros((items, 3), np.int32), np.zeros(3, np.int64)
    )


@hot
def note_plan(server: Server, log: Log) -> None:
    """Append the plan that `begin` has taken to the items."""
    for k in range(server.plan.size[0]):
        entry = server.plan.entry[k]
        if entry.tokens == 0:
            continue
        kind = entry.tokens
        if entry.tokens > 0:
            request = server.visible.request[entry.request]
            kind = 1 if request.prefilled < request.prompt else 0
        item = log.item[log.size[1]]
        item[0], item[1], item[2] = entry.request, entry.tokens, kind
        log.size[1] += 1


@inner
def _emitted(server: Server, log: Log, since: int) -> int:
    """Output tokens of the iteration that has ended with the items from `since` on."""
    emitted, prompt_emits = 0, server.visible.row[0].prompt_emits
    for k in range(since, log.size[1]):
        request, kind = server.visible.request[log.item[k, 0]], log.item[k, 2]
        if kind == 0 or (kind == 1 and prompt_emits == 1 and request.prefilled == request.prompt):
            emitted += 1
    return emitted


@hot
def note_step(server: Server, log: Log, start: float, since: int) -> None:
    """Append the iteration that began at `start` with the items from `since` on, unless it did nothing."""
    if log.size[1] == since:
        return
    row, k = server.visible.row[0], log.size[0]
    log.time[k, 0], log.time[k, 1] = start, row.now - start
    count = log.counts[k]
    count[0] = row.num_blocks - row.free_blocks - row.leaving_blocks
    count[1], count[2] = row.num_waiting, row.num_running
    count[3] = log.size[1] - since
    count[4] = _emitted(server, log, since)
    log.size[0] += 1


def _run(
    kernel: Callable[..., Any],
    server: Server,
    memory: Memory,
    latency: Latency,
    horizon: float,
    max_decisions: int,
    log: Log,
) -> int:
    """The loop of `engine.runs.simulate` with a log of each iteration; FULL: empty the log and call it again."""
    row = server.visible.row[0]
    arrive(server)
    while not is_over(server):
        if row.now >= horizon:
            return HORIZON
        if log.size[2] >= max_decisions:
            return LIMIT
        since = log.size[1]
        if log.size[0] == log.time.shape[0] or since + server.plan.entry.shape[0] > log.item.shape[0]:
            return FULL
        log.size[2] += 1
        empty(server)
        kernel(server.visible, memory, server.plan)
        code = begin(server, True)
        if code != 0:
            return code
        start = row.now
        note_plan(server, log)
        if server.features[0].requests > 0:
            finish(server, iteration_seconds(latency, server.features))
            note_step(server, log, start, since)
            continue
        note_step(server, log, start, since)
        if not pause(server):
            return STALLED
    return OVER


@functools.cache
def _compiled_run() -> Any:
    arguments = (KERNEL_TYPE, SERVER_TYPE, MEMORY_TYPE, LATENCY_TYPE, types.float64, types.int64, typeof(new_log(1)))
    return hot(_run, types.int64(*arguments))


class Loop(NamedTuple):
    """What a compiled loop over a trace works on."""

    kernel: Any  # the compiled plan function
    server: Server  # with the trace loaded
    memory: Memory  # the policy's
    latency: Latency  # seconds of an iteration
    horizon: float  # s; an iteration that would start at or after it ends the run


class Steps:
    """Collects the log of one run from a compiled loop or step by step."""

    def __init__(self, num_requests: int, steps: int = STEPS, items: int = ITEMS) -> None:
        self.log = new_log(num_requests, steps, items)
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def run(self, loop: Loop, max_decisions: int) -> int:
        """Serve the trace in a compiled loop; the result is as `engine.runs.simulate`'s loop has it."""
        while True:
            code = int(_compiled_run()(*loop, max_decisions, self.log))
            self._flush()
            if code != FULL:
                return code

    def planned(self, server: Server) -> int:
        """Note what `begin` has taken; returns where these items begin."""
        if self.log.size[0] == len(self.log.time) or self.log.size[1] + len(server.plan.entry) > len(self.log.item):
            self._flush()
        since = int(self.log.size[1])
        note_plan(server, self.log)
        return since

    def done(self, server: Server, start: float, since: int) -> None:
        """Note the iteration that began at `start` (s) with the items from `since` on."""
        note_step(server, self.log, start, since)

    def _flush(self) -> None:
        steps, items = self.log.size[0], self.log.size[1]
        columns = (self.log.time[:steps], self.log.counts[:steps], self.log.item[:items])
        self._parts.append((columns[0].copy(), columns[1].copy(), columns[2].copy()))
        self.log.size[:2] = 0

    def result(self) -> StepLog:
        """The whole log."""
        self._flush()
        time, count, item = (np.concatenate([part[k] for part in self._parts]) for k in range(3))
        first = np.append(0, np.cumsum(count[:, 3]))
        return StepLog(time[:, 0], time[:, 1], count[:, 0], count[:, 1], count[:, 2], count[:, 4], item, first)
