"""What each of the published policies does on small traces."""

import numpy as np
import pytest

import baselines
from baselines.slai import DECODE
from engine.compiled.records import records
from engine.config import EngineConfig
from engine.demand.requests import Requests, Tier
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.kv import blocks_for
from engine.server.state import Memory, Plan, View
from tests.toys import Observed, burst, constant, planned

MODEL = LatencyModel(overhead=0.01, floor=0.0, per_token=1e-4, per_pair=0.0, per_context=0.0)
SECOND = constant(1.0)
BUSY = Workload(rate=40.0, num_requests=150, lengths="lognormal:5,0.7,4,0.7,1024").generate(5)
ROOMY = EngineConfig(num_blocks=4000, max_model_len=1024)
TIGHT = EngineConfig(num_blocks=100, max_model_len=1024)


def with_deadline(requests: Requests, tbt_s: float) -> Requests:
    """The same requests, all in one tier."""
    return requests.replace(tier=np.zeros(len(requests)), tiers=(Tier("all", 1.0, tbt_s),))


def run(spec: str, requests: Requests = BUSY, config: EngineConfig = ROOMY) -> Record:
    """A run with its step log."""
    return simulate(baselines.make(spec), requests, MODEL, config, log_steps=True)


def steps_of(record: Record) -> StepLog:
    """The step log."""
    assert record.steps is not None
    return record.steps


def batches(record: Record) -> list[tuple[dict[int, int], list[int]]]:
    """Of each iteration: prompt tokens by request, and the decodes."""
    return [
        ({int(i): int(n) for i, n, p in batch if p}, [int(i) for i, _, p in batch if not p])
        for batch in steps_of(record).batches
    ]


def admissions(record: Record) -> list[int]:
    """Requests in the order of their first iteration (and place in its batch)."""
    order: dict[int, None] = {}
    for batch in steps_of(record).batches:
        order |= dict.fromkeys(int(i) for i in batch[:, 0])
    return list(order)


def evictions(record: Record) -> list[int]:
    """Every eviction in order."""
    return [i for evicted in steps_of(record).evicted for i in evicted]


def running(view: View) -> list[int]:
    """Requests that hold KV."""
    return [int(i) for i in view.running[: view.row[0].num_running]]


def decodes(view: View) -> set[int]:
    """Requests that hold KV and have their prompt done."""
    return {i for i in running(view) if view.request[i].prefilled == view.request[i].prompt}


def test_vllm_never_mixes_prompts_and_decodes_and_prefers_prompts() -> None:
    cap = 40
    kinds: set[bool] = set()

    def look(view: View, memory: Memory, plan: Plan) -> None:
        present, chosen = decodes(view), planned(plan)
        kinds.update(i in present for i, _ in chosen)
        named = {i for i, _ in chosen}
        if named & present:
            assert named == present == set(running(view))
            assert not view.row[0].num_waiting or len(present) == cap

    simulate(Observed(f"vllm:batch_cap={cap}", after=look), BUSY, MODEL, ROOMY)
    assert kinds == {False, True}


def test_vllm_prefills_whole_prompts_up_to_its_limit_and_drops_longer_ones() -> None:
    record = run("vllm:max_batched_tokens=30", burst([20, 10, 5, 31, 30], [2] * 5))
    prefills = [prompts for prompts, _ in batches(record) if prompts]
    assert prefills == [{0: 20, 1: 10}, {2: 5}, {4: 30}]
    assert [i for dropped in steps_of(record).dropped for i in dropped] == [3]


def test_sarathi_runs_every_decode_and_fills_the_rest_of_its_budget_with_prompts() -> None:
    budget, totals = 128, []

    def look(view: View, memory: Memory, plan: Plan) -> None:
        present, chosen = decodes(view), planned(plan)
        assert present == {i for i, _ in chosen[: len(present)]}
        assert len(present) < budget
        totals.append(sum(n for _, n in chosen))
        assert totals[-1] <= budget
        if totals[-1] < budget:
            named = {i for i, _ in chosen}
            assert {int(i) for i in view.queue[: view.row[0].num_waiting]} <= named, "nobody waits in vain"

    simulate(Observed(f"sarathi:token_budget={budget}", after=look), BUSY, MODEL, ROOMY)
    assert totals.count(budget) > 50


def test_sarathi_decodes_may_exceed_its_budget_and_then_no_prompt_runs() -> None:
    record = run("sarathi:token_budget=3", burst([1] * 5, [9] * 5))
    assert batches(record)[0] == ({0: 1, 1: 1, 2: 1}, [])
    assert batches(record)[1] == ({}, [0, 1, 2])
    fast = run("sarathi:token_budget=1", burst([1, 1, 1], [4, 4, 4]))
    assert all(len(prompts) + len(decoded) == 1 for prompts, decoded in batches(fast))


