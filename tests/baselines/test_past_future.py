"""LightLLM and the past-future scheduler: the peak of memory, what they assume of outputs, and what follows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.families.finished import VALUE, Recent, remember_value
from baselines.families.peak import add_to_future, peak_tokens
from baselines.lightllm import LightLLM
from baselines.past_future import SERVER, WINDOW, Past, PastFuture, conditioned_output
from baselines.vllm import VLLM
from engine.compiled.records import cells_of, record, records, series
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.errors import InputError
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.server.members import MEMBER
from engine.server.policy import Policy
from engine.server.sorting import SORTED
from engine.server.state import FINISHED, Memory, Plan, View, load, new_server
from tests.strategies import DEVICE, configs, fixed, workloads
from tests.toys import Observed, burst

BUSY = Workload(rate=15.0, num_requests=150, lengths="lognormal:5,0.7,4.5,0.7,1024").generate(5)
TIGHT = EngineConfig(num_blocks=400, max_model_len=1024)
ROOMY = EngineConfig(num_blocks=4000, max_model_len=1024)

POLICIES: list[Policy] = [
    LightLLM(),
    LightLLM(token_ratio=2.0, expected_tokens=1, max_wait_tokens=0),
    LightLLM(max_new_tokens=3, batch_max_tokens=30, batch_cap=3),
    PastFuture(),
    PastFuture(max_new_tokens=5, limit=3.0, max_wait_tokens=1),
    PastFuture(batch_max_tokens=30, batch_cap=3, seed=9),
]
policies = st.sampled_from(POLICIES)


def batches(policy: Policy, requests: Requests, config: EngineConfig) -> list[tuple[dict[int, int], list[int]]]:
    """Of each iteration: prompt tokens by request, and the decodes."""
    steps = simulate(policy, requests, DEVICE, config, log_steps=True).steps
    assert steps is not None
    return [
        ({int(i): int(n) for i, n, p in batch if p}, [int(i) for i, _, p in batch if not p]) for batch in steps.batches
    ]


def past_of(memory: Memory) -> Past:
    """What the past-future scheduler remembers, by name."""
    server = record(SERVER)(memory.row)
    history = Recent(server.history, series(VALUE, behind=SERVER)(memory.row), WINDOW)
    return Past(server, history, records(MEMBER)(memory.request))


def history_of(past: Past) -> list[float]:
    """The outputs that it remembers, the smallest first."""
    ranked: list[float] = past.history.value.ranked[: past.history.row.held].tolist()
    return ranked


def same(a: Record, b: Record) -> bool:
    return a.ledger.tobytes() == b.ledger.tobytes() and a.row.tobytes() == b.row.tobytes()


@st.composite
def residents(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], int]:
    """(prompt, generated, further output) of some requests in decode, and a block size."""
    one = st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(1, 30))
    return draw(st.lists(one, min_size=1, max_size=12)), draw(st.sampled_from((1, 4, 16)))


@fixed(300)
@given(residents())
def test_the_peak_is_the_most_memory_that_any_step_needs(scene: tuple[list[tuple[int, int, int]], int]) -> None:
    requests, block_size = scene
    n = len(requests)
    server, config = new_server(n, 1), EngineConfig(block_size=block_size)
    load(server, config, burst([1] * n, [1] * n))
    view, future = server.visible, records(SORTED)(np.zeros((n, cells_of(SORTED))))
    for i, (prompt, generated, more) in enumerate(requests):
        r = view.request[i]
        r.prompt, r.prefilled, r.length, r.generated = prompt, prompt, prompt + generated, generated
        add_to_future(view, future, i, i, generated + more)

    tokens, blocks, step = [], [], 0
    while alive := [prompt + generated + step for prompt, generated, more in requests if step < more]:
        tokens.append(sum(alive))
        blocks.append(sum(-(-held // block_size) for held in alive))
        step += 1
    peak = peak_tokens(view, future, n)
    assert max(tokens) <= peak <= max(tokens) + n * (block_size - 1)
    assert peak >= max(blocks) * block_size, "whole blocks are taken"


@fixed(200)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=450))
def test_the_history_is_the_last_outputs_in_order_of_size(outputs: list[int]) -> None:
    past = past_of(PastFuture().memory(ROOMY, 1))
    for output in outputs:
        remember_value(past.history, output)
    assert past.history.row.held == min(len(outputs), WINDOW)
    assert history_of(past) == sorted(outputs[-WINDOW:])


@fixed(300)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=250),
    st.integers(0, 70),
    st.integers(1, 40),
    st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=2, max_size=9),
)
def test_an_output_drawn_for_a_running_request_exceeds_what_it_has(
    outputs: list[int], generated: int, room: int, quantiles: list[float]
) -> None:
    past = past_of(PastFuture().memory(ROOMY, 1))
    for output in outputs:
        remember_value(past.history, output)
    most = generated + room
    drawn = [conditioned_output(past, generated, most, u) for u in sorted(quantiles)]
    points = [generated, *sorted(x for x in outputs[-WINDOW:] if x > generated)]
    if points[-1] < most:
        points.append(most)
    expected = [np.interp(u * (len(points) - 1), range(len(points)), points) for u in sorted(quantiles)]
    assert all(x > generated for x in drawn)
    assert np.abs(np.array(drawn) - np.maximum(expected, generated + 1)).max() <= 0.5 + 1e-9


def equal_outputs(output: int) -> Requests:
    """Enough lone requests to fill the history with one length, then a crowd of the same."""
    rng = np.random.default_rng(1)
    alone, crowd = 210, 120
    arrival = np.concatenate([np.arange(alone) * 3.0, np.full(crowd, alone * 3.0)])
    return Requests.create(arrival, rng.integers(20, 90, alone + crowd), np.full(alone + crowd, output))


@pytest.mark.parametrize("seed", range(5))
def test_a_history_equal_to_the_truth_causes_no_evictions_where_vllm_evicts(seed: int) -> None:
    requests, config = equal_outputs(150), EngineConfig(num_blocks=200, max_model_len=1024)
    assert simulate(VLLM(), requests, DEVICE, config).row["evictions"][0] > 10
    row = simulate(PastFuture(seed=seed), requests, DEVICE, config).row[0]
    assert (row.evictions, row.finished) == (0, len(requests))
    safe = simulate(LightLLM(), requests, DEVICE, config).row[0]
    assert row.now < safe.now, "the true lengths let more requests run than the users' limits do"


def test_the_history_follows_the_requests_that_finish() -> None:
    requests = BUSY
    seen: list[list[float]] = []
    finished: list[list[int]] = []

    def look(view: View, memory: Memory, plan: Plan) -> None:
        seen.append(history_of(past_of(memory)))
        done = view.request["status"] == FINISHED
        finished.append(requests.output[done].tolist())

    policy = PastFuture(max_new_tokens=700, limit=3.0)
    record = simulate(Observed(policy, after=look), requests, DEVICE, TIGHT)
    assert record.row["evictions"][0] > 0
    for history, outputs in zip(seen, finished, strict=True):
        if len(outputs) <= WINDOW // 2:
            assert history == sorted([700] * (WINDOW // 2) + outputs)
    assert len(finished[-1]) > WINDOW // 2


def test_requests_that_another_policy_admitted_count_too() -> None:
    seen: list[list[float]] = []

    class Handover(Observed):
        """Starts as another policy, as an arm of a mixture may."""

        def plan(self, view: View, memory: Memory, plan: Plan) -> None:
            if view.row[0].iterations < 3:
                VLLM().plan(view, VLLM().memory(ROOMY, 3), plan)
            else:
                super().plan(view, memory, plan)

    def look(view: View, memory: Memory, plan: Plan) -> None:
        seen.append(history_of(past_of(memory)))

    requests = Requests.create([0.0, 0.0, 0.1], [10, 10, 10], [40, 41, 90])
    simulate(Handover(PastFuture(max_new_tokens=500), after=look), requests, DEVICE, ROOMY)
    assert seen[-1] == [40, 41, *[500] * (WINDOW // 2)]


class Warmed(PastFuture):
    """Half of the outputs it remembers are short, half are long."""

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        memory = super().memory(config, num_requests)
        for k in range(WINDOW):
            remember_value(past_of(memory).history, 400 if k % 2 else 1)
        return memory


def test_the_output_of_a_candidate_is_any_of_the_history() -> None:
    # Two prompts fit together unless both outputs are drawn long, which happens in a quarter of the runs.
    config, requests = EngineConfig(num_blocks=45, max_model_len=500), burst([16, 16], [1, 1])
    both = [len(batches(Warmed(seed=seed), requests, config)[0][0]) == 2 for seed in range(200)]
    assert 0.65 < np.mean(both) < 0.85


def test_the_same_seed_gives_the_same_run() -> None:
    a, b = (simulate(PastFuture(seed=4), BUSY, DEVICE, TIGHT) for _ in range(2))
    assert same(a, b)
    assert not all(same(a, simulate(PastFuture(seed=seed), BUSY, DEVICE, TIGHT)) for seed in range(3))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.spec)
def test_the_source_of_the_kernel_plans_as_the_kernel(policy: Policy) -> None:
    assert policy.kernel is not None
    source = policy.kernel.function

    class Interpreted(Observed):
        def plan(self, view: View, memory: Memory, plan: Plan) -> None:
            source(view, memory, plan)

    requests = BUSY.head(25)
    interpreted = simulate(Interpreted(policy), requests, DEVICE, TIGHT)
    assert same(interpreted, simulate(policy, requests, DEVICE, TIGHT))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[EngineConfig, Requests]:
    """A short trace and a server on which each request fits alone, often not two."""
    requests, config = draw(workloads(16)), draw(configs())
    longest = int((requests.prompt + requests.output).max())
    blocks = -(-longest // config.block_size) + config.decode_needs_free_block + draw(st.integers(0, 6))
    while blocks - int(config.watermark * blocks) < -(-longest // config.block_size):
        blocks += 1
    return config.replace(num_blocks=blocks, max_model_len=longest, eviction_keeps_output=True), requests


@fixed(300)
@given(scenes(), policies)
def test_everybody_is_served(scene: tuple[EngineConfig, Requests], policy: Policy) -> None:
    config, requests = scene
    record = simulate(policy, requests, DEVICE, config)
    assert (record.request["status"] == FINISHED).all()
    assert (record.ledger["delivered"] == requests.output).all()


@fixed(200)
@given(scenes(), policies)
def test_everybody_leaves_even_where_evictions_lose_the_output(
    scene: tuple[EngineConfig, Requests], policy: Policy
) -> None:
    config, requests = scene
    row = simulate(policy, requests, DEVICE, config.replace(eviction_keeps_output=False)).row[0]
    assert row.finished + row.dropped == len(requests)
    assert row.free_blocks == config.num_blocks


@fixed(300)
@given(scenes(), st.sampled_from((12, 40, 5000)), st.integers(0, 9))
def test_lightllm_in_safe_mode_never_evicts(
    scene: tuple[EngineConfig, Requests], max_new_tokens: int, max_wait: int
) -> None:
    config, requests = scene
    policy = LightLLM(max_new_tokens=max_new_tokens, max_wait_tokens=max_wait)
    assert simulate(policy, requests, DEVICE, config).row["evictions"][0] == 0


def test_lightllm_evicts_and_serves_faster_when_it_bets_on_short_outputs() -> None:
    safe = simulate(LightLLM(), BUSY, DEVICE, TIGHT).row[0]
    bold = simulate(LightLLM(token_ratio=1.1, expected_tokens=30), BUSY, DEVICE, TIGHT).row[0]
    assert safe.evictions == 0 < bold.evictions
    assert bold.now < safe.now
    busy = simulate(LightLLM(token_ratio=0.0, expected_tokens=30), BUSY, DEVICE, TIGHT)
    assert same(busy, simulate(LightLLM(), BUSY, DEVICE, TIGHT))


# Two requests of 10 + 11 tokens hold 20 + 20 tokens at their last decode; the peak must be below the capacity.
@pytest.mark.parametrize(("num_blocks", "admitted"), [(40, [0]), (41, [0, 1])])
def test_lightllm_admits_exactly_while_the_peak_is_below_the_capacity(num_blocks: int, admitted: list[int]) -> None:
    config = EngineConfig(block_size=1, num_blocks=num_blocks, watermark=0.0)
    first = batches(LightLLM(max_new_tokens=11), burst([10, 10], [11, 11]), config)[0]
    assert list(first[0]) == admitted


def test_lightllm_sees_that_requests_end_at_different_times() -> None:
    # Both at their longest would need 40 blocks; once the first is ahead by some tokens, the two never do.
    config = EngineConfig(block_size=1, num_blocks=35, watermark=0.0)
    requests = Requests.create([0.0, 0.001], [10, 10], [11, 11])
    run = batches(LightLLM(max_new_tokens=11, max_wait_tokens=0), requests, config)
    start = next(k for k, (prompts, _) in enumerate(run) if 1 in prompts)
    assert 1 < start < 11
    assert run[start + 1][1] == [0, 1]


@pytest.mark.parametrize("policy", [LightLLM(), PastFuture()], ids=lambda p: p.name)
def test_the_first_refusal_ends_admission(policy: Policy) -> None:
    config = EngineConfig(num_blocks=100, max_model_len=1500, watermark=0.0)
    run = batches(policy, burst([60, 800, 1], [5, 5, 5]), config)
    assert run[0][0] == {0: 60}
    assert next(prompts for prompts, _ in run if 2 in prompts) != run[0][0]
    first = {i: k for k, (prompts, _) in reversed(list(enumerate(run))) for i in prompts}
    assert first[0] < first[1] <= first[2]


AT_ONCE = PastFuture(max_new_tokens=50, max_wait_tokens=6, waits_after_prompts=False)


@pytest.mark.parametrize("policy", [LightLLM(max_new_tokens=50), AT_ONCE], ids=lambda p: p.name)
def test_a_new_prompt_waits_for_some_decodes_unless_the_last_one_was_just_admitted(policy: Policy) -> None:
    requests = Requests.create([0.0, 0.03], [10, 10], [40, 40])
    run = batches(policy, requests, ROOMY)
    start = next(k for k, (prompts, _) in enumerate(run) if 1 in prompts)
    assert start in (7, 8)
    assert all(decodes == [0] for _, decodes in run[1:start])
    eager: Any = type(policy)
    run = batches(eager(max_new_tokens=50, max_wait_tokens=0), requests, ROOMY)
    assert next(k for k, (prompts, _) in enumerate(run) if 1 in prompts) < start


@pytest.mark.parametrize("wait", [2, 10])
def test_past_future_lets_prompts_wait_for_decodes_after_every_prompt_too(wait: int) -> None:
    """Both are there when request 0 has been prefilled; only one fits a batch."""
    policy = PastFuture(max_wait_tokens=wait, batch_max_tokens=10)
    run = batches(policy, burst([10, 10, 10], [40] * 3), ROOMY)
    assert [k for k, (prompts, _) in enumerate(run) if prompts] == [0, wait + 1, 2 * wait + 2]


def test_the_count_of_decodes_begins_anew_when_requests_are_paused() -> None:
    """LightLLM pauses requests in a step of its own, which puts its counter back: the next prompt is due five later."""
    policy = LightLLM(token_ratio=2.0, expected_tokens=1, max_wait_tokens=5)
    config = EngineConfig(block_size=1, num_blocks=40, watermark=0.0, max_model_len=40)
    steps = simulate(policy, burst([4] * 3, [12, 30, 30]), DEVICE, config, log_steps=True).steps
    assert steps is not None
    (paused,) = (k for k, victims in enumerate(steps.evicted[:15]) if victims)
    assert steps.evicted[paused] == [2]
    assert next(k for k, batch in enumerate(steps.batches) if k > paused and batch[:, 2].any()) == paused + 5


@pytest.mark.parametrize(
    "policy", [LightLLM(batch_max_tokens=30), PastFuture(batch_max_tokens=30, waits_after_prompts=False)]
)
def test_prompts_are_whole_and_fit_an_iteration_and_a_longer_one_goes_alone(policy: Policy) -> None:
    run = batches(policy, burst([20, 10, 5, 70, 30], [2] * 5), ROOMY)
    # What follows an admission is considered at once.
    assert [prompts for prompts, _ in run[:6]] == [{0: 20, 1: 10}, {2: 5}, {3: 30}, {3: 30}, {3: 10}, {4: 30}]
    assert all(not prompts or not decodes for prompts, decodes in run)


@pytest.mark.parametrize("policy", [LightLLM(batch_cap=3), PastFuture(batch_cap=3)], ids=lambda p: p.name)
def test_the_cap_limits_the_running_requests(policy: Policy) -> None:
    steps = simulate(policy, burst([10] * 9, [20] * 9), DEVICE, ROOMY, log_steps=True).steps
    assert steps is not None
    assert steps.running.max() == 3


def test_overcommitted_memory_evicts_the_newest() -> None:
    requests = burst([64] * 12, [200] * 12)
    policy = PastFuture(max_new_tokens=10, limit=5.0)
    config = EngineConfig(num_blocks=60, max_model_len=400)
    record = simulate(policy, requests, DEVICE, config, log_steps=True)
    assert record.steps is not None
    evicted = [i for step in record.steps.evicted for i in step]
    assert evicted
    assert 0 not in evicted
    assert (record.request["status"] == FINISHED).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LightLLM(max_new_tokens=0), "policy 'lightllm': max_new_tokens: expected tokens >= 1, got 0"),
        (lambda: LightLLM(token_ratio=-0.1), "policy 'lightllm': token_ratio: expected a share >= 0, got -0.1"),
        (lambda: LightLLM(expected_tokens=0), "policy 'lightllm': expected_tokens: expected tokens >= 1, got 0"),
        (lambda: LightLLM(batch_max_tokens=-1), "policy 'lightllm': batch_max_tokens: expected tokens >= 0, got -1"),
        (lambda: LightLLM(batch_cap=0), "policy 'lightllm': batch_cap: expected requests >= 1, got 0"),
        (lambda: LightLLM(max_wait_tokens=-1), "policy 'lightllm': max_wait_tokens: expected iterations >= 0, got -1"),
        (lambda: PastFuture(max_new_tokens=0), "policy 'past_future': max_new_tokens: expected tokens >= 1, got 0"),
        (lambda: PastFuture(limit=0.0), "policy 'past_future': limit: expected a share > 0, got 0.0"),
        (lambda: PastFuture(seed=-1), "policy 'past_future': seed: expected a whole number >= 0, got -1"),
        (lambda: PastFuture(batch_cap=0), "policy 'past_future': batch_cap: expected requests >= 1, got 0"),
    ],
)
def test_a_wrong_parameter_gives_one_line_that_says_what_is_expected(build: Callable[[], Policy], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        build()
