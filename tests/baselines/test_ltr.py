"""LTR: the order of total lengths, whatever has been generated; promotion of those who wait long."""

from itertools import pairwise

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.plan import schedule, swap
from engine.server.state import Memory, Plan, View
from tests.toys import Improvised, constant

SECOND = constant(1.0)


def served(spec: str, requests: Requests) -> list[int]:
    """The first request of each iteration."""
    return [int(batch[0, 0]) for batch in steps(spec, requests).batches]


def steps(spec: str, requests: Requests) -> StepLog:
    """A run of one second per iteration."""
    record = simulate(baselines.make(spec), requests, SECOND, log_steps=True)
    assert record.steps is not None
    return record.steps


def test_tokens_generated_do_not_count() -> None:
    """Request 1 is shorter in total than request 0 and takes over, although more of it is left."""
    requests = Requests.create([0.0, 6.0], [3, 3], [9, 8], prediction=[9, 8])
    assert served("ltr:batch_cap=1", requests) == [0] * 6 + [1] * 8 + [0] * 3
    assert served("srtf:batch_cap=1", requests) == [0] * 9 + [1] * 8


def test_a_rank_that_is_wrong_is_believed() -> None:
    requests = Requests.create([0.0, 0.0], [3, 3], [2, 3], prediction=[9, 8])
    assert served("ltr:batch_cap=1", requests) == [1, 1, 1, 0, 0]


def test_with_perfect_ranks_it_is_the_order_of_total_lengths() -> None:
    """One request per iteration, always the one of those present with the smallest total output (ties: arrival)."""

    def shortest(view: View, memory: Memory, plan: Plan) -> None:
        row = view.row[0]
        present = [*view.queue[: row.num_waiting], *view.running[: row.num_running]]
        if not present:
            return
        best = min(present, key=lambda i: (lengths[i], i))
        r = view.request[best]
        schedule(plan, int(best), min(768, max(1, int(r.prompt - r.prefilled))))

    requests = Workload(rate=0.03, num_requests=60, lengths="lognormal:6,1,3,1,2048").generate(2)
    requests = requests.replace(prediction=requests.output)
    lengths = requests.output
    expected = simulate(Improvised(shortest), requests, SECOND, log_steps=True)
    assert expected.steps is not None
    order = [int(batch[0, 0]) for batch in expected.steps.batches]
    assert served("ltr:batch_cap=1", requests) == order
    returns = sum(a != b for a, b in pairwise(order))
    assert returns > len(requests) + 10, "requests were interrupted and taken up again"


def test_who_waits_too_long_is_promoted_for_a_quantum() -> None:
    requests = Requests.create([0.0, 0.0], [2, 2], [20, 30], prediction=[20, 30])
    order = served("ltr:batch_cap=1,starvation_threshold=5,quantum=2", requests)
    assert order[:16] == [0] * 5 + [1] * 2 + [0] * 5 + [1] * 2 + [0] * 2
    assert served("ltr:batch_cap=1", requests)[:20] == [0] * 20


def test_service_ends_the_idle_count() -> None:
    """Request 1 runs whenever request 0 does not, and 0 waits for nobody: nobody is promoted."""
    requests = Requests.create([0.0, 3.0, 7.0], [2, 2, 2], [12, 2, 2], prediction=[12, 2, 2])
    order = served("ltr:batch_cap=1,starvation_threshold=3", requests)
    assert order == [0] * 3 + [1] * 2 + [0] * 2 + [2] * 2 + [0] * 7


def test_promoted_requests_go_by_rank_among_themselves() -> None:
    requests = Requests.create([0.0] * 3, [2] * 3, [30, 9, 8], prediction=[1, 9, 8])
    order = served("ltr:batch_cap=1,starvation_threshold=4,quantum=3", requests)
    assert order[:8] == [0] * 4 + [2] * 3 + [1]