def test_sarathi_splits_a_long_prompt_beside_its_decodes() -> None:
    record = run("sarathi:token_budget=10", burst([4, 25], [9, 1]))
    assert batches(record)[:4] == [({0: 4, 1: 6}, []), ({1: 9}, [0]), ({1: 9}, [0]), ({1: 1}, [0])]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("sarathi", [0, 1, 2, 3]),
        ("sarathi:order=spf", [2, 0, 3, 1]),
        ("slai:order=fcfs", [0, 1, 2, 3]),
        ("slai:order=spf", [2, 0, 3, 1]),
        ("slai:order=strict_spf", [3, 1, 2, 0]),
        ("vllm:max_batched_tokens=60", [0, 1, 2, 3]),
    ],
)
def test_waiting_requests_are_admitted_in_the_order_of_the_policy(spec: str, expected: list[int]) -> None:
    budget = "" if spec.startswith("vllm") else f"{',' if ':' in spec else ':'}token_budget=4"
    record = run(spec + budget, burst([5, 50, 3, 5], [1, 1, 1, 1], tiers=[1, 0, 1, 0]))
    assert admissions(record) == expected


@pytest.mark.parametrize("name", ["fastertransformer", "orca"])
def test_reserving_policies_hold_the_longest_request_and_never_evict(name: str) -> None:
    reserved = blocks_for(ROOMY.max_model_len, ROOMY.block_size)
    record = run(f"{name}:batch_cap=5", config=ROOMY.replace(num_blocks=4 * reserved + 7))
    log = steps_of(record)
    assert (log.used_blocks == log.running * reserved).all()
    assert log.running.max() == 4
    assert record.row["evictions"][0] == 0
    sizes = [len(batch) for batch in log.batches]
    assert max(sizes) == 4
    assert max(len(batch) for batch in steps_of(run(f"{name}:batch_cap=3")).batches) == 3


def test_orca_mixes_whole_prompts_with_every_decode() -> None:
    record = run("orca:batch_cap=4")
    mixed = [(prompts, decoded) for prompts, decoded in batches(record) if prompts and decoded]
    assert len(mixed) > 20
    for prompts, _ in batches(record):
        assert all(n == BUSY.prompt[i] for i, n in prompts.items())


def test_fastertransformer_admits_only_into_an_empty_server() -> None:
    record = run("fastertransformer:batch_cap=4")
    before = np.concatenate([[0], steps_of(record).running[:-1]])
    for (prompts, decoded), held in zip(batches(record), before, strict=True):
        assert bool(prompts) == (held == 0)
        assert len(decoded) == held


def test_requests_that_join_midway_are_served_sooner_than_in_closed_batches() -> None:
    ends = {name: run(name).row["now"][0] for name in ("fastertransformer", "orca", "sarathi")}
    assert ends["sarathi"] < ends["orca"] < ends["fastertransformer"]


def test_slai_without_deadlines_has_no_critical_decode() -> None:
    patient = with_deadline(BUSY, 1e9)

    def look(view: View, memory: Memory, plan: Plan) -> None:
        present, chosen = decodes(view), planned(plan)
        assert all(records(DECODE)(memory.request)[i].lst.key > view.row[0].now for i in present)
        prompts = [i not in present for i, _ in chosen]
        assert prompts == sorted(prompts, reverse=True), "prompts come first"
        if sum(n for i, n in chosen if i not in present) == 128:
            full.append(len(present))

    full: list[int] = []
    simulate(Observed("slai:order=fcfs,offset=0,pressure_offset=0,token_budget=128", after=look), patient, MODEL, ROOMY)
    assert sum(n > 0 for n in full) > 20, "prompts displaced decodes"


@pytest.mark.parametrize(("tbt_s", "offset"), [(1e-300, 0.0), (0.5, 1e6)])
def test_slai_with_every_decode_critical_is_sarathi(tbt_s: float, offset: float) -> None:
    urgent = with_deadline(BUSY, tbt_s)
    for order in ("fcfs", "spf"):
        slai = run(f"slai:order={order},offset={offset},pressure_offset={offset},token_budget=160", urgent)
        sarathi = run(f"sarathi:order={order},token_budget=160", urgent)
        assert slai.ledger.tobytes() == sarathi.ledger.tobytes()
        assert slai.row.tobytes() == sarathi.row.tobytes()


