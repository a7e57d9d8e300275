"""What a policy does: how long its batches are, whom they hold back and who overtakes, against KV use and load."""

from typing import NamedTuple

import numpy as np

from agents.evaluation.looks import BINS, Behaviour
from engine.compiled.jit import hot
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.policy import Policy
from engine.server.state import DROP, EVICT

UNTIL_S, FROM_S = 360.0, 60.0
"""The run is watched between these times."""


def behave(
    policy: Policy, requests: Requests, model: LatencyModel, config: EngineConfig, load: float | None = None
) -> Behaviour:
    """Watch a policy for some minutes of one trace, whose requests were asked for at this load (requests/s).

    What depends on the KV memory is over the iterations with prompt tokens, in BINS parts by the blocks in use; the
    shares of deadlines and of overtaking (a mean over prompt tokens) are over the whole time.
    """
    requests = requests.head(max(1, int(np.searchsorted(requests.arrival, UNTIL_S))))
    record = simulate(policy, requests, model, config, horizon_s=UNTIL_S, log_steps=True)
    steps = record.steps
    assert steps is not None
    prompts, decodes = _tokens(steps)
    seen = (steps.start_s >= FROM_S) & (prompts > 0)
    use = np.minimum((steps.used_blocks / config.num_blocks * BINS).astype(np.int64), BINS - 1)[seen]
    present = np.maximum(_decoding(record, steps.start_s), decodes)[seen]
    some = present > 0
    held = 1.0 - decodes[seen][some] / present[some]
    count = np.bincount(use, minlength=BINS)
    sums = _watch(record, steps)
    tiers = enumerate(requests.tiers)
    return Behaviour(
        policy=policy.spec,
        load=load,
        iterations=tuple(count.tolist()),
        batch_s=_means(steps.duration_s[seen], use, count),
        held_share=_means(held, use[some], np.bincount(use[some], minlength=BINS)),
        deadline_share={t.name: _mean(sums.deadlines[k], sums.gaps[k]) for k, t in tiers},
        overtaken_share=_mean(sums.overtaken[0], sums.overtaken[1]),
    )


def _tokens(steps: StepLog) -> tuple[np.ndarray, np.ndarray]:
    """Prompt tokens and decodes of each iteration, int64[iterations]."""
    iteration, n = np.repeat(np.arange(len(steps.start_s)), np.diff(steps.first)), len(steps.start_s)
    kind, tokens = steps.item[:, 2], steps.item[:, 1]
    prompts = np.bincount(iteration, np.where(kind == 1, tokens, 0), minlength=n)
    return prompts.astype(np.int64), np.bincount(iteration[kind == 0], minlength=n)


def _means(values: np.ndarray, part: np.ndarray, count: np.ndarray) -> tuple[float | None, ...]:
    sums = np.bincount(part, values, minlength=BINS)
    return tuple(_mean(total, n) for total, n in zip(sums, count, strict=True))


def _mean(total: float, count: float) -> float | None:
    return float(total / count) if count else None


def _decoding(record: Record, times: np.ndarray) -> np.ndarray:
    """Requests between the end of their prompt and of their output at these times, int64[times] (evicted ones too)."""
    began, ended = (record.ledger[name] for name in ("prompt_done", "completed"))
    began, ended = np.sort(began[began >= 0.0]), np.sort(ended[ended >= 0.0])
    return np.asarray(np.searchsorted(began, times, side="right") - np.searchsorted(ended, times, side="right"))


class _Progress(NamedTuple):
    """How far each request is, and the sums over the iterations so far."""

    arrival: np.ndarray  # float64[requests], s
    tier: np.ndarray  # int32[requests]
    tbt: np.ndarray  # float64[tiers], s, deadlines
    length: np.ndarray  # int64[requests], prompt and tokens so far
    left: np.ndarray  # int64[requests], prompt tokens to do (after an eviction those of the whole length)
    last: np.ndarray  # float64[requests], s, latest token; negative before the first
    deadlines: np.ndarray  # float64[tiers], sum of gaps between tokens / TBT deadline
    gaps: np.ndarray  # int64[tiers], how many
    overtaken: np.ndarray  # float64[2]: prompt tokens x share of the others that came earlier; those prompt tokens


