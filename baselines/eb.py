"""EB and EB+: prompts and decodes in phases of their own; EB+ mixes them where that is predicted to pay."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from baselines.families.exclusive import costs_of
from baselines.families.finished import SERVED, VALUE, Recent, Served, watch_served
from baselines.families.phases import (
    DECODE,
    FIRST,
    NUMBERS,
    RECOVERY_S,
    REFILL,
    RULE,
    STATE,
    WINDOW,
    Phases,
    learn,
    reset,
    start,
)
from baselines.families.profiled import Profiled
from baselines.parameters import Seconds, Share, ShareFrom0, Tokens
from baselines.vllm_v1 import REQUEST as VLLM_REQUEST
from baselines.vllm_v1 import VLLMV1
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, record, records, series
from engine.config import EngineConfig
from engine.server.moves import admit, chunk, decode, fits_decode, is_decode, left_to_compute, take_kv
from engine.server.plan import drop, is_named, name
from engine.server.policy import Space, kernel_of
from engine.server.queue import first_waiting
from engine.server.state import Memory, Plan, View

REQUEST = np.dtype([("vllm", VLLM_REQUEST), ("served", SERVED)], align=True)
"""What is remembered of a request."""


@dataclass(frozen=True)
class EB(Profiled):
    """Prompts until N run; then decodes alone until a share of N has finished; then as many prompts; and so on.

    The share solves a balance of the fixed costs of both kinds of batches for the rate at which outputs end, which is
    estimated from the last 500 of them. Where KV is short prompts end early and lose theirs. EB+ (mode=auto) begins
    with vLLM's mixed batches, and changes where the predicted time per token is less by mode_switch_delta (three times
    that for the way back). Code: weifang231/eb-vllm 1fc9712 vllm/v1/core/sched/scheduler.py, k mode "ifr" (schedule_pd,
    _handle_phase_transition, _update_ifr_threshold, _evaluate_mode_switch). Ours: the costs are those that the
    device's profile predicts, means of prompts and running requests are simple running ones, KV of a prompt is taken
    whole, and a phase of prompts in which none can run becomes one of decodes.
    """

    mode: Literal["eb", "auto"] = "eb"
    """eb: always exclusive; auto: EB+."""
    max_num_batched_tokens: Tokens = 8192
    """Prompt tokens of a batch, of mixed ones all tokens; 8192: what vLLM takes on the GPUs of the paper."""
    k_ratio: ShareFrom0 = 0.0
    """The threshold, below 1; 0: estimated, at most 0.8."""
    auto_compute_n: bool = False
    """Limit N to what the KV holds with a probability of 1 - oom_tolerance; otherwise to its max_num_seqs."""
    oom_tolerance: Share = 0.01
    """Share of cycles that may run out of KV, with auto_compute_n."""
    mode_switch_delta: Seconds = 1e-4
    """Seconds per token that must be gained to change to exclusive batches under auto."""

    name: ClassVar[str] = "eb"
    paper: ClassVar[str] = "EB, EB+, ICML 2026, arXiv 2606.00516"
    knows: ClassVar[str] = "prompt length, outputs of finished requests, a latency profile"
    eviction: ClassVar[str] = "started prompts where KV gets short, else the youngest; recompute"
    evidence: ClassVar[str] = "public code, read; costs from the profile"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(STATE) + WINDOW * cells_of(VALUE)
    space: ClassVar[Space] = {
        "mode": ("eb", "auto"),
        "max_num_batched_tokens": (512, 1024, 2048, 4096, 8192),
        "k_ratio": (0.0, 0.05, 0.1, 0.2, 0.4),
        "auto_compute_n": (False, True),
        "mode_switch_delta": (1e-6, 1e-5, 1e-4),
    }

    def encode(self, name: str, value: float | str) -> float:
        """The mode as the number that the kernel compares."""
        return float(value == "auto" if name == "mode" else value)

    def params(self, config: EngineConfig) -> np.ndarray:
        """RULE, then the parameters of vLLM's mixed batches."""
        own = [self.encode(each, getattr(self, each)) for each in NUMBERS]
        costs = costs_of(self.predictor)
        vllm = VLLMV1(max_num_batched_tokens=self.max_num_batched_tokens).params(config)
        return np.concatenate([own, costs, vllm])


_rule, _state, _requests = record(RULE), record(STATE), records(REQUEST)
_outputs = series(VALUE, behind=STATE)
_plan_as_vllm: Any = VLLMV1.kernel
_VLLM = cells_of(RULE)
"""Where vLLM's parameters begin."""


@inner
def _is_short(row: np.record, s: np.record) -> bool:
    """Whether the free KV is less than what half the outputs of a batch need (5 to 60 % of all)."""
    needed = s.batch * 0.5 * s.output / row.block_size
    return bool(row.free_blocks < min(max(needed, 0.05 * row.num_blocks), 0.6 * row.num_blocks))


@inner
def _drop_prompts(view: View, plan: Plan) -> None:
    """Take the KV of started prompts."""
    for j in range(view.row[0].num_running):
        i = view.running[j]
        if not is_decode(view.request[i]):
            name(plan, i)
            take_kv(view, plan, i)


