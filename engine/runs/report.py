"""`Report`: the numbers of one run, in seconds, and as JSON; `engine.runs.metrics` says what each one means."""

import math
from dataclasses import dataclass
from typing import Any

from engine.runs.distribution import Distribution, finite

MEDIAN_TTFT_LIMIT_S = 0.5
"""Capacity: the median TTFT stays below this (SLAI, section 5)."""
P99_TTFT_LIMIT_S = 10.0
"""Capacity, sound criterion: the 99th percentile of TTFT stays below this."""
KEPT_UP_SHARE = 0.98
"""Capacity, sound criterion: at least this share is served or in service when the last request arrives."""

REPORT_FORMAT = "llmsched-report/2"
"""Version of the keys that `Report.to_dict` writes."""


@dataclass(frozen=True)
class TierReport:
    """The numbers of one tier (times in s, shares in 0..1)."""

    name: str
    strict: bool
    tbt_deadline_s: float
    ttft_deadline_s: float
    arrived: int
    completed: int
    ttft: Distribution
    itl: Distribution
    tpot: Distribution
    e2el: Distribution
    ttft_attainment: float
    tbt_attainment: float
    slo_attainment: float
    goodput: float
    late_gap_share: float

    @property
    def keeps_tbt(self) -> bool:
        """Whether the 99th percentile of the gaps is within the deadline (true for a tier without gaps)."""
        return not self.itl.p99 > self.tbt_deadline_s

    def to_dict(self) -> dict[str, Any]:
        """JSON form: vLLM's keys in milliseconds, attainments as shares."""
        return {
            "strict": self.strict,
            "tbt_deadline_ms": 1000.0 * self.tbt_deadline_s,
            "ttft_deadline_ms": 1000.0 * self.ttft_deadline_s,
            "arrived": self.arrived,
            "completed": self.completed,
            **self.ttft.to_dict("ttft"),
            **self.itl.to_dict("itl"),
            **self.tpot.to_dict("tpot"),
            **self.e2el.to_dict("e2el"),
            "ttft_attainment": finite(self.ttft_attainment),
            "tbt_attainment": finite(self.tbt_attainment),
            "slo_attainment": finite(self.slo_attainment),
            "slo_goodput": finite(self.goodput),
            "late_gap_share": finite(self.late_gap_share),
        }


