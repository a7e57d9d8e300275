"""Hypothesis strategies that several tests share: small servers, short traces, one set of settings."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.demand.requests import Requests, Tier
from engine.device.latency import LatencyModel

TIERS = (Tier("strict", 0.5, 0.015, ttft_s=0.3, strict=True), Tier("relaxed", 0.5, 0.05, ttft_s=1.0))
DEVICE = LatencyModel(overhead=0.004, floor=0.003, per_token=1e-4, per_pair=2e-7, per_context=4e-7)


def fixed(max_examples: int) -> settings:
    """The same examples in every run, however slow the machine is."""
    return settings(deadline=None, derandomize=True, database=None, max_examples=max_examples)


@st.composite
def configs(draw: st.DrawFn) -> EngineConfig:
    """Small servers of every semantics, most of them short of memory."""
    return EngineConfig(
        block_size=draw(st.sampled_from((1, 4, 16))),
        num_blocks=draw(st.integers(6, 60)),
        watermark=draw(st.sampled_from((0.0, 0.1))),
        max_num_seqs=draw(st.integers(1, 8)),
        max_batched_tokens=draw(st.sampled_from((1, 7, 40, 4096))),
        max_model_len=draw(st.sampled_from((40, 1000))),
        prompt_emits=draw(st.booleans()),
        eviction_keeps_output=draw(st.booleans()),
        decode_needs_free_block=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
        prefix_cache=draw(st.sampled_from(("none", "own"))),
        swap_bandwidth=draw(st.sampled_from((0.0, 1e6))),
        swap_space_gib=draw(st.sampled_from((10.0, 200.0))) * 1024 / 2**30,
        kv_bytes_per_token=100,
    )


@st.composite
def workloads(draw: st.DrawFn, most: int = 12) -> Requests:
    """A handful of short requests; some arrive together, some much later."""
    n = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    gaps = rng.exponential(draw(st.sampled_from((0.001, 0.02, 0.2))), n) * (rng.random(n) < 0.8)
    return Requests.create(
        arrival=np.cumsum(gaps) - gaps[0],
        prompt=rng.integers(1, draw(st.sampled_from((3, 50))), n),
        output=rng.integers(1, draw(st.sampled_from((2, 12))), n),
        tier=rng.integers(0, 2, n),
        prediction=np.where(rng.random(n) < 0.5, np.nan, rng.integers(1, 50, n)),
        tiers=TIERS,
    )
