"""What comes between a device and its clients, by the log of an engine that is played here."""

import numpy as np
import pytest

from agents.vllm.late import late_of
from agents.vllm.plan import Cell, Plan
from agents.vllm.results import Measured, Served

HEAD = "start,seconds,prompt_tokens,decodes,context,prompts,prompt_context,running,waiting,held,planned,decide_us"
NONE = np.zeros(0)
PLAN = Plan(policies=("stock",), rates=(2.0,), num_requests=60)
CELL = Cell("stock", 2.0, 0)


def _played(launch_s: float, batches: list[tuple[int, int, float]]) -> tuple[str, ...]:
    """A log of batches (prompt tokens, decodes, seconds on the device) whose results are seen after the next launch."""
    lines, scheduled, done, seen = [HEAD], 0.0, 0.0, 0.0
    for k, (prompt, decodes, took) in enumerate(batches):
        done = max(done, scheduled) + took
        following = batches[k + 1] if k + 1 < len(batches) else (0, 1, 0.0)
        next_scheduled = max(seen, scheduled) + 0.001
        now = max(done, next_scheduled + (launch_s if sum(following[:2]) > 512 else 0.002))
        lines.append(f"{scheduled},{now - max(scheduled, seen)},{prompt},{decodes},0,{int(prompt > 0)},0,0,0,0,-1,0")
        scheduled, seen = next_scheduled, now
    return tuple(lines)


def test_launch_of_long_batches_is_found_in_the_batches_before_them() -> None:
    log = _played(0.03, 40 * [(0, 8, 0.01), (0, 8, 0.01), (900, 8, 0.025), (300, 8, 0.012)])
    late = late_of([Measured(CELL, PLAN, Served(np.zeros(60), NONE, NONE, NONE, NONE, ()), None, log)])
    assert late.launch_s == pytest.approx(0.031, abs=0.002)
    assert late.launches == 40


def test_way_to_the_engine_is_what_a_lone_prompt_took_beside_its_batch() -> None:
    """Each prompt runs alone, 4 ms after it was due and waiting for part of a batch, or for many."""
    prompts = PLAN.requests(CELL).prompt.tolist()
    log = _played(0.0, [(n, 0, 1e-5 * n) for n in prompts])
    rows = [[float(cell) for cell in line.split(",")] for line in log[1:]]
    ends = np.cumsum([row[1] for row in rows])
    took = np.array([end - row[0] for end, row in zip(ends, rows, strict=True)])
    waited = np.where(np.arange(60) % 2 == 0, 0.1, 0.001 * (np.arange(60) % 7))
    served = Served(took + waited + 0.004, NONE, NONE, NONE, NONE, ())
    assert late_of([Measured(CELL, PLAN, served, None, log)]).front_s == pytest.approx(0.004, abs=0.002)


def test_too_few_say_nothing() -> None:
    nothing = Served(NONE, NONE, NONE, NONE, NONE, ())
    late = late_of([Measured(CELL, PLAN, nothing, None), Measured(CELL, PLAN, nothing, None, _played(0.03, []))])
    assert np.isnan(late.launch_s)
    assert np.isnan(late.front_s)
