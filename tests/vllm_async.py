"""vLLM's engine core with asynchronous scheduling, in plain Python: a scheduler that plans ahead of a device.

Written from vllm-project/vllm v0.32.0: `EngineCore.step_with_batch_queue` with a queue of two batches
(vllm/v1/engine/core.py), `Scheduler.schedule` and `AsyncScheduler` (vllm/v1/core/sched). A batch is planned as soon as
the result of the batch before the last one is known; tokens that are still being computed are counted as placeholders,
and a request that will be done with them is passed over. The host takes no time.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.config import EngineConfig
from engine.demand.requests import Requests

Item = tuple[int, int, bool]
"""A request in a batch: index, tokens, whether they are prompt tokens."""
Seconds = Callable[[list[tuple[int, int, bool]]], float]
"""How long a batch takes, of (KV tokens before, tokens, whether they are prompt tokens)."""


@dataclass
class Job:
    """One request."""

    index: int
    arrival: float
    prompt: int
    output: int
    tokens: int = 0  # known, prompt included
    placeholders: int = 0  # being computed
    computed: int = 0  # KV tokens, those being computed included
    target: int = 0  # known tokens at its latest admission
    blocks: int = 0

    @property
    def is_certain_to_end(self) -> bool:
        """Whether what is being computed is its last token."""
        return self.placeholders > 0 and self.tokens + self.placeholders >= self.prompt + self.output


@dataclass
class Batch:
    """What runs, or will run, on the device."""

    items: list[Item] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)
    yielding: list[Job] = field(default_factory=list)  # requests of which it computes a token
    start: float = 0.0
    end: float = 0.0


@dataclass
class AsyncEngine:
    """The engine core, its scheduler (FCFS, default options) and a device."""

    config: EngineConfig
    requests: Requests
    budget: int
    seconds: Seconds
    may_take_from_ending: bool = True
    """Whether one that is certain to end may be preempted, as vLLM does; llmsched takes from the next one."""
    counts_placeholders: bool = True
    """Whether the scheduler plans for requests whose token is being computed: `AsyncScheduler` does, `Scheduler` and
    classes that derive from it do not, and the engine core keeps two batches in flight all the same."""
    now: float = 0.0
    device_free: float = 0.0
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    flying: deque[Batch] = field(default_factory=deque)
    log: list[Batch] = field(default_factory=list)
    first_token: dict[int, float] = field(default_factory=dict)
    completed: dict[int, float] = field(default_factory=dict)

    def run(self) -> None:
        """Serve everything."""
        jobs = [
            Job(i, *row, tokens=row[1])
            for i, row in enumerate(
                zip(
                    self.requests.arrival.tolist(),
                    self.requests.prompt.tolist(),
                    self.requests.output.tolist(),
                    strict=True,
                )
            )
        ]
        coming = deque(jobs)
        while len(self.completed) < len(jobs):
            while coming and coming[0].arrival <= self.now:
                self.waiting.append(coming.popleft())
            planned = self._schedule() if self.waiting or self.running else Batch()
            if planned.items or planned.preempted:
                self.log.append(planned)
            if planned.items:
                self._submit(planned)
                if len(self.flying) < 2:
                    continue
            if self.flying:
                self._take_result()
            elif not planned.preempted:
                self.now = coming[0].arrival

    def _needed(self, tokens: int) -> int:
        return math.ceil(tokens / self.config.block_size)

    @property
    def _free(self) -> int:
        return self.config.num_blocks - sum(job.blocks for job in self.running)

    def _schedule(self) -> Batch:
        batch, room, at = Batch(start=self.now), self.budget, 0
        while at < len(self.running) and room > 0:
            job = self.running[at]
            if job.is_certain_to_end or (job.placeholders and not self.counts_placeholders):
                at += 1
                continue
            n = min(job.tokens + job.placeholders - job.computed, room)
            lacking = max(0, self._needed(job.computed + n) - job.blocks)
            gone = False
            while self._free < lacking and not gone:
                victim = self._victim()
                self.running.remove(victim)
                victim.blocks = victim.computed = 0
                self.waiting.appendleft(victim)
                batch.preempted.append(victim.index)
                gone = victim is job
            if gone:
                break
            job.blocks += lacking
            room -= self._add(batch, job, n)
            at += 1
        while not batch.preempted and self.waiting and room > 0 and len(self.running) < self.config.max_num_seqs:
            job = self.waiting[0]
            if self._needed(job.tokens) > self._free:
                break
            self.running.append(self.waiting.popleft())
            job.target = job.tokens
            n = min(job.tokens, room)
            job.blocks = self._needed(n)
            room -= self._add(batch, job, n)
        return batch

    def _victim(self) -> Job:
        """Who is preempted next: the last one."""
        return next(job for job in reversed(self.running) if self.may_take_from_ending or not job.is_certain_to_end)

    def _add(self, batch: Batch, job: Job, n: int) -> int:
        batch.items.append((job.index, n, job.computed < job.target))
        job.computed += n
        if job.computed == job.tokens + job.placeholders:
            job.placeholders += 1
            batch.yielding.append(job)
        return n

    def _submit(self, batch: Batch) -> None:
        """Let the device run a batch behind what it runs."""
        by_index = {job.index: job for job in self.running}
        before = [(by_index[i].computed - n, n, is_prefill) for i, n, is_prefill in batch.items]
        batch.start = max(self.now, self.device_free)
        batch.end = self.device_free = batch.start + self.seconds(before)
        self.flying.append(batch)

    def _take_result(self) -> None:
        """Wait for the oldest batch, and take its tokens."""
        batch = self.flying.popleft()
        self.now = batch.end
        for job in batch.yielding:
            job.placeholders -= 1
            job.tokens += 1
            self.first_token.setdefault(job.index, self.now)
            if job.tokens == job.prompt + job.output:
                self.completed[job.index] = self.now
                for members in (self.running, self.waiting):
                    if job in members:
                        members.remove(job)
