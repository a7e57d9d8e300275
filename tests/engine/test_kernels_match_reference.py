"""The compiled kernels against the plain-Python engine of `tests.reference`, state by state."""

import copy
import math
from dataclasses import astuple
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines import SLAI, VLLM, Sarathi
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import iteration_seconds
from engine.server.core import arrive, begin, close, empty, finish, idle, is_over
from engine.server.entries import CODE_SHIFT, ILLEGAL, TOO_MANY
from engine.server.integrity import check_server
from engine.server.kv import found_again
from engine.server.policy import Policy
from engine.server.state import (
    DROP,
    EVICT,
    FINISHED,
    FUTURE,
    GAP_BUCKETS_PER_OCTAVE,
    GAP_MIN_EXPONENT,
    GROW,
    NUM_GAP_BUCKETS,
    ROW,
    RUNNING,
    SWAP,
    SWAP_COMPRESSED,
    WAITING,
    Hidden,
    Plan,
    Server,
    View,
    load,
    new_server,
    set_limits,
)
from tests.reference import Entry, ReferenceServer
from tests.reference_policies import PlainSarathi, PlainSLAI, PlainVLLM
from tests.strategies import DEVICE, TIERS, configs, fixed, workloads

LATENCY = DEVICE.compiled()


class PlainPolicy(Protocol):
    """A policy over `ReferenceServer`."""

    def plan(self, server: ReferenceServer) -> list[Entry]:
        """Entries of the next iteration."""


def new_pair(config: EngineConfig, requests: Requests) -> tuple[Server, ReferenceServer]:
    """The compiled and the plain server in front of the same trace, at time 0."""
    server = new_server(len(requests), len(requests.tiers))
    load(server, config, requests)
    arrive(server)
    return server, ReferenceServer(config, requests)


def copied(server: Server) -> Server:
    """An independent copy of everything."""
    return Server(
        View(*(a.copy() for a in server.visible)),
        Hidden(*(a.copy() for a in server.hidden)),
        Plan(*(a.copy() for a in server.plan)),
        server.features.copy(),
    )


def put(server: Server, entries: list[Entry], wake: float = math.inf) -> None:
    """Write a plan, legal or not."""
    server.plan.size[0] = len(entries)
    server.plan.wake[0] = wake
    for k, entry in enumerate(entries):
        server.plan.entry[k] = entry


def equal_or_both_nan(a: float, b: float) -> bool:
    """Equality that takes nan for a value."""
    return a == b or (math.isnan(a) and math.isnan(b))


def bucket_of(gap: float) -> int:
    """Index of the histogram bucket with edges 2**e (1 + k/512), found from its definition."""
    mantissa, exponent = math.frexp(float(np.float32(gap)))
    octave = exponent - 1 - GAP_MIN_EXPONENT
    place = octave * GAP_BUCKETS_PER_OCTAVE + math.floor((2 * mantissa - 1) * GAP_BUCKETS_PER_OCTAVE) + 1
    return min(max(place, 0), NUM_GAP_BUCKETS - 1) if gap > 0.0 else 0


def compare_requests(server: Server, reference: ReferenceServer) -> None:
    """Every field of every request, and its ledger as it would be if the run ended now."""
    shared = "arrival last_token tbt prompt prefilled length generated blocks tier strict status".split()
    shared += ["evictions", "last_run"]
    times = "first_scheduled prompt_done first_token completed".split()
    kept = [*times, "output", "original_prompt", "delivered"]
    ended, row = copied(server), server.visible.row[0]
    close(ended)
    for job in reference.jobs:
        r, h = server.visible.request[job.index], ended.hidden.ledger[job.index]
        assert {f: r[f] for f in shared} == {f: getattr(job, f) for f in shared}, job
        assert r["host"] == 2 * job.host
        assert {f: h[f] for f in kept} == {f: getattr(job, f) for f in kept}, job
        assert {f: server.hidden.ledger[job.index][f] for f in times} == {f: getattr(job, f) for f in times}
        assert (r["max_gap"], r["late_gaps"]) == (max(job.gaps, default=0.0), len(job.late_gaps))
        assert (h["max_gap"], h["late_gaps"]) == (r["max_gap"], r["late_gaps"])
        assert r["has_token"] == (job.first_token >= 0.0)
        assert r["ttft"] == job.ttft
        assert equal_or_both_nan(r["prediction"], job.prediction)
        assert server.hidden.output[job.index] == job.ends_at
        if job.status == WAITING:
            assert found_again(row, r, row["free_blocks"], row["returned"]) == reference.found(job)


