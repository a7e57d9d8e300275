"""Several servers behind a router: each replica is `simulate`, and what the router sees is true."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

import baselines
from baselines import routers
from engine.cluster.fleet import Replicas, kernels_of, new_arrivals, new_fleet, shown
from engine.cluster.load import count
from engine.cluster.loop import ASKS, compiled_run
from engine.cluster.record import ClusterRecord, summarize_cluster
from engine.cluster.router import Age, Router, RouterKernel, router_kernel_of
from engine.cluster.simulate import RouterError, _nobody, simulate_cluster
from engine.cluster.state import LOAD, RouterMemory, RouterView, blank
from engine.config import EngineConfig
from engine.demand.closed import Loop
from engine.demand.predictions import predict
from engine.demand.requests import Requests, Tier
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel, load_profile
from engine.errors import InputError
from engine.runs.driving import PolicyError
from engine.runs.pieces import PAUSED
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.server.plan import schedule
from engine.server.policy import Kernel
from engine.server.rows import row_of
from engine.server.state import Memory, Plan, View
from tests.strategies import DEVICE
from tests.toys import Improvised, compiled, constant

BUSY = Workload(rate=30.0, num_requests=150, lengths="lognormal:5,0.7,4.5,0.7,1024")
TIGHT = EngineConfig(num_blocks=400, max_model_len=1024)
"""Load and memory under which queues form and the evicting policies evict."""
SWAPS = TIGHT.replace(swap_space_gib=1.0, swap_bandwidth=25e9)
ARRAYS = ("request", "ledger", "tier", "gaps", "row")
SLOW = DEVICE.scaled(2.0)


def told(spec: str, requests: Requests) -> Requests:
    """The requests with the predictions that a policy asks for."""
    channel = baselines.make(spec).channel
    return predict(requests, channel, 0) if channel else requests


def differences(one: Record, other: Record) -> list[str]:
    """Columns in which two records differ."""
    found = []
    for name in ARRAYS:
        a, b = getattr(one, name), getattr(other, name)
        columns = {name: (a, b)} if a.dtype.names is None else {c: (a[c], b[c]) for c in a.dtype.names}
        found += [c for c, (x, y) in columns.items() if not np.array_equal(x, y, equal_nan=c == "prediction")]
    return found


def served(record: ClusterRecord, policies: Sequence[str], devices: Sequence[LatencyModel]) -> list[list[str]]:
    """For each replica how its record differs from that of `simulate` on the same requests."""
    alone = zip(policies, record.records, devices, strict=True)
    return [differences(one, simulate(baselines.make(p), one.requests, device, one.config)) for p, one, device in alone]


@pytest.mark.parametrize(
    "spec", [*baselines.names(), "eb:max_num_batched_tokens=24,k_ratio=0.5", "trail:max_preemptions=2"]
)
def test_one_replica_is_the_server_without_a_router(spec: str) -> None:
    requests = told(spec, BUSY.generate(1))
    policy = baselines.make(spec)
    record = simulate_cluster(routers.make("jsq"), [policy], requests, [DEVICE], [TIGHT])
    alone = simulate(policy, requests, DEVICE, TIGHT)
    assert differences(record.records[0], alone) == []
    assert differences(record.fleet(), alone) == []


@pytest.mark.parametrize(
    "config", [TIGHT.replace(async_scheduling=True), EngineConfig.reference(num_blocks=400), SWAPS]
)
@pytest.mark.parametrize("spec", ["vllm_v1", "slai", "alise"])
def test_one_replica_is_the_server_in_other_semantics_too(spec: str, config: EngineConfig) -> None:
    requests = told(spec, BUSY.generate(2))
    record = simulate_cluster(routers.make("random"), [baselines.make(spec)], requests, [DEVICE], [config])
    assert differences(record.records[0], simulate(baselines.make(spec), requests, DEVICE, config)) == []


@pytest.mark.parametrize(
    "router", [*routers.names(), "jsq:age=0.5", "power_of_d:d=3,age=2", "dynamo_kv:temperature=0.5"]
)
def test_each_replica_is_a_server_with_the_requests_that_it_got(router: str) -> None:
    policies, devices = ["sarathi", "slai", "sarathi", "vllm"], [DEVICE, DEVICE, SLOW, DEVICE]
    configs = [TIGHT, TIGHT, TIGHT, TIGHT.replace(num_blocks=900, max_num_seqs=16)]
    requests = replace(BUSY, num_requests=400).generate(3)
    record = simulate_cluster(routers.make(router), [baselines.make(p) for p in policies], requests, devices, configs)
    assert served(record, policies, devices) == [[], [], [], []]
    assert record.sent.sum() == 400
    assert (record.sent > 0).sum() >= 3


def test_predictions_that_change_and_a_horizon_hold_at_each_replica() -> None:
    requests = predict(BUSY.generate(4), "refined:every=16", 0)
    policies = [baselines.make("trail"), baselines.make("srtf")]
    record = simulate_cluster(routers.make("round_robin"), policies, requests, [DEVICE] * 2, [TIGHT] * 2, horizon_s=4.0)
    for policy, one in zip(policies, record.records, strict=True):
        assert one.requests.forecast.every == 16
        assert differences(one, simulate(policy, one.requests, DEVICE, TIGHT, horizon_s=4.0)) == []
        assert one.row["finished"][0] < len(one.requests)


def test_a_replica_that_gets_nothing_has_an_empty_record() -> None:
    requests = Requests.create([0.0, 1.0], [4, 6], [3, 1])
    record = simulate_cluster(_Always(1), [baselines.make("sarathi")] * 3, requests, [constant(1.0)] * 3)
    assert record.sent.tolist() == [0, 2, 0]
    assert summarize_cluster(record).replicas[0].arrived == 0
    assert summarize_cluster(record).imbalance == 3.0
    assert summarize_cluster(record).jain_replicas == 1.0


def test_numbers_of_a_fleet_are_those_of_all_its_requests() -> None:
    requests = replace(BUSY, num_requests=400).generate(5)
    record = simulate_cluster(routers.make("jsq"), [baselines.make("sarathi")] * 4, requests, [DEVICE] * 4, [TIGHT] * 4)
    report = summarize_cluster(record)
    first = np.concatenate([one.ledger["first_token"] - one.request["arrival"] for one in record.records])
    assert report.fleet.ttft.mean == pytest.approx(first.mean())
    assert report.fleet.iterations == sum(one.iterations for one in report.replicas)
    assert report.fleet.completed == 400
    end = max(float(one.row["now"][0]) for one in record.records)
    busy = [float(one.row["busy"][0]) for one in record.records]
    assert report.fleet.busy_share == pytest.approx(sum(busy) / (4 * end))
    means = [float((one.ledger["first_token"] - one.request["arrival"]).mean()) for one in record.records]
    assert report.jain_replicas == pytest.approx(sum(means) ** 2 / (4 * sum(m * m for m in means)))


UNDER_PRESSURE = {
    "vllm": TIGHT,
    "trail": TIGHT,
    "alise": SWAPS,
    "fastertransformer": TIGHT,
    "vllm_v1": TIGHT.replace(prefix_cache="own"),
    "slai": EngineConfig.reference(num_blocks=400),
}


@pytest.mark.parametrize("spec", UNDER_PRESSURE)
def test_running_sums_are_what_counting_finds(spec: str) -> None:
    config = UNDER_PRESSURE[spec]
    requests = told(spec, BUSY.generate(6))
    replicas = Replicas.of([baselines.make(spec)] * 2, [DEVICE] * 2, [config] * 2)
    requests = replicas.servable(requests, np.inf)
    fleet, trace = new_fleet(replicas, requests, 0.0, np.inf), new_arrivals(replicas, requests)
    view, memory, course = shown(replicas, 0), routers.make("random").memory(2), fleet.course[0]
    kernels, course.stop, looked = tuple(k.compiled for k in kernels_of(replicas)), 1 << 40, 0
    while True:
        code = compiled_run(len(kernels))(_nobody.compiled, kernels, fleet, trace, view, memory, True)
        if code == PAUSED:
            continue
        for j in range(2):
            fresh = blank(1, LOAD)[0]
            fresh.sent = fleet.load[j].sent
            count(row_of(fleet.servers, j), fresh)
            for name in ("prompt_left", "unanswered", "unpredicted", "generated", "blocks_wanted"):
                assert (name, fleet.load[j][name]) == (name, fresh[name])
            assert fleet.load[j].predicted == pytest.approx(fresh.predicted, abs=1e-3)
        if code != ASKS:
            break
        course.choice, looked = looked % 2, looked + 1
    assert looked == len(requests)
    assert fleet.load["prompt_left"].tolist() == [0, 0]


@dataclass(frozen=True)
class _Always(Router):
    """One and the same replica."""

    place: int = 0
    name: ClassVar[str] = "always"

    def route(self, view: RouterView, memory: RouterMemory) -> int:
        """Wherever it is."""
        return self.place


@dataclass(frozen=True)
class _Watcher(Router):
    """Round robin in Python that notes what it sees."""

    age: Age = 0.0
    name: ClassVar[str] = "watcher"

    def __post_init__(self) -> None:
        """Nothing seen yet."""
        object.__setattr__(self, "seen", [])

    def route(self, view: RouterView, memory: RouterMemory) -> int:
        """In turn."""
        row = view.row[0]
        names = ("sent", "in_flight", "reported", "waiting", "running", "prompt_left")
        replicas = [tuple(int(r[name]) for name in names) for r in view.replica]
        vars(self)["seen"].append((float(row.now), float(row.as_of), replicas))
        return int(row.index % len(view.replica))


def test_a_router_sees_replicas_as_their_last_batch_began_and_its_own_counts_as_they_are() -> None:
    """One second for each batch; outputs of one token, so a request is done when its prompt is."""
    requests = Requests.create([0.0, 0.5, 0.75, 1.0, 1.5], [8, 8, 8, 8, 8], [1, 1, 1, 1, 1])
    watcher = _Watcher()
    simulate_cluster(watcher, [baselines.make("sarathi")] * 2, requests, [constant(1.0)] * 2)
    assert vars(watcher)["seen"] == [
        (0.0, 0.0, [(0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0)]),
        (0.5, 0.5, [(1, 1, 1, 0, 1, 8), (0, 0, 0, 0, 0, 0)]),  # the first batch of replica 0 runs until 1.0
        (0.75, 0.75, [(1, 1, 1, 0, 1, 8), (1, 1, 1, 0, 1, 8)]),
        (1.0, 1.0, [(2, 2, 2, 1, 1, 16), (1, 1, 1, 0, 1, 8)]),  # what ends when a request arrives ends after it
        (1.5, 1.5, [(2, 1, 2, 0, 1, 8), (2, 2, 2, 1, 1, 16)]),
    ]


def test_old_reports_are_those_of_the_last_whole_multiple_of_their_age() -> None:
    requests = Requests.create([0.0, 0.5, 0.75, 1.0, 1.5], [8, 8, 8, 8, 8], [1, 1, 1, 1, 1])
    watcher = _Watcher(age=0.7)
    simulate_cluster(watcher, [baselines.make("sarathi")] * 2, requests, [constant(1.0)] * 2)
    seen = vars(watcher)["seen"]
    assert [as_of for _, as_of, _ in seen] == pytest.approx([0.0, 0.0, 0.7, 0.7, 1.4])
    assert [[(r[0], r[1]) for r in replicas] for *_, replicas in seen] == [
        [(0, 0), (0, 0)],
        [(1, 1), (0, 0)],
        [(1, 1), (1, 1)],
        [(2, 2), (1, 1)],
        [(2, 1), (2, 2)],
    ]
    assert [[r[2:5] for r in replicas] for *_, replicas in seen] == [
        [(0, 0, 0), (0, 0, 0)],
        [(0, 0, 0), (0, 0, 0)],
        [(1, 0, 1), (1, 0, 1)],
        [(1, 0, 1), (1, 0, 1)],
        [(2, 0, 1), (2, 1, 1)],
    ]


@dataclass(frozen=True)
class _Plain(Router):
    """Least tokens, asked in Python."""

    name: ClassVar[str] = "plain"

    def memory(self, replicas: int) -> RouterMemory:
        """Its memory."""
        return routers.make("least_tokens").memory(replicas)

    def route(self, view: RouterView, memory: RouterMemory) -> int:
        """What its kernel says."""
        return routers.make("least_tokens").route(view, memory)


def test_a_router_in_python_does_what_its_compiled_form_does() -> None:
    requests, policies = BUSY.generate(7), [baselines.make("sarathi")] * 3
    ours = simulate_cluster(routers.make("least_tokens"), policies, requests, [DEVICE] * 3, [TIGHT] * 3)
    theirs = simulate_cluster(_Plain(), policies, requests, [DEVICE] * 3, [TIGHT] * 3)
    assert np.array_equal(ours.replica, theirs.replica)


def test_the_same_call_gives_the_same_record_and_another_seed_another_one() -> None:
    def go(seed: int) -> list[int]:
        requests, policies = BUSY.generate(8), [baselines.make("sarathi")] * 3
        record = simulate_cluster(routers.make("power_of_d"), policies, requests, [DEVICE] * 3, [TIGHT] * 3, seed=seed)
        return list(record.replica.tolist())

    assert go(0) == go(0) != go(1)


MIXED = ["sarathi", "slai", "vllm"]


@pytest.mark.parametrize("router", ["jsq", "least_tokens", "max_weight", "llumnix:age=0.5", "least_kv"])
def test_replicas_in_another_order_serve_the_same_requests(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn numbers go with the replica (its label), so that the place in the list decides nothing."""

    def go(order: list[int]) -> list[int]:
        def labelled(replicas: Replicas, seed: int) -> RouterView:
            view = shown(replicas, seed)
            view.replica["label"] = order
            return view

        monkeypatch.setattr("engine.cluster.simulate.shown", labelled)
        policies = [baselines.make(MIXED[k]) for k in order]
        record = simulate_cluster(routers.make(router), policies, BUSY.generate(9), [DEVICE] * 3, [TIGHT] * 3)
        return [order[j] for j in record.replica]

    assert go([0, 1, 2]) == go([2, 0, 1]) == go([1, 2, 0])


