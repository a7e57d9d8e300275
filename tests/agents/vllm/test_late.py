"""How long launches take, by the step log of an engine that is played here."""

import numpy as np
import pytest

from agents.vllm.late import launch_of
from agents.vllm.plan import Cell, Plan
from agents.vllm.results import Measured, Served

HEAD = "start,seconds,prompt_tokens,decodes,context,prompts,prompt_context,running,waiting,held,planned,decide_us"
PLAN = Plan(policies=("stock",), rates=(1.0,))
NONE = np.zeros(0)
NOTHING = Served(NONE, NONE, NONE, NONE, NONE, ())


def _played(launch_s: float, batches: list[tuple[int, int, float]]) -> Measured:
    """A log of batches (prompt tokens, decodes, seconds on the device) whose results are seen after the next launch."""
    lines, scheduled, done, seen = [HEAD], 0.0, 0.0, 0.0
    for k, (prompt, decodes, took) in enumerate(batches):
        done = max(done, scheduled) + took
        following = batches[k + 1] if k + 1 < len(batches) else (0, 1, 0.0)
        scheduled_next = max(seen, scheduled)
        late = scheduled_next + (launch_s if sum(following[:2]) > 512 else 0.002)
        now = max(done, late)
        lines.append(f"{scheduled},{now - max(scheduled, seen)},{prompt},{decodes},0,1,0,0,0,0,-1,0")
        scheduled, seen = scheduled_next, now
    return Measured(Cell("stock", 1.0, 0), PLAN, NOTHING, None, tuple(lines))


def test_launch_of_long_batches_is_found_in_the_batches_before_them() -> None:
    cell = _played(0.03, 40 * [(0, 8, 0.01), (0, 8, 0.01), (900, 8, 0.025), (300, 8, 0.012)])
    found = launch_of([cell])
    assert found is not None
    assert found.seconds == pytest.approx(0.03, abs=0.002)
    assert found.launches == 40


def test_too_few_say_nothing() -> None:
    assert launch_of([_played(0.03, 10 * [(0, 8, 0.01), (900, 8, 0.025)])]) is None
    assert launch_of([Measured(Cell("plain", 1.0, 0), PLAN, NOTHING, None)]) is None