def _watch(record: Record, steps: StepLog) -> _Progress:
    """Go through the iterations of a run once more."""
    requests, tiers = record.requests, record.requests.tiers
    lengths = requests.prompt.astype(np.int64)
    progress = _Progress(
        arrival=record.request["arrival"].copy(),
        tier=requests.tier.copy(),
        tbt=np.array([tier.tbt_s for tier in tiers]),
        length=lengths,
        left=lengths.copy(),
        last=np.full(len(requests), -1.0),
        deadlines=np.zeros(len(tiers)),
        gaps=np.zeros(len(tiers), np.int64),
        overtaken=np.zeros(2),
    )
    times = np.column_stack([steps.start_s, steps.start_s + steps.duration_s])
    _go_through(times, steps.first, steps.item, progress, FROM_S, record.config.prompt_emits)
    return progress


@hot
def _go_through(
    times: np.ndarray, first: np.ndarray, item: np.ndarray, progress: _Progress, since: float, prompt_emits: bool
) -> None:
    oldest, arrived = 0, 0  # all before `oldest` have their prompt done
    for step in range(times.shape[0]):
        start, end = times[step]
        batch = item[first[step] : first[step + 1]]
        oldest = _take_out(batch, progress, oldest)
        while arrived < progress.arrival.shape[0] and progress.arrival[arrived] <= start:
            arrived += 1
        while oldest < arrived and progress.left[oldest] == 0:
            oldest += 1
        if start >= since:
            _add_overtaken(batch, progress, oldest, arrived)
        for k in range(batch.shape[0]):
            if batch[k, 2] >= 0:
                _add_tokens(batch[k], progress, end, start >= since, prompt_emits)


@hot
def _take_out(batch: np.ndarray, progress: _Progress, oldest: int) -> int:
    """Let evicted requests begin anew and dropped ones go; returns the oldest request that may have prompt to do."""
    for k in range(batch.shape[0]):
        request, kind = batch[k, 0], batch[k, 2]
        if kind == EVICT:
            progress.left[request] = progress.length[request]
            oldest = min(oldest, request)
        elif kind == DROP:
            progress.left[request] = 0
    return oldest


@hot
def _prompts(left: np.ndarray, since: int, until: int) -> int:
    """How many of these requests have prompt tokens to do."""
    count = 0
    for request in range(since, until):
        count += left[request] > 0
    return count


@hot
def _add_overtaken(batch: np.ndarray, progress: _Progress, oldest: int, arrived: int) -> None:
    """Add, for each prompt chunk, the share of the other prompts present that came before it, times its tokens."""
    present = 0
    for k in range(batch.shape[0]):
        if batch[k, 2] != 1:
            continue
        if present == 0:
            present = _prompts(progress.left, oldest, arrived)
        if present < 2:
            return
        earlier = _prompts(progress.left, oldest, batch[k, 0])
        progress.overtaken[0] += batch[k, 1] * earlier / (present - 1)
        progress.overtaken[1] += batch[k, 1]


@hot
def _add_tokens(entry: np.ndarray, progress: _Progress, end: float, counts: bool, prompt_emits: bool) -> None:
    """Move a request on; add the gap before its token as a share of the deadline, by tier."""
    request = entry[0]
    if entry[2] == 1:
        progress.left[request] -= entry[1]
        if progress.left[request] > 0 or not prompt_emits:
            return
    tier, last = progress.tier[request], progress.last[request]
    if last >= 0.0 and counts:
        progress.deadlines[tier] += (end - last) / progress.tbt[tier]
        progress.gaps[tier] += 1
    progress.last[request] = end
    progress.length[request] += 1
