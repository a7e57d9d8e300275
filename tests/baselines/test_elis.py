"""ELIS: a batch of the shortest for a window of tokens; nobody joins or leaves in between."""

import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.errors import InputError
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.plan import schedule
from engine.server.state import FINISHED, Memory, Plan, View
from tests.toys import Improvised, constant, tokens_of

SECOND = constant(1.0)


def known(arrivals: list[float], prompts: list[int], outputs: list[int]) -> Requests:
    """Requests with true predictions."""
    return Requests.create(arrivals, prompts, outputs, prediction=outputs)


def tokens(spec: str, requests: Requests, config: EngineConfig | None = None) -> list[dict[int, int]]:
    """Tokens by request of each iteration of one second."""
    return tokens_of(steps(spec, requests, config))


def steps(spec: str, requests: Requests, config: EngineConfig | None = None) -> StepLog:
    """A run of one second per iteration."""
    record = simulate(baselines.make(spec), requests, SECOND, config, log_steps=True)
    assert record.steps is not None
    return record.steps


def test_a_shorter_request_waits_for_the_end_of_the_window() -> None:
    requests = known([0.0, 1.0], [3, 3], [9, 2])
    assert [next(iter(step)) for step in tokens("elis:window=4,batch_size=1", requests)] == [0] * 4 + [1] * 2 + [0] * 5


def test_who_is_done_waits_for_the_others_and_its_place_stays_empty_unless_refilled() -> None:
    """Prompts run first, so both have their first token; request 0 leaves after its second, 2 could come then."""
    requests = known([0.0, 0.0, 1.0], [3, 3, 3], [2, 6, 6])
    plain = tokens("elis:window=4,batch_size=2", requests)
    assert plain[:5] == [{0: 3, 1: 3}, {0: 1, 1: 1}, {1: 1}, {1: 1}, {2: 3}]
    refilled = tokens("elis:window=4,batch_size=2,refill_inside_window=true", requests)
    assert refilled[:4] == [{0: 3, 1: 3}, {0: 1, 1: 1}, {2: 3}, {1: 1, 2: 1}]


def test_prompts_run_alone_up_to_their_budget() -> None:
    requests = known([0.0, 0.0], [6, 6], [2, 3])
    assert tokens("elis:prompt_budget=8", requests) == [{0: 6, 1: 2}, {1: 4}, {0: 1, 1: 1}, {1: 1}]


def test_outsiders_keep_their_kv_until_it_is_needed_and_the_one_with_most_left_loses_it_first() -> None:
    config = EngineConfig(block_size=4, num_blocks=8, watermark=0.0, max_model_len=24)
    requests = known([0.0, 0.0, 2.0], [10, 10, 4], [9, 8, 1])
    assert steps("elis:window=2,batch_size=2", requests, config).evicted[:4] == [[], [], [], []]
    requests = known([0.0, 0.0, 1.0], [10, 10, 9], [9, 8, 1])
    log = steps("elis:window=2,batch_size=2", requests, config)
    assert next(step for step in log.evicted if step) == [0]


def test_refreshed_predictions_change_the_order_at_the_next_window() -> None:
    """The prediction of request 0 grows while it runs: at the next window request 1 is the shorter one."""
    requests = Requests.create([0.0, 1.0], [3, 3], [9, 5], prediction=[2, 3])
    served = [next(iter(step)) for step in tokens("elis:window=2,batch_size=1", requests)]
    assert served[:4] == [0, 0, 0, 0], "as predictions stand, nothing is left of request 0"


@pytest.mark.parametrize("seed", range(3))
def test_with_windows_of_one_token_it_is_srpt_and_without_end_it_is_batches_of_the_shortest(seed: int) -> None:
    """Cross-check 5 of the specification."""
    requests = Workload(rate=0.04, num_requests=60, lengths="lognormal:4,0.5,3,1,512").generate(seed)
    requests = requests.replace(prediction=requests.output)
    outputs = requests.output

    def srpt(view: View, memory: Memory, plan: Plan) -> None:
        row = view.row[0]
        present = [int(i) for i in (*view.queue[: row.num_waiting], *view.running[: row.num_running])]
        if present:
            best = min(present, key=lambda i: (outputs[i] - view.request[i]["generated"], i))
            schedule(plan, best, max(1, int(view.request[best]["prompt"] - view.request[best]["prefilled"])))

    batch: list[int] = []

    def shortest_batches(view: View, memory: Memory, plan: Plan) -> None:
        row = view.row[0]
        batch[:] = [i for i in batch if view.request[i]["status"] != FINISHED]
        if not batch:
            batch[:] = sorted((int(i) for i in view.queue[: row.num_waiting]), key=lambda i: (outputs[i], i))[:4]
        prompts = [i for i in batch if view.request[i]["prefilled"] < view.request[i]["prompt"]]
        for i in prompts or batch:
            schedule(plan, i, int(view.request[i]["prompt"]) if prompts else 1)

    for spec, script in (("window=1,batch_size=1", srpt), ("window=0,batch_size=4", shortest_batches)):
        expected = simulate(Improvised(script), requests, SECOND, log_steps=True).steps
        assert expected is not None
        ours = steps(f"elis:prompt_budget=8192,{spec}", requests)
        assert [b[:, :2].tolist() for b in ours.batches] == [b[:, :2].tolist() for b in expected.batches]


@pytest.mark.parametrize("spec", ["elis", "elis:window=3", "elis:window=0", "elis:refill_inside_window=true"])
def test_under_memory_pressure_everybody_is_served(spec: str) -> None:
    requests = Workload(rate=15.0, num_requests=120, lengths="lognormal:5,0.7,4.5,0.7,1024").generate(5)
    requests = requests.replace(prediction=requests.output)
    config = EngineConfig(num_blocks=100, max_model_len=1024)
    record = simulate(baselines.make(spec), requests, constant(0.02), config)
    assert (record.ledger["delivered"] == requests.output).all()
    assert record.row["evictions"][0] > 0


@pytest.mark.parametrize("setting", ["window=-1", "batch_size=0", "prompt_budget=0"])
def test_settings_are_checked(setting: str) -> None:
    with pytest.raises(InputError, match=rf"policy 'elis': {setting.partition('=')[0]}: expected"):
        baselines.make(f"elis:{setting}")
