"""A compiled run comes back to Python about once a second, and what it computes does not depend on that."""

import _thread
import sys
import threading
from typing import Any

import numpy as np
import pytest

import baselines
from baselines.sarathi import Sarathi
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs import pieces
from engine.runs.driving import PolicyError
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.runs.steps import OVER

simulate_module: Any = sys.modules["engine.runs.simulate"]
PROFILE = load_profile("rtx6000ada-mistral-7b")


def served(policy: str, requests: Requests, horizon_s: float = float("inf")) -> Record:
    return simulate(baselines.make(policy), requests, PROFILE, horizon_s=horizon_s)


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Up to where each piece was to go; pieces are as long as the test's FIRST_PIECE says."""
    seen: list[int] = []
    compiled = simulate_module._compiled_run()

    def run(*given: Any) -> int:
        seen.append(given[-1])
        return int(compiled(*given))

    monkeypatch.setattr(pieces, "HAS_CLOCK", True)
    monkeypatch.setattr(simulate_module, "_compiled_run", lambda: run)
    return seen


@pytest.mark.parametrize("policy", ["sarathi", "slai", "vllm", "mlfq"])
@pytest.mark.parametrize("piece", [1, 7, 500])
def test_pieces_of_any_size_give_the_same_record(
    stops: list[int], monkeypatch: pytest.MonkeyPatch, policy: str, piece: int
) -> None:
    requests = Workload(rate=4.0, num_requests=30, lengths="lognormal:5,1,3,1,2000").generate(0)
    records = []
    for first in (10**9, piece):
        stops.clear()
        monkeypatch.setattr(pieces, "FIRST_PIECE", first)
        records.append(served(policy, requests))
    assert len(stops) >= int(records[0].row["iterations"][0]) // piece
    for name in ("request", "ledger", "tier", "gaps", "row"):
        one, many = (getattr(record, name) for record in records)
        assert np.array_equal(one.view(np.uint8), many.view(np.uint8)), name


def test_a_horizon_and_a_limit_end_a_run_in_pieces_too(stops: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Workload(rate=4.0, num_requests=60).generate(0)
    whole = served("sarathi", requests, horizon_s=5.0)
    monkeypatch.setattr(pieces, "FIRST_PIECE", 3)
    again = served("sarathi", requests, horizon_s=5.0)
    assert whole.row.tobytes() == again.row.tobytes()

    def shortly(run: Any, loop: Any, max_decisions: int, on_progress: Any) -> int:
        return pieces.run_in_pieces(run, loop, 10)

    monkeypatch.setattr(simulate_module, "run_in_pieces", shortly)
    stops.clear()
    with pytest.raises(PolicyError, match="made no end within"):
        served("sarathi", requests)
    assert stops == [3, 6, 9, 10]


def test_without_a_clock_a_piece_is_sized_by_how_long_the_last_one_took(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    now = 0.0

    def run(*given: Any) -> int:
        """A decision takes 1 ms, then 10 ms."""
        nonlocal now
        count, stop = given[-2:]
        asked.append(stop - int(count[0]))
        now += (stop - int(count[0])) * (0.001 if len(asked) < 4 else 0.01)
        count[0] = stop
        return OVER if len(asked) == 7 else pieces.PAUSED

    monkeypatch.setattr(pieces, "HAS_CLOCK", False)
    monkeypatch.setattr(pieces, "FIRST_PIECE", 500)
    monkeypatch.setattr("engine.runs.pieces.time.perf_counter", lambda: now)
    loop: Any = (None,) * 5
    assert pieces.run_in_pieces(run, loop, 10**9) == OVER
    assert asked == [500, 500, 500, 500, 50, 50, 50]


def test_an_interrupt_ends_a_long_run() -> None:
    """Of some minutes: what Ctrl-C does while compiled code runs is heard within about a second."""
    requests = Workload(rate=50.0, num_requests=400_000, lengths="fixed:16,400").generate(0)
    served("sarathi", requests.head(10))
    threading.Timer(1.0, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        served("sarathi", requests)


class _PlainSarathi(Sarathi):
    """Sarathi without a kernel: the loop is driven from Python."""

    name = "plain-sarathi"

    def plan(self, view: Any, memory: Any, plan: Any) -> None:
        assert self.kernel is not None
        self.kernel.function(view, memory, plan)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_run_says_how_far_it_is_and_is_the_same_run(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    requests = Workload(rate=4.0, num_requests=30).generate(0)
    monkeypatch.setattr(pieces, "HAS_CLOCK", True)
    monkeypatch.setattr(pieces, "FIRST_PIECE", 50)
    monkeypatch.setattr(pieces, "PIECE_S", 0.0)
    told: list[tuple[int, int]] = []
    policy = baselines.make("sarathi") if compiled else _PlainSarathi()
    again = simulate(policy, requests, pieces.Watched(PROFILE, lambda done, total: told.append((done, total))))
    assert again.row.tobytes() == served("sarathi", requests).row.tobytes()
    assert len(told) > 3
    assert told == sorted(told)
    assert {total for _, total in told} == {30}
    assert told[0][0] == 0
    assert 20 < told[-1][0] <= 30