@inner
def _resize(view: View, s: np.record, batch: float) -> None:
    """Change the batch size, unless it would be too small: 16 requests, or a tenth of the seats."""
    if batch >= max(16, view.row[0].max_num_seqs // 10):
        s.batch, s.changed_s = batch, view.row[0].now


@inner
def _end_first(view: View, plan: Plan, s: np.record) -> None:
    """End the first phase of prompts: the batch is there, KV is short, or nobody waits."""
    row, started, short = view.row[0], view.row[0].num_prefilling > 0, _is_short(view.row[0], s)
    decodes = row.num_running - row.num_prefilling
    if s.prefilled >= s.batch:
        if not started or short:
            s.phase = DECODE
    elif short and decodes > 0:
        fitting = row.num_blocks * row.block_size / (s.prompt + 0.5 * s.output)
        _resize(view, s, min(min(fitting, float(row.max_num_seqs)), float(s.prefilled)))
        _drop_prompts(view, plan)
        s.phase = DECODE
    elif row.num_waiting == 0 and not started and decodes > 0:
        _resize(view, s, float(s.prefilled))
        s.phase = DECODE


@inner
def _end_decodes(view: View, s: np.record) -> None:
    """End a phase of decodes: as large a share has left, and is waited for, as the threshold says."""
    row, waiting = view.row[0], view.row[0].num_waiting + view.row[0].num_prefilling
    decodes = row.num_running - row.num_prefilling
    if s.batch < row.max_num_seqs and waiting >= row.max_num_seqs // 2 and row.now - s.changed_s >= RECOVERY_S:
        s.batch, s.changed_s = row.max_num_seqs, row.now
    if decodes > 0 and not _is_short(row, s):
        enough = max(1.0, np.floor(s.threshold * s.batch))
        missing = min(float(waiting), max(0.0, s.batch - decodes))
        if s.batch > enough and missing * (s.batch - enough) >= decodes * enough:
            s.phase, s.prefilled, s.target = REFILL, 0, int(missing)


@inner
def _end_refill(view: View, plan: Plan, s: np.record) -> None:
    """End a phase of prompts: they are done, nobody waits, or KV or seats are short."""
    row, started, short = view.row[0], view.row[0].num_prefilling > 0, _is_short(view.row[0], s)
    decodes = row.num_running > row.num_prefilling
    ready = s.prefilled >= s.target or short
    ready = ready or (decodes and (row.num_waiting + started == 0 or row.num_running >= row.max_num_seqs))
    if ready and (short or not started):
        if started:
            _drop_prompts(view, plan)
        s.phase = DECODE


@inner
def _go_on(view: View, plan: Plan, s: np.record, budget: int) -> None:
    """Chunks of started prompts."""
    row, draft = view.row[0], plan.draft[0]
    for j in range(row.num_running if row.num_prefilling > 0 else 0):
        i = view.running[j]
        r = view.request[i]
        if draft.tokens < budget and not is_decode(r):
            s.prefilled += r.prompt - r.prefilled <= budget - draft.tokens
            chunk(view, plan, i, budget - draft.tokens)


@inner
def _run_prompts(view: View, plan: Plan, s: np.record, budget: int) -> None:
    """Chunks of started prompts, then of as many new ones as the phase still wants."""
    draft = plan.draft[0]
    _go_on(view, plan, s, budget)
    target = s.batch if s.phase == FIRST else s.target
    while draft.tokens < budget and s.prefilled < target:
        i = first_waiting(view, plan)
        if i < 0:
            break
        if view.request[i].prompt > view.row[0].max_model_len:
            drop(plan, i)
            continue
        room, left = budget - draft.tokens, left_to_compute(view, plan, i)
        if not admit(view, plan, i, room):
            break
        s.prefilled += left <= room


@inner
def _run_decodes(view: View, plan: Plan) -> None:
    """A token for every decode, oldest first; one without a block takes those of the youngest."""
    row, draft, last = view.row[0], plan.draft[0], view.row[0].num_running
    for j in range(row.num_running):
        i = view.running[j]
        if j >= last or draft.tokens >= row.max_batched_tokens:
            break
        if not is_decode(view.request[i]):
            continue
        while last > j and not fits_decode(view, plan, i):
            last -= 1
            if not is_named(plan, view.running[last]):
                take_kv(view, plan, view.running[last])
        if last > j:
            decode(view, plan, i)


@inner
def _plan_apart(view: View, plan: Plan, ph: Phases) -> None:
    """The next batch of exclusive batching."""
    s, row = ph.state, view.row[0]
    if s.phase == FIRST:
        _end_first(view, plan, s)
    elif s.phase == DECODE:
        _end_decodes(view, s)
    else:
        _end_refill(view, plan, s)
    decodes, draft = row.num_running > row.num_prefilling, plan.draft[0]
    if s.phase == DECODE and not decodes and draft.victims == 0:
        reset(view, s)  # those that it has waited for have left already
    if s.phase != DECODE:
        _run_prompts(view, plan, s, min(int(ph.rule.max_num_batched_tokens), row.max_batched_tokens))
    if draft.tokens == 0 and decodes:
        s.phase = DECODE
        _run_decodes(view, plan)


@kernel_of(EB)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, s = _rule(memory.params), _state(memory.row)
    served = Served(s.served, _requests(memory.request).served)
    ph = Phases(p, s, Recent(s.outputs, _outputs(memory.row), WINDOW))
    if s.started == 0:
        start(view, p, s)
    learn(view, ph, served)
    if s.mixes:
        _plan_as_vllm(view, Memory(memory.params[_VLLM:], memory.request, memory.row), plan)
    else:
        _plan_apart(view, plan, ph)
    watch_served(view, plan, served)
