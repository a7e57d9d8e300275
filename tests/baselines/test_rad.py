from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

import baselines
from baselines.rad import RAD
from engine.compiled.records import params_of, record
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from tests.toys import burst

MODEL = LatencyModel(0.01, 0.0, 1e-4, 0.0, 0.0)


def steps_of(record: Record) -> StepLog:
    assert record.steps is not None
    return record.steps


@dataclass
class Iteration:
    prompts: dict[int, int]  # tokens by request
    decodes: list[int]
    running: int  # before the iteration


def iterations(spec: str, requests: Requests, config: EngineConfig | None = None) -> list[Iteration]:
    steps = steps_of(simulate(baselines.make(spec), requests, MODEL, config, log_steps=True))
    running = np.concatenate([[0], steps.running[:-1]])
    return [
        Iteration(
            {int(i): int(n) for i, n, is_prefill in batch if is_prefill},
            [int(i) for i, _, is_prefill in batch if not is_prefill],
            int(before),
        )
        for batch, before in zip(steps.batches, running, strict=True)
    ]


@pytest.mark.parametrize("drain", ["carry", "full", "cycle"])
def test_iterations_are_prompts_or_decodes_never_both(drain: str) -> None:
    run = iterations(f"rad:prefills=3,chunk=64,decode_batch=4,drain={drain}", burst([100] * 20, [9] * 20))
    assert all(bool(it.prompts) != bool(it.decodes) for it in run)


def test_carry_runs_exact_batches_while_prompts_wait() -> None:
    run = iterations("rad:prefills=3,chunk=64,decode_batch=4,drain=carry", burst([100] * 20, [9] * 20))
    last_prompt = max(k for k, it in enumerate(run) if it.prompts)
    assert {len(it.decodes) for it in run[:last_prompt] if it.decodes} == {4}
    # Nobody waits for company once the queue is empty.
    assert run[-1].decodes
    assert len(run[-1].decodes) <= 4


def test_full_drain_empties_the_pool_before_the_next_prompts() -> None:
    run = iterations("rad:prefills=3,chunk=64,decode_batch=2,drain=full", burst([100] * 9, [5] * 9))
    for before, after in pairwise(run):
        if before.decodes and after.prompts:
            assert after.running == 0


def test_a_cycle_alternates_as_algorithm_1_and_ends_when_its_requests_have_finished() -> None:
    """N = 3, b = 2, prompts of one chunk, 3 tokens each: decode at two, prefill below two, drain behind the third."""
    run = iterations("rad:prefills=3,chunk=64,decode_batch=2,drain=cycle", burst([64] * 6, [3] * 6))
    modes = ["prompt" if it.prompts else len(it.decodes) for it in run]
    assert modes == ["prompt", "prompt", 2, 2, "prompt", 1, 1] * 2
    assert [sorted(it.prompts) for it in run if it.prompts] == [[0], [1], [2], [3], [4], [5]]


def test_an_endless_cycle_is_carry_and_never_more_than_a_batch_is_present() -> None:
    requests = burst([100, 30, 500, 64] * 10, [9, 40, 3, 17] * 10)
    carry = iterations("rad:chunk=64,decode_batch=4", requests)
    assert carry == iterations("rad:prefills=1000000,chunk=64,decode_batch=4,drain=cycle", requests)
    assert max(it.running for it in carry) == 4


def test_n_only_adds_requests_to_carry_where_there_are_seats() -> None:
    requests = burst([100] * 40, [9] * 40)
    batches = iterations("rad:chunk=64,decode_batch=4,prefills=6", requests)
    assert 4 < max(it.running for it in batches) <= 4 - 1 + 6
    one, many = (
        simulate(RAD(chunk=64, prefills=n), requests, MODEL, EngineConfig(max_num_seqs=16)).ledger for n in (1, 64)
    )
    assert (one == many).all()


def test_the_papers_setting_has_a_name_and_others_behind_it_win() -> None:
    assert baselines.make("rad:paper") == RAD(chunk=128, decode_batch=128, tile=128)
    assert baselines.make("rad:paper,drain=cycle,prefills=16").spec == (
        "rad:prefills=16,chunk=128,decode_batch=128,drain=cycle"
    )


def test_prefill_mode_admits_at_most_n_requests() -> None:
    run = iterations("rad:prefills=3,chunk=64,decode_batch=2,drain=full", burst([100] * 10, [5] * 10))
    modes: list[set[int]] = [set()]
    for it in run:
        if it.prompts:
            modes[-1] |= set(it.prompts)
        elif modes[-1]:
            modes.append(set())
    assert [len(mode) for mode in modes if mode] == [3, 3, 3, 1]


