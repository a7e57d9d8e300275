"""What holds for every policy on every trace: conservation, limits, order of time, secrecy, determinism."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baselines
from engine.config import EngineConfig
from engine.demand.forecast import Forecast
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.server.policy import Policy
from engine.server.state import DROPPED, FINISHED, RUNNING, WAITING, Memory, Plan, View
from tests.strategies import DEVICE, fixed, workloads
from tests.toys import Observed

ROOT = Path(__file__).resolve().parents[2]

SPECS = [
    *baselines.names(),
    "sarathi:order=spf,token_budget=24",
    "slai:token_budget=24,offset=0,max_decodes=3",
    "slai:order=fcfs,offset=50",
    "vllm:max_batched_tokens=40",
    "sglang:chunked_prefill_size=24,max_new_tokens=4,enable_mixed_chunk=true",
    "sglang:schedule_policy=shortest-prefill-first,chunked_prefill_size=24,max_new_tokens=4",
    "trtllm:capacity_scheduler_policy=max_utilization,max_num_tokens=24",
    "trtllm:enable_chunked_context=true,max_num_tokens=24,max_new_tokens=4",
    "eb:max_num_batched_tokens=24,k_ratio=0.5",
    "amin:share=0.1,token_budget=24",
    "vllm_v1:max_num_batched_tokens=24,long_prefill_token_threshold=7,version=0.18",
    "vllm_v1:max_num_batched_tokens=24,long_prefill_token_threshold=7,policy=priority,watermark=0.1",
]
"""Every baseline, also those added later, and settings that reach their rarer branches."""

BUSY = Workload(rate=15.0, num_requests=150, lengths="lognormal:5,0.7,4.5,0.7,1024")
TIGHT = EngineConfig(num_blocks=400, max_model_len=1024)
"""Load and memory under which queues form and the evicting policies evict."""

ARRAYS = ("request", "ledger", "tier", "gaps", "row")

specs = st.sampled_from(SPECS)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[EngineConfig, Requests]:
    """A short trace and a server of default semantics on which each request fits alone, often not two.

    Every request has a prediction, true or not; in some traces it changes while the request is served.
    """
    requests = predicted(draw(workloads(16)), draw(st.sampled_from((0, 0, 1, 4))))
    longest = int((requests.prompt + requests.output).max())
    block_size = draw(st.sampled_from((1, 4, 16)))
    config = EngineConfig(
        block_size=block_size,
        num_blocks=-(-longest // block_size) + draw(st.integers(1, 12)),
        watermark=draw(st.sampled_from((0.0, 0.02))),
        max_num_seqs=draw(st.integers(1, 16)),
        max_model_len=longest,
        prompt_emits=draw(st.booleans()),
        prefix_cache=draw(st.sampled_from(("none", "own"))),
        async_scheduling=draw(st.booleans()),
        decision_s=draw(st.sampled_from((0.0, 0.0007))),
        decision_per_request_s=draw(st.sampled_from((0.0, 0.0003))),
        swap_bandwidth=draw(st.sampled_from((0.0, 1e6))),
        swap_space_gib=draw(st.sampled_from((2.0, 50.0))) * 1024 / 2**30,
        kv_bytes_per_token=100,
    )
    return config, requests


def predicted(requests: Requests, every: int) -> Requests:
    """The same requests with predictions that depend on their prompts alone, a new one `every` so many tokens."""
    first = np.where(np.isnan(requests.prediction), 1 + requests.prompt % 13, requests.prediction)
    if every == 0:
        return requests.replace(prediction=first)
    counts = (requests.output - 1) // every
    place = np.concatenate([[0], np.cumsum(counts)])
    total = 1.0 + np.arange(place[-1]) * 7 % 40
    return requests.replace(prediction=first, forecast=Forecast("test", every, place, total.astype(np.float32), True))


class Watched(Observed):
    """Another policy, with the server checked before each of its decisions, and a digest of all that it could see."""

    def __init__(self, inner: Policy) -> None:
        """Wrap a policy; the views' clocks and digests are kept."""
        super().__init__(inner, before=self._check, after=self._keep)
        self.clock: list[float] = []
        self.seen: list[bytes] = []
        self.generated: np.ndarray | None = None

    def _check(self, view: View, memory: Memory, plan: Plan) -> None:
        check_view(view)
        generated = view.request["generated"].copy()
        if self.generated is not None:
            assert (generated >= self.generated).all(), "an eviction took delivered tokens away"
        self.generated = generated

    def _keep(self, view: View, memory: Memory, plan: Plan) -> None:
        self.clock.append(float(view.row["now"][0]))
        parts = [*view, *memory, plan.entry[: plan.size[0]], plan.wake]
        self.seen.append(hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest())


