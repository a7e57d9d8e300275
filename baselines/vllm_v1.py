"""vLLM V1: one token budget for decodes and prompt chunks alike, running requests first."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from baselines.grids import BATCH_CAPS, TOKEN_BUDGETS
from baselines.parameters import PartFrom0, RequestsFrom0, TokensFrom0
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.demand.requests import INT32_MAX
from engine.errors import InputError
from engine.server.kv import blocks_at_admission, blocks_to_admit, next_need, tokens_left
from engine.server.members import MEMBER, join
from engine.server.moves import enter, found_blocks, give, is_decode, is_named, left_to_compute, take_kv
from engine.server.plan import drop
from engine.server.policy import Policy, Space, kernel_of
from engine.server.queue import first_waiting
from engine.server.state import GROW, RUNNING, Memory, Plan, View

OLDEST, NEWEST = 13, 32
"""Minor versions of vLLM 0.x whose rules are known."""
WHOLE_SINCE, WATERMARK_SINCE, LONE_SINCE = 19, 24, 31
"""Minor versions from which on admission asks for the blocks of the whole sequence (`scheduler_reserve_full_isl`),
there is a watermark, and the threshold for long prompts spares a request that is alone."""
CLASSES = {"standard": (2048, 256), "h100": (8192, 1024), "b200": (16384, 1024)}
"""Token budget and requests that vLLM 0.32's API server takes by default on a class of GPUs."""
FCFS, PRIORITY = 0, 1

REQUEST = np.dtype(
    [
        ("member", MEMBER),  # under priority: the running requests in the order of admission
        ("chunk", "i8"),  # tokens that the plan in the making gives it
    ],
    align=True,
)
"""What it remembers of a request."""
SERVER = np.dtype([("members", "i8")], align=True)
"""What it remembers of the server: how many are on that list."""


class Admitted(NamedTuple):
    """The running requests in the order of their admission."""

    row: Any  # SERVER
    request: Any  # REQUEST[requests]


