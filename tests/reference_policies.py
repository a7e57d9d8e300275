"""Sarathi-Serve, SLAI and vLLM in plain Python over `tests.reference.ReferenceServer`.

Written from the rules of the public SLAI code (agrimUT/SLAI 5098a7a): lists, and for SLAI a real heap of deadlines.
"""

import heapq
from dataclasses import dataclass, field

from engine.server.state import DROP, EVICT
from tests.reference import Entry, Job, ReferenceServer


class _Draft:
    """A plan under construction with its own count of free blocks, sequences and tokens."""

    def __init__(self, server: ReferenceServer) -> None:
        self.server = server
        self.entries: list[Entry] = []
        self.free = server.free_blocks
        self.active = len(server.running) + len(server.leaving)
        self.tokens = 0
        self.waiting = list(server.queue)
        self.free_list = list(server.free_list)

    def _take(self, blocks: int) -> None:
        """Blocks from the front of the free list."""
        self.free -= blocks
        del self.free_list[:blocks]

    def fits(self, job: Job) -> bool:
        needs_one = self.server.decode_need(job) > 0 or self.server.config.decode_needs_free_block
        return self.free > 0 or not needs_one

    def decode(self, job: Job) -> None:
        self.entries.append((job.index, 1, 0))
        self._take(self.server.decode_need(job))
        self.tokens += 1

    def chunk(self, job: Job, budget: int, found: int = 0) -> None:
        n = min(job.prompt - job.prefilled - found * self.server.config.block_size, budget - self.tokens)
        if n > 0:
            self.entries.append((job.index, n, 0))
            self.tokens += n

    def evict(self, job: Job) -> None:
        self.entries.append((job.index, EVICT, 0))
        self.free += job.blocks
        self.free_list += [None] * job.blocks
        self.active -= 1
        self.waiting.insert(0, job.index)

    def admit(self, budget: int, order: str, looks_first: bool = False) -> None:
        """Head-of-line admission; an evicted request still shows its old progress in the plan that evicts it.

        With `looks_first` over-long prompts at the head are dropped with the budget used up, too (reference semantics).
        """
        server, config, jobs = self.server, self.server.config, self.server.jobs
        if order == "spf":
            self.waiting.sort(key=lambda i: jobs[i].prompt)
        elif order == "strict_spf":
            self.waiting.sort(key=lambda i: (not jobs[i].strict, jobs[i].prompt))
        for i in self.waiting:
            job = jobs[i]
            spent = self.tokens >= budget
            if spent and (not looks_first or config.eviction_keeps_output):
                return
            if job.prompt > config.max_model_len:
                self.entries.append((i, DROP, 0))
                continue
            need = server.blocks_for(job.prompt)
            blocked = self.free - need < config.watermark_blocks or self.active >= config.max_num_seqs
            if blocked or job.is_decode or spent:
                return
            found = server.found(job, self.free_list)
            self.free_list = [block for block in self.free_list if block not in {(i, k) for k in range(found)}]
            self.chunk(job, budget, found)
            self.free -= found
            self._take(need - found)
            self.active += 1


def _decodes_oldest_first(draft: _Draft) -> list[Job]:
    """All decodes, victims from the youngest end; returns the started prompts that survive."""
    jobs = draft.server.jobs
    left = [jobs[i] for i in draft.server.running]
    prefills = []
    while left:
        job = left.pop(0)
        if not job.is_decode:
            prefills.append(job)
            continue
        while not draft.fits(job):
            victim = left.pop() if left else job
            draft.evict(victim)
            if victim is job:
                break
        else:
            draft.decode(job)
    return prefills


@dataclass
class PlainSarathi:
    """Decodes, then started prompts, then new ones."""

    token_budget: int
    order: str

    def plan(self, server: ReferenceServer) -> list[Entry]:
        """Entries of the next iteration."""
        draft = _Draft(server)
        for job in _decodes_oldest_first(draft):
            draft.chunk(job, self.token_budget)
        draft.admit(self.token_budget, self.order, looks_first=True)
        return draft.entries


@dataclass
class PlainVLLM:
    """Whole prompts if any can be admitted, else decodes."""

    max_batched_tokens: int
    batch_cap: int

    def plan(self, server: ReferenceServer) -> list[Entry]:
        """Entries of the next iteration."""
        draft, config = _Draft(server), server.config
        limit = self.max_batched_tokens or config.max_model_len
        for i in server.queue:
            job = server.jobs[i]
            if job.prompt > min(limit, config.max_model_len):
                draft.entries.append((i, DROP, 0))
                continue
            need = server.blocks_for(job.prompt)
            full = draft.active >= min(self.batch_cap, config.max_num_seqs)
            if full or draft.free - need < config.watermark_blocks or draft.tokens + job.prompt > limit:
                break
            draft.chunk(job, limit)
            draft.free -= need
            draft.active += 1
        if not draft.entries:
            _decodes_oldest_first(draft)
        return draft.entries


@dataclass
class PlainSLAI:
    """Critical decodes, started prompts, new prompts, other decodes."""

    token_budget: int
    order: str
    offset: float
    pressure_offset: float
    memory_limit: float
    fixed_offset: bool
    max_decodes: int
    heap: list[tuple[float, int]] = field(default_factory=list)  # last schedulable time, request
    paused: list[int] = field(default_factory=list)  # started prompts
    mean: float = 0.0
    seen: int = 0

    def _digest_previous_batch(self, server: ReferenceServer) -> None:
        if self.seen == server.iterations:
            return
        self.seen = server.iterations
        self.mean += (server.durations[-1] - self.mean) / self.seen
        used = (server.config.num_blocks - server.free_blocks) / server.config.num_blocks
        offset = self.offset if self.fixed_offset or used < self.memory_limit else self.pressure_offset
        for i, _, _ in server.batches[-1]:
            job = server.jobs[i]
            if not job.is_decode:
                self.paused += [i] if i not in self.paused else []
                continue
            if i in self.paused:
                self.paused.remove(i)
            if i in server.running:
                heapq.heappush(self.heap, (server.now + job.tbt - offset * self.mean, i))

    def plan(self, server: ReferenceServer) -> list[Entry]:
        """Entries of the next iteration."""
        self._digest_previous_batch(server)
        draft, jobs = _Draft(server), server.jobs
        limit = min(self.token_budget, self.max_decodes)
        while self.heap and draft.tokens < limit and server.now >= self.heap[0][0]:
            job = jobs[heapq.heappop(self.heap)[1]]
            while not draft.fits(job) and self.paused:
                draft.evict(jobs[self.paused.pop()])
            if draft.fits(job):
                draft.decode(job)
            else:
                draft.evict(job)
        decodes = draft.tokens
        for i in self.paused:
            draft.chunk(jobs[i], self.token_budget)
        draft.admit(self.token_budget, self.order)
        while self.heap and draft.tokens < self.token_budget and decodes < self.max_decodes:
            job = jobs[heapq.heappop(self.heap)[1]]
            if draft.fits(job):
                draft.decode(job)
                decodes += 1
            else:
                draft.evict(job)
        return draft.entries
