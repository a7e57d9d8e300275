"""Cross-checks of the specification that concern several policies: 1, 2 and 8; the others stand with their policy."""

from dataclasses import replace

import numpy as np
import pytest

import baselines
from baselines.slai import DECODE
from engine.compiled.records import records
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import DEFAULT_TIERS, Requests
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.metrics import summarize
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.server.state import FINISHED, Memory, Plan, View
from tests.toys import Observed, constant, tokens_of

MODEL = load_profile("rtx6000ada-mistral-7b")
SHORT, LONG = "lognormal:5,0.7,4.5,0.7,1024", "lognormal:7,0.7,4.5,0.7,8192"


def capacity(spec: str, lengths: str) -> float:
    """Requests per second of a server that always has work."""
    requests = Workload(arrivals="burst", num_requests=800, lengths=lengths).generate(1)
    return 800 / float(simulate(baselines.make(spec), requests, MODEL).row["now"][0])


def stable(spec: str, lengths: str, rate: float) -> bool:
    """Whether the server keeps up with the arrivals, deadlines apart."""
    requests = Workload(rate=rate, num_requests=3000, lengths=lengths).generate(2)
    return summarize(simulate(baselines.make(spec), requests, MODEL)).verdict != "saturated"


@pytest.mark.parametrize("lengths", [SHORT, LONG])
def test_1_orca_and_sarathi_are_stable_where_fastertransformer_is_and_beyond(lengths: str) -> None:
    limit = capacity("fastertransformer", lengths)
    assert all(stable(policy, lengths, 0.9 * limit) for policy in ("fastertransformer", "orca", "sarathi"))
    assert not stable("fastertransformer", lengths, 1.15 * limit)
    assert all(stable(policy, lengths, 1.15 * limit) for policy in ("orca", "sarathi"))


def with_deadline(seconds: float) -> Requests:
    """A trace whose tiers all have this TBT deadline."""
    tiers = tuple(replace(tier, tbt_s=seconds) for tier in DEFAULT_TIERS)
    return Workload(rate=6.0, num_requests=120, lengths=SHORT, tiers=tiers).generate(3)


def test_2_slai_without_deadlines_has_no_critical_decodes_and_with_them_at_0_only_such() -> None:
    for seconds, critical in ((1e9, False), (1e-300, True)):
        past: list[bool] = []

        def look(view: View, memory: Memory, plan: Plan, past: list[bool] = past) -> None:
            running = view.running[: view.row[0].num_running]
            for i in running[view.request["prefilled"][running] == view.request["prompt"][running]]:
                past.append(bool(view.row[0].now >= records(DECODE)(memory.request)[i].lst.key))

        simulate(Observed("slai:offset=0,pressure_offset=0", after=look), with_deadline(seconds), MODEL)
        assert len(past) > 1000
        assert set(past) == {critical}


def test_2_slai_with_deadlines_at_0_is_sarathi_with_all_decodes_first() -> None:
    def batches(spec: str) -> list[dict[int, int]]:
        steps = simulate(baselines.make(spec), with_deadline(1e-300), MODEL, log_steps=True).steps
        assert steps is not None
        return tokens_of(steps)

    assert batches("slai:order=fcfs,offset=0") == batches("sarathi:token_budget=512")


@pytest.mark.parametrize("swap_bandwidth", [0.0, 25e9])
@pytest.mark.parametrize("name", baselines.names())
def test_8_tokens_are_conserved(name: str, swap_bandwidth: float) -> None:
    """Work executed = prompts + decodes of what was served + what evictions made the server compute again."""
    policy = baselines.make(name)
    requests = Workload(rate=15.0, num_requests=150, lengths=SHORT).generate(4)
    requests = predict(requests, policy.channel, 0) if policy.channel else requests
    config = EngineConfig(num_blocks=150, max_model_len=1024, swap_bandwidth=swap_bandwidth, swap_space_gib=0.5)
    record: Record = simulate(policy, requests, constant(0.03), config, log_steps=True)
    assert record.steps is not None
    executed = sum(int(n) for batch in record.steps.batches for _, n, _ in batch)
    row, finished = record.row[0], record.request["status"] == FINISHED
    assert row.prefill_tokens + row.decode_tokens == executed
    # The last output token of a request is delivered, but never processed.
    useful = int((requests.prompt + requests.output - 1)[finished].sum())
    assert finished.all()
    assert executed == useful + row.recomputed_tokens
    assert row.recomputed_tokens >= 0
    assert (row.recomputed_tokens > 0) == (row.evictions > 0)
    assert np.array_equal(record.ledger["delivered"], requests.output)
