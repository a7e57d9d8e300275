"""P-PAS and P-PAS+: vLLM V1 with a smaller token budget while prompts press upon decodes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from baselines.parameters import RequestsFrom0, Tokens
from baselines.vllm_v1 import VLLMV1
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record
from engine.config import EngineConfig
from engine.server.moves import is_decode
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View

NUMBERS = ("ppas_b_cap", "ppas_plus", "ppas_large_prefill_threshold")
RULE = np.dtype([(name, "f8") for name in NUMBERS], align=True)
"""The numbers of the rule; behind them stand vLLM's parameters twice, with the large budget and with the small one."""


@dataclass(frozen=True)
class PPAS(Policy):
    """Plans as `vllm_v1`, with ppas_b_cap tokens while two prompts or more, started or waiting, and a decode are there.

    P-PAS+ has the small budget, too, beside a single started prompt that lacks many tokens and two decodes. Code:
    TimoSaemann/ppas-vllm 3e4bf10 scheduler/ppas_vllm_0.27.1.patch (vLLM RFC 52906); the budgets are those of its paper.
    """

    ppas_b_cap: Tokens = 1280
    """Tokens per iteration under pressure."""
    max_num_batched_tokens: Tokens = 16384
    """Tokens per iteration otherwise."""
    ppas_plus: bool = False
    """P-PAS+: a single long prompt counts as pressure."""
    ppas_large_prefill_threshold: Tokens = 65536
    """Tokens that it lacks at least."""
    max_num_seqs: RequestsFrom0 = 0
    """Requests that hold KV at the same time; 0: vLLM's default, 256 (the server's max_num_seqs also applies)."""

    name: ClassVar[str] = "ppas"
    paper: ClassVar[str] = "P-PAS, arXiv 2608.15171"
    knows: ClassVar[str] = "prompt length"
    eviction: ClassVar[str] = "youngest running request, recompute"
    evidence: ClassVar[str] = "public code, read; on vLLM V1 as replayed step by step"
    request_memory: ClassVar[int] = VLLMV1.request_memory
    row_memory: ClassVar[int] = VLLMV1.row_memory
    space: ClassVar[Space] = {
        "ppas_b_cap": (256, 384, 512, 768, 1280, 2048),
        "max_num_batched_tokens": (2048, 4096, 8192, 16384),
        "ppas_plus": (False, True),
        "ppas_large_prefill_threshold": (2048, 8192, 65536),
    }

    def params(self, config: EngineConfig) -> np.ndarray:
        """RULE, then vLLM's parameters with either budget."""
        budgets = (self.max_num_batched_tokens, self.ppas_b_cap)
        inside = [VLLMV1(max_num_batched_tokens=n, max_num_seqs=self.max_num_seqs).params(config) for n in budgets]
        return np.concatenate([np.array([float(getattr(self, name)) for name in NUMBERS]), *inside])


_rule = record(RULE)
_plan_as_vllm: Any = VLLMV1.kernel
LARGE = cells_of(RULE)
SMALL = LARGE + cells_of(params_of(VLLMV1))
"""Where vLLM's parameters with the large and with the small budget begin."""


@inner
def _missing(view: View) -> int:
    """Tokens that the started prompts lack."""
    row, missing = view.row[0], 0
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        if not is_decode(r):
            missing += r.prompt - r.prefilled
    return int(missing)


@inner
def _is_pressed(view: View, rule: np.record) -> bool:
    """Whether prompts press upon decodes."""
    row = view.row[0]
    decodes = row.num_running - row.num_prefilling
    if row.num_prefilling + row.num_waiting >= 2 and decodes > 0:
        return True
    lone = rule.ppas_plus > 0.0 and row.num_prefilling == 1 and decodes >= 2
    return bool(lone and _missing(view) >= rule.ppas_large_prefill_threshold)


@kernel_of(PPAS)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    first = SMALL if _is_pressed(view, _rule(memory.params)) else LARGE
    _plan_as_vllm(view, Memory(memory.params[first:], memory.request, memory.row), plan)
