"""TRAIL: shortest prediction first; who is young can lose its place to a shorter one, who is not cannot."""

from collections.abc import Callable

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.errors import InputError
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.plan import evict, schedule
from engine.server.state import Memory, Plan, View
from tests.toys import Improvised, constant

SECOND = constant(1.0)
SMALL = EngineConfig(block_size=4, num_blocks=6, watermark=0.0, max_model_len=24)


def known(arrivals: list[float], prompts: list[int], outputs: list[int]) -> Requests:
    """Requests with true predictions."""
    return Requests.create(arrivals, prompts, outputs, prediction=outputs)


def steps(spec: str, requests: Requests, config: EngineConfig | None = None) -> StepLog:
    """A run of one second per iteration."""
    record = simulate(baselines.make(spec), requests, SECOND, config, log_steps=True)
    assert record.steps is not None
    return record.steps


def served(spec: str, requests: Requests) -> list[int]:
    """The first request of each iteration."""
    return [int(batch[0, 0]) for batch in steps(spec, requests).batches]


def test_a_shorter_request_takes_the_place_of_a_young_one() -> None:
    """Request 0 has 2 of 10 tokens when request 1 comes; afterwards it computes its prompt and those two again."""
    requests = known([0.0, 2.0], [3, 3], [10, 2])
    log = steps("trail:batch_cap=1", requests)
    assert [int(batch[0, 0]) for batch in log.batches] == [0, 0, 1, 1] + [0] * 8
    assert log.evicted[2] == [0]
    assert log.batches[4][0, 1] == 5


@pytest.mark.parametrize(("spec", "yes"), [("c=0.2", True), ("c=0.19", False), ("c=0", False), ("margin=6", False)])
def test_only_a_young_request_longer_by_the_margin_loses_its_place(spec: str, yes: bool) -> None:
    requests = known([0.0, 2.0], [3, 3], [10, 2])
    assert (served(f"trail:batch_cap=1,{spec}", requests)[2] == 1) == yes


def test_the_shortest_of_those_who_wait_goes_first_and_ties_to_the_earlier() -> None:
    requests = known([0.0, 0.5, 0.5, 0.5], [3, 3, 3, 3], [2, 4, 3, 3])
    assert served("trail:batch_cap=1", requests) == [0] * 2 + [2] * 3 + [3] * 3 + [1] * 4


def test_the_longest_of_the_young_makes_way() -> None:
    requests = known([0.0, 0.0, 0.0, 1.0], [3, 3, 3, 3], [8, 9, 7, 2])
    assert steps("trail:batch_cap=3", requests).evicted[1] == [1]


def test_preemptions_can_be_limited() -> None:
    requests = known([0.0, 1.0, 4.0], [3, 3, 3], [20, 2, 2])
    assert [
        sum(map(len, steps(spec, requests).evicted))
        for spec in ("trail:batch_cap=1", "trail:batch_cap=1,max_preemptions=1")
    ] == [2, 1]


def test_a_server_without_kv_is_full_and_one_victim_must_be_enough() -> None:
    """Requests 0 and 1 hold three blocks each; request 2 needs two and takes those of the longer one, 3 needs four."""
    assert steps("trail", known([0.0, 0.0, 1.0], [10, 10, 7], [9, 8, 1]), SMALL).evicted[1] == [0]
    assert steps("trail", known([0.0, 0.0, 1.0], [10, 10, 14], [9, 8, 1]), SMALL).evicted[1] == []


@pytest.mark.parametrize(("protect", "expected"), [("true", [1, 2]), ("false", [2, 1])])
def test_who_loses_its_kv_when_old_goes_to_the_end_or_if_protected_to_the_front(
    protect: str, expected: list[int]
) -> None:
    """Request 1, predicted at 1 token and therefore old, loses its KV to a decode of request 0; 2 is waiting then."""
    requests = Requests.create([0.0, 0.0, 5.5], [8, 8, 8], [14, 12, 12], prediction=[14, 1, 12])
    log = steps(f"trail:protect_requeued={protect}", requests, SMALL)
    lost = next(k for k, step in enumerate(log.evicted) if 1 in step)
    admitted: list[int] = []
    for batch in log.batches[lost:]:
        admitted += [int(i) for i, _, _ in batch if i in (1, 2) and i not in admitted]
    assert admitted == expected


def reference(choose: Callable[[list[int], list[int], View], int]) -> Improvised:
    """One request per iteration; whoever is left out loses its KV."""

    def script(view: View, memory: Memory, plan: Plan) -> None:
        row = view.row[0]
        waiting = [int(i) for i in view.queue[: row.num_waiting]]
        running = [int(i) for i in view.running[: row.num_running]]
        if not waiting and not running:
            return
        best = choose(waiting, running, view)
        for i in running:
            if i != best:
                evict(plan, i)
        r = view.request[best]
        schedule(plan, best, max(1, int(r.prompt - r.prefilled)))

    return Improvised(script)


def agrees(spec: str, policy: Improvised, requests: Requests) -> bool:
    """Whether both run the same chunks at the same iterations."""
    expected = simulate(policy, requests, SECOND, log_steps=True).steps
    assert expected is not None
    return [b[:, :2].tolist() for b in steps(spec, requests).batches] == [b[:, :2].tolist() for b in expected.batches]


@pytest.mark.parametrize("seed", range(3))
def test_without_preemption_it_is_shortest_predicted_first_and_without_a_limit_srpt(seed: int) -> None:
    """Cross-check 3 of the specification: c = 0, and c = infinity with true predictions."""
    requests = Workload(rate=0.04, num_requests=50, lengths="lognormal:4,0.5,3,1,512").generate(seed)
    requests = requests.replace(prediction=requests.output)
    outputs = requests.output

    def keep(waiting: list[int], running: list[int], view: View) -> int:
        return running[0] if running else min(waiting, key=lambda i: (outputs[i], i))

    def srpt(waiting: list[int], running: list[int], view: View) -> int:
        return min(waiting + running, key=lambda i: (outputs[i] - view.request[i]["generated"], i not in running, i))

    common = "trail:batch_cap=1,token_budget=4096"
    assert agrees(f"{common},c=0", reference(keep), requests)
    assert agrees(f"{common},c=1e9", reference(srpt), requests)
    assert not agrees(f"{common},c=0.1", reference(keep), requests)
    assert not agrees(f"{common},c=0.1", reference(srpt), requests)


def test_shorter_ones_first_lowers_the_mean_completion_time() -> None:
    requests = Workload(rate=1.0, num_requests=200, lengths="lognormal:2,0.1,3,1.0,512").generate(1)
    requests = requests.replace(prediction=requests.output)
    means = [
        float(np.mean(simulate(baselines.make(spec), requests, constant(0.05)).ledger["completed"]))
        for spec in ("trail:batch_cap=1", "sarathi:token_budget=1")
    ]
    assert means[0] < 0.8 * means[1]


@pytest.mark.parametrize(
    "setting", ["token_budget=0", "batch_cap=0", "c=-1", "c=nan", "margin=inf", "max_preemptions=-1"]
)
def test_settings_are_checked(setting: str) -> None:
    with pytest.raises(InputError, match=rf"policy 'trail': {setting.partition('=')[0]}: expected"):
        baselines.make(f"trail:{setting}")
