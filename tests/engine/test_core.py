"""The physics of one server, by hand: blocks, chunks, tokens, evictions, time."""

import math
from typing import Any

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.server.core import (
    arrive,
    begin,
    begin_decodes,
    close,
    explain,
    finish,
    gap_bucket,
    idle,
    is_over,
)
from engine.server.entries import CODE_SHIFT, ILLEGAL
from engine.server.features import FEATURES
from engine.server.kv import blocks_for
from engine.server.state import (
    DROP,
    DROPPED,
    EVICT,
    FINISHED,
    GAP_BUCKETS_PER_OCTAVE,
    GAP_MIN_EXPONENT,
    NUM_GAP_BUCKETS,
    RUNNING,
    SWAP,
    WAITING,
    Server,
    load,
    new_server,
)
from tests.toys import burst

SMALL = EngineConfig(block_size=4, num_blocks=10, watermark=0.0, max_num_seqs=3, max_batched_tokens=20)


def serve(config: EngineConfig, requests: Requests) -> Server:
    """A server at time 0, arrivals at 0 queued."""
    server = new_server(len(requests), len(requests.tiers))
    load(server, config, requests)
    arrive(server)
    return server


def book(server: Server, *entries: tuple[int, ...], strict: bool = True) -> int:
    """Write a plan of (request, tokens[, reserve]) and begin it."""
    server.plan.size[0] = len(entries)
    for k, entry in enumerate(entries[: len(server.plan.entry)]):
        server.plan.entry[k] = (*entry, 0)[:3]
    return int(begin(server, strict))


def step(server: Server, *entries: tuple[int, ...], seconds: float = 1.0) -> None:
    """One legal iteration."""
    assert book(server, *entries) == 0
    finish(server, seconds)


def request(server: Server, i: int, *names: str) -> list[Any]:
    """Some fields of one request."""
    return [server.visible.request[name][i].item() for name in names]


def row(server: Server, *names: str) -> list[Any]:
    """Some fields of the row."""
    return [server.visible.row[name][0].item() for name in names]


def ledger(server: Server, i: int, *names: str) -> list[Any]:
    """Some fields of a ledger that is completed first (so call it once)."""
    close(server)
    return [server.hidden.ledger[name][i].item() for name in names]


def test_admission_takes_the_blocks_of_the_whole_prompt_at_its_first_chunk() -> None:
    server = serve(SMALL, burst([9], [3]))
    step(server, (0, 2))
    assert row(server, "free_blocks", "num_waiting", "num_running", "num_prefilling") == [7, 0, 1, 1]
    assert request(server, 0, "prefilled", "blocks", "status", "generated") == [2, 3, RUNNING, 0]
    step(server, (0, 7))
    assert request(server, 0, "prefilled", "blocks", "generated") == [9, 3, 1]
    assert row(server, "num_prefilling") == [0]


def test_a_decode_takes_a_block_only_when_its_last_one_is_full() -> None:
    server = serve(SMALL, burst([3], [9]))
    step(server, (0, 3))
    held: list[int] = []
    for _ in range(6):
        step(server, (0, 1))
        held.append(*request(server, 0, "blocks"))
    assert held == [1, 2, 2, 2, 2, 3]


def test_a_finished_request_gives_its_blocks_back_and_leaves() -> None:
    server = serve(SMALL, burst([5, 5], [1, 2]))
    step(server, (0, 5), (1, 5), seconds=0.5)
    assert request(server, 0, "status", "blocks", "generated") == [FINISHED, 0, 1]
    assert row(server, "free_blocks", "num_running", "finished") == [8, 1, 1]
    assert not is_over(server)
    step(server, (1, 1), seconds=0.5)
    assert row(server, "free_blocks", "num_running", "finished") == [10, 0, 2]
    assert is_over(server)
    assert ledger(server, 1, "first_scheduled", "prompt_done", "first_token", "completed", "delivered") == [
        0.0,
        0.5,
        0.5,
        1.0,
        2,
    ]


