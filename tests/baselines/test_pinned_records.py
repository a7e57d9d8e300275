"""Records of every baseline and of `pretrained`, bit for bit as they were when `pinned_records.json` was written.

A change that makes a policy or the engine faster, or adds a feature, must not change what is decided; one that means to
change it writes the file anew: ``LLMSCHED_PIN=1 python -m pytest -q tests/baselines/test_pinned_records.py`` and says
so. Traces are made with whole numbers, sums and products only, so that the digests hold on any machine.
"""

import hashlib
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from agents.policies import resolve
from baselines import names
from engine.config import EngineConfig
from engine.demand.forecast import Forecast
from engine.demand.requests import Requests, Tier
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.driving import PolicyError
from engine.runs.record import Record
from engine.runs.simulate import simulate
from llmsched_env.actions import Allocation, Mixture
from llmsched_env.config import EnvConfig
from llmsched_env.env import LLMSchedEnv

PINS = Path(__file__).with_name("pinned_records.json")
REFRESH_EVERY = 16

VARIANTS = (
    "eb:mode=auto,mode_switch_delta=1e-6,auto_compute_n=true",
    "ppas:ppas_plus=true,ppas_large_prefill_threshold=1000,ppas_b_cap=256",
    "sglang:schedule_policy=hrrn,chunked_prefill_size=512",
    "sglang:schedule_policy=shortest-prefill-first,enable_mixed_chunk=true,max_new_tokens=64",
    "trtllm:capacity_scheduler_policy=max_utilization,enable_chunked_context=true",
    "uniboost:gamma=0.05,adaptive=true",
    "alise:levels=6,first_level_s=0.5,age_s=0.5",
    "elis:window=10,batch_size=8,refill_inside_window=true",
    "ltr:starvation_threshold=30,quantum=5",
    "mlfq:promote_after_s=2",
    "mlfq:levels=3,quantum_s=0.2,promote_after_s=1",
    "rad:prefills=64",
    "rad:prefills=16,drain=full",
    "rad:paper,prefills=16,drain=cycle",
    "sarathi:order=spf",
    "slackfit:ageing=20",
    "slai:order=fcfs,max_decodes=8",
    "slai:order=strict_spf,token_budget=128",
    "srtf:batch_cap=8,token_budget=128",
    "trail:max_preemptions=2,margin=5,protect_requeued=true",
    "pretrained",
    "pretrained:close_until=0.75,longest=1000",  # as it shipped before
    "pretrained:ageing=20,close_until=0.75,longest=1000",
)
SPECS = (*names(), *VARIANTS)

SCENES = {
    # name: (requests, requests per second, mean prompt, longest prompt, mean output, longest output, refreshed?)
    "steady": (120, 2, 700, 4000, 200, 1000, False),
    "scarce": (150, 8, 500, 2000, 150, 600, True),
    "swap": (200, 50, 500, 2000, 150, 600, True),
    "overload": (1500, 50, 300, 2000, 30, 200, False),
    "reference": (120, 8, 500, 2500, 100, 400, False),
}
CONFIGS = {
    "steady": EngineConfig(),
    "scarce": EngineConfig(num_blocks=700, max_num_seqs=24, max_model_len=2608),
    "swap": EngineConfig(num_blocks=700, max_num_seqs=48, max_model_len=2608, swap_bandwidth=25e9, swap_space_gib=0.5),
    "overload": EngineConfig(num_blocks=3000),
    "reference": EngineConfig.reference(num_blocks=500, max_num_seqs=32, max_model_len=1500),
}
TIERS = (Tier("strict", 0.25, 0.1, strict=True), Tier("relaxed", 0.75, 0.5))

RECORDED = {
    "request": "arrival last_token tbt ttft prediction prompt prefilled length generated blocks host last_run "
    "evictions late_gaps max_gap tier strict status has_token",
    "ledger": "first_scheduled prompt_done first_token completed max_gap late_gaps delivered original_prompt output",
    "tier": "late_gaps gap_sum late_sum max_gap first_tokens finished good",
    "row": "now busy kv_time queue_time present_time free_blocks free_host iterations finished dropped evictions "
    "prefill_tokens decode_tokens recomputed_tokens swaps swapped_out swapped_in batch_requests max_waiting",
}


def _skewed(rng: np.random.Generator, n: int, mean: int, most: int) -> np.ndarray:
    """Whole numbers of this mean (before they are cut at `most`), most of them small."""
    u = rng.integers(1, 1 << 20, (3, n)) / (1 << 20)
    return np.clip((8.0 * mean * u[0] * u[1] * u[2]).astype(np.int64) + 1, 1, most)


