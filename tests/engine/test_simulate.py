"""`simulate` from outside: errors, horizon, charged time, step log, executors."""

from typing import Any

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel, load_profile
from engine.errors import InputError
from engine.runs.driving import PolicyError
from engine.runs.simulate import simulate
from engine.server.plan import drop, evict, schedule
from engine.server.policy import Kernel, Policy
from engine.server.state import DROPPED, FINISHED, Memory, Plan, Server, View
from tests.toys import Improvised, compiled, constant

SECOND = constant(1.0)
SARATHI = baselines.Sarathi()


def plain_fifo(view: View, memory: Memory, plan: Plan) -> None:
    """One request at a time, whole prompts."""
    row = view.row[0]
    ids = view.running if row.num_running else view.queue
    if row.num_running + row.num_waiting:
        r = view.request[ids[0]]
        schedule(plan, ids[0], 1 if r.prefilled == r.prompt else r.prompt - r.prefilled)


@Kernel
def _greedy(view: View, memory: Memory, plan: Plan) -> None:
    for k in range(view.row[0].num_waiting):
        schedule(plan, view.queue[k], 1_000_000)


@Kernel
def _lazy(view: View, memory: Memory, plan: Plan) -> None:
    return


@Kernel
def _restless(view: View, memory: Memory, plan: Plan) -> None:
    plan.wake[0] = view.row[0].now + 1.0


def two_requests() -> Requests:
    """One at time 0, one that arrives at 10 s."""
    return Requests.create([0.0, 10.0], [4, 6], [3, 1])


@pytest.mark.parametrize("log_steps", [False, True])
def test_an_illegal_plan_stops_the_run_and_names_policy_entry_and_reason(log_steps: bool) -> None:
    with pytest.raises(PolicyError) as caught:
        simulate(compiled("greedy", _greedy), two_requests(), SECOND, log_steps=log_steps)
    assert str(caught.value) == (
        "policy 'greedy': illegal plan at iteration 0, t=0.000000 s: entry 0 (request 0, tokens 1000000) "
        "asks for more tokens than max_batched_tokens"
    )


@pytest.mark.parametrize("log_steps", [False, True])
def test_a_policy_that_plans_nothing_is_reported_as_stalled(log_steps: bool) -> None:
    with pytest.raises(PolicyError) as caught:
        simulate(compiled("lazy", _lazy), two_requests(), SECOND, log_steps=log_steps)
    assert str(caught.value) == (
        "policy 'lazy' planned nothing at t=10.000 s with 2 waiting, 0 running and no arrival to wait for"
    )


@pytest.mark.parametrize("log_steps", [False, True])
def test_a_policy_that_only_ever_asks_to_be_woken_is_stopped(log_steps: bool) -> None:
    with pytest.raises(PolicyError, match=r"'restless' made no end within \d+ decisions \(2 waiting, 0 running\)"):
        simulate(compiled("restless", _restless), two_requests(), SECOND, log_steps=log_steps)


def test_a_policy_that_undoes_its_own_work_forever_is_stopped() -> None:
    def sisyphus(view: View, memory: Memory, plan: Plan) -> None:
        if view.row[0].num_running:
            evict(plan, view.running[0])
        schedule(plan, 0, 1)

    with pytest.raises(PolicyError, match="made no end within"):
        simulate(Improvised(sisyphus), two_requests().head(1), SECOND)


def test_a_policy_without_kernel_and_plan_is_bad_input() -> None:
    with pytest.raises(InputError, match="policy 'policy': expected a kernel or a plan method, found neither"):
        simulate(Policy(), two_requests(), SECOND)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (EngineConfig(max_model_len=4), "prompt < 4 tokens (max_model_len)"),
        (EngineConfig(num_blocks=2, block_size=3, watermark=0.0), "prompt + output <= 6 tokens (KV above"),
    ],
)
def test_a_request_that_could_never_be_served_is_refused_before_the_run(config: EngineConfig, limit: str) -> None:
    with pytest.raises(InputError) as caught:
        simulate(baselines.Sarathi(), two_requests(), SECOND, config)
    assert str(caught.value).startswith(f"request 0: expected {limit}")
    assert "2 of 2 requests can never be served" in str(caught.value)


def test_in_reference_semantics_an_over_long_prompt_is_dropped_instead() -> None:
    record = simulate(baselines.Sarathi(), two_requests(), SECOND, EngineConfig.reference(max_model_len=5))
    assert record.request["status"].tolist() == [FINISHED, DROPPED]
    assert record.ledger["completed"][1] == 10.0


@pytest.mark.parametrize("log_steps", [False, True])
def test_the_run_goes_on_after_a_plan_that_only_drops(log_steps: bool) -> None:
    requests = Requests.create([0.0, 0.5], [4, 9], [3, 1])
    record = simulate(baselines.make("vllm:max_batched_tokens=8"), requests, SECOND, log_steps=log_steps)
    assert record.request["status"].tolist() == [FINISHED, DROPPED]
    assert record.ledger["completed"].tolist() == [3.0, 1.0]


