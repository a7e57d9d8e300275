"""The log of a run: the compiled loop writes the same as the loop in Python, whatever the room of its buffers."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs import steps
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from tests.toys import Observed

DEVICE = load_profile("rtx6000ada-mistral-7b")
SMALL = Workload(rate=9.0, num_requests=120, lengths="lognormal:5,1,4,1,2000").generate(0)
_INIT = steps.Steps.__init__
TIGHT = EngineConfig(num_blocks=130, max_model_len=2000)


def _both(name: str, requests: Requests, config: EngineConfig, **options: Any) -> tuple[StepLog, StepLog]:
    policy = baselines.make(name)
    requests = predict(requests, policy.channel, 0) if policy.channel else requests
    assert policy.runs_compiled
    assert not Observed(policy).runs_compiled
    records = [simulate(p, requests, DEVICE, config, log_steps=True, **options) for p in (policy, Observed(policy))]
    for name in ("request", "ledger", "row"):
        assert getattr(records[0], name).tobytes() == getattr(records[1], name).tobytes()
    assert records[0].steps is not None
    assert records[1].steps is not None
    return records[0].steps, records[1].steps


def _assert_equal(one: StepLog, other: StepLog) -> None:
    for field in dataclasses.fields(StepLog):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b), field.name


@pytest.mark.parametrize("name", ["sarathi", "slai", "vllm", "ltr", "alise", "rad"])
def test_compiled_and_python_loops_write_the_same_log(name: str) -> None:
    swapping = TIGHT.replace(swap_bandwidth=25e9)
    for config in (TIGHT, swapping, EngineConfig()):
        compiled, python = _both(name, SMALL, config)
        _assert_equal(compiled, python)
    assert len(compiled.start_s) > 300


def test_a_log_says_what_the_totals_say() -> None:
    log, _ = _both("vllm", SMALL, TIGHT.replace(swap_bandwidth=25e9))
    record = simulate(baselines.make("vllm"), SMALL, DEVICE, TIGHT.replace(swap_bandwidth=25e9))
    row = record.row[0]
    assert sum(map(len, log.evicted)) + sum(map(len, log.swapped)) == row["evictions"] + row["swaps"] > 0
    assert sum(int(batch[batch[:, 2] == 1, 1].sum()) for batch in log.batches) == row["prefill_tokens"]
    assert sum(int((batch[:, 2] == 0).sum()) for batch in log.batches) == row["decode_tokens"]
    assert log.duration_s.sum() == pytest.approx(row["busy"])
    assert len(log.batches) == len(log.evicted) == len(log.dropped) == len(log.start_s)


def test_buffers_that_fill_up_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = _both("slai", SMALL, TIGHT)
    for room in ((1, 1), (7, 300), (5000, 400)):
        monkeypatch.setattr(steps.Steps, "__init__", _with_room(*room))
        for log in _both("slai", SMALL, TIGHT):
            _assert_equal(whole, log)


def _with_room(count: int, items: int) -> Any:
    def init(self: steps.Steps, num_requests: int) -> None:
        _INIT(self, num_requests, count, items)

    return init


def test_a_horizon_ends_the_log() -> None:
    whole, _ = _both("sarathi", SMALL, EngineConfig())
    part, python = _both("sarathi", SMALL, EngineConfig(), horizon_s=10.0)
    _assert_equal(part, python)
    n = len(part.start_s)
    assert 0 < n < len(whole.start_s)
    assert np.array_equal(part.start_s, whole.start_s[:n])
    assert part.start_s[-1] < 10.0
    nothing, _ = _both("sarathi", SMALL, EngineConfig(), horizon_s=0.0)
    assert (len(nothing.start_s), nothing.batches, nothing.evicted) == (0, [], [])