def compare_row(server: Server, reference: ReferenceServer) -> None:
    """Queue, running set, counters, and the time integrals from their definitions."""
    row, view, jobs = server.visible.row[0], server.visible, reference.jobs
    arrived = [job for job in jobs if job.status != FUTURE]
    items = [item for batch in reference.batches for item in batch]
    expected = {
        "now": reference.now,
        "last_duration": reference.durations[-1] if reference.durations else 0.0,
        "next_arrival": len(arrived),
        "num_requests": len(jobs),
        "num_waiting": len(reference.queue),
        "num_running": len(reference.running),
        "num_prefilling": sum(job.status == RUNNING and not job.is_decode for job in jobs),
        "no_first_token": sum(job.status in (WAITING, RUNNING) and job.first_token < 0.0 for job in jobs),
        "free_blocks": reference.free_blocks,
        "leaving": len(reference.leaving),
        "leaving_blocks": sum(reference.leaving),
        "iterations": reference.iterations,
        "finished": sum(job.status == FINISHED for job in jobs),
        "dropped": sum(job.completed >= 0.0 and job.status != FINISHED for job in jobs),
        "evictions": sum(job.evictions for job in jobs),
        "prefill_tokens": sum(tokens for _, tokens, is_prefill in items if is_prefill),
        "decode_tokens": sum(tokens for _, tokens, is_prefill in items if not is_prefill),
        "recomputed_tokens": reference.lost_tokens - reference.found_tokens,
        "reused_tokens": reference.found_tokens,
        "free_host": 2 * reference.free_host,
        "swaps": reference.swaps,
        "swapped_out": 2 * reference.swapped_out,
        "swapped_in": 2 * reference.swapped_in,
        "batch_requests": len(items),
        "batch_tokens": sum(n for _, n, _ in reference.batches[-1]) if reference.batches else 0,
        "max_waiting": reference.longest_queue,
    }
    assert {name: row[name] for name in expected} == expected
    assert view.queue[: row.num_waiting].tolist() == reference.queue
    assert view.running[: row.num_running].tolist() == reference.running
    integrals = {
        "busy": sum(reference.durations),
        "kv_time": sum(span * used for span, used in reference.kv_use),
        "queue_time": sum(
            next(t for t in (j.first_token, j.completed, reference.now) if t >= 0.0) - j.arrival for j in arrived
        ),
        "present_time": sum((j.completed if j.completed >= 0.0 else reference.now) - j.arrival for j in arrived),
    }
    for name, value in integrals.items():
        assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


def compare_tiers(server: Server, reference: ReferenceServer) -> None:
    """Totals and gap histogram of every tier, counted again from the requests."""
    for k in range(len(TIERS)):
        jobs = [job for job in reference.jobs if job.tier == k]
        gaps = [gap for job in jobs for gap in job.gaps]
        late = [gap / job.tbt - 1.0 for job in jobs for gap in job.late_gaps]
        done = [job for job in jobs if job.status == FINISHED]
        good = [job for job in done if not job.late_gaps and job.first_token - job.arrival <= job.ttft]
        t = server.hidden.tier[k]
        counts = [len(late), sum(job.first_token >= 0.0 for job in jobs), len(done), len(good)]
        assert [t[name] for name in ("late_gaps", "first_tokens", "finished", "good")] == counts
        assert t["max_gap"] == max(gaps, default=0.0)
        assert t["gap_sum"] == pytest.approx(sum(gaps))
        assert t["late_sum"] == pytest.approx(sum(late))
        histogram = np.bincount([bucket_of(gap) for gap in gaps] or [0], minlength=NUM_GAP_BUCKETS)
        histogram[0] -= not gaps
        assert np.array_equal(server.hidden.gaps[k], histogram)


