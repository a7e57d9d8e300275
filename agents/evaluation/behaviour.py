"""What a policy does: how long its batches are, whom they hold back and who overtakes, against KV use and load."""

from typing import Any

import numpy as np

from engine.config import EngineConfig
from engine.latency import LatencyModel
from engine.policy import Policy
from engine.requests import Requests
from engine.simulate import Record, StepLog, simulate

UNTIL_S, FROM_S = 360.0, 60.0
"""The run is watched between these times."""
BINS = 10
"""Parts of the KV memory."""


def behave(policy: Policy, requests: Requests, model: LatencyModel, config: EngineConfig) -> dict[str, Any]:
    """Watch a policy for some minutes of one trace.

    Returns:
        Over iterations with prompt tokens, by use of the KV blocks (lists of BINS): `iterations`, `batch_s` (mean
        seconds), `held_share` (mean share of the decodes present that did not run; None where there was no iteration).
        Over the whole time: `deadline_share` by tier (mean gap between two tokens / TBT deadline), `overtaken_share`
        (of the other prompts present, the part that came before the one that runs, mean over prompt tokens: 0 is first
        come first served).
    """
    requests = requests.head(max(1, int(np.searchsorted(requests.arrival, UNTIL_S))))
    record = simulate(policy, requests, model, config, horizon_s=UNTIL_S, log_steps=True)
    steps = record.steps
    assert steps is not None
    prompts = np.array([int(batch[batch[:, 2] == 1, 1].sum()) for batch in steps.batches], np.int64)
    decodes = np.array([int(np.count_nonzero(batch[:, 2] == 0)) for batch in steps.batches], np.int64)
    seen = (steps.start_s >= FROM_S) & (prompts > 0)
    use = np.minimum((steps.used_blocks / config.num_blocks * BINS).astype(np.int64), BINS - 1)[seen]
    present = np.maximum(_decoding(record, steps.start_s), decodes)[seen]
    some = present > 0
    held = 1.0 - decodes[seen][some] / present[some]
    count = np.bincount(use, minlength=BINS)
    return {
        "iterations": count.tolist(),
        "batch_s": _means(steps.duration_s[seen], use, count),
        "held_share": _means(held, use[some], np.bincount(use[some], minlength=BINS)),
        "deadline_share": _deadline_shares(record, steps),
        "overtaken_share": _overtaken_share(record, steps),
    }


def _means(values: np.ndarray, part: np.ndarray, count: np.ndarray) -> list[float | None]:
    sums = np.bincount(part, values, minlength=BINS)
    return [float(total / n) if n else None for total, n in zip(sums, count, strict=True)]


def _decoding(record: Record, times: np.ndarray) -> np.ndarray:
    """Requests between the end of their prompt and of their output at these times, int64[times] (evicted ones too)."""
    began, ended = (record.ledger[name] for name in ("prompt_done", "completed"))
    began, ended = np.sort(began[began >= 0.0]), np.sort(ended[ended >= 0.0])
    return np.asarray(np.searchsorted(began, times, side="right") - np.searchsorted(ended, times, side="right"))


def _deadline_shares(record: Record, steps: StepLog) -> dict[str, float | None]:
    tiers = record.requests.tiers
    last = record.ledger["prompt_done"].copy()
    deadline = np.array([tier.tbt_s for tier in tiers])[record.requests.tier]
    total, count = np.zeros(len(tiers)), np.zeros(len(tiers), np.int64)
    for start, duration, batch in zip(steps.start_s, steps.duration_s, steps.batches, strict=True):
        decoding = batch[batch[:, 2] == 0, 0]
        if len(decoding) and start >= FROM_S:
            tier = record.requests.tier[decoding]
            total += np.bincount(tier, (start + duration - last[decoding]) / deadline[decoding], len(tiers))
            count += np.bincount(tier, minlength=len(tiers))
        last[decoding] = start + duration
    return {tier.name: float(total[k] / count[k]) if count[k] else None for k, tier in enumerate(tiers)}


def _overtaken_share(record: Record, steps: StepLog) -> float | None:
    done = record.ledger["prompt_done"]
    done, arrival = np.where(done >= 0.0, done, np.inf), record.requests.arrival
    oldest, total, tokens = 0, 0.0, 0
    for start, batch in zip(steps.start_s, steps.batches, strict=True):
        while oldest < len(done) and done[oldest] <= start:
            oldest += 1
        chunks = batch[batch[:, 2] == 1]
        if start < FROM_S or len(chunks) == 0:
            continue
        lacking = np.cumsum(done[oldest : int(np.searchsorted(arrival, start, side="right"))] > start)
        if len(lacking) and lacking[-1] > 1:
            earlier = lacking[chunks[:, 0] - oldest] - 1
            total += float((chunks[:, 1] * earlier).sum()) / (lacking[-1] - 1)
            tokens += int(chunks[:, 1].sum())
    return total / tokens if tokens else None
