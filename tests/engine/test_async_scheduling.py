"""A server that plans a batch while the one before it runs: by hand, and against vLLM's engine core in plain Python."""

import numpy as np
import pytest

from baselines import VLLMV1
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel
from engine.runs.metrics import summarize
from engine.runs.record import Record
from engine.runs.simulate import simulate
from tests.toys import burst, constant
from tests.vllm_async import AsyncEngine

TICK = 2.0**-20
DEVICE = LatencyModel(overhead=0.004, floor=0.0, per_token=1e-4, per_pair=0.0, per_context=4e-7, tick=TICK)
BUDGET = 64
SMALL = EngineConfig(block_size=4, num_blocks=4, watermark=0.0, max_model_len=16, async_scheduling=True)


def seconds(items: list[tuple[int, int, bool]]) -> float:
    """What `DEVICE` takes for a batch."""
    context = sum(before + n for before, n, is_prefill in items if not is_prefill)
    return round((0.004 + 1e-4 * sum(n for _, n, _ in items) + 4e-7 * context) / TICK) * TICK


def traffic(seed: int) -> Requests:
    """Short requests that queue up."""
    drawn = Workload(rate=20.0, num_requests=60, lengths="lognormal:4,0.7,3.5,0.7,200").generate(seed)
    return Requests.create(np.round(drawn.arrival / TICK) * TICK, drawn.prompt, drawn.output)


def both(seed: int, blocks: int, may_take_from_ending: bool = False) -> tuple[Record, AsyncEngine]:
    """The same requests here and there."""
    config = SMALL.replace(num_blocks=blocks, max_num_seqs=16, max_model_len=400)
    core = AsyncEngine(config, traffic(seed), BUDGET, seconds, may_take_from_ending)
    core.run()
    policy = VLLMV1(max_num_batched_tokens=BUDGET)
    return simulate(policy, traffic(seed), DEVICE, config, log_steps=True), core


def assert_equal(record: Record, core: AsyncEngine) -> None:
    """Every batch, when it ran, who was evicted, every first and last token."""
    log = record.steps
    assert log is not None
    assert [sorted((i, n, bool(kind)) for i, n, kind in batch.tolist()) for batch in log.batches] == [
        sorted(batch.items) for batch in core.log
    ]
    assert log.evicted == [batch.preempted for batch in core.log]
    assert log.start_s.tolist() == [batch.start for batch in core.log]
    ends = record.ledger[["first_token", "completed"]].tolist()
    assert ends == [(core.first_token[i], core.completed[i]) for i in range(len(ends))]


@pytest.mark.parametrize("seed", range(6))
def test_every_batch_is_planned_as_by_an_engine_core_that_plans_ahead(seed: int) -> None:
    record, core = both(seed, 4000, may_take_from_ending=True)
    assert_equal(record, core)
    assert record.row["evictions"][0] == 0


@pytest.mark.parametrize("blocks", [200, 110, 101])
@pytest.mark.parametrize("seed", range(6))
def test_also_where_requests_are_evicted(seed: int, blocks: int) -> None:
    record, core = both(seed, blocks)
    assert_equal(record, core)
    assert blocks == 200 or record.row["evictions"][0] > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_scheduler_that_cannot_plan_ahead_splits_the_requests_into_two_batches_that_run_in_turn(seed: int) -> None:
    """What befalls a class that derives from `Scheduler` where asynchronous scheduling is on (docs/results)."""
    config = SMALL.replace(num_blocks=4000, max_num_seqs=64, max_model_len=400)
    sizes, took = [], []
    for counts in (True, False):
        core = AsyncEngine(config, traffic(seed), BUDGET, seconds, counts_placeholders=counts)
        core.run()
        sizes.append(np.mean([len(batch.items) for batch in core.log]))
        took.append(np.mean([core.completed[i] - arrival for i, arrival in enumerate(traffic(seed).arrival)]))
    assert sizes[1] < 0.95 * sizes[0]
    assert took[1] > 1.5 * took[0]


def served(requests: Requests, is_async: bool, config: EngineConfig = SMALL) -> Record:
    """A run with iterations of a second."""
    return simulate(VLLMV1(), requests, constant(1.0), config.replace(async_scheduling=is_async), log_steps=True)


def test_who_arrives_during_an_iteration_waits_for_the_one_that_is_planned_already() -> None:
    requests = Requests.create([0.0, 0.5, 7.5], [4, 4, 4], [4, 1, 1])
    for is_async, first in ((False, [0.0, 1.0, 7.5]), (True, [0.0, 2.0, 7.5])):
        record = served(requests, is_async)
        assert record.ledger["first_scheduled"].tolist() == first
        assert record.row["now"][0] == 8.5


def test_one_alone_waits_no_longer_than_the_iteration_after_which_nothing_was_planned() -> None:
    record = served(Requests.create([0.0, 0.5], [4, 4], [1, 1]), True)
    assert record.ledger["first_scheduled"].tolist() == [0.0, 1.0]


def test_blocks_of_a_finished_request_come_free_one_iteration_later() -> None:
    """Requests 0 and 1 fill the memory; request 2 needs the two blocks that request 0 gives back after a second."""
    requests = burst([8, 5, 8], [1, 3, 1])
    assert served(requests, False).ledger["first_scheduled"].tolist() == [0.0, 0.0, 1.0]
    record = served(requests, True)
    assert record.ledger["first_scheduled"].tolist() == [0.0, 0.0, 2.0]
    assert record.row["free_blocks"][0] == SMALL.num_blocks
    assert record.steps is not None
    assert record.steps.used_blocks.tolist() == [2, 2, 0]


def test_so_does_its_seat() -> None:
    requests = burst([4, 4], [2, 1])
    config = SMALL.replace(max_num_seqs=1)
    assert served(requests, False, config).ledger["first_scheduled"].tolist() == [0.0, 2.0]
    assert served(requests, True, config).ledger["first_scheduled"].tolist() == [0.0, 2.0]
    behind = Requests.create([0.0, 0.0, 0.0], [4, 4, 4], [1, 3, 1])
    config = SMALL.replace(max_num_seqs=2)
    assert served(behind, False, config).ledger["first_scheduled"].tolist() == [0.0, 0.0, 1.0]
    assert served(behind, True, config).ledger["first_scheduled"].tolist() == [0.0, 0.0, 2.0]


def test_a_lightly_loaded_server_answers_later_by_part_of_an_iteration() -> None:
    requests = Workload(rate=5.0, num_requests=300, lengths="lognormal:4,0.7,3.5,0.7,200").generate(0)
    sync, ahead = (summarize(served_lightly(requests, is_async)) for is_async in (False, True))
    longer = ahead.ttft.mean - sync.ttft.mean
    assert 0.0 < longer < sync.mean_iteration_s
    assert ahead.itl.p50 == pytest.approx(sync.itl.p50, rel=0.1)


def served_lightly(requests: Requests, is_async: bool) -> Record:
    """A run with ample memory."""
    return simulate(VLLMV1(), requests, DEVICE, EngineConfig(async_scheduling=is_async))