ONE_SEAT = EngineConfig(max_num_seqs=1, num_blocks=100_000, max_model_len=16_384)


def mean_response(router: str, replicas: int, load: float, num_requests: int, seed: int = 1) -> float:
    """Mean response in mean services: servers of one seat, 20 tokens in the mean, nearly exponential."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / (replicas * load), num_requests))
    output = np.minimum(rng.geometric(0.05, num_requests), 16_000)
    tier = (Tier("all", 1.0, 1e6, 1e6),)
    requests = Requests.create(arrival - arrival[0], np.ones(num_requests, int), output, tiers=tier)
    policies, devices = [baselines.make("vllm")] * replicas, [constant(0.05)] * replicas
    record = simulate_cluster(routers.make(router), policies, requests, devices, [ONE_SEAT] * replicas, seed=seed)
    fleet = record.fleet()
    return float((fleet.ledger["completed"] - fleet.request["arrival"])[num_requests // 10 :].mean())


@pytest.mark.slow
def test_servers_of_one_seat_are_the_queues_of_the_theory() -> None:
    """M/M/1 behind a random router; two choices: sum of load ** (2 ** i - 2) for many replicas (Mitzenmacher 2001)."""
    assert mean_response("random", 8, 0.7, 200_000) == pytest.approx(1 / 0.3, rel=0.05)
    two = sum(0.7 ** (2.0**i - 2) for i in range(1, 12))
    assert mean_response("power_of_d", 32, 0.7, 200_000) == pytest.approx(two, rel=0.05)


@pytest.mark.slow
def test_old_counts_turn_the_best_router_into_the_worst() -> None:
    """Eight replicas at a load of 0.9: with fresh counts JSQ is ahead of all, with old ones behind random."""
    means = {r: mean_response(r, 8, 0.9, 100_000) for r in ("jsq", "power_of_d", "round_robin", "random")}
    assert means["jsq"] < means["power_of_d"] < means["round_robin"] < means["random"]
    aged = {age: mean_response(f"jsq:age={age}", 8, 0.9, 100_000) for age in (1, 5)}
    assert means["jsq"] < aged[1] < means["random"] < aged[5]
    assert mean_response("power_of_d:age=5", 8, 0.9, 100_000) < 0.6 * aged[5]


def test_what_does_not_fit_is_one_line() -> None:
    sarathi, requests, device = baselines.make("sarathi"), Requests.create([0.0], [100], [900]), constant(1.0)
    small, jsq = EngineConfig(num_blocks=32), routers.make("jsq")
    with pytest.raises(InputError, match="replicas: expected at least one, got none"):
        simulate_cluster(jsq, [], requests, [], [])
    with pytest.raises(InputError, match="as many policies as executors and configs, got 2 policies, 1 executors"):
        simulate_cluster(jsq, [sarathi] * 2, requests, [device])
    with pytest.raises(InputError, match=r"replica 1: request 0: expected prompt \+ output <= 512 tokens"):
        simulate_cluster(jsq, [sarathi] * 2, requests, [device] * 2, [EngineConfig(), small])
    with pytest.raises(InputError, match="replica 0: policy 'trail': expected requests with predictions"):
        simulate_cluster(jsq, [baselines.make("trail")], requests, [device])
    with pytest.raises(InputError, match="replica 0: executor: expected a profile of load_profile"):
        simulate_cluster(jsq, [sarathi], requests, ["rtx"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="router: expected a router such as"):
        simulate_cluster("jsq", [sarathi], requests, [device])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="replica 0: expected a policy with a compiled kernel, got 'improvised'"):
        simulate_cluster(jsq, [Improvised(lambda view, memory, plan: None)], requests, [device])
    with pytest.raises(InputError, match="requests: expected an open loop in front of a router"):
        simulate_cluster(jsq, [sarathi], requests.replace(loop=Loop(1)), [device])


@Kernel
def _greedy(view: View, memory: Memory, plan: Plan) -> None:
    for k in range(view.row[0].num_waiting):
        schedule(plan, view.queue[k], 1_000_000)


@Kernel
def _lazy(view: View, memory: Memory, plan: Plan) -> None:
    return


def test_faults_of_policies_and_routers_name_the_replica() -> None:
    sarathi, requests, device = (
        baselines.make("sarathi"),
        Requests.create([0.0, 1.0], [100, 100], [9, 9]),
        constant(1.0),
    )
    turn = routers.make("round_robin")
    with pytest.raises(PolicyError, match=r"^replica 1: policy 'greedy': illegal plan at iteration 0"):
        simulate_cluster(turn, [sarathi, compiled("greedy", _greedy)], requests, [device] * 2)
    with pytest.raises(PolicyError, match=r"^replica 1: policy 'lazy' planned nothing at t=1.000 s with 1 waiting"):
        simulate_cluster(turn, [sarathi, compiled("lazy", _lazy)], requests, [device] * 2)
    with pytest.raises(
        RouterError, match=r"^router 'always:place=2': expected a replica 0 \.\.\. 1 at t=0.000 s, got 2"
    ):
        simulate_cluster(_Always(2), [sarathi] * 2, requests, [device] * 2)
    with pytest.raises(RouterError, match=r"^router 'astray': expected a replica 0 \.\.\. 1 at t=1.000 s, got 7"):
        simulate_cluster(_Astray(), [sarathi] * 2, requests, [device] * 2)
    with pytest.raises(RouterError, match=r"^router 'broken': KeyError: 1"):
        simulate_cluster(_Broken(), [sarathi] * 2, requests, [device] * 2)


@Kernel
def _restless(view: View, memory: Memory, plan: Plan) -> None:
    plan.wake[0] = view.row[0].now + 1.0


def test_a_replica_that_is_only_ever_woken_is_stopped() -> None:
    requests, policies = Requests.create([0.0], [4], [3]), [compiled("restless", _restless)]
    with pytest.raises(
        PolicyError, match=r"^replica 0: policy 'restless' made no end within 1056 decisions \(1 waiting"
    ):
        simulate_cluster(routers.make("jsq"), policies, requests, [constant(1.0)])


@pytest.mark.parametrize("router", ["jsq:age=0.3", "watcher"])
def test_pieces_of_the_loop_change_nothing(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def go() -> ClusterRecord:
        made = _Watcher(age=0.3) if router == "watcher" else routers.make(router)
        return simulate_cluster(made, [baselines.make("sarathi")] * 3, BUSY.generate(4), [DEVICE] * 3, [TIGHT] * 3)

    whole = go()
    monkeypatch.setattr("engine.cluster.simulate.FIRST_PIECE", 7)
    pieces = go()
    assert np.array_equal(whole.replica, pieces.replica)
    assert [differences(a, b) for a, b in zip(whole.records, pieces.records, strict=True)] == [[], [], []]


@dataclass(frozen=True)
class _Astray(Router):
    """Somewhere else from the second request on."""

    name: ClassVar[str] = "astray"


@router_kernel_of(_Astray)
def _stray(view: RouterView, memory: RouterMemory) -> int:
    return 7 if view.row[0].index > 0 else 0


@dataclass(frozen=True)
class _Broken(Router):
    """Raises an exception."""

    name: ClassVar[str] = "broken"

    def route(self, view: RouterView, memory: RouterMemory) -> int:
        """Look a place up."""
        return {0: 1}[int(view.row[0].index) + 1]


def test_a_kernel_that_is_none_of_a_router_is_refused() -> None:
    assert isinstance(routers.make("jsq").kernel, RouterKernel)
    with pytest.raises(InputError, match="router 'router': expected a kernel or a route method"):
        Router().route(shown(Replicas.of([baselines.make("vllm")], [constant(1.0)], None), 0), Router().memory(1))


def test_requests_and_profile_of_the_shipped_device_work_without_configs() -> None:
    model = load_profile("rtx6000ada-mistral-7b")
    requests = Workload(rate=4.0, num_requests=60).generate(0)
    record = simulate_cluster(routers.make("least_tokens"), [baselines.make("slai")] * 2, requests, [model] * 2)
    assert summarize_cluster(record).fleet.completed == 60
    assert "least_tokens: 2 replicas" in repr(record)