@dataclass(frozen=True)
class VLLMV1(Policy):
    """Hands one budget of tokens to running requests, oldest first, then, unless one was evicted, to waiting ones.

    Code: vllm-project/vllm v0.32.0 vllm/v1/core/sched/scheduler.py, whose decisions it takes step by step (synchronous
    scheduling), and those of other versions from 0.13 on by what is known of their rules; parameters have vLLM's names.
    A waiting request is admitted if the KV blocks of all its tokens are free, but takes those of its first chunk; later
    chunks compete for theirs with everybody else and may evict. vLLM refuses to start with max_num_batched_tokens <
    max_num_seqs; here decodes beyond the budget get nothing.
    """

    max_num_batched_tokens: TokensFrom0 = 0
    """Tokens per iteration, decodes included; 0: what vLLM takes on this class of GPUs."""
    max_num_seqs: RequestsFrom0 = 0
    """Requests that hold KV at the same time (the server's max_num_seqs also applies); 0: as vLLM on such GPUs."""
    long_prefill_token_threshold: TokensFrom0 = 0
    """Prompt tokens of one request in one iteration at most, from 0.31 on unless it is alone; 0: no limit."""
    watermark: PartFrom0 = 0.0
    """Share of the blocks that admission leaves free while anybody runs (from 0.24 on)."""
    scheduler_reserve_full_isl: bool = True
    """Admission asks for the blocks of the whole sequence; otherwise, and always before 0.19, for the first chunk's."""
    policy: Literal["fcfs", "priority"] = "fcfs"
    """Who waits in which order and is evicted first: by arrival, or strict tiers first (those of the shorter deadline
    first), the least important of all evicted."""
    version: str = "0.32"
    """Version of vLLM: 0.13 to 0.32."""
    gpu: Literal["standard", "h100", "b200"] = "standard"
    """Class of GPUs: below 70 GiB and A100 (2048 tokens, 256 requests), from 70 GiB on (8192, 1024), from 160 GiB on
    (16384, 1024)."""

    name: ClassVar[str] = "vllm_v1"
    paper: ClassVar[str] = "vLLM V1, github.com/vllm-project/vllm"
    knows: ClassVar[str] = "prompt length"
    eviction: ClassVar[str] = "youngest running request, recompute"
    evidence: ClassVar[str] = "public code, replayed step by step; defaults depend on the GPU"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(SERVER)
    space: ClassVar[Space] = {
        "max_num_batched_tokens": TOKEN_BUDGETS,
        "max_num_seqs": BATCH_CAPS,
        "long_prefill_token_threshold": (0, 256, 512, 1024),
        "watermark": (0.0, 0.01, 0.02, 0.05, 0.1),
        "policy": ("fcfs", "priority"),
    }

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            InputError: one is out of range, a version whose rules are not known, or an option that it has not.
        """
        super().__post_init__()
        has_watermark = self.minor >= WATERMARK_SINCE
        if self.watermark > 0.0 and not has_watermark:
            where = f"policy {self.name!r}: watermark"
            raise InputError(f"{where}: expected 0 before vLLM 0.{WATERMARK_SINCE}, got {self.watermark:g}")

    @property
    def minor(self) -> int:
        """The minor number of the version.

        Raises:
            InputError: not one of those whose rules are known.
        """
        numbers = self.version.strip().removeprefix("v").split(".")
        known = len(numbers) in (2, 3) and all(part.isdecimal() for part in numbers) and numbers[0] == "0"
        if not known or not OLDEST <= int(numbers[1]) <= NEWEST:
            expected = f"a version of vLLM from 0.{OLDEST} to 0.{NEWEST}"
            raise InputError(f"policy {self.name!r}: version: expected {expected}, got {self.version!r}")
        return int(numbers[1])

    def encode(self, name: str, value: float | str) -> float:
        """A parameter as a number for the kernel, those that depend on version and GPU as they are then."""
        budget, seats = CLASSES[self.gpu]
        numbers: dict[str, float | str] = {
            "max_num_batched_tokens": value or budget,
            "max_num_seqs": value or seats,
            "scheduler_reserve_full_isl": self.scheduler_reserve_full_isl and self.minor >= WHOLE_SINCE,
            "policy": PRIORITY if self.policy == "priority" else FCFS,
            "version": self.minor,
            "gpu": list(CLASSES).index(self.gpu),
        }
        return float(numbers.get(name, value))


_params, _server, _requests = record(params_of(VLLMV1)), record(SERVER), records(REQUEST)


@inner
def _longest_chunk(view: View, p: np.record) -> int:
    """Prompt tokens that one request gets at most."""
    row, limit = view.row[0], int(p.long_prefill_token_threshold)
    is_alone = row.num_running + row.leaving + row.num_waiting == 1
    return INT32_MAX if limit == 0 or (p.version >= LONE_SINCE and is_alone) else limit


@inner
def _run(view: View, plan: Plan, longest: int, budget: int) -> None:
    """Running requests, oldest first; who finds no blocks takes those of the last one, in the end its own."""
    row, draft = view.row[0], plan.draft[0]
    last, j = row.num_running, 0
    while j < last and draft.tokens < budget:
        i = view.running[j]
        r = view.request[i]
        j += 1
        tokens = 1 if is_decode(r) else min(r.prompt - r.prefilled, min(longest, budget - draft.tokens))
        need = next_need(r, tokens, row.block_size)
        while draft.free < need and last >= j:
            last -= 1
            take_kv(view, plan, view.running[last])
        if last < j:
            break
        give(plan, i, tokens)
        draft.free -= need


@inner
def _precedes(view: View, i: int, j: int) -> bool:
    """Whether request i is more important than request j."""
    a, b = view.request[i], view.request[j]
    if a.strict != b.strict:
        return bool(a.strict > b.strict)
    return bool(a.tbt < b.tbt if a.tbt != b.tbt else i < j)


@inner
def _next_to_admit(view: View, plan: Plan, p: np.record) -> int:
    """The waiting request that is next, -1 if none is left."""
    if p.policy == FCFS:
        return first_waiting(view, plan)
    best = -1
    for k in range(view.row[0].num_waiting):
        i = view.queue[k]
        if not is_named(plan, i) and (best < 0 or _precedes(view, i, best)):
            best = i
    return best


@inner
def _finds_room(view: View, plan: Plan, p: np.record, i: int, tokens: int) -> bool:
    """Whether the KV blocks are free that admission of request `i` with so many tokens asks for."""
    row, draft, r = view.row[0], plan.draft[0], view.request[i]
    need = blocks_to_admit(r, row.block_size)
    if p.scheduler_reserve_full_isl == 0.0:
        need = blocks_at_admission(r, tokens, GROW, found_blocks(view, plan, i), row.block_size)
    margin = int(p.watermark * (row.num_blocks + 1)) if draft.seats > 0 else 0
    return bool(need + margin <= draft.free)


@inner
def _admit(view: View, plan: Plan, p: np.record, admitted: Admitted, longest: int, budget: int) -> None:
    """Waiting requests; the first that finds no blocks keeps out the rest."""
    row, draft = view.row[0], plan.draft[0]
    seats = min(int(p.max_num_seqs), row.max_num_seqs)
    while draft.tokens < budget and draft.seats < seats:
        i = _next_to_admit(view, plan, p)
        if i < 0:
            break
        if view.request[i].prompt > row.max_model_len:
            drop(plan, i)
            continue
        tokens = min(left_to_compute(view, plan, i), min(longest, budget - draft.tokens))
        if not _finds_room(view, plan, p, i, tokens):
            break
        enter(view, plan, i, tokens, GROW)
        if p.policy == PRIORITY:
            admitted.row.members = join(admitted.request.member, admitted.row.members, i)


@inner
def _keep_running(view: View, admitted: Admitted) -> None:
    """Bring the list up to date: without those that no longer run, with those that another policy has admitted."""
    row, lines, kept = admitted.row, admitted.request, 0
    for k in range(row.members):
        i = lines[k].member.listed
        if view.request[i].status == RUNNING:
            lines[kept].member.listed = i
            kept += 1
        else:
            lines[i].member.is_listed = 0
    for k in range(view.row[0].num_running):
        i = view.running[k]
        lines[i].chunk = 0
        if not lines[i].member.is_listed:
            kept = join(lines.member, kept, i)
    row.members = kept


@inner
def _least_important(view: View, admitted: Admitted) -> int:
    """Place on the list of the running request that is evicted first."""
    place, members = 0, admitted.request.member
    for k in range(1, admitted.row.members):
        if _precedes(view, members[place].listed, members[k].listed):
            place = k
    return place


@inner
def _preempt(view: View, plan: Plan, admitted: Admitted, place: int) -> int:
    """Take the KV of a request on the list, and the tokens that the plan gave it; returns these."""
    row, lines = admitted.row, admitted.request
    i = lines[place].member.listed
    for k in range(place, row.members - 1):
        lines[k].member.listed = lines[k + 1].member.listed
    row.members -= 1
    lines[i].member.is_listed = 0
    tokens, lines[i].chunk = lines[i].chunk, 0
    if tokens > 0:  # what it was to take goes back with what it has
        plan.draft[0].free += next_need(view.request[i], tokens, view.row[0].block_size)
    take_kv(view, plan, i)
    return tokens


@inner
def _run_by_priority(view: View, plan: Plan, admitted: Admitted, longest: int, budget: int) -> None:
    """Running requests in the order of admission; who finds no blocks takes those of the least important.

    That may be one which has its tokens already: it loses them. One that takes its own blocks ends the visit.
    """
    lines, row, draft = admitted.request, view.row[0], plan.draft[0]
    k, planned = 0, 0
    while k < admitted.row.members and planned < budget:
        i = lines[k].member.listed
        tokens = min(tokens_left(view.request[i]), min(longest, budget - planned))
        need, gone = next_need(view.request[i], tokens, row.block_size), False
        while draft.free < need and not gone:
            place = _least_important(view, admitted)
            gone = place == k
            k -= 1 if place < k else 0
            planned -= _preempt(view, plan, admitted, place)
        if gone:
            break
        draft.free -= need
        lines[i].chunk = tokens
        planned += tokens
        k += 1
    for k in range(admitted.row.members):
        i = lines[k].member.listed
        if lines[i].chunk > 0:
            give(plan, i, lines[i].chunk)


@kernel_of(VLLMV1)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, admitted = _params(memory.params), Admitted(_server(memory.row), _requests(memory.request))
    budget = min(int(p.max_num_batched_tokens), view.row[0].max_batched_tokens)
    longest = _longest_chunk(view, p)
    if p.policy == PRIORITY:
        _keep_running(view, admitted)
        _run_by_priority(view, plan, admitted, longest, budget)
    else:
        _run(view, plan, longest, budget)
    if plan.draft[0].victims == 0:
        _admit(view, plan, p, admitted, longest, budget)
