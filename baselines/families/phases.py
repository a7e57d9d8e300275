"""What exclusive batching (EB, EB+) knows: its phase, and what it estimates from requests that have finished."""

from typing import Any, NamedTuple

import numpy as np

from baselines.families.exclusive import (
    COSTS,
    LEAST,
    MOST,
    base_threshold,
    correction,
    fit_hazard,
    gain_of_exclusive,
    safe_batch,
)
from baselines.families.finished import RING, SERVING, Recent, Served, count_finished, remember_value
from engine.compiled.jit import inner
from engine.server.state import View

FIRST, DECODE, REFILL = range(3)
"""Phases: prompts until a batch is there, decodes until enough have finished, prompts in their place."""
WINDOW, FEWEST, UPDATE_EVERY = 500, 30, 100
"""Outputs remembered, how many are enough for an estimate, and finished requests between two of them."""
COLD_THRESHOLD, COLD_OUTPUT, COLD_PROMPT = 0.7, 100.0, 512.0
"""What is assumed until then: threshold, tokens of an output and of a prompt."""
THRESHOLD_WEIGHT, OUTPUT_WEIGHT, PROMPT_WEIGHT, SEATS_WEIGHT = 0.3, 0.2, 0.05, 0.05
"""Weights of the last value in running means."""
COOLDOWN, STICKY, FEW = 3, 3.0, 16.0
"""Estimates between two changes to or from mixed batches, how much more it takes to leave exclusive ones, and requests
below which nothing changes."""
RECOVERY_S = 2.0
"""Seconds between two changes of the batch size while decodes run."""

NUMBERS = ("mode", "max_num_batched_tokens", "k_ratio", "auto_compute_n", "oom_tolerance", "mode_switch_delta")
RULE = np.dtype([*((each, "f8") for each in NUMBERS), ("costs", COSTS)], align=True)
"""The parameters, before those of vLLM for mixed batches."""
STATE = np.dtype(
    [
        ("served", SERVING),
        ("outputs", RING),
        ("started", "i8"),  # whether the rest has its first values
        ("phase", "i8"),
        ("prefilled", "i8"),  # prompts done in this phase
        ("target", "i8"),  # that are to be done in it
        ("batch", "f8"),  # N: requests that run at once
        ("threshold", "f8"),  # share of them that finishes before others take their place
        ("estimated", "i8"),  # whether threshold and means are from what was seen
        ("output", "f8"),  # mean, tokens
        ("prompt", "f8"),  # mean, tokens
        ("finished", "i8"),  # requests since the last estimate, and their output tokens
        ("finished_tokens", "f8"),
        ("changed_s", "f8"),  # when the batch size changed last
        ("mixes", "i8"),  # whether batches are mixed now
        ("cooldown", "i8"),
        ("running", "f8"),  # mean of requests with KV
    ],
    align=True,
)
"""What is remembered of the server, before a series of VALUE."""


class Phases(NamedTuple):
    """What one plan is made with."""

    rule: Any  # RULE
    state: Any  # STATE
    outputs: Recent


@inner
def start(view: View, p: np.record, s: np.record) -> None:
    """First values of what is remembered."""
    s.started, s.batch, s.threshold = 1, view.row[0].max_num_seqs, p.k_ratio if p.k_ratio > 0.0 else COLD_THRESHOLD
    s.output, s.prompt, s.mixes, s.running = COLD_OUTPUT, COLD_PROMPT, p.mode, s.batch


@inner
def reset(view: View, s: np.record) -> None:
    """Begin with prompts again, for as many as there are seats."""
    s.batch, s.changed_s = view.row[0].max_num_seqs, view.row[0].now
    s.phase, s.prefilled, s.target = FIRST, 0, 0


@inner
def _estimate_threshold(view: View, ph: Phases) -> None:
    """The threshold, and with auto_compute_n the batch, from the last outputs."""
    p, s, row = ph.rule, ph.state, view.row[0]
    p0, eta = fit_hazard(ph.outputs.value, int(ph.outputs.row.held))
    base = base_threshold(p.costs, p0)
    found = min(max(base + correction(p.costs, base, p0, eta, s.batch), LEAST), MOST)
    if p.k_ratio > 0.0:
        s.threshold = p.k_ratio
    elif s.estimated == 0:
        s.threshold = found
    else:
        s.threshold += THRESHOLD_WEIGHT * (found - s.threshold)
    if p.auto_compute_n:
        safe = safe_batch(s.threshold, p0, s.prompt, float(row.num_blocks * row.block_size), p.oom_tolerance)
        s.batch = min(max(safe, 1.0), float(row.max_num_seqs))


@inner
def _choose_mode(view: View, ph: Phases) -> None:
    """Mixed or exclusive batches, whichever are predicted to take less time for a token by a margin."""
    p, s, row = ph.rule, ph.state, view.row[0]
    if s.cooldown > 0:
        s.cooldown -= 1
        return
    gain = gain_of_exclusive(p.costs, s.threshold, max(s.running, 1.0), s.prompt, s.output)
    if s.running < FEW or (gain <= p.mode_switch_delta if s.mixes else gain >= -STICKY * p.mode_switch_delta):
        return
    s.mixes, s.cooldown, s.phase, s.prefilled, s.target = 1 - s.mixes, COOLDOWN, FIRST, 0, 0
    decodes = row.num_running - row.num_prefilling
    if s.mixes == 0 and decodes > 0:
        s.phase, s.prefilled = DECODE, decodes
        s.batch = min(decodes + row.num_waiting, row.max_num_seqs)


@inner
def learn(view: View, ph: Phases, served: Served) -> None:
    """Outputs of those that have finished; every 100 of them new estimates."""
    p, s = ph.rule, ph.state
    s.running += SEATS_WEIGHT * (view.row[0].num_running - s.running)
    for k in range(count_finished(view, served)):
        r = view.request[served.request[k].gone]
        remember_value(ph.outputs, float(r.generated))
        s.prompt += PROMPT_WEIGHT * (r.length - r.generated - s.prompt)
        s.finished += 1
        s.finished_tokens += r.generated
    if s.finished >= UPDATE_EVERY and ph.outputs.row.held >= FEWEST:
        _estimate_threshold(view, ph)
        mean = s.finished_tokens / s.finished
        s.output = s.output + OUTPUT_WEIGHT * (mean - s.output) if s.estimated else mean
        s.estimated, s.finished, s.finished_tokens = 1, 0, 0.0
        if p.mode:
            _choose_mode(view, ph)
