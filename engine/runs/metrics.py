"""Numbers from a record: what each of them means (seconds here; milliseconds in JSON).

- TTFT: arrival to the end of the iteration that yields output token 1. Queueing counts, an eviction does
  not reset it. A request that never got one (unfinished or dropped) is not left out: it enters with the
  time from its arrival to the end of the run, a lower bound. Reference semantics (config.ttft_at =
  prompt_done): arrival to the last completion of the prompt, finished requests only.
- TBT (itl): each single gap between consecutive output tokens of one request, pooled over requests.
  Percentiles come from a histogram, with a relative error below 0.2 %. Reference semantics
  (config.zero_gaps): two gaps of 0 s are added for each request, one when its prompt is complete, one at
  token 1.
- TPOT: (completion - token 1) / (output tokens - 1) of a finished request with at least 2 output tokens.
- E2E (e2el): arrival to completion of a finished request. Normalised latency: E2E / output tokens.
- SLO attainment: share of the arrived requests. TTFT: token 1 within the tier's TTFT deadline. TBT:
  finished, and no gap over the tier's TBT deadline. Joint: both. Unfinished and dropped requests have not
  attained it.
- Goodput (slo_goodput): requests that attained the joint SLO, per second of the run.
- Capacity, paper's criterion: median TTFT < 0.5 s and, in each tier, p99 TBT within its deadline.
- Capacity, sound criterion: also p99 TTFT < 10 s and no growing queue, that is: when the last request
  arrives, at least 98 % of those that arrived are finished, are receiving tokens, or are inside their TTFT
  deadline.
- Duration: time 0 (or the end of the warm-up) to the end of the last iteration, so the drain after the last
  arrival is included. Throughputs are per second of it.
- Arrival rate: n - 1 gaps over the time between the first and the last arrival of the n requests that
  count; a short run of random arrivals differs from the rate that was asked for.
- Closed loop: a request arrives when it is sent: due, with a place free, and its user done with thinking.
  TTFT, waits and E2E count from there, so what it waited at the client is not in them; the arrival rate is
  what came out, with the throughput it is the load that the loop makes.
- Ended by length: finished requests that reached max_model_len before they had all tokens they wanted
  (ended_by_length); their output counts as far as it went.
- Warm-up: requests that arrive before warmup_s are served but not counted in TTFT, TPOT, E2E, SLO and
  goodput. Gaps and the totals of the server (iterations, evictions, KV use, ...) always cover the whole
  run.
- Max wait: longest time from arrival to the first iteration of a request (to the end of the run if there
  was none).
- Prompt quartiles (Q1 to Q4): the requests in four parts by prompt length, the shortest first (equal
  lengths together); p99.9 TTFT and longest wait of each show who starves.
- Jain index: of the output tokens per second of presence of each arrived request; 1 = all served equally
  fast.
- KV use: share of the KV blocks in use, averaged over time. Busy share: share of the run spent in
  iterations.
- Recomputed tokens: KV tokens that were lost to evictions; those that requests found again in a prefix cache are reused
  tokens. Swaps: times that KV was moved to the host.
- Keys of vLLM: a key of `vllm bench serve --save-result` has vLLM's meaning here (vllm/benchmarks/serve.py,
  calculate_metrics). These are duration, num_prompts, completed, failed (dropped, or unfinished when the
  run ended), total_input_tokens and total_output_tokens (of finished requests), request_throughput,
  output_throughput, total_token_throughput, max_concurrent_requests (most finished requests present at one
  time), request_goodput (only with limits, `--goodput ttft:200 tpot:50`: finished requests whose TTFT, mean
  time per token and latency kept them, per second), and mean, median, std and percentiles (p99, p99.9) of
  ttft, tpot, itl and e2el in ms. TTFT and itl are vLLM's where no request failed; where some did, vLLM
  leaves them out, and ours count: ttft_completed has vLLM's numbers then. An empty sample is null here, 0
  there. vLLM's max_output_tokens_per_s and its lists of single requests are not written. All other keys are
  ours: slo_goodput, delivered_tokens and delivered_throughput (also of unfinished requests), arrived,
  unfinished, dropped, arrival_rate, maxima, attainments, capacity, tiers and the server's totals.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import InputError
from engine.runs.distribution import Distribution, Floats
from engine.runs.goodput import Goodput
from engine.runs.report import PromptQuartile, Report, TierReport
from engine.runs.times import Times, ratio

if TYPE_CHECKING:
    from engine.runs.record import Record


def gaps_of(gaps: np.ndarray, totals: np.ndarray, ledger: np.ndarray | None = None) -> Distribution:
    """Gaps between tokens of some tiers, pooled.

    Args:
        gaps: their histograms, int32[tiers, NUM_GAP_BUCKETS].
        totals: their TIER records.
        ledger: LEDGER records of their requests where the zero samples of the reference semantics count.
    """
    histogram = gaps.sum(axis=0, dtype=np.int64) if len(gaps) > 1 else gaps[0].astype(np.int64)
    if ledger is not None:
        histogram[0] += np.count_nonzero(ledger["prompt_done"] >= 0.0)
        histogram[0] += np.count_nonzero(ledger["first_token"] >= 0.0)
    return Distribution.of_gaps(histogram, float(totals["gap_sum"].sum()), float(totals["max_gap"].max()))


def late_gap_share(gaps: np.ndarray, totals: np.ndarray) -> float:
    """Share of the gaps of some tiers that were over the deadline; nan without a gap (arguments as for `gaps_of`)."""
    return ratio(totals["late_gaps"].sum(), float(gaps[gaps != 0].sum(dtype=np.int64)))


def _gaps(record: Record, tier: int | None) -> Distribution:
    """Gaps of one tier (None: of all tiers), with the zero samples of the reference semantics."""
    tiers = slice(None) if tier is None else slice(tier, tier + 1)
    ledger = None
    if record.config.zero_gaps:
        ledger = record.ledger if tier is None else record.ledger[record.request["tier"] == tier]
    return gaps_of(record.gaps[tiers], record.tier[tiers], ledger)


def _tier_report(record: Record, times: Times, index: int, duration_s: float) -> TierReport:
    tier = record.requests.tiers[index]
    chosen = times.tier == index
    arrived = int(np.count_nonzero(chosen))
    good = np.count_nonzero(times.good & chosen)
    finished = chosen & times.finished
    return TierReport(
        name=tier.name,
        strict=tier.strict,
        tbt_deadline_s=tier.tbt_s,
        ttft_deadline_s=tier.ttft_s,
        arrived=arrived,
        completed=int(np.count_nonzero(finished)),
        ttft=Distribution.of(times.ttft[chosen & times.has_ttft]),
        itl=_gaps(record, index),
        tpot=Distribution.of(times.tpot(chosen)),
        e2el=Distribution.of(times.e2e[finished]),
        ttft_attainment=ratio(np.count_nonzero(times.ttft_met & chosen), arrived),
        tbt_attainment=ratio(np.count_nonzero(times.tbt_met & chosen), arrived),
        slo_attainment=ratio(good, arrived),
        goodput=ratio(good, duration_s),
        late_gap_share=late_gap_share(record.gaps[index : index + 1], record.tier[index : index + 1]),
    )


def _prompt_quartiles(times: Times) -> tuple[PromptQuartile, ...]:
    edges = np.quantile(times.prompt, [0.25, 0.5, 0.75]) if len(times.prompt) else np.zeros(3)
    part = np.searchsorted(edges, times.prompt)
    found = []
    for k in range(4):
        chosen = part == k
        longest = int(times.prompt[chosen].max(initial=0))
        wait = float(times.wait[chosen].max()) if chosen.any() else math.nan
        found.append(PromptQuartile(longest, Distribution.of(times.ttft[chosen & times.has_ttft]), wait))
    return tuple(found)


def ttft_samples(record: Record, *, warmup_s: float = 0.0) -> Floats:
    """TTFT of every request that counts (s), in order of arrival: the sample behind the report's percentiles."""
    times = Times(record, warmup_s)
    return np.asarray(times.ttft[times.has_ttft])


