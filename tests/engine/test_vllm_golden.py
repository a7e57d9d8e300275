"""Replay of decision traces of the real vLLM V1 scheduler, step by step.

Format `vllm-v1-golden/1`: vLLM's own options, KV blocks, latency constants, requests, every step, and times of every
request; recorded from vLLM 0.32.0 on a simulated clock. ``LLMSCHED_GOLDEN`` may name a folder with more of them.
"""

from pathlib import Path
from typing import Any

import pytest

from baselines import VLLMV1
from engine.config import EngineConfig
from engine.demand.requests import Requests, Tier
from engine.device.latency import LatencyModel
from engine.runs.record import Record
from engine.runs.simulate import simulate
from tests.engine.golden_files import files, ids, read

SHIPPED = Path(__file__).resolve().parents[1] / "golden_vllm"
FILES = files(SHIPPED, "vllm-v1-golden/1")


def _policy(given: dict[str, Any]) -> VLLMV1:
    options = {name: value for name, value in given.items() if name != "max_model_len"}
    return VLLMV1(**options)


def _served(trace: dict[str, Any]) -> list[list[Any]]:
    """The requests that reach the scheduler."""
    return [row for row in trace["requests"] if row[0] not in trace["refused"]]


def _requests(trace: dict[str, Any]) -> Requests:
    """Priorities are tiers, the most important one the strict one with the shortest deadline."""
    rows, longest = _served(trace), trace["scheduler_config"]["max_model_len"]
    kinds = sorted({row[4] for row in rows})
    return Requests.create(
        arrival=[row[1] for row in rows],
        prompt=[row[2] for row in rows],
        output=[min(row[3], longest - row[2]) for row in rows],
        tier=[kinds.index(row[4]) for row in rows],
        tiers=tuple(Tier(f"{n}", 1 / len(kinds), 0.1 * (n + 1), strict=n == 0) for n in range(len(kinds))),
    )


def replay(trace: dict[str, Any], policy: VLLMV1, log_steps: bool = True) -> Record:
    """The requests of a trace on its server."""
    given, constants = trace["scheduler_config"], trace["latency_model"]
    config = EngineConfig(
        **trace["cache"],
        watermark=0.0,
        max_num_seqs=given["max_num_seqs"],
        max_model_len=given["max_model_len"],
        max_batched_tokens=2**24,
    )
    device = LatencyModel(
        overhead=constants["overhead"],
        per_request=constants["per_seq"],
        floor=constants["mem_floor"],
        per_token=constants["gemm_per_token"],
        per_pair=constants["attn_prefill_per_pair"],
        per_context=constants["kv_read_per_token"],
        tick=trace["clock_tick"],
    )
    return simulate(policy, _requests(trace), device, config, log_steps=log_steps)


def _expected_step(step: dict[str, Any]) -> dict[str, Any]:
    """A recorded step with its batch as a set (sorted); `held_blocks` is what the batch takes before anybody leaves."""
    return {
        "t": step["t"],
        "dur": step.get("dur", 0.0),
        "batch": sorted(tuple(item) for item in step.get("batch", [])),
        "preempted": step.get("preempted", []),
        "used_blocks": step["used_blocks"],
    }


def _steps(record: Record, names: list[int]) -> list[dict[str, Any]]:
    log = record.steps
    assert log is not None
    return [
        {
            "t": float(log.start_s[k]),
            "dur": float(log.duration_s[k]),
            "batch": sorted((names[i], n, kind) for i, n, kind in log.batches[k].tolist()),
            "preempted": [names[i] for i in log.evicted[k]],
            "used_blocks": int(log.used_blocks[k]),
        }
        for k in range(len(log.batches))
    ]


def _outcomes(record: Record, names: list[int]) -> dict[int, list[Any]]:
    """What the trace calls `per_request` of each request that reached the scheduler: times, tokens, preemptions."""
    times = ("first_scheduled", "prompt_done", "first_token", "completed")
    return {
        name: [
            *(float(ledger[time]) if ledger[time] >= 0.0 else None for time in times),
            int(ledger["delivered"]),
            int(request["evictions"]),
        ]
        for name, ledger, request in zip(names, record.ledger, record.request, strict=True)
    }


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_every_decision_of_vllm_is_taken_again(path: Path) -> None:
    trace = read(path)
    names = [row[0] for row in _served(trace)]
    policy = _policy(trace["scheduler_config"])
    record = replay(trace, policy)
    steps = _steps(record, names)
    for k, (expected, got) in enumerate(zip(trace["steps"], steps, strict=False)):
        assert got == _expected_step(expected), f"step {k}"
    assert len(steps) == len(trace["steps"])
    assert _outcomes(record, names) == {row[0]: row[1:7] for row in trace["per_request"] if row[0] in names}
    assert float(record.row["now"][0]) == trace["end_time"]
    compiled = replay(trace, policy, log_steps=False)
    for name in ("request", "ledger", "tier", "gaps", "row"):
        assert getattr(compiled, name).tobytes() == getattr(record, name).tobytes(), name


def test_the_shipped_traces_are_all_there_and_exercise_everything() -> None:
    shipped = {path.name[:3]: read(path) for path in FILES if path.parent == SHIPPED}
    assert sorted(shipped) == [f"v0{k}" for k in range(1, 7)]
    preemptions = {name: sum(len(step.get("preempted", [])) for step in t["steps"]) for name, t in shipped.items()}
    assert all(preemptions[name] > 0 for name in ("v02", "v03", "v04", "v05", "v06"))
    configs = {name: trace["scheduler_config"] for name, trace in shipped.items()}
    assert configs["v04"]["watermark"] > 0.0
    assert configs["v04"]["long_prefill_token_threshold"] > 0
    assert configs["v05"]["policy"] == "priority"
    assert not configs["v06"]["scheduler_reserve_full_isl"]


@pytest.mark.parametrize(
    ("name", "version", "first"),
    [
        *((name, version, None) for name in ("v01", "v02", "v03") for version in ("0.31", "0.30.0", "0.24.0", "0.19")),
        *(("v04", version, first) for version, first in (("0.31.0", None), ("0.30.0", 0), ("0.24", 0))),
        *((name, "0.18.1", first) for name, first in (("v01", None), ("v02", 34), ("v03", 19))),
    ],
)
def test_versions_differ_where_those_of_vllm_do(name: str, version: str, first: int | None) -> None:
    """Where 0.x itself left the trace of 0.32; None: nowhere."""
    trace = next(read(path) for path in FILES if path.parent == SHIPPED and path.name.startswith(name))
    names = [row[0] for row in _served(trace)]
    policy = _policy(trace["scheduler_config"] | {"version": version})
    steps = _steps(replay(trace, policy), names)
    differ = [k for k, (a, b) in enumerate(zip(trace["steps"], steps, strict=False)) if b != _expected_step(a)]
    assert (differ[0] if differ else None) == first