@dataclass(frozen=True)
class PromptQuartile:
    """How a quarter of the requests, by prompt length, was served: who starves."""

    longest: int
    """Prompt tokens of the longest in it (0: nobody)."""
    ttft: Distribution
    max_wait_s: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form, in milliseconds as elsewhere."""
        return {"longest_prompt": self.longest, **self.ttft.to_dict("ttft"), "max_wait_s": finite(self.max_wait_s)}


@dataclass(frozen=True)
class Report:
    """The numbers of one run; the module docstring says what each means (times in s, shares in 0..1)."""

    policy: str
    num_requests: int
    arrived: int
    completed: int
    ended_by_length: int
    unfinished: int
    dropped: int
    warmup_s: float
    duration_s: float
    arrival_rate: float
    input_tokens: int
    output_tokens: int
    delivered_tokens: int
    max_concurrent_requests: int
    request_throughput: float
    output_throughput: float
    delivered_throughput: float
    token_throughput: float
    goodput: float
    request_goodput: float
    ttft: Distribution
    ttft_completed: Distribution
    itl: Distribution
    tpot: Distribution
    e2el: Distribution
    normalized_latency: Distribution
    ttft_attainment: float
    tbt_attainment: float
    slo_attainment: float
    late_gap_share: float
    kept_up_share: float
    tiers: tuple[TierReport, ...]
    prompt_quartiles: tuple[PromptQuartile, ...]
    iterations: int
    mean_iteration_s: float
    mean_batch_requests: float
    mean_batch_tokens: float
    busy_share: float
    kv_use: float
    evictions: int
    recomputed_tokens: int
    reused_tokens: int
    swaps: int
    swapped_out_bytes: float
    swapped_in_bytes: float
    max_waiting: int
    max_wait_s: float
    jain_index: float

    def __repr__(self) -> str:
        """The policy, what was served, medians; not every number (`to_dict` has them)."""
        return f"Report({self.outline()})"

    def outline(self) -> str:
        """The numbers that say most, in one line."""
        times = {"TTFT": self.ttft.p50, "TBT": self.itl.p50, "E2E": self.e2el.p50}
        medians = ", ".join(f"{name} {'-' if math.isnan(s) else f'{s:.3f} s'}" for name, s in times.items())
        return (
            f"{self.policy}: {self.completed} of {self.arrived} requests finished in {self.duration_s:.1f} s, "
            f"{self.verdict}; medians: {medians}"
        )

    @property
    def paper(self) -> bool:
        """Whether this load is within capacity by the paper's criterion; not where nobody has got a token yet."""
        return (
            self.delivered_tokens > 0
            and self.ttft.p50 < MEDIAN_TTFT_LIMIT_S
            and all(tier.keeps_tbt for tier in self.tiers)
        )

    @property
    def sound(self) -> bool:
        """Whether it is by the criterion that also catches starvation and growing queues."""
        return self.paper and self.ttft.p99 < P99_TTFT_LIMIT_S and self.kept_up_share >= KEPT_UP_SHARE

    @property
    def verdict(self) -> str:
        """One word for the load.

        `stable` (sound), `starving` (only the paper's criterion holds), `saturated` (growing queue), `late`;
        `unknown`: nothing is late or behind, but the run ended before there was a TTFT to judge by.
        """
        if self.paper:
            return "stable" if self.sound else "starving"
        if self.kept_up_share < KEPT_UP_SHARE:
            return "saturated"
        late = self.ttft.p50 >= MEDIAN_TTFT_LIMIT_S or not all(tier.keeps_tbt for tier in self.tiers)
        return "late" if late else "unknown"

    def to_dict(self) -> dict[str, Any]:
        """JSON form: keys and milliseconds of `vllm bench serve` where the meaning is the same, ours, and the tiers.

        Numbers that do not exist (a percentile of nothing) are None, so that the result is strict JSON.
        """
        return {
            "policy": self.policy,
            "num_prompts": self.num_requests,
            "arrived": self.arrived,
            "arrival_rate": finite(self.arrival_rate),
            "completed": self.completed,
            "ended_by_length": self.ended_by_length,
            "failed": self.unfinished + self.dropped,
            "unfinished": self.unfinished,
            "dropped": self.dropped,
            "warmup_s": self.warmup_s,
            "duration": self.duration_s,
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "delivered_tokens": self.delivered_tokens,
            "max_concurrent_requests": self.max_concurrent_requests,
            "request_throughput": finite(self.request_throughput),
            "output_throughput": finite(self.output_throughput),
            "delivered_throughput": finite(self.delivered_throughput),
            "total_token_throughput": finite(self.token_throughput),
            "request_goodput": finite(self.request_goodput),
            "slo_goodput": finite(self.goodput),
            **self.ttft.to_dict("ttft"),
            **self.ttft_completed.to_dict("ttft_completed"),
            **self.itl.to_dict("itl"),
            **self.tpot.to_dict("tpot"),
            **self.e2el.to_dict("e2el"),
            **self.normalized_latency.to_dict("normalized_latency"),
            "ttft_attainment": finite(self.ttft_attainment),
            "tbt_attainment": finite(self.tbt_attainment),
            "slo_attainment": finite(self.slo_attainment),
            "late_gap_share": finite(self.late_gap_share),
            "capacity": {"paper": self.paper, "sound": self.sound, "verdict": self.verdict},
            "kept_up_share": finite(self.kept_up_share),
            **self._server(),
            "tiers": {tier.name: tier.to_dict() for tier in self.tiers},
            "prompt_quartiles": {f"q{k + 1}": part.to_dict() for k, part in enumerate(self.prompt_quartiles)},
        }

    def _server(self) -> dict[str, Any]:
        return {
            "iterations": self.iterations,
            "mean_iteration_ms": finite(1000.0 * self.mean_iteration_s),
            "mean_batch_requests": finite(self.mean_batch_requests),
            "mean_batch_tokens": finite(self.mean_batch_tokens),
            "busy_share": finite(self.busy_share),
            "kv_use": finite(self.kv_use),
            "evictions": self.evictions,
            "recomputed_tokens": self.recomputed_tokens,
            "reused_tokens": self.reused_tokens,
            "swaps": self.swaps,
            "swapped_out_bytes": self.swapped_out_bytes,
            "swapped_in_bytes": self.swapped_in_bytes,
            "max_waiting": self.max_waiting,
            "max_wait_s": finite(self.max_wait_s),
            "jain_index": finite(self.jain_index),
        }