def _server_totals(record: Record) -> dict[str, Any]:
    """Fields of a report that are totals of the server over the whole run."""
    row = record.row[0]
    iterations, end = int(row["iterations"]), float(row["now"])
    return {
        "iterations": iterations,
        "mean_iteration_s": ratio(row["busy"], iterations),
        "mean_batch_requests": ratio(row["batch_requests"], iterations),
        "mean_batch_tokens": ratio(int(row["prefill_tokens"] + row["decode_tokens"]), iterations),
        "busy_share": ratio(row["busy"], end),
        "kv_use": ratio(row["kv_time"], end * float(row["num_blocks"])),
        "evictions": int(row["evictions"]),
        "recomputed_tokens": int(row["recomputed_tokens"]),
        "reused_tokens": int(row["reused_tokens"]),
        "swaps": int(row["swaps"]),
        "swapped_out_bytes": 0.5 * record.config.block_bytes * int(row["swapped_out"]),
        "swapped_in_bytes": 0.5 * record.config.block_bytes * int(row["swapped_in"]),
        "max_waiting": int(row["max_waiting"]),
    }


def summarize(record: Record, *, warmup_s: float = 0.0, goodput: Goodput | None = None) -> Report:
    """Make the numbers of a run; the module docstring defines them.

    Args:
        record: what `simulate` returned.
        warmup_s: requests that arrive before this time (s) are not counted.
        goodput: limits of vLLM's `request_goodput`, which there is only with them.

    Raises:
        InputError: the warm-up is negative, not finite, or not over when the run ends.
    """
    end = float(record.row["now"][0])
    if not 0.0 <= warmup_s < math.inf or (warmup_s > 0.0 and warmup_s >= end):
        raise InputError(f"warmup_s: expected seconds in [0, {end:.6g}) (the run's end), got {warmup_s!r}")
    times = Times(record, warmup_s)
    duration = end - warmup_s
    done, good, everyone = times.finished, np.count_nonzero(times.good), np.ones(len(times.arrival), np.bool_)
    arrived, completed, dropped = (int(np.count_nonzero(of)) for of in (everyone, done, times.dropped))
    input_tokens, output_tokens = (int(of[done].sum(dtype=np.int64)) for of in (times.prompt, times.output))
    delivered_tokens = int(times.delivered.sum(dtype=np.int64))
    e2e = times.e2e[done]
    return Report(
        policy=record.policy,
        num_requests=len(record.requests),
        arrived=arrived,
        completed=completed,
        ended_by_length=int(np.count_nonzero(times.at_length)),
        unfinished=arrived - completed - dropped,
        dropped=dropped,
        warmup_s=warmup_s,
        duration_s=duration,
        arrival_rate=times.arrival_rate(),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        delivered_tokens=delivered_tokens,
        max_concurrent_requests=times.max_concurrent(),
        request_throughput=ratio(completed, duration),
        output_throughput=ratio(output_tokens, duration),
        delivered_throughput=ratio(delivered_tokens, duration),
        token_throughput=ratio(input_tokens + output_tokens, duration),
        request_goodput=times.request_goodput(goodput, duration),
        goodput=ratio(good, duration),
        ttft=Distribution.of(times.ttft[times.has_ttft]),
        ttft_completed=Distribution.of(times.ttft[done]),
        itl=_gaps(record, None),
        tpot=Distribution.of(times.tpot(everyone)),
        e2el=Distribution.of(e2e),
        normalized_latency=Distribution.of(e2e / times.output[done]),
        ttft_attainment=ratio(np.count_nonzero(times.ttft_met), arrived),
        tbt_attainment=ratio(np.count_nonzero(times.tbt_met), arrived),
        slo_attainment=ratio(good, arrived),
        late_gap_share=late_gap_share(record.gaps, record.tier),
        kept_up_share=times.kept_up_share(),
        tiers=tuple(_tier_report(record, times, k, duration) for k in range(len(record.requests.tiers))),
        prompt_quartiles=_prompt_quartiles(times),
        **_server_totals(record),
        max_wait_s=float(times.wait.max()) if arrived else math.nan,
        jain_index=times.jain_index(),
    )


__all__ = ["gaps_of", "late_gap_share", "summarize", "ttft_samples"]
