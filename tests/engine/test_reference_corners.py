"""Corners of the public SLAI code (agrimUT/SLAI 5098a7a) that its recorded traces do not reach, derived by hand.

The rules are those of its schedulers: Sarathi's and vLLM's admission looks at the head of the queue and drops an
over-long prompt before it asks whether tokens are left; a call that only drops has no batch, so the clock goes on at
the next arrival; Orca and FasterTransformer reserve ceil(max_model_len / block) blocks and never take another.
Iterations last 1 s, finishing a prompt emits nothing.
"""

from typing import Any

import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.server.state import DROPPED, FINISHED
from tests.toys import constant

SECOND = constant(1.0)


def run(spec: str, requests: Requests, **limits: Any) -> Record:
    """A run with its step log; the compiled loop must agree with it."""
    config = EngineConfig.reference(block_size=4, **limits)
    record, compiled = (
        simulate(baselines.make(spec), requests, SECOND, config, log_steps=log_steps) for log_steps in (True, False)
    )
    for name in ("request", "ledger", "row"):
        assert getattr(record, name).tobytes() == getattr(compiled, name).tobytes()
    return record


def steps(record: Record) -> list[tuple[float, float, list[tuple[int, int]], list[int], int]]:
    """Start, duration, (request, tokens), dropped and used blocks of each logged step."""
    log = record.steps
    assert log is not None
    return [
        (start, seconds, [(i, n) for i, n, _ in batch.tolist()], dropped, used)
        for start, seconds, batch, dropped, used in zip(
            log.start_s.tolist(),
            log.duration_s.tolist(),
            log.batches,
            log.dropped,
            log.used_blocks.tolist(),
            strict=True,
        )
    ]


@pytest.mark.parametrize("order", ["fcfs", "spf"])
def test_sarathi_drops_an_over_long_prompt_at_the_head_with_its_budget_used_up(order: str) -> None:
    """Chunk 8, limit 16. Request 0: 16 + 2 at 0 s; request 1: 17 + 1 at 0.25 s; request 2: 8 + 1 at 0.5 s (fcfs only).

    t=0: 8 tokens of request 0 (all 4 blocks of its prompt). t=1: its other 8 use the budget up; request 1 is the head
    and over the limit: dropped in this call; request 2 fits but no token is left: stop. t=2: the decode of 0 takes a
    fifth block (17 tokens are to be held at the next, 16 now: none yet), then 7 tokens of request 2, 2 blocks. t=3: the
    decode of 0 (17 > 4 x 4: a fifth block) ends it; the last token of request 2. t=4: the decode of 2.
    In spf order the shorter request 2 would be looked at before; without it, the over-long prompt is the head as well.
    """
    if order == "spf":
        record = run(
            "sarathi:token_budget=8,order=spf", Requests.create([0.0, 0.25], [16, 17], [2, 1]), max_model_len=16
        )
        assert steps(record)[:2] == [(0.0, 1.0, [(0, 8)], [], 4), (1.0, 1.0, [(0, 8)], [1], 4)]
        assert record.ledger["completed"].tolist() == [4.0, 1.0]
        return
    requests = Requests.create([0.0, 0.25, 0.5], [16, 17, 8], [2, 1, 1])
    record = run("sarathi:token_budget=8", requests, max_model_len=16)
    assert steps(record) == [
        (0.0, 1.0, [(0, 8)], [], 4),
        (1.0, 1.0, [(0, 8)], [1], 4),
        (2.0, 1.0, [(0, 1), (2, 7)], [], 6),
        (3.0, 1.0, [(0, 1), (2, 1)], [], 2),
        (4.0, 1.0, [(2, 1)], [], 0),
    ]
    assert record.request["status"].tolist() == [FINISHED, DROPPED, FINISHED]
    assert record.ledger["completed"].tolist() == [4.0, 1.0, 5.0]


def test_slai_does_not_look_at_the_head_with_its_budget_used_up() -> None:
    """The same trace: SLAI's loop asks for tokens first, so request 1 is dropped one call later, at t=2."""
    requests = Requests.create([0.0, 0.25], [16, 17], [1, 1])
    record = run("slai:token_budget=8,order=fcfs", requests, max_model_len=16)
    assert record.ledger["completed"][1] == 2.0


def test_vllm_drops_an_over_long_prompt_behind_a_batch_that_uses_its_budget_up() -> None:
    """8 tokens per batch.

    t=0: request 0 (8) fills it; request 1 (17, over the limit) is the head: dropped in this call; request 2 (4) would
    make 12 tokens: stop. t=1: request 2 is prefilled alone. t=2: both decode once and end.
    """
    requests = Requests.create([0.0, 0.0, 0.0], [8, 17, 4], [1, 1, 1])
    record = run("vllm:max_batched_tokens=8", requests, max_model_len=16)
    assert steps(record) == [
        (0.0, 1.0, [(0, 8)], [1], 2),
        (1.0, 1.0, [(2, 4)], [], 3),
        (2.0, 1.0, [(0, 1), (2, 1)], [], 0),
    ]
    assert record.ledger["completed"].tolist() == [3.0, 0.0, 3.0]


def test_a_call_of_vllm_that_only_drops_has_no_batch_and_the_clock_goes_on_at_the_next_arrival() -> None:
    """Request 0: 4 + 2 at 0 s; request 1: 17, over the limit, at 0.5 s; request 2: 4 + 1 at 5 s.

    t=0: request 0 is prefilled. t=1: request 1 is dropped, and a call that has dropped decodes nobody: no batch, no
    time passes, the next call is at the next arrival. t=5: request 2 is prefilled. t=6, t=7: decodes.
    """
    requests = Requests.create([0.0, 0.5, 5.0], [4, 17, 4], [2, 1, 1])
    record = run("vllm", requests, max_model_len=16)
    assert steps(record) == [
        (0.0, 1.0, [(0, 4)], [], 1),
        (1.0, 0.0, [], [1], 1),
        (5.0, 1.0, [(2, 4)], [], 2),
        (6.0, 1.0, [(0, 1), (2, 1)], [], 1),
        (7.0, 1.0, [(0, 1)], [], 0),
    ]
    assert record.ledger["completed"].tolist() == [8.0, 1.0, 7.0]


@pytest.mark.parametrize("spec", ["orca", "fastertransformer"])
def test_a_reservation_is_never_exceeded_by_a_request_that_outgrows_the_model(spec: str) -> None:
    """Limit 8 tokens, blocks of 4: 2 blocks each, and 4 on the device. Both requests, 6 + 6, grow to 12 tokens.

    t=0: both prompts. t=1 ... t=6: six decodes each, for which an exact count would need a third block from length 9
    on. 4 blocks are in use after every step but the last, which releases them.
    """
    requests = Requests.create([0.0, 0.0], [6, 6], [6, 6])
    record = run(spec, requests, max_model_len=8, num_blocks=4, watermark=0.0)
    assert [(t, used) for t, _, _, _, used in steps(record)] == [(float(t), 4) for t in range(6)] + [(6.0, 0)]
    assert record.ledger["completed"].tolist() == [7.0, 7.0]
    assert record.ledger["delivered"].tolist() == [6, 6]


def test_other_policies_do_take_the_block_of_a_request_that_outgrows_the_model() -> None:
    """Sarathi holds ceil(length / 4) blocks: the decode at t=4 has 9 tokens to hold, a third block."""
    record = run("sarathi", Requests.create([0.0], [6], [6]), max_model_len=8)
    assert [used for *_, used in steps(record)] == [2, 2, 2, 2, 3, 3, 0]
