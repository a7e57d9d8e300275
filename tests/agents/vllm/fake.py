"""What `Steering` touches of vLLM's `AsyncScheduler` (0.24), its rules written out again, and an engine core."""

import time
from collections import deque
from types import SimpleNamespace
from typing import Any

from agents.vllm.steering import Steering

BLOCK = 16


class FakeQueue(deque[Any]):
    """The FCFSRequestQueue of vLLM."""

    add_request = deque.append
    prepend_request = deque.appendleft
    remove_request = deque.remove


class FakeRequest:
    """The Request of vLLM."""

    def __init__(self, name: str, prompt: int, output: int, tier: Any = None, priority: int = 0) -> None:
        self.request_id, self.num_prompt_tokens, self.max_tokens = name, prompt, output
        self.sampling_params = SimpleNamespace(extra_args=None if tier is None else {"tier": tier})
        self.priority, self.arrival_time = priority, time.time()
        self.num_output_tokens = self.num_output_placeholders = self.num_computed_tokens = 0
        self.blocks = self.num_preemptions = 0
        self.status = "waiting"

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens


class FakeScheduler:
    """The AsyncScheduler of vLLM, first come first served, without prefix cache."""

    def __init__(self, blocks: int = 1000, seats: int = 32, budget: int = 512, model_len: int = 2048) -> None:
        self.policy = SimpleNamespace(value="fcfs")
        self.num_spec_tokens, self.block_size, self.max_model_len = 0, BLOCK, model_len
        self.cache_config = SimpleNamespace(num_gpu_blocks=blocks)
        self.scheduler_config = SimpleNamespace(
            max_num_seqs=seats, max_num_batched_tokens=budget, async_scheduling=True
        )
        self.max_num_running_reqs, self.max_num_scheduled_tokens = seats, budget
        self.requests: dict[str, FakeRequest] = {}
        self.running: list[FakeRequest] = []
        self.waiting, self.skipped_waiting = FakeQueue(), FakeQueue()
        self.finished_req_ids: set[str] = set()
        self.free = blocks
        pool = SimpleNamespace(get_num_free_blocks=lambda: self.free)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)

    def add_request(self, request: FakeRequest) -> None:
        self.requests[request.request_id] = request
        self.waiting.add_request(request)

    def _take(self, request: FakeRequest, tokens: int) -> bool:
        need = -(-(request.num_computed_tokens + tokens) // BLOCK) - request.blocks
        if need > self.free:
            return False
        request.blocks += need
        self.free -= need
        return True

    def _give_back(self, request: FakeRequest) -> None:
        self.free += request.blocks
        request.blocks = 0

    def schedule(self, throttle_prefills: bool = False) -> Any:
        budget, scheduled, preempted, new = self.max_num_scheduled_tokens, {}, [], []
        k = 0
        while k < len(self.running) and budget > 0:
            r = self.running[k]
            coming = r.num_output_placeholders
            if coming > 0 and r.num_computed_tokens + 2 - coming >= r.num_prompt_tokens + r.max_tokens:
                k += 1
                continue
            n = min(r.num_tokens + coming - r.num_computed_tokens, budget)
            if n == 0:
                k += 1
                continue
            while not (fits := self._take(r, n)):
                victim = self.running.pop()
                self._give_back(victim)
                victim.num_computed_tokens, victim.status = 0, "preempted"
                victim.num_preemptions += 1
                self.waiting.prepend_request(victim)
                preempted.append(victim)
                if victim is r:
                    break
            if not fits:
                break
            scheduled[r.request_id] = n
            budget -= n
            k += 1
        while not preempted and self.waiting and budget > 0 and len(self.running) < self.max_num_running_reqs:
            r = self.waiting[0]
            n = min(r.num_tokens - r.num_computed_tokens, budget)
            if -(-r.num_tokens // BLOCK) > self.free or not self._take(r, n):
                break
            self.waiting.popleft()
            new.append((r.request_id, r.status))
            r.status = "running"
            self.running.append(r)
            scheduled[r.request_id] = n
            budget -= n
        assert len(self.running) <= self.max_num_running_reqs
        resumed = {name for name, status in new if status == "preempted"}
        output = SimpleNamespace(
            num_scheduled_tokens=scheduled,
            total_num_scheduled_tokens=sum(scheduled.values()),
            preempted_req_ids={r.request_id for r in preempted},
            scheduled_new_reqs=[SimpleNamespace(req_id=name) for name, status in new if status == "waiting"],
            scheduled_cached_reqs=self._make_cached_request_data(resumed),
            emits=[],
        )
        self._update_after_schedule(output)
        return output

    def _make_cached_request_data(self, resumed: set[str]) -> Any:
        told = {name: r.num_output_tokens + r.num_output_placeholders for name, r in self.requests.items()}
        assert min(told.values(), default=0) >= 0  # the workers cut what they have to so many output tokens
        return SimpleNamespace(resumed_req_ids=resumed)

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        for name, n in scheduler_output.num_scheduled_tokens.items():
            r = self.requests[name]
            r.num_computed_tokens += n
            if r.num_computed_tokens >= r.num_tokens + r.num_output_placeholders:
                r.num_output_placeholders += 1
                scheduler_output.emits.append(name)
        self.finished_req_ids = set()

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        for name in scheduler_output.emits:
            r = self.requests.get(name)
            if r is None:
                continue
            r.num_output_tokens += 1
            r.num_output_placeholders -= 1
            if r.num_output_tokens >= r.max_tokens or r.num_tokens >= self.max_model_len:
                self.finish(name)

    def finish(self, name: str) -> None:
        """A request has all its tokens, or was aborted."""
        r = self.requests.pop(name)
        self._give_back(r)
        self.finished_req_ids.add(name)
        if r in self.running:
            self.running.remove(r)
        else:
            self.waiting.remove_request(r)
        r.status = "finished"


class FakePolicyScheduler(Steering, FakeScheduler):
    """The scheduler under test."""


class Core:
    """The engine core of vLLM with a queue of two batches (`step_with_batch_queue`), which take no time at all."""

    def __init__(self, scheduler: Any, depth: int = 2) -> None:
        self.scheduler, self.depth, self.queue = scheduler, depth, deque[Any]()
        self.outputs: list[Any] = []

    def step(self) -> bool:
        """Schedule a batch, or take the tokens of the oldest; False once nothing is left to do."""
        s = self.scheduler
        if s.requests or s.finished_req_ids:
            output = s.schedule()
            self.outputs.append(output)
            self.queue.appendleft(output)
            if len(self.queue) < self.depth and output.total_num_scheduled_tokens:
                return True
        elif not self.queue:
            return False
        s.update_from_output(self.queue.pop(), None)
        return True