def test_in_reference_semantics_the_prompt_emits_nothing() -> None:
    server = serve(EngineConfig.reference(block_size=4, num_blocks=10), burst([5], [2]))
    step(server, (0, 5))
    assert request(server, 0, "generated", "last_token", "has_token") == [0, 1.0, 0]
    step(server, (0, 1))
    step(server, (0, 1))
    names = ("prompt_done", "first_token", "completed", "max_gap", "delivered")
    assert ledger(server, 0, *names) == [1.0, 2.0, 3.0, 1.0, 2]


@pytest.mark.parametrize(("keeps", "remaining"), [(True, 2), (False, 4)])
def test_an_evicted_request_prefills_everything_again_from_the_head_of_the_queue(keeps: bool, remaining: int) -> None:
    config = SMALL.replace(eviction_keeps_output=keeps)
    server = serve(config, burst([6, 4, 4], [4, 4, 4]))
    step(server, (0, 6))
    step(server, (0, 1), (1, 4))
    step(server, (2, 4), (0, EVICT))
    assert request(server, 0, "status", "prompt", "prefilled", "length", "blocks", "evictions") == [
        WAITING,
        8,
        0,
        8,
        0,
        1,
    ]
    assert request(server, 0, "generated") == [2 if keeps else 0]
    assert server.visible.queue[:1].tolist() == [0]
    assert row(server, "evictions", "recomputed_tokens", "free_blocks") == [1, 7, 8]
    step(server, (0, 8))
    for _ in range(remaining - 1):
        assert request(server, 0, "status") == [RUNNING]
        step(server, (0, 1))
    assert request(server, 0, "status") == [FINISHED]
    assert ledger(server, 0, "delivered", "first_token", "max_gap") == [2 + remaining, 1.0, 2.0]


def test_evicting_a_started_prompt_loses_what_was_prefilled() -> None:
    server = serve(SMALL, burst([9], [1]))
    step(server, (0, 5))
    assert book(server, (0, EVICT), (0, 3)) == 0
    finish(server, 1.0)
    assert row(server, "recomputed_tokens", "num_prefilling", "evictions", "num_running") == [5, 1, 1, 1]
    assert request(server, 0, "prefilled", "prompt", "blocks") == [3, 9, 3]


def test_victims_stand_in_front_of_the_queue_the_last_one_first() -> None:
    server = serve(SMALL, burst([4, 4, 4, 4], [9, 9, 9, 9]))
    step(server, (0, 4), (1, 4), (2, 4))
    step(server, (0, EVICT), (2, EVICT), (1, 1))
    assert server.visible.queue[:3].tolist() == [2, 0, 3]
    assert server.visible.running[:1].tolist() == [1]


def test_running_requests_are_listed_in_order_of_arrival() -> None:
    server = serve(SMALL, burst([4, 4, 4], [9, 9, 9]))
    step(server, (2, 4))
    step(server, (0, 4))
    step(server, (1, 4))
    assert server.visible.running[:3].tolist() == [0, 1, 2]


def test_a_dropped_request_never_comes_back() -> None:
    server = serve(SMALL, burst([4, 4], [2, 2]))
    step(server, (0, DROP), (1, 4))
    assert request(server, 0, "status") == [DROPPED]
    assert row(server, "dropped", "no_first_token", "num_waiting") == [1, 0, 0]
    assert book(server, (0, 4)) % CODE_SHIFT == 4
    assert ledger(server, 0, "completed", "first_scheduled", "first_token", "delivered") == [0.0, 0.0, -1.0, 0]


def test_a_reservation_is_held_from_admission_on() -> None:
    server = serve(SMALL, burst([4, 4], [9, 9]))
    step(server, (0, 4, 5))
    step(server, *[(0, 1)])
    assert request(server, 0, "blocks") == [5]
    assert row(server, "free_blocks") == [5]
    assert book(server, (1, 4, 6)) % CODE_SHIFT == 6


def test_the_batch_features_are_those_of_the_latency_formula() -> None:
    server = serve(SMALL, burst([4, 12], [9, 9]))
    step(server, (0, 4), (1, 2))
    step(server, (0, 1), (1, 3))
    assert book(server, (0, 1), (1, 5)) == 0
    features = {name: server.features[name][0] for name in FEATURES.names or ()}
    assert features == {
        "tokens": 6,
        "requests": 2,
        "decodes": 1,
        "prefill_pairs": 5 * (5 + 3),
        "prefill_reads": 10,
        "wide_prefill_reads": 10,
        "decode_context": 6,
        "swapped": 0,
    }