@pytest.mark.parametrize("log_steps", [False, True])
def test_dropping_the_last_request_ends_the_run(log_steps: bool) -> None:
    requests = Requests.create([0.0, 0.5], [4, 9], [1, 1])
    record = simulate(baselines.make("vllm:max_batched_tokens=8"), requests, SECOND, log_steps=log_steps)
    assert record.request["status"].tolist() == [FINISHED, DROPPED]
    assert record.row["now"][0] == 1.0


def test_times_of_a_trace_that_can_be_computed_by_hand() -> None:
    record = simulate(baselines.Sarathi(), two_requests(), SECOND)
    names = ["first_scheduled", "prompt_done", "first_token", "completed"]
    assert [record.ledger[name].tolist() for name in names] == [[0.0, 10.0], [1.0, 11.0], [1.0, 11.0], [3.0, 11.0]]
    row = record.row[0]
    assert (row.now, row.busy, row.iterations, row.prefill_tokens, row.decode_tokens) == (11.0, 4.0, 4, 10, 2)
    assert record.policy == "sarathi"


@pytest.mark.parametrize(("tile", "linear"), [(1, 0.01 * 7), (8, 0.01 * 8), (5, 0.01 * 10)])
def test_an_iteration_takes_what_the_latency_formula_says(tile: int, linear: float) -> None:
    model = LatencyModel(
        overhead=0.1, floor=0.05, per_token=0.01, per_pair=0.001, per_context=0.002, per_request=0.03, tile=tile
    )
    requests = Requests.create([0.0, 0.0], [4, 6], [3, 1])
    record = simulate(baselines.Sarathi(7), requests, model, log_steps=True)
    assert record.steps is not None
    first = 0.1 + 2 * 0.03 + linear + 0.001 * (10 + 6)
    assert record.steps.duration_s[0] == pytest.approx(first)
    second_tokens = -(-4 // tile) * tile
    second = 0.1 + 2 * 0.03 + max(0.05, 0.01 * second_tokens) + 0.001 * 3 * (3 + 2) + 0.002 * 5
    assert record.steps.duration_s[1] == pytest.approx(second)


@pytest.mark.parametrize("policy", [baselines.Sarathi(), Improvised(plain_fifo)], ids=["compiled", "python"])
def test_each_decision_is_charged_to_the_clock(policy: Policy) -> None:
    config = EngineConfig(decision_s=0.25, decision_per_request_s=0.125)
    record = simulate(policy, two_requests(), SECOND, config)
    assert record.ledger["completed"].tolist() == [3 * 1.375, 11.375]


@pytest.mark.parametrize("policy", [baselines.Sarathi(), Improvised(plain_fifo)], ids=["compiled", "python"])
def test_no_iteration_starts_at_or_after_the_horizon(policy: Policy) -> None:
    record = simulate(policy, two_requests(), SECOND, horizon_s=2.0)
    assert (record.row["now"][0], record.row["iterations"][0], record.row["finished"][0]) == (2.0, 2, 0)
    assert record.ledger["delivered"].tolist() == [2, 0]
    assert record.ledger["completed"].tolist() == [-1.0, -1.0]
    assert simulate(policy, two_requests(), SECOND, horizon_s=0.0).row["iterations"][0] == 0


def test_a_policy_can_wait_for_a_time_of_its_choice() -> None:
    def from_five_on(view: View, memory: Memory, plan: Plan) -> None:
        if view.row[0].now >= 5.0:
            plain_fifo(view, memory, plan)
        else:
            plan.wake[0] = 5.0

    record = simulate(Improvised(from_five_on), two_requests(), SECOND)
    assert record.ledger["first_scheduled"].tolist() == [5.0, 10.0]
    assert record.row["busy"][0] == 4.0


def test_a_wake_time_after_the_next_arrival_waits_for_the_arrival_only() -> None:
    seen = []

    def late(view: View, memory: Memory, plan: Plan) -> None:
        seen.append(float(view.row["now"][0]))
        plain_fifo(view, memory, plan)
        plan.wake[0] = 1000.0

    simulate(Improvised(late), two_requests(), SECOND)
    assert seen == [0.0, 1.0, 2.0, 3.0, 10.0]


def test_the_step_log_tells_what_each_iteration_did() -> None:
    def script(view: View, memory: Memory, plan: Plan) -> None:
        steps: list[list[tuple[int, int]]] = [[(0, 4)], [(1, 5)], [(1, 1), (0, 1)], [], []]
        step = int(view.row["iterations"][0])
        if step == 3:
            evict(plan, 0)
            schedule(plan, 0, 6)
        elif step == 4:
            drop(plan, 2)
        for i, n in steps[step]:
            schedule(plan, i, n)

    requests = Requests.create([0.0, 0.0, 4.0], [4, 6, 6], [3, 1, 1])
    record = simulate(Improvised(script), requests, SECOND, EngineConfig(block_size=4), log_steps=True)
    log = record.steps
    assert log is not None
    assert [batch.tolist() for batch in log.batches] == [
        [[0, 4, 1]],
        [[1, 5, 1]],
        [[1, 1, 1], [0, 1, 0]],
        [[0, 6, 1]],
        [],
    ]
    assert log.evicted == [[], [], [], [0], []]
    assert log.dropped == [[], [], [], [], [2]]
    assert log.start_s.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert log.duration_s.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert log.used_blocks.tolist() == [1, 3, 2, 0, 0]
    assert log.waiting.tolist() == [1, 0, 0, 1, 0]
    assert log.running.tolist() == [1, 2, 1, 0, 0]
    assert simulate(baselines.Sarathi(), requests, SECOND).steps is None


def test_an_executor_is_told_the_trace_and_asked_for_every_batch() -> None:
    class Device:
        """A stand-in for a device: batch n takes n seconds."""

        real_time = False

        def __init__(self) -> None:
            self.traces: list[Requests] = []
            self.batches: list[list[tuple[int, int]]] = []

        def start(self, requests: Requests) -> None:
            self.traces.append(requests)

        def seconds(self, server: Server) -> float:
            entries = server.plan.entry[: server.plan.size[0]]
            self.batches.append([(int(e["request"]), int(e["tokens"])) for e in entries])
            return float(len(self.batches))

    device, requests = Device(), two_requests()
    record = simulate(baselines.Sarathi(), requests, device)
    assert device.traces == [requests]
    assert device.batches == [[(0, 4)], [(0, 1)], [(0, 1)], [(1, 6)]]
    assert record.ledger["completed"].tolist() == [6.0, 14.0]


def test_a_fallback_is_told_the_device_as_the_policy_is() -> None:
    """What decides instead of a policy that always fails serves as it does alone, on a device that it predicts by."""

    def fails(view: View, memory: Memory, plan: Plan) -> None:
        raise FloatingPointError("nan")

    model, requests = load_profile("rtx4090-llama-3.1-8b"), Workload(rate=1.0, num_requests=40).generate(0)
    slackfit = baselines.make("slackfit")
    record = simulate(Improvised(fails), requests, model, fallback=slackfit)
    assert (record.ledger == simulate(slackfit, requests, model).ledger).all()
    other = simulate(baselines.make("slackfit:profile=rtx6000ada-mistral-7b"), requests, model)
    assert not (record.ledger == other.ledger).all()


def test_a_fallback_decides_where_the_policy_fails() -> None:
    """Every second plan is illegal, every third an error, every fifth empty; Sarathi steps in, nothing else changes."""
    calls = [0]

    def fails(view: View, memory: Memory, plan: Plan) -> None:
        calls[0] += 1
        if calls[0] % 5 == 0:
            return
        if calls[0] % 3 == 0:
            raise FloatingPointError("nan")
        SARATHI.plan(view, sarathi_memory, plan)
        if calls[0] % 2 == 0:
            schedule(plan, 0, 10**6)

    requests = Requests.create([0.0] * 4, [300] * 4, [20] * 4)
    sarathi_memory = SARATHI.memory(EngineConfig(), 4)
    record = simulate(Improvised(fails), requests, SECOND, fallback=SARATHI)
    expected = simulate(SARATHI, requests, SECOND)
    assert (record.ledger == expected.ledger).all()
    failed = sum(k % 5 == 0 or k % 3 == 0 or k % 2 == 0 for k in range(1, calls[0] + 1))
    assert record.fallbacks == failed > 0
    assert expected.fallbacks == 0
    calls[0] = 1
    with pytest.raises(PolicyError, match="tokens 1000000"):
        simulate(Improvised(fails), requests, SECOND)


def test_a_run_does_not_touch_its_requests_and_can_be_repeated() -> None:
    requests = two_requests()
    before = requests.digest()
    first, second = (simulate(baselines.SLAI(), requests, SECOND) for _ in range(2))
    assert requests.digest() == before
    assert first.ledger.tobytes() == second.ledger.tobytes()
    assert not np.shares_memory(first.ledger, second.ledger)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"policy": "sarathi"}, r"policy: expected a policy such as baselines\.make\('sarathi'\), got 'sarathi'"),
        ({"policy": baselines.Sarathi}, r"policy: expected a policy such as .*, got <class 'baselines"),
        ({"requests": [1.0]}, r"requests: expected Requests such as .*, got \[1\.0\]"),
        ({"executor": "rtx6000ada-mistral-7b"}, r"executor: expected an executor such as .*, got 'rtx6000ada"),
        ({"executor": LatencyModel}, "executor: expected an executor such as .*, got <class"),
        ({"config": {}}, r"config: expected an EngineConfig, got \{\}"),
    ],
)
def test_what_only_names_an_argument_is_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"policy": SARATHI, "requests": Requests.create([0.0], [4], [2]), "executor": SECOND}
    with pytest.raises(InputError, match=message):
        simulate(**(given | changed))