def compare(server: Server, reference: ReferenceServer) -> None:
    """All visible and hidden state of both engines."""
    compare_requests(server, reference)
    compare_row(server, reference)
    compare_tiers(server, reference)
    assert bool(is_over(server)) == reference.is_over


def compare_features(server: Server, reference: ReferenceServer) -> None:
    """What the latency model is told about the planned batch."""
    expected = reference.features()
    assert {name: float(server.features[name][0]) for name in expected} == pytest.approx(expected)


def random_plan(rng: np.random.Generator, reference: ReferenceServer, junk: float) -> list[Entry]:
    """Mostly sensible moves of the present requests in any order; a share `junk` of nonsense."""
    plan: list[Entry] = []
    jobs = reference.jobs
    for i in rng.permutation(reference.running + reference.queue):
        job, u = jobs[i], rng.random()
        reserve = int(rng.choice([GROW, GROW, *range(8)])) if rng.random() < 0.4 else 0
        left = max(1, job.prompt - job.prefilled)
        if job.status == RUNNING and u < 0.08:
            plan.append((i, EVICT, 0))
        elif job.status == RUNNING and u < 0.2 and reference.free_host > 0:
            plan.append((i, int(rng.choice([SWAP, SWAP_COMPRESSED])), 0))
        elif job.status == WAITING and u < 0.03:
            plan.append((i, DROP, 0))
        elif u < 0.75:
            plan.append((i, int(rng.integers(1, left + 1)), reserve))
    for _ in range(rng.binomial(4, junk)):
        place = int(rng.integers(0, len(plan) + 1))
        tokens = int(rng.choice([-5, SWAP_COMPRESSED, SWAP, DROP, EVICT, 0, 1, 2, 30, 10_000]))
        plan.insert(place, (int(rng.integers(-1, len(jobs) + 1)), tokens, int(rng.integers(-1, 100))))
    return [(int(i), n, reserve) for i, n, reserve in plan[: 2 * len(jobs) + 1]]


@fixed(400)
@given(configs(), workloads(), st.integers(0, 2**32), st.sampled_from((0.0, 0.1, 0.5)))
def test_random_plans_have_the_same_effects_in_both_engines(
    config: EngineConfig, requests: Requests, seed: int, junk: float
) -> None:
    rng = np.random.default_rng(seed)
    server, reference = new_pair(config, requests)
    limits = np.zeros(1, ROW).view(np.recarray)
    set_limits(limits, config)
    servable = not config.unservable(requests.prompt, requests.output).any()
    for _ in range(60):
        if reference.is_over:
            break
        plan = random_plan(rng, reference, junk)
        wake = reference.now + rng.exponential(0.05) if rng.random() < 0.2 else math.inf
        put(server, plan, wake)
        strictly, strict_reference = copied(server), copy.deepcopy(reference)
        code = strict_reference.begin(plan, True)
        assert int(begin(strictly, True)) == code
        assert begin(server, False) == 0
        assert reference.begin(plan, False) == 0
        if code == 0:
            compare(strictly, reference)
            compare_features(strictly, reference)
        compare_features(server, reference)
        if reference.batch:
            seconds = float(rng.exponential(0.02))
            finish(server, seconds)
            reference.finish(seconds)
        else:
            assert bool(idle(server)) == reference.idle(wake)
        compare(server, reference)
        if servable:
            check_server(server, limits, "between two iterations")


def test_every_error_code_is_reached_in_both_engines() -> None:
    config = EngineConfig(
        block_size=4, num_blocks=6, max_num_seqs=2, max_batched_tokens=12, max_model_len=24, watermark=0.0
    )
    requests = Requests.create([0.0, 0.0, 0.0, 0.0, 5.0], [4, 9, 9, 4, 4], [5, 5, 5, 5, 5], tiers=TIERS)
    history: list[list[Entry]] = [[(0, 4, 0)], [(0, 1, 0), (1, 5, 0)]]
    attempts: dict[int, list[Entry]] = {
        1: [(2, EVICT, 0)],
        2: [(0, DROP, 0)],
        3: [(0, 1, 0), (0, EVICT, 0)],
        4: [(4, 4, 0)],
        5: [(2, 1, 0)],
        6: [(0, EVICT, 0), (3, 4, 4)],
        7: [(1, 4, 0), (0, EVICT, 0), (2, 9, 0)],
        8: [(1, 5, 0)],
        9: [(0, 2, 0)],
        10: [(0, -5, 0)],
        11: [(0, 1, 0), (1, SWAP, 0)],
    }
    assert len(attempts) == TOO_MANY - 1  # a plan of Python lists is never too long
    for kind, plan in attempts.items():
        server, reference = new_pair(config, requests)
        for step in history:
            put(server, step)
            assert begin(server, True) == reference.begin(step, True) == 0
            finish(server, 0.1)
            reference.finish(0.1)
        put(server, plan)
        code = int(begin(server, True))
        assert code == reference.begin(plan, True)
        assert code % CODE_SHIFT == kind, ILLEGAL[kind]
        assert code // CODE_SHIFT == len(plan) - 1