ILLEGAL_PLANS: list[tuple[list[tuple[int, ...]], str]] = [
    ([(1, EVICT)], "evicts a request that holds no KV"),
    ([(0, DROP)], "drops a request that is not waiting"),
    ([(0, 1), (0, 1)], "schedules a request twice in one iteration"),
    ([(4, 1)], "schedules a request that has not arrived or has left"),
    ([(1, 1), (2, 1), (3, 1)], "asks for more than max_num_seqs requests with KV"),
    ([(1, 1, 10)], "asks for more KV blocks than are free"),
    ([(1, 12), (2, 9)], "asks for more tokens than max_batched_tokens"),
    ([(2, 10)], "asks for more prompt tokens than remain"),
    ([(0, 2)], "asks a decode for a number of tokens other than 1"),
    ([(1, 0)], "has a token count that is neither positive nor EVICT, DROP, SWAP, SWAP_COMPRESSED"),
    ([(0, SWAP)], "swaps more KV than the host has room for"),
    ([(0, 1)] * 12, "is the last one that fits: the plan names more entries than it holds"),
]


@pytest.mark.parametrize(("plan", "reason"), ILLEGAL_PLANS, ids=[reason for _, reason in ILLEGAL_PLANS])
def test_an_illegal_plan_is_refused_with_its_entry_and_reason(plan: list[tuple[int, ...]], reason: str) -> None:
    requests = Requests.create([0.0, 0.0, 0.0, 0.0, 9.0], [4, 12, 9, 4, 4], [9, 9, 9, 9, 9])
    server = serve(SMALL, requests)
    step(server, (0, 4))
    code = book(server, *plan)
    assert ILLEGAL[code % CODE_SHIFT] == reason
    request_id, tokens = plan[-1][:2]
    last = min(len(plan), len(server.plan.entry)) - 1
    assert explain(server, code) == (
        f"illegal plan at iteration 1, t=1.000000 s: entry {last} (request {request_id}, tokens {tokens}) {reason}"
    )


def test_every_reason_has_an_illegal_plan_in_this_file() -> None:
    assert {reason for _, reason in ILLEGAL_PLANS} == set(ILLEGAL[1:])


@pytest.mark.parametrize("request_id", [-1, 2, 10_000])
def test_a_request_that_does_not_exist_cannot_be_named(request_id: int) -> None:
    for tokens in (1, EVICT, DROP, 0):
        server = serve(SMALL, burst([4, 4], [2, 2]))
        assert book(server, (request_id, tokens)) % CODE_SHIFT == 4
        assert book(server, (request_id, tokens), (0, 4), strict=False) == 0
        assert server.plan.entry["tokens"][:2].tolist() == [0, 4]


def test_without_strictness_chunks_are_cut_and_the_impossible_is_skipped() -> None:
    server = serve(SMALL, burst([4, 12, 8, 4], [9, 9, 9, 9]))
    step(server, (0, 4))
    plan = [(0, 7), (1, 99), (1, 5), (3, EVICT), (2, 99), (3, 4)]
    assert book(server, *plan, strict=False) == 0
    assert server.plan.entry["tokens"][:6].tolist() == [1, 12, 0, 0, 7, 0]
    finish(server, 1.0)
    assert request(server, 2, "prefilled", "status") == [7, RUNNING]
    assert request(server, 3, "status") == [WAITING]
    assert row(server, "batch_tokens", "prefill_tokens", "decode_tokens") == [20, 23, 1]


def test_idling_goes_to_the_next_arrival_or_to_an_earlier_wake_time() -> None:
    server = serve(SMALL, Requests.create([0.0, 2.0, 5.0], [4, 4, 4], [1, 1, 1]))
    server.plan.wake[0] = math.inf
    assert idle(server)
    assert row(server, "now", "num_waiting") == [2.0, 2]
    server.plan.wake[0] = 3.5
    assert idle(server)
    assert row(server, "now", "num_waiting") == [3.5, 2]
    server.plan.wake[0] = 1.0
    assert idle(server)
    assert row(server, "now") == [3.5], "a wake time in the past does not turn the clock back"
    server.plan.wake[0] = 100.0
    assert idle(server)
    assert row(server, "now", "num_waiting") == [5.0, 3]
    server.plan.wake[0] = math.inf
    assert not idle(server)