@cache
def _requests(scene: str) -> Requests:
    n, rate, mean_prompt, longest_prompt, mean_output, longest_output, refreshed = SCENES[scene]
    rng = np.random.default_rng(list(scene.encode()))
    arrival = np.cumsum(rng.integers(0, 2 << 20, n)) / (rate << 20)
    output = _skewed(rng, n, mean_output, longest_output)
    forecast = Forecast()
    if refreshed:
        first = np.concatenate([[0], np.cumsum((output - 1) // REFRESH_EVERY)])
        true = np.repeat(output, np.diff(first))
        total = (true * (0.75 + rng.integers(0, 512, true.size) / 1024)).astype(np.float32)
        forecast = Forecast("pinned", REFRESH_EVERY, first, total, stale_half=True)
    return Requests.create(
        arrival,
        _skewed(rng, n, mean_prompt, longest_prompt),
        output,
        (rng.integers(0, 4, n) > 0).astype(np.int32),
        output * (0.25 + rng.integers(0, 1024, n) / 512),
        TIERS,
        forecast=forecast,
    )


def _bytes(values: np.ndarray, field: str) -> bytes:
    """A field's bytes; deadlines of first tokens were of single precision when the records were pinned."""
    return np.ascontiguousarray(values[field], np.float32 if field == "ttft" else None).tobytes()


def _digest(record: Record) -> str:
    digest = hashlib.sha256(record.gaps.tobytes())
    for array, fields in RECORDED.items():
        for field in fields.split():
            digest.update(_bytes(getattr(record, array), field))
    return digest.hexdigest()[:16]


def _outcome(spec: str, scene: str) -> str:
    """Digest of the record, or the policy's error where it gets stuck (reference semantics)."""
    try:
        record = simulate(
            resolve(spec), _requests(scene), load_profile("rtx6000ada-mistral-7b"), CONFIGS[scene], horizon_s=400.0
        )
    except PolicyError as error:
        return str(error)
    return _digest(record)


def _pins() -> dict[str, dict[str, str]]:
    pins: dict[str, dict[str, str]] = json.loads(PINS.read_text(encoding="utf-8")) if PINS.exists() else {}
    return pins


@pytest.mark.parametrize("spec", SPECS)
def test_every_record_is_the_pinned_one(spec: str) -> None:
    found = {scene: _outcome(spec, scene) for scene in SCENES}
    if os.environ.get("LLMSCHED_PIN"):
        text = json.dumps(_pins() | {spec: found}, indent=1, sort_keys=True)
        PINS.write_text(text + "\n", encoding="utf-8")
    assert found == _pins().get(spec, f"nothing pinned yet: LLMSCHED_PIN=1, and -k {spec} for this one alone")


def test_the_scenes_reach_what_they_are_for() -> None:
    def run(scene: str, spec: str) -> Record:
        model = load_profile("rtx6000ada-mistral-7b")
        return simulate(resolve(spec), _requests(scene), model, CONFIGS[scene], horizon_s=400.0)

    scarce, swap = run("scarce", "sarathi").row[0], run("swap", "srtf").row[0]
    overload, reference = run("overload", "sarathi").row[0], run("reference", "sarathi").row[0]
    assert scarce.evictions > 10
    assert swap.swaps > 10
    assert overload.max_waiting > 600
    assert reference.dropped > 0
    assert reference.evictions > 0


MIXTURES = {
    "first": ("srtf", "mlfq:promote_after_s=2", "slai", "trail"),
    "second": ("alise:age_s=0.5", "elis:window=10", "sarathi:order=spf", "ltr:starvation_threshold=30"),
    "third": ("trail:margin=5", "slackfit", "srtf:batch_cap=8", "vllm"),
    "allocation": (),
}
PINNED_ENTRIES = 44
"""Entries that the observation had when the records were pinned; later ones stand behind them."""


def _episode(arms: tuple[str, ...], scene: str) -> str:
    """Digest of an episode in which whole numbers drawn at random are the actions, so that policies take turns."""
    requests = _requests(scene).replace(forecast=Forecast())
    config = EnvConfig(
        engine=CONFIGS[scene],
        workload=Workload(num_requests=len(requests), lengths="fixed:500,100", tiers=TIERS),
        action=Mixture(arms=arms) if arms else Allocation(),
        prediction="oracle" if arms else "",
    )
    env = LLMSchedEnv(config)
    observation, _ = env.reset(options={"requests": requests})
    rng, digest = np.random.default_rng(7), hashlib.sha256()
    for _ in range(3000):
        action = rng.integers(0, 4) if arms else rng.integers(0, [9, 5, 4])
        observation, reward, terminated, _, _ = env.step(action)
        digest.update(np.float64(reward).tobytes() + observation[:PINNED_ENTRIES].tobytes())
        if terminated:
            break
    server = env.fleet.row_servers[0]
    for field in RECORDED["request"].split():
        digest.update(_bytes(server.visible.request, field))
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", MIXTURES)
def test_policies_that_take_turns_decide_as_pinned(name: str) -> None:
    """Each policy's memory of the queue stays right while others serve it."""
    found = {scene: _episode(MIXTURES[name], scene) for scene in ("swap", "overload")}
    if os.environ.get("LLMSCHED_PIN"):
        text = json.dumps(_pins() | {f"mixture {name}": found}, indent=1, sort_keys=True)
        PINS.write_text(text + "\n", encoding="utf-8")
    assert found == _pins()[f"mixture {name}"]
