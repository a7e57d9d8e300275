"""Replay of decision traces recorded from the public SLAI code (agrimUT/SLAI 5098a7a), step by step.

Format `slai-golden/1`: the scheduler and its parameters, KV blocks, latency constants, requests, every iteration, and
times of every request. Set ``LLMSCHED_GOLDEN`` to a folder to replay its .json and .json.gz files as well.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines import SLAI, VLLM, FasterTransformer, Orca, Sarathi
from engine.config import EngineConfig
from engine.demand.requests import Requests, Tier
from engine.device.latency import LatencyModel
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.server.policy import Policy
from engine.server.state import DROPPED, FINISHED
from tests.engine.golden_files import files, ids, read

SHIPPED = Path(__file__).resolve().parents[1] / "golden"
FILES = files(SHIPPED, "slai-golden/1")

DEFAULT_TBT = 0.2
"""Deadline of requests without one when the trace gives no default (s); only SLAI looks at it."""


def _requests(trace: dict[str, Any]) -> Requests:
    default = trace["scheduler_config"].get("time_between_tokens") or DEFAULT_TBT
    rows = [(*row, None, None)[:6] for row in trace["requests"]]
    kind = [(bool(strict), tbt or default) for *_, tbt, strict in rows]
    kinds = sorted(set(kind), reverse=True)
    return Requests.create(
        arrival=[row[1] for row in rows],
        prompt=[row[2] for row in rows],
        output=[row[3] for row in rows],
        tier=[kinds.index(k) for k in kind],
        tiers=tuple(Tier(f"{n}", 1 / len(kinds), tbt, strict=strict) for n, (strict, tbt) in enumerate(kinds)),
    )


def _policy(name: str, given: dict[str, Any]) -> Policy:
    fcfs = given.get("fcfs", True)
    if name == "sarathi":
        return Sarathi(given["chunk_size"], "fcfs" if fcfs else "spf")
    if name == "slai":
        below = given["below_memory_limit_offset"]
        return SLAI(
            token_budget=given["token_budget"],
            order="fcfs" if fcfs else "strict_spf" if given.get("user_priority") else "spf",
            offset=below,
            pressure_offset=given.get("above_memory_limit_offset", below),
            memory_limit=given.get("memory_limit", 1.0),
            fixed_offset=given.get("fixed_offset", False),
            max_decodes=given.get("limit_total_decodes", given["max_num_seqs"]),
        )
    if name == "vllm":
        return VLLM(given.get("max_num_batched_tokens", 0), given["max_num_seqs"])
    return {"orca": Orca, "faster_transformer": FasterTransformer}[name](given["max_num_seqs"])


def _replay(trace: dict[str, Any], log_steps: bool) -> Record:
    given, constants = trace["scheduler_config"], trace["latency_model"]
    config = EngineConfig.reference(
        block_size=trace["cache"]["block_size"],
        num_blocks=trace["cache"]["num_blocks"],
        max_num_seqs=given["max_num_seqs"],
        max_model_len=given["max_model_len"],
        max_batched_tokens=2**24,
    )
    executor = LatencyModel(
        overhead=constants["overhead"],
        per_request=constants.get("per_seq", 0.0),
        floor=constants["mem_floor"],
        per_token=constants["gemm_per_token"],
        per_pair=constants["attn_prefill_per_pair"],
        per_context=constants["kv_read_per_token"],
        tick=trace.get("clock_tick", 2.0**-20),
    )
    policy = _policy(trace["scheduler"], given)
    return simulate(policy, _requests(trace), executor, config, log_steps=log_steps)


def _expected_step(step: dict[str, Any]) -> dict[str, Any]:
    """One recorded iteration with its batch as a set (sorted) and absent keys as nothing.

    A call that only drops need not have a batch, a duration and used blocks.
    """
    return {
        "t": step["t"],
        "dur": step.get("dur", 0.0),
        "batch": sorted(tuple(item) for item in step.get("batch", [])),
        "preempted": step.get("preempted", []),
        "ignored": step.get("ignored", []),
        **({"used_blocks": step["used_blocks"]} if "used_blocks" in step else {}),
    }


def _steps(record: Record) -> list[dict[str, Any]]:
    log = record.steps
    assert log is not None
    return [
        {
            "t": float(log.start_s[k]),
            "dur": float(log.duration_s[k]),
            "batch": sorted(tuple(item) for item in log.batches[k].tolist()),
            "preempted": log.evicted[k],
            "ignored": log.dropped[k],
            "used_blocks": int(log.used_blocks[k]),
        }
        for k in range(len(log.batches))
    ]


def _outcomes(record: Record) -> list[list[Any]]:
    """What the trace calls `per_request`: id, four times, tokens, restarts, ignored."""

    def time(value: float) -> float | None:
        return None if value < 0.0 else float(value)

    return [
        [
            i,
            *(time(ledger[name]) for name in ("first_scheduled", "prompt_done", "first_token", "completed")),
            int(ledger["delivered"]),
            int(request["evictions"]),
            bool(request["status"] == DROPPED),
        ]
        for i, (ledger, request) in enumerate(zip(record.ledger, record.request, strict=True))
    ]


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_every_decision_of_the_golden_trace_is_taken_again(path: Path) -> None:
    trace = read(path)
    record = _replay(trace, log_steps=True)
    steps = _steps(record)
    for k, (expected, got) in enumerate(zip(trace["steps"], steps, strict=False)):
        wanted = _expected_step(expected)
        assert {key: got[key] for key in wanted} == wanted, f"step {k}"
    assert len(steps) == len(trace["steps"])
    if "per_request" in trace:
        assert _outcomes(record) == [[*row[:7], bool(row[7])] for row in trace["per_request"]]
    assert set(record.request["status"]) <= {FINISHED, DROPPED}
    if "end_time" in trace:
        assert float(record.row["now"][0]) == trace["end_time"]
    compiled = _replay(trace, log_steps=False)
    for name in ("request", "ledger", "tier", "gaps", "row"):
        assert getattr(compiled, name).tobytes() == getattr(record, name).tobytes(), name


def test_the_shipped_golden_traces_are_all_there() -> None:
    shipped = [read(path) for path in FILES if path.parent == SHIPPED]
    assert [trace["name"][:2] for trace in shipped] == [f"{k:02d}" for k in range(1, 15)]
    assert {trace["scheduler"] for trace in shipped} == {
        "sarathi",
        "slai",
        "vllm",
        "orca",
        "faster_transformer",
    }
    restarts = np.array([sum(row[6] for row in trace["per_request"]) for trace in shipped])
    ignored = np.array([sum(row[7] for row in trace["per_request"]) for trace in shipped])
    assert (restarts > 0).sum() >= 5
    assert (ignored > 0).sum() >= 2
