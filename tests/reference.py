"""A second engine in plain Python: one object per request, lists, no arrays, no numba.

It is written from the rules (what an iteration does, how KV blocks are counted, what an eviction costs), not from the
kernels, and keeps histories (every gap, every span of KV use) where the kernels keep running totals. Tests drive both
with the same plans and compare everything that can be seen.
"""

import math
from bisect import insort
from dataclasses import dataclass, field

from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.server.state import DROP, DROPPED, EVICT, FINISHED, FUTURE, GROW, RUNNING, SWAP, SWAP_COMPRESSED, WAITING

Entry = tuple[int, int, int]
"""One plan entry: request, tokens (or EVICT ... SWAP_COMPRESSED), KV blocks to reserve."""


@dataclass
class Job:
    """One request."""

    index: int
    arrival: float
    prompt: int
    output: int
    tier: int
    tbt: float
    ttft: float
    strict: bool
    prediction: float
    original_prompt: int = 0
    ends_at: int = 0
    status: int = FUTURE
    prefilled: int = 0
    generated: int = 0
    since_admission: int = 0  # tokens generated since the prompt was last fixed
    blocks: int = 0
    host: float = 0.0  # blocks in the host's memory, a compressed one is half a block
    evictions: int = 0
    last_run: int = -1
    last_token: float = -1.0
    first_scheduled: float = -1.0
    prompt_done: float = -1.0
    first_token: float = -1.0
    completed: float = -1.0
    delivered: int = 0
    gaps: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens known: the prompt of the present life and what was generated in it."""
        return self.prompt + self.since_admission

    @property
    def is_decode(self) -> bool:
        """Whether the prompt of the present life is done."""
        return self.prefilled == self.prompt

    @property
    def late_gaps(self) -> list[float]:
        """Gaps over the deadline, s."""
        return [gap for gap in self.gaps if gap > self.tbt]


class ReferenceServer:
    """One LLM server: `begin`, `finish` and `idle` as in engine.server.core."""

    def __init__(self, config: EngineConfig, requests: Requests) -> None:
        """Stand at time 0 in front of `requests`; the ones at time 0 have arrived."""
        self.config = config
        self.jobs = [
            Job(
                index=i,
                arrival=float(requests.arrival[i]),
                prompt=int(requests.prompt[i]),
                original_prompt=int(requests.prompt[i]),
                output=int(requests.output[i]),
                ends_at=self._served(int(requests.prompt[i]), int(requests.output[i])),
                tier=int(requests.tier[i]),
                tbt=requests.tiers[requests.tier[i]].tbt_s,
                ttft=requests.tiers[requests.tier[i]].ttft_s,
                strict=requests.tiers[requests.tier[i]].strict,
                prediction=float(requests.prediction[i]),
            )
            for i in range(len(requests))
        ]
        self.now = 0.0
        self.queue: list[int] = []
        self.running: list[int] = []
        self.batches: list[list[tuple[int, int, bool]]] = []  # request, tokens, is_prefill, of each iteration
        self.batch: list[tuple[int, int, bool]] = []
        self.durations: list[float] = []
        self.kv_use: list[tuple[float, int]] = []  # span in s, blocks in use
        self.lost_tokens = 0
        self.found_tokens = 0
        self.free_list: list[tuple[int, int] | None] = [None] * config.num_blocks  # request and place of its full block
        self.leaving: list[int] = []  # blocks of requests that finished in the last iteration
        self.swaps = 0
        self.swapped_out = 0.0  # blocks
        self.swapped_in = 0.0
        self.swapped_since_iteration = 0.0
        self.longest_queue = 0
        self._arrive(self.now)

    def _served(self, prompt: int, output: int) -> int:
        """Output tokens at which a request ends: in default semantics where it reaches the model's length."""
        return min(output, self.config.max_model_len - prompt) if self.config.eviction_keeps_output else output

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds."""
        return self.config.num_blocks - sum(job.blocks for job in self.jobs) - sum(self.leaving)

    @property
    def free_host(self) -> float:
        """Blocks for which the host has room."""
        return self.config.host_half_blocks / 2 - sum(job.host for job in self.jobs)

    @property
    def iterations(self) -> int:
        """Completed iterations."""
        return len(self.batches)

    @property
    def is_over(self) -> bool:
        """Nobody is left to serve."""
        return all(job.status in (FINISHED, DROPPED) for job in self.jobs)

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that hold this many tokens."""
        return math.ceil(tokens / self.config.block_size)

    def found(self, job: Job, free_list: "list[tuple[int, int] | None] | None" = None) -> int:
        """Its blocks that a request finds again on the free list (the server's, or another), those at its beginning."""
        k = 0
        while (job.index, k) in (self.free_list if free_list is None else free_list):
            k += 1
        return k

    def _take(self, job: Job, blocks: int) -> None:
        """Take blocks from the front of the free list."""
        job.blocks += blocks
        del self.free_list[:blocks]

    def _give_back(self, job: Job, full: int = 0) -> None:
        """Put its blocks at the end of the free list, the last one first, with what the first `full` of them hold."""
        for k in range(job.blocks - 1, -1, -1):
            self.free_list.append((job.index, k) if k < full else None)
        job.blocks = 0

    def decode_need(self, job: Job) -> int:
        """KV blocks that the next decode takes."""
        return max(0, self.blocks_for(job.length) - job.blocks)

    def _let_go(self) -> None:
        """Asynchronous scheduling: what was held until the next plan had been made comes free."""
        self.free_list += [None] * sum(self.leaving)
        self.leaving = []

    def _arrive(self, until: float) -> None:
        for job in self.jobs:
            if job.status == FUTURE and job.arrival <= until:
                job.status = WAITING
                self.queue.append(job.index)
        self.longest_queue = max(self.longest_queue, len(self.queue))

    def _advance(self, time: float) -> None:
        self.kv_use.append((time - self.now, self.config.num_blocks - self.free_blocks))
        self.now = time

    def begin(self, plan: list[Entry], strict: bool) -> int:
        """Apply the plan; 0, or code + 13 x entry of the first illegal entry (strict only)."""
        self.batch = []
        for k, (i, tokens, reserve) in enumerate(plan):
            if not strict:
                tokens = self._cut(i, tokens)
            code = self._fault(i, tokens, reserve)
            if code and strict:
                return code + 13 * k
            if not code:
                self._apply(self.jobs[i], tokens, reserve)
        assert len(self.free_list) == self.free_blocks
        return 0

    def _room(self) -> int:
        return self.config.max_batched_tokens - sum(tokens for _, tokens, _ in self.batch)

    def _cut(self, i: int, tokens: int) -> int:
        if tokens <= 0 or not 0 <= i < len(self.jobs):
            return tokens
        job = self.jobs[i]
        if not job.is_decode:
            return min(tokens, job.prompt - job.prefilled, self._room())
        return 1 if job.status in (RUNNING, WAITING) else tokens

    def _fault(self, i: int, tokens: int, reserve: int) -> int:
        if not 0 <= i < len(self.jobs) or self.jobs[i].status == FUTURE:
            return 4
        job = self.jobs[i]
        in_batch = any(i == other for other, _, _ in self.batch)
        if tokens == EVICT:
            return 1 if job.status != RUNNING else 3 if in_batch else 0
        if tokens == DROP:
            return 0 if job.status == WAITING else 2
        if tokens in (SWAP, SWAP_COMPRESSED):
            if job.status != RUNNING or in_batch:
                return 1 if job.status != RUNNING else 3
            return 11 if self._size_on_host(job, tokens) > self.free_host else 0
        checks = [
            (tokens <= 0, 10),
            (job.status not in (WAITING, RUNNING), 4),
            (in_batch, 3),
            (tokens > self._room(), 7),
        ]
        if job.is_decode:
            checks += [(tokens != 1, 9)]
        else:
            checks += [(tokens > job.prompt - job.prefilled, 8)]
        if job.status == RUNNING and job.is_decode:
            checks += [(self.decode_need(job) > self.free_blocks, 6)]
        if job.status == RUNNING and not job.is_decode:
            checks += [(self._chunk_need(job, tokens) > self.free_blocks, 6)]
        if job.status == WAITING:
            need = self._admitted_with(job, tokens, reserve, self.found(job))
            seats = len(self.running) + len(self.leaving)
            checks += [(seats >= self.config.max_num_seqs, 5), (need > self.free_blocks, 6)]
        return next((code for broken, code in checks if broken), 0)

    def _chunk_need(self, job: Job, tokens: int) -> int:
        """Blocks that a chunk of a started prompt lacks: none if all were taken at admission."""
        return max(0, self.blocks_for(job.prefilled + tokens) - job.blocks)

    def _admitted_with(self, job: Job, tokens: int, reserve: int, found: int) -> int:
        """Blocks with which a request is admitted that finds so many again."""
        if reserve == GROW and not job.is_decode:
            left = job.prompt - job.prefilled - found * self.config.block_size
            return self.blocks_for(job.prompt - left + min(tokens, left))
        return max(reserve, self.blocks_for(job.length))

    def _apply(self, job: Job, tokens: int, reserve: int) -> None:
        if tokens == EVICT:
            self._evict(job)
        elif tokens in (SWAP, SWAP_COMPRESSED):
            self._swap(job, tokens)
        elif tokens == DROP:
            job.host = 0.0
            self.queue.remove(job.index)
            job.status = DROPPED
            job.completed = self.now
            if job.first_scheduled < 0.0:
                job.first_scheduled = self.now
        else:
            if job.status == WAITING:
                self.queue.remove(job.index)
                insort(self.running, job.index)
                job.status = RUNNING
                found = self.found(job)
                for k in range(found):
                    self.free_list.remove((job.index, k))
                job.blocks, job.prefilled = found, job.prefilled + found * self.config.block_size
                self.found_tokens += found * self.config.block_size
                tokens = min(tokens, max(1, job.prompt - job.prefilled))
                self._take(job, self._admitted_with(job, tokens, reserve, 0) - found)
                self.swapped_in += job.host
                self.swapped_since_iteration += job.host
                job.host = 0.0
            elif job.is_decode:
                self._take(job, self.decode_need(job))
            else:
                self._take(job, self._chunk_need(job, tokens))
            job.last_run = self.iterations
            self.batch.append((job.index, tokens, not job.is_decode))

    def _stored(self, job: Job) -> int:
        unprocessed = 1 if job.is_decode and self.config.prompt_emits else 0  # the latest token has no KV yet
        return job.prefilled + job.since_admission - unprocessed

    def _size_on_host(self, job: Job, kind: int) -> float:
        return min(job.blocks, self.blocks_for(self._stored(job))) * (1.0 if kind == SWAP else 0.5)

    def _swap(self, job: Job, kind: int) -> None:
        """Move the KV to the host; the request goes on from the head of the queue with what it has done."""
        job.host = self._size_on_host(job, kind)
        self.swaps += 1
        self.swapped_out += job.host
        self.swapped_since_iteration += job.host
        self.running.remove(job.index)
        self.queue.insert(0, job.index)
        job.status = WAITING
        self._give_back(job)

    def _evict(self, job: Job) -> None:
        """Give the KV back; everything known so far must be prefilled again, from the head of the queue."""
        stored = self._stored(job)
        self.lost_tokens += stored
        self.running.remove(job.index)
        self.queue.insert(0, job.index)
        job.status = WAITING
        job.evictions += 1
        is_cached = self.config.prefix_cache == "own"
        self._give_back(job, min(stored, job.length - 1) // self.config.block_size if is_cached else 0)
        job.prompt, job.since_admission, job.prefilled = job.length, 0, 0
        if not self.config.eviction_keeps_output:
            job.generated = 0

    def features(self) -> dict[str, float]:
        """What the duration of the batch depends on."""
        chunks = [(tokens, self.jobs[i].prefilled) for i, tokens, is_prefill in self.batch if is_prefill]
        decodes = [self.jobs[i].length for i, _, is_prefill in self.batch if not is_prefill]
        return {
            "tokens": sum(tokens for tokens, _ in chunks) + len(decodes),
            "requests": len(self.batch),
            "decodes": len(decodes),
            "prefill_pairs": sum(n * done + n * (n + 1) / 2 for n, done in chunks),
            "prefill_reads": sum((n + done) * math.ceil(n / 128) for n, done in chunks),
            "wide_prefill_reads": sum((n + done) * math.ceil(n / 256) for n, done in chunks),
            "decode_context": sum(decodes),
            "swapped": 2 * self.swapped_since_iteration,
        }

    def finish(self, seconds: float) -> None:
        """The batch takes `seconds`; then tokens, completions and arrivals."""
        start = self.now
        self._let_go()
        self._advance(start + seconds)
        self.durations.append(self.now - start)
        for i, tokens, is_prefill in self.batch:
            job = self.jobs[i]
            if is_prefill:
                if job.first_scheduled < 0.0:
                    job.first_scheduled = start
                job.prefilled += tokens
                if not job.is_decode:
                    continue
                job.prompt_done = self.now
                if not self.config.prompt_emits:
                    if job.first_token < 0.0:
                        job.last_token = self.now
                    continue
            self._emit(job)
        self.batches.append(self.batch)
        self.swapped_since_iteration = 0.0
        self._arrive(start if self.config.async_scheduling else self.now)

    def _emit(self, job: Job) -> None:
        if job.first_token < 0.0:
            job.first_token = self.now
        else:
            job.gaps.append(self.now - job.last_token)
        job.last_token = self.now
        job.generated += 1
        job.since_admission += 1
        job.delivered += 1
        if job.generated >= job.ends_at:
            job.status = FINISHED
            job.completed = self.now
            if self.config.async_scheduling:
                self.leaving.append(job.blocks)
                job.blocks = 0
            self._give_back(job)
            self.running.remove(job.index)

    def idle(self, wake: float = math.inf) -> bool:
        """Jump to the next arrival or to `wake`; False if neither will come."""
        future = [job.arrival for job in self.jobs if job.status == FUTURE]
        time = min([wake, *future])
        if math.isinf(time):
            return False
        self._let_go()
        if time > self.now:
            self._advance(time)
        self._arrive(self.now)
        return True