def test_decodes_take_turns() -> None:
    run = iterations("rad:prefills=6,chunk=64,decode_batch=4,drain=full", burst([10] * 6, [13] * 6))
    decodes = [it.decodes for it in run if it.decodes]
    assert decodes[:3] == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]


def test_packed_tails_fill_every_chunk_but_the_last() -> None:
    loose = iterations("rad:chunk=64,decode_batch=8", burst([100] * 8, [2] * 8))
    packed = iterations("rad:chunk=64,decode_batch=8,pack_tail=true", burst([100] * 8, [2] * 8))
    chunks = [sum(it.prompts.values()) for it in packed if it.prompts]
    assert chunks == [64] * 12 + [32]
    assert [sum(it.prompts.values()) for it in loose if it.prompts] == [64, 36] * 8


@pytest.mark.parametrize(("max_num_seqs", "batch"), [(128, 128), (300, 256), (100, 100)])
def test_default_decode_batch_is_the_largest_tile_multiple(max_num_seqs: int, batch: int) -> None:
    params = record(params_of(RAD))(RAD().params(EngineConfig(max_num_seqs=max_num_seqs)))
    assert params.decode_batch == batch


def test_admission_holds_the_reserved_blocks() -> None:
    requests, config = burst([160] * 10, [100] * 10), EngineConfig(num_blocks=60, watermark=0.0)
    steps = steps_of(simulate(RAD(reserve_output=160), requests, MODEL, config, log_steps=True))
    # 10 blocks of prompt + 10 reserved: three requests fill the 60 blocks, and none is ever evicted.
    assert steps.running.max() == 3
    assert steps.used_blocks.max() == 60
    assert not any(steps.evicted)


def test_reservation_that_can_never_fit_does_not_block_the_queue() -> None:
    record = simulate(RAD(reserve_output=1_000_000), burst([160] * 5, [20] * 5), MODEL, EngineConfig(num_blocks=60))
    assert record.row["finished"][0] == 5


def test_outgrown_reservation_evicts_the_youngest() -> None:
    requests, config = burst([160] * 6, [300] * 6), EngineConfig(num_blocks=70, watermark=0.0)
    steps = steps_of(simulate(RAD(reserve_output=0), requests, MODEL, config, log_steps=True))
    first = next(evicted for evicted in steps.evicted if evicted)
    assert first[0] == 5
    record = simulate(RAD(reserve_output=0), requests, MODEL, config)
    assert record.row["finished"][0] == 6
    assert record.row["evictions"][0] > 0


@pytest.mark.parametrize("seed", range(24))
def test_every_plan_is_legal_and_every_request_leaves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    prompt = np.minimum(rng.lognormal(5.0, 1.5, n).astype(int) + 1, 1500)
    output = np.minimum(rng.lognormal(4.0, 1.0, n).astype(int) + 1, 400)
    requests = Requests.create(np.cumsum(rng.exponential(rng.choice([0.0, 0.05, 3.0]), n)), prompt, output)
    changes = {
        "num_blocks": int(rng.integers(130, 400)),
        "watermark": float(rng.choice([0.0, 0.01, 0.05])),
        "max_num_seqs": int(rng.integers(1, 40)),
        "max_batched_tokens": int(rng.choice([16, 100, 65_536])),
        "max_model_len": 2048,
    }
    policy = RAD(
        prefills=int(rng.integers(1, 20)),
        chunk=int(rng.choice([16, 128, 2048])),
        decode_batch=int(rng.choice([0, 1, 4, 64])),
        drain=("carry", "full", "cycle")[seed // 2 % 3],
        pack_tail=bool(rng.random() < 0.5),
        reserve_output=int(rng.choice([0, 64, 1024])),
    )
    config = EngineConfig.reference(**changes) if seed % 2 else EngineConfig(**changes)  # type: ignore[arg-type]
    row = simulate(policy, requests, MODEL, config).row[0]
    assert row["finished"] + row["dropped"] == n
    assert row["free_blocks"] == config.num_blocks
    if not seed % 2:
        assert row["dropped"] == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rad:drain=half", "drain: expected carry, full or cycle, got 'half'"),
        ("rad:paper,chunk=0", "chunk: expected tokens >= 1, got 0"),
        ("rad:prefills=0", "prefills: expected requests >= 1, got 0"),
        ("rad:chunk=0", "chunk: expected tokens >= 1, got 0"),
        ("rad:decode_batch=-1", "decode_batch: expected requests >= 0, got -1"),
        ("rad:reserve_output=-5", "reserve_output: expected tokens >= 0, got -5"),
    ],
)
def test_bad_parameters_are_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        baselines.make(spec)
