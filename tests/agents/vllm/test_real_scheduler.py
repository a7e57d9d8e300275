"""The real scheduler of vLLM, with a queue of two batches and no model; where vLLM is installed.

    VENV/bin/python -m pytest --noconftest tests/agents/vllm/test_real_scheduler.py

in an environment of its own (`docs/guide/inside-vllm.md`).
"""

import json
import random
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from agents.vllm.plan import Plan
from agents.vllm.settings import VARIABLE, Settings

pytest.importorskip("vllm.v1.core.sched.async_scheduler", reason="vLLM is not installed", exc_type=ImportError)

AMPLE, SHORT = 1000, 150
BLOCK, MODEL_LEN = 16, 2048


def _config(folder: Path, blocks: int) -> Any:
    """Limits as a server with the tiny model has them."""
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig

    model = ModelConfig(model=str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=MODEL_LEN)
    limits = {"max_num_seqs": 32, "max_num_batched_tokens": 512, "max_model_len": MODEL_LEN}
    scheduler = SchedulerConfig(**limits, enable_chunked_prefill=True, is_encoder_decoder=False, async_scheduling=True)
    cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=False)
    device = DeviceConfig("cpu")
    config = VllmConfig(scheduler_config=scheduler, model_config=model, cache_config=cache, device_config=device)
    config.scheduler_config.async_scheduling = True
    cache.num_gpu_blocks = blocks
    return config


def make(scheduler: Any, folder: Path, blocks: int) -> Any:
    """A scheduler of this class with so many KV blocks."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = _config(Plan(policies=("stock",), rates=(1.0,), model="tiny").model_folder(folder), blocks)
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    further = {"block_size": BLOCK, "structured_output_manager": StructuredOutputManager(config)}
    return scheduler(vllm_config=config, kv_cache_config=kv, log_stats=False, **further)


class Core:
    """`EngineCore.step_with_batch_queue` with a model that says 7."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.queue = scheduler, deque[Any]()
        self.batches: list[dict[str, int]] = []
        self.tokens: dict[str, int] = {}

    def step(self) -> bool:
        """Schedule a batch, or take the tokens of the oldest; False if there is nothing to do."""
        s = self.scheduler
        if s.has_requests():
            output = s.schedule()
            self.batches.append(dict(output.num_scheduled_tokens))
            assert (
                min(output.scheduled_cached_reqs.num_output_tokens, default=0) >= 0
            )  # workers cut what they have to it
            emits = {name for name in output.num_scheduled_tokens if not s.requests[name].is_prefill_chunk}
            self.queue.appendleft((output, emits))
            if len(self.queue) < 2 and output.total_num_scheduled_tokens:
                return True
        elif not self.queue:
            return False
        self._update(*self.queue.pop())
        return True

    def _update(self, output: Any, emits: set[str]) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        names = list(output.num_scheduled_tokens)
        said = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: k for k, name in enumerate(names)},
            sampled_token_ids=[[7] if name in emits else [] for name in names],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        for core in self.scheduler.update_from_output(output, said).values():
            for one in core.outputs:
                self.tokens[one.request_id] = self.tokens.get(one.request_id, 0) + len(one.new_token_ids)


def serve(scheduler: Any, count: int = 50, most: tuple[int, int] = (1200, 60)) -> tuple[Core, dict[str, int]]:
    """Let requests come and be served to the end; returns the core, and the output tokens that each wants.

    Args:
        scheduler: of vLLM.
        count: of the requests.
        most: prompt and output tokens of one.
    """
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    rng, core = random.Random(1), Core(scheduler)
    wanted: dict[str, int] = {}
    alive = True
    while alive or len(wanted) < count:
        if len(wanted) < count and rng.random() < 0.3:
            name, output = f"r{len(wanted)}", rng.randint(1, most[1])
            params = SamplingParams(max_tokens=output, ignore_eos=True, extra_args={"tier": len(wanted) % 2})
            prompt = [rng.randint(0, 1000) for _ in range(rng.randint(1, most[0]))]
            given = {"sampling_params": params, "pooling_params": None, "arrival_time": time.time()}
            scheduler.add_request(Request(request_id=name, prompt_token_ids=prompt, **given))
            wanted[name] = output
        alive = core.step()
        assert len(core.batches) < 100_000
    return core, wanted


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "settings.json"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def settle(policy: str, folder: Path) -> None:
    Settings(policy=policy, counters=str(folder / "counters.json")).write(folder / "settings.json")


@pytest.mark.parametrize("blocks", [AMPLE, SHORT])
def test_stock_decides_as_vllm_does(files: Path, blocks: int) -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from agents.vllm.scheduler import PolicyScheduler

    settle("stock", files)
    ours, theirs = (serve(make(kind, files, blocks))[0] for kind in (PolicyScheduler, AsyncScheduler))
    assert ours.batches == theirs.batches


@pytest.mark.parametrize("blocks", [AMPLE, SHORT])
@pytest.mark.parametrize(
    "policy", ["sarathi:token_budget=128", "slai:token_budget=128", "slackfit", "pretrained", "pretrained-ppo"]
)
def test_policies_decide_every_step(files: Path, policy: str, blocks: int) -> None:
    from agents.vllm.scheduler import PolicyScheduler

    settle(policy, files)
    scheduler = make(PolicyScheduler, files, blocks)
    core, wanted = serve(scheduler)
    assert core.tokens == wanted
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == blocks - 1  # one is never given out
    found = json.loads((files / "counters.json").read_text())
    names = ("fallbacks", "passed", "stalled", "held_ran", "over_budget", "rebuilt")
    assert found["decided"] >= found["steps"] > 0
    assert [found[name] for name in names] == [0] * 6


@pytest.mark.slow
def test_ten_thousand_requests(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.vllm.scheduler import PolicyScheduler

    monkeypatch.setattr("agents.vllm.steering.CAPACITY", 3000)  # a shadow is full three times
    settle("slackfit", files)
    scheduler = make(PolicyScheduler, files, AMPLE)
    core, wanted = serve(scheduler, 10_000, (100, 6))
    assert core.tokens == wanted
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == AMPLE - 1
    found = json.loads((files / "counters.json").read_text())
    assert found["rebuilt"] >= 3
    assert found["fallbacks"] <= found["rebuilt"]
    assert [found[name] for name in ("passed", "stalled", "held_ran", "over_budget")] == [0] * 4