def check_view(view: View) -> None:
    """KV and membership of one server at one moment."""
    row, request = view.row[0], view.request
    running = view.running[: row.num_running]
    queue = view.queue[: row.num_waiting]
    held = request["blocks"][running]
    assert 0 <= row.free_blocks == row.num_blocks - held.sum() - row.leaving_blocks
    assert request["blocks"].sum() == held.sum(), "only running requests hold KV"
    # The latest token has no KV before the decode that reads it.
    stored = request["prefilled"] + np.maximum(request["length"] - request["prompt"] - 1, 0)
    assert (stored[running] <= held * row.block_size).all(), "every processed token has a place"
    assert row.num_running <= row.max_num_seqs
    assert sorted(running) == running.tolist() == np.flatnonzero(request["status"] == RUNNING).tolist()
    assert sorted(queue) == np.flatnonzero(request["status"] == WAITING).tolist()
    assert row.num_prefilling == (request["prefilled"] < request["prompt"])[running].sum()


def digest(record: Record) -> str:
    """All arrays of a record, as a hash."""
    return hashlib.sha256(b"".join(getattr(record, name).tobytes() for name in ARRAYS)).hexdigest()


def assert_same(a: Record, b: Record) -> None:
    """Bitwise equality of two records."""
    for name in ARRAYS:
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name