def test_slai_lets_decodes_wait_for_prompts_until_their_last_schedulable_time() -> None:
    requests = burst([4, 40], [3, 1], tiers=[1, 1])
    offset = "fixed_offset=true,offset"
    record = simulate(baselines.make(f"slai:token_budget=4,order=fcfs,{offset}=0"), requests, SECOND, log_steps=True)
    # 0.5 s deadline, 1 s iterations: the token of 1 s is due at 1.5 s, so it is critical at 2 s, not at 1 s.
    assert batches(record)[:4] == [({0: 4}, []), ({1: 4}, []), ({1: 3}, [0]), ({1: 4}, [])]
    record = simulate(baselines.make(f"slai:token_budget=4,order=fcfs,{offset}=1"), requests, SECOND, log_steps=True)
    assert batches(record)[:3] == [({0: 4}, []), ({1: 3}, [0]), ({1: 3}, [0])]


def test_slai_serves_the_earliest_deadline_first_where_decodes_are_limited() -> None:
    requests = burst([4, 4, 4], [5, 5, 5], tiers=[1, 0, 1])
    record = run("slai:order=fcfs,max_decodes=1,offset=50", requests)
    assert [decoded for _, decoded in batches(record)][1] == [1]
    assert all(len(decoded) <= 1 for _, decoded in batches(record))
    assert run("slai:order=fcfs,max_decodes=2,offset=50", requests).row["decode_tokens"][0] == 12


def test_slai_takes_the_pressure_offset_at_and_above_its_memory_limit() -> None:
    requests = with_deadline(BUSY, 0.2)
    rest = "order=spf,token_budget=160"
    pressed = run(f"slai:offset=1,pressure_offset=6,memory_limit=0,{rest}", requests)
    relaxed = run(f"slai:offset=1,pressure_offset=6,memory_limit=1.1,{rest}", requests)
    always = run(f"slai:offset=6,fixed_offset=true,{rest}", requests)
    never = run(f"slai:offset=1,pressure_offset=6,memory_limit=0,fixed_offset=true,{rest}", requests)
    assert pressed.ledger.tobytes() == always.ledger.tobytes()
    assert relaxed.ledger.tobytes() == never.ledger.tobytes()
    assert pressed.ledger.tobytes() != relaxed.ledger.tobytes()


@pytest.mark.parametrize(("limit", "second"), [(0.25, ({1: 3}, [0])), (0.26, ({1: 4}, []))])
def test_slai_is_under_pressure_as_soon_as_kv_use_equals_its_limit(
    limit: float, second: tuple[dict[int, int], list[int]]
) -> None:
    spec = f"slai:token_budget=4,order=fcfs,offset=0,pressure_offset=1e6,memory_limit={limit}"
    assert batches(run(spec, burst([4, 8], [2, 2]), FULL))[1] == second


FULL = EngineConfig(block_size=4, num_blocks=4, watermark=0.0, max_model_len=16)


@pytest.mark.parametrize("spec", ["sarathi:token_budget=14", "vllm"])
def test_a_decode_without_a_free_block_evicts_the_youngest(spec: str) -> None:
    record = run(spec, burst([7, 7], [6, 6]), FULL)
    assert set(evictions(record)) == {1}
    assert record.ledger["completed"][0] < record.ledger["completed"][1]
    assert (record.ledger["delivered"] == 6).all()


def test_a_critical_decode_of_slai_without_a_free_block_evicts_itself() -> None:
    record = run("slai:order=fcfs,fixed_offset=true,offset=1e6,token_budget=14", burst([7, 7], [6, 6]), FULL)
    assert evictions(record)[0] == 0
    assert batches(record)[3][1] == [1], "the blocks serve the other one"


def test_a_deferred_decode_of_slai_without_a_free_block_evicts_itself_too() -> None:
    record = run("slai:order=fcfs,fixed_offset=true,offset=0,token_budget=5", burst([4, 12], [3, 1]), FULL)
    assert batches(record)[:3] == [({0: 4, 1: 1}, []), ({1: 5}, []), ({1: 5}, [])]
    assert evictions(record)[0] == 0


def test_a_critical_decode_of_slai_evicts_a_started_prompt_rather_than_itself() -> None:
    record = run("slai:order=fcfs,fixed_offset=true,offset=1e6,token_budget=5", burst([4, 12], [3, 1]), FULL)
    assert evictions(record)[0] == 1
    assert batches(record)[1][1] == [0]


@pytest.mark.parametrize("name", ["sarathi", "slai", "vllm"])
def test_recomputed_tokens_are_reported_beside_the_useful_ones(name: str) -> None:
    roomy, tight = run(name), run(name, config=TIGHT)
    assert (roomy.row["evictions"][0], roomy.row["recomputed_tokens"][0]) == (0, 0)
    assert tight.row["evictions"][0] > 0
    work = [record.row["prefill_tokens"][0] + record.row["decode_tokens"][0] for record in (roomy, tight)]
    assert work[1] - work[0] == tight.row["recomputed_tokens"][0] > 0