def test_promotion_shortens_the_longest_wait_in_overload() -> None:
    requests = Workload(rate=1.5, num_requests=400, lengths="lognormal:5,0.5,4.5,0.8,2048").generate(3)
    requests = requests.replace(prediction=requests.output)
    longest = {}
    for spec in ("ltr", "ltr:starvation_threshold=50"):
        record = simulate(baselines.make(f"{spec}{',' if ':' in spec else ':'}batch_cap=4"), requests, constant(0.02))
        waits = record.ledger["first_token"] - requests.arrival
        longest[spec] = float(np.max(waits))
    assert longest["ltr:starvation_threshold=50"] < 0.7 * longest["ltr"]


def plan_as_the_code_of_ltr(view: View, memory: Memory, plan: Plan, budget: int, cap: int) -> None:
    """`Scheduler._general_schedule` and `reserve_free_blocks` of hao-ai-lab/vllm-ltr, on lists."""
    row, size = view.row[0], int(view.row[0].block_size)
    running = {int(i) for i in view.running[: row.num_running]}
    ordered = sorted([*running, *map(int, view.queue[: row.num_waiting])], key=lambda i: view.request["prediction"][i])
    selected: list[tuple[int, int]] = []
    left, required = budget, 0

    def logical_blocks(i: int) -> int:
        return -(-int(view.request[i].length) // size)

    for i in ordered:
        r = view.request[i]
        tokens = min(max(1, int(r.prompt - r.prefilled)), left)
        if tokens == 0 or len(selected) == cap:
            break
        selected.append((i, tokens))
        left -= tokens
        required += 1 if i in running else logical_blocks(i) + int(r.host > 0)
    others, needed = ordered[len(selected) :], required - int(row.free_blocks) + int(row.watermark_blocks)
    for i in reversed(others):
        if needed <= 0:
            break
        if i in running:
            needed -= int(view.request[i].blocks)
            swap(plan, i)
    while needed > 0:
        i, _ = selected.pop()
        if i in running:
            needed -= 1 + int(view.request[i].blocks)
            swap(plan, i)
        else:
            needed -= logical_blocks(i) + int(view.request[i].host > 0)
    for i, tokens in selected:
        schedule(plan, i, tokens)


@pytest.mark.parametrize("seed", range(4))
def test_a_server_that_swaps_is_served_as_by_the_code_of_ltr(seed: int) -> None:
    requests = Workload(rate=25.0, num_requests=120, lengths="lognormal:4.5,0.7,4,0.8,500").generate(seed)
    requests = requests.replace(prediction=np.random.default_rng(seed).permutation(len(requests)) + 1.0)
    config = EngineConfig(
        num_blocks=120, max_model_len=1000, watermark=0.02, swap_bandwidth=25e9, kv_bytes_per_token=1000
    )

    def plan(view: View, memory: Memory, plan: Plan) -> None:
        plan_as_the_code_of_ltr(view, memory, plan, 96, 24)

    device = LatencyModel(overhead=0.004, floor=0.003, per_token=1e-4, per_pair=2e-7, per_context=4e-7)
    expected = simulate(Improvised(plan), requests, device, config)
    record = simulate(baselines.make("ltr:token_budget=96,batch_cap=24"), requests, device, config)
    assert record.row["swaps"][0] > 20
    for name in ("ledger", "row"):
        assert getattr(record, name).tobytes() == getattr(expected, name).tobytes(), name


def test_a_request_that_fills_the_memory_is_served() -> None:
    """LTR's count asks for a block more than it needs; where nobody else is there it runs in any case."""
    requests = Requests.create([0.0, 0.0], [30, 30], [34, 34], prediction=[1, 2])
    config = EngineConfig(block_size=16, num_blocks=4, watermark=0.0, max_model_len=64, swap_bandwidth=25e9)
    record = simulate(baselines.make("ltr"), requests, SECOND, config)
    assert record.row["finished"][0] == 2


@pytest.mark.parametrize(("field", "value"), [("starvation_threshold", -1), ("quantum", 0)])
def test_bad_parameters_are_refused(field: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"policy 'ltr': {field}: expected iterations >= \d, got {value}"):
        baselines.make(f"ltr:{field}={value}")
