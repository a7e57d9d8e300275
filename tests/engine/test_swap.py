"""KV in the host's memory: what moves, what it costs, and where a request goes on."""

import pytest

from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.errors import InputError
from engine.runs.driving import PolicyError
from engine.runs.metrics import summarize
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.server.plan import schedule, swap
from engine.server.state import Memory, Plan, View
from tests.toys import Improvised, constant

GIB = 1 / 2**30
CONFIG = EngineConfig(
    block_size=4, num_blocks=8, watermark=0.0, kv_bytes_per_token=25, swap_bandwidth=1000.0, swap_space_gib=600 * GIB
)
"""Blocks of 100 bytes, room for 6 of them on the host, 0.1 s to move one."""
SECOND = constant(1.0)


def serve(steps: list[list[tuple[str, int, int]]], requests: Requests, config: EngineConfig = CONFIG) -> Record:
    """Play a script: (what, request, tokens) of every decision, by the number of iterations so far."""

    def script(view: View, memory: Memory, plan: Plan) -> None:
        for what, i, n in steps[int(view.row["iterations"][0])]:
            if what == "run":
                schedule(plan, i, n)
            else:
                swap(plan, i, what == "squeeze")

    return simulate(Improvised(script), requests, SECOND, config, log_steps=True)


def one(prompt: int, output: int) -> Requests:
    """A single request."""
    return Requests.create([0.0], [prompt], [output])


@pytest.mark.parametrize(("how", "blocks"), [("swap", 2.0), ("squeeze", 1.0)])
def test_a_swapped_decode_goes_on_where_it_was_and_pays_both_ways(how: str, blocks: float) -> None:
    record = serve([[("run", 0, 6)], [("run", 0, 1)], [(how, 0, 0), ("run", 0, 1)], [("run", 0, 1)]], one(6, 4))
    report = summarize(record)
    steps = record.steps
    assert steps is not None
    assert steps.swapped == [[], [], [0], []]
    assert [batch.tolist() for batch in steps.batches] == [[[0, 6, 1]], [[0, 1, 0]], [[0, 1, 0]], [[0, 1, 0]]]
    assert steps.duration_s.tolist() == pytest.approx([1.0, 1.0, 1.0 + 2 * 0.1 * blocks, 1.0])
    assert (report.swaps, report.evictions, report.recomputed_tokens) == (1, 0, 0)
    assert report.swapped_out_bytes == report.swapped_in_bytes == 100 * blocks
    assert record.ledger["delivered"][0] == 4


def test_only_blocks_with_tokens_in_them_move() -> None:
    # The prompt of 20 tokens holds 5 blocks, and 3 of its tokens are done.
    record = serve([[("run", 0, 3)], [("swap", 0, 0), ("run", 0, 17)]], one(20, 1))
    assert summarize(record).swapped_out_bytes == 100


def test_a_swap_without_a_batch_is_paid_by_the_next_iteration() -> None:
    requests = Requests.create([0.0, 0.0], [6, 4], [3, 1])
    turns = iter([[("run", 0, 6)], [("swap", 0, 0)], [("run", 1, 4)], [("run", 0, 1)], [("run", 0, 1)]])

    def script(view: View, memory: Memory, plan: Plan) -> None:
        for what, i, n in next(turns):
            if what == "run":
                schedule(plan, i, n)
            else:
                swap(plan, i)

    record = simulate(Improvised(script), requests, SECOND, CONFIG, log_steps=True)
    assert record.steps is not None
    assert record.steps.duration_s.tolist() == pytest.approx([1.0, 0.0, 1.2, 1.2, 1.0])
    assert record.steps.used_blocks.tolist() == [2, 0, 0, 2, 0]


def test_the_host_has_only_so_much_room() -> None:
    requests, config = Requests.create([0.0, 0.0], [12, 8], [3, 3]), CONFIG.replace(swap_space_gib=400 * GIB)
    both = [("run", 0, 12), ("run", 1, 8)]
    with pytest.raises(PolicyError, match=r"entry 1 \(request 1, tokens -3\) swaps more KV than the host has room for"):
        serve([both, [("swap", 0, 0), ("swap", 1, 0)]], requests, config)
    squeezed = [("squeeze", 0, 0), ("swap", 1, 0), ("run", 0, 1)]
    record = serve([both, squeezed, [("run", 0, 1), ("run", 1, 1)], [("run", 1, 1)]], requests, config)
    assert record.row["free_host"][0] == config.host_half_blocks == 8
    assert record.row["swapped_out"][0] == record.row["swapped_in"][0] == 3 + 4


def test_swapping_is_off_by_default() -> None:
    assert EngineConfig().host_half_blocks == 0
    with pytest.raises(PolicyError, match="swaps more KV than the host has room for"):
        serve([[("run", 0, 6)], [("swap", 0, 0)]], one(6, 4), CONFIG.replace(swap_bandwidth=0.0))
    with pytest.raises(InputError, match="swap_bandwidth: expected bytes/s >= 0, got -1"):
        CONFIG.replace(swap_bandwidth=-1)