def executed(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Prefill and decode tokens of each request, added up from the batches."""
    assert record.steps is not None
    work = np.zeros((2, len(record.requests)), np.int64)
    for batch in record.steps.batches:
        np.add.at(work[0], batch[batch[:, 2] == 1, 0], batch[batch[:, 2] == 1, 1])
        np.add.at(work[1], batch[batch[:, 2] == 0, 0], batch[batch[:, 2] == 0, 1])
    return work[0], work[1]


@fixed(250)
@given(scenes(), specs)
def test_work_is_prompts_and_outputs_and_what_evictions_cost(scene: tuple[EngineConfig, Requests], spec: str) -> None:
    config, requests = scene
    record = simulate(baselines.make(spec), requests, DEVICE, config, log_steps=True)
    prefill, decode = executed(record)
    row = record.row[0]
    assert (prefill.sum(), decode.sum()) == (row.prefill_tokens, row.decode_tokens)
    served = record.request["status"] == FINISHED
    needed = np.where(served, requests.prompt + requests.output - int(config.prompt_emits), 0)
    assert prefill.sum() + decode.sum() == needed.sum() + row.recomputed_tokens
    assert (prefill + decode >= needed).all()
    undisturbed = served & (record.request["evictions"] == 0)
    assert (prefill[undisturbed] == requests.prompt[undisturbed]).all()
    if not row.evictions:
        assert row.recomputed_tokens == 0


@fixed(250)
@given(scenes(), specs)
def test_each_request_is_served_exactly_once_or_dropped(scene: tuple[EngineConfig, Requests], spec: str) -> None:
    config, requests = scene
    record = simulate(baselines.make(spec), requests, DEVICE, config)
    served, dropped = record.request["status"] == FINISHED, record.request["status"] == DROPPED
    assert (served | dropped).all()
    assert (served.sum(), dropped.sum()) == (record.row["finished"][0], record.row["dropped"][0])
    assert (record.ledger["delivered"][served] == requests.output[served]).all()
    assert (record.ledger["delivered"] <= requests.output).all()
    assert record.gaps.sum() == (requests.output - 1)[served].sum()
    times = np.stack([record.ledger[name] for name in ("first_scheduled", "first_token", "completed")])
    assert (np.diff(np.vstack([requests.arrival, times])[:, served], axis=0) >= 0.0).all()
    if "max_batched_tokens" not in spec:
        assert served.all()


@fixed(150)
@given(scenes(), specs, st.floats(0.0, 0.5))
def test_requests_that_the_horizon_cuts_off_count_as_unfinished(
    scene: tuple[EngineConfig, Requests], spec: str, horizon: float
) -> None:
    config, requests = scene
    policy = baselines.make(spec)
    record = simulate(policy, requests, DEVICE, config, horizon_s=horizon, log_steps=True)
    whole = simulate(policy, requests, DEVICE, config, log_steps=True)
    row = record.row[0]
    unfinished = (record.request["status"] != FINISHED) & (record.request["status"] != DROPPED)
    assert row.finished + row.dropped + unfinished.sum() == len(requests)
    assert (record.ledger["completed"][unfinished] == -1.0).all()
    assert record.steps is not None
    assert whole.steps is not None
    assert (record.steps.start_s < horizon).all()
    kept = len(record.steps.start_s)
    assert kept == (whole.steps.start_s < horizon).sum()
    assert all(np.array_equal(a, b) for a, b in zip(record.steps.batches, whole.steps.batches, strict=False))


@fixed(250)
@given(scenes(), specs)
def test_kv_stays_within_capacity_time_moves_on_and_delivered_tokens_are_kept(
    scene: tuple[EngineConfig, Requests], spec: str
) -> None:
    config, requests = scene
    policy = Watched(baselines.make(spec))
    record = simulate(policy, requests, DEVICE, config, log_steps=True)
    assert policy.clock == sorted(policy.clock)
    assert record.steps is not None
    ran = record.steps.duration_s > 0.0
    assert (np.diff(record.steps.start_s[ran]) > 0.0).all()
    assert (record.steps.used_blocks <= config.num_blocks).all()
    assert record.row["free_blocks"][0] == config.num_blocks
    assert all(len(set(batch[:, 0])) == len(batch) for batch in record.steps.batches)


@fixed(200)
@given(scenes(), specs, st.integers(0, 2**32))
def test_a_policy_cannot_see_an_output_length_before_the_request_ends(
    scene: tuple[EngineConfig, Requests], spec: str, seed: int
) -> None:
    config, requests = scene
    rng = np.random.default_rng(seed)
    outputs = np.where(rng.random(len(requests)) < 0.5, requests.output, rng.integers(1, 12, len(requests)))
    requests = requests.replace(forecast=Forecast())
    other = requests.replace(output=outputs)
    config = config.replace(num_blocks=config.num_blocks + 12, max_model_len=config.max_model_len + 12)
    policies = [Watched(baselines.make(spec)), Watched(baselines.make(spec))]
    records = [simulate(p, r, DEVICE, config) for p, r in zip(policies, (requests, other), strict=True)]
    differs = requests.output != outputs
    ends = np.minimum(*(np.where(r.request["status"] == DROPPED, np.inf, r.ledger["completed"]) for r in records))
    first_end = ends[differs].min() if differs.any() else np.inf
    a, b = ([seen for time, seen in zip(p.clock, p.seen, strict=True) if time < first_end] for p in policies)
    assert a == b
    assert a


@fixed(200)
@given(scenes(), specs)
def test_a_python_policy_gives_the_record_of_its_kernel(scene: tuple[EngineConfig, Requests], spec: str) -> None:
    config, requests = scene
    policy = baselines.make(spec)
    assert policy.runs_compiled
    assert not Watched(policy).runs_compiled
    compiled = simulate(policy, requests, DEVICE, config)
    assert_same(simulate(Watched(policy), requests, DEVICE, config), compiled)
    assert_same(simulate(policy, requests, DEVICE, config, log_steps=True), compiled)


@pytest.mark.parametrize("name", baselines.names())
def test_a_kernel_plans_the_same_without_the_compiler(name: str) -> None:
    policy = baselines.make(name)
    assert policy.kernel is not None
    source = policy.kernel.function

    class Interpreted(Observed):
        """Runs the source of the kernel; only the moves it calls are compiled."""

        def plan(self, view: View, memory: Memory, plan: Plan) -> None:
            source(view, memory, plan)

    requests = predicted(BUSY.generate(3).head(25), 10)
    compiled = simulate(policy, requests, DEVICE, TIGHT)
    assert_same(simulate(Interpreted(policy), requests, DEVICE, TIGHT), compiled)


CHILD = """
import json, sys
from tests.engine.test_properties import seeded_digests
json.dump(seeded_digests(), sys.stdout)
"""


def seeded_digests() -> dict[str, Any]:
    """Digest of one seeded run of every baseline, with evictions where the policy evicts at all."""
    digests: dict[str, Any] = {}
    for name in baselines.names():
        digests[name] = digest(simulate(baselines.make(name), predicted(BUSY.generate(11), 10), DEVICE, TIGHT))
    return digests


def test_the_same_seed_gives_the_same_bits_in_another_process() -> None:
    here = seeded_digests()
    assert len(set(here.values())) == len(here), "different policies, different records"
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == here