def test_time_integrals_sum_up_who_waited_and_what_was_held() -> None:
    server = serve(SMALL, Requests.create([0.0, 0.5], [4, 4], [2, 1]))
    step(server, (0, 4), seconds=1.0)
    step(server, (0, 1), seconds=1.0)
    step(server, (1, 4), seconds=1.0)
    first_tokens, completions = (1.0 + 2.5), (2.0 + 2.5)
    assert row(server, "queue_time", "present_time", "busy") == [first_tokens, completions, 3.0]
    assert row(server, "kv_time") == [1.0 * 1 + 1.0 * 2 + 1.0 * 1]


def test_decoding_everybody_in_one_pass_is_the_same_as_planning_it() -> None:
    """Prompts of 15, 16, 17 tokens: the shortcut takes the same blocks and gives the same features, step for step."""
    config = EngineConfig(block_size=16, num_blocks=12, watermark=0.0)
    one, two = (serve(config, burst([15, 16, 17], [9, 9, 9])) for _ in range(2))
    for server in (one, two):
        step(server, (0, 15), (1, 16), (2, 17))
    for _ in range(8):
        assert begin_decodes(one)
        assert book(two, (0, 1), (1, 1), (2, 1)) == 0
        assert one.features[0] == two.features[0]
        assert row(one, "free_blocks", "num_running") == row(two, "free_blocks", "num_running")
        for server in (one, two):
            finish(server, 0.5)
    assert is_over(one)
    assert one.visible.request.tobytes() == two.visible.request.tobytes()


def test_the_shortcut_declines_where_a_decode_might_find_no_block() -> None:
    server = serve(EngineConfig(block_size=16, num_blocks=4, watermark=0.0), burst([16, 16], [9, 9]))
    step(server, (0, 16), (1, 16))
    before = server.visible.row.tobytes()
    assert not begin_decodes(server)
    assert server.visible.row.tobytes() == before


def test_late_gaps_are_counted_against_the_deadline_of_the_tier() -> None:
    server = serve(SMALL, burst([4], [4]))
    deadline = 0.5
    assert request(server, 0, "tbt") == [deadline]
    step(server, (0, 4), seconds=3.0)
    for seconds in (0.5, 0.75, 1.0):
        step(server, (0, 1), seconds=seconds)
    tier = server.hidden.tier[1]
    assert (tier.late_gaps, tier.max_gap, tier.gap_sum) == (2, 1.0, 2.25)
    assert tier.late_sum == pytest.approx(0.5 + 1.0)
    assert (tier.finished, tier.first_tokens, tier.good) == (1, 1, 0)
    assert ledger(server, 0, "late_gaps", "max_gap") == [2, 1.0]


def test_gap_buckets_are_a_fifth_of_a_percent_wide_and_in_order() -> None:
    gaps = np.geomspace(2.0**GAP_MIN_EXPONENT, 4000.0, 5000)
    buckets = np.array([gap_bucket(gap) for gap in gaps])
    place = buckets - 1
    octave, step_in_octave = np.divmod(place, GAP_BUCKETS_PER_OCTAVE)
    low = 2.0 ** (octave + GAP_MIN_EXPONENT) * (1.0 + step_in_octave / GAP_BUCKETS_PER_OCTAVE)
    high = low * (1.0 + 1.0 / GAP_BUCKETS_PER_OCTAVE)
    assert (np.diff(buckets) >= 0).all()
    rounding = 1e-7  # the gap is taken as a float32
    assert ((low * (1 - rounding) <= gaps) & (gaps <= high * (1 + rounding))).all()
    assert gap_bucket(0.0) == gap_bucket(1e-9) == 0
    assert gap_bucket(1e9) == NUM_GAP_BUCKETS - 1


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (16, 1), (17, 2), (160, 10), (161, 11)])
def test_blocks_are_rounded_up(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 16) == blocks