def drive_policies(policy: Policy, plain: PlainPolicy, config: EngineConfig, requests: Requests) -> None:
    """Run kernel and plain policy to the end of the trace; batches as sets, evictions in order, all state equal.

    In another order than arrival a plan may take a request for one that finds less of its KV than it does.
    """
    if vars(policy).get("order", "fcfs") != "fcfs":
        config = config.replace(prefix_cache="none")
    server, reference = new_pair(config, requests)
    memory = policy.memory(config, len(requests))
    for _ in range(3000):
        if reference.is_over:
            break
        empty(server)
        policy.plan(server.visible, memory, server.plan)
        kernel_plan = [tuple(e) for e in server.plan.entry[: server.plan.size[0]].tolist()]
        plan = plain.plan(reference)
        assert sorted(kernel_plan) == sorted(plan)
        assert [e for e in kernel_plan if e[1] < 0] == [e for e in plan if e[1] < 0]
        assert begin(server, True) == reference.begin(plan, True) == 0
        if reference.batch:
            seconds = float(iteration_seconds(LATENCY, server.features))
            finish(server, seconds)
            reference.finish(seconds)
        elif not plan:
            went_on = reference.idle()
            assert bool(idle(server)) == went_on
            if not went_on:
                break
    compare(server, reference)


orders: st.SearchStrategy[Any] = st.sampled_from(("fcfs", "spf", "strict_spf"))
budgets = st.sampled_from((3, 16, 200))


@fixed(150)
@given(configs(), workloads(20), budgets, orders)
def test_sarathi_kernel_plans_what_the_plain_policy_plans(
    config: EngineConfig, requests: Requests, budget: int, order: Any
) -> None:
    order = order.removeprefix("strict_")
    config = config.replace(max_batched_tokens=4096)
    drive_policies(Sarathi(budget, order), PlainSarathi(budget, order), config, requests)


@fixed(150)
@given(configs(), workloads(20), st.sampled_from((0, 30)), st.integers(1, 9))
def test_vllm_kernel_plans_what_the_plain_policy_plans(
    config: EngineConfig, requests: Requests, max_batched_tokens: int, cap: int
) -> None:
    config = config.replace(max_batched_tokens=4096)
    drive_policies(VLLM(max_batched_tokens, cap), PlainVLLM(max_batched_tokens, cap), config, requests)


@st.composite
def slai_settings(draw: st.DrawFn) -> SLAI:
    """SLAI with every decode critical, none critical, and everything between."""
    return SLAI(
        token_budget=draw(budgets),
        order=draw(orders),
        offset=draw(st.sampled_from((0.0, 1.0, 3.0, 50.0))),
        pressure_offset=draw(st.sampled_from((2.0, 10.0))),
        memory_limit=draw(st.sampled_from((0.5, 0.9))),
        fixed_offset=draw(st.booleans()),
        max_decodes=draw(st.sampled_from((2, 128))),
    )


@fixed(250)
@given(configs(), workloads(20), slai_settings())
def test_slai_kernel_plans_what_the_heap_of_deadlines_plans(
    config: EngineConfig, requests: Requests, policy: SLAI
) -> None:
    config = config.replace(max_batched_tokens=4096)
    parameters: tuple[Any, ...] = astuple(policy)
    drive_policies(policy, PlainSLAI(*parameters), config, requests)
