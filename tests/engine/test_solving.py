"""What is fitted to the log of a server: a host that launches ahead, and what it takes at least."""

import numpy as np
import pytest

from agents.device.importing.vllm_log import groups
from engine.device.fitting import Batch, model_of
from engine.device.latency import LatencyModel, iteration_seconds
from engine.device.solving import Measured, Served

TABLE = ((1.0, 0.005), (64.0, 0.006), (512.0, 0.014), (1024.0, 0.026), (4096.0, 0.1))
DEVICE = LatencyModel(0.0, 0.0, 0.0, 0.0, per_context=3e-8, per_chunk=5e-4, table=TABLE)
LAUNCH_S = 0.03
"""Of a batch that is no CUDA graph."""
NODES = np.array([1.0, 64.0, 512.0, 1024.0, 4096.0])


def _batches(count: int, seed: int) -> list[Batch]:
    """Decodes, and now and then some prompts in a row."""
    rng = np.random.default_rng(seed)
    found: list[Batch] = []
    while len(found) < count:
        decodes = tuple(int(k) for k in rng.integers(100, 3000, rng.integers(1, 60)))
        found += [Batch((), decodes)] * int(rng.integers(1, 6))
        for _ in range(int(rng.integers(0, 4))):
            found.append(Batch(((int(np.exp(rng.uniform(3.0, 8.2))), 0),), decodes[: int(rng.integers(0, 60))]))
    return found


def _logged(batches: list[Batch], launch_s: float) -> np.ndarray:
    """Seconds between the times at which a scheduler sees the tokens of batches, which it launches one ahead.

    A batch ends when the device has run it and the host has launched it; it is seen once the next one is launched.
    """
    device = [iteration_seconds(DEVICE.compiled(), batch.features()) for batch in batches]
    host = [launch_s if batch.tokens > 512 else 0.0 for batch in batches]
    seen = ended = before = 0.0  # when the last one was seen, when it ended, when the one before it was seen
    times = []
    launched = host[0]
    for k, seconds in enumerate(device):
        ended = max(ended + seconds, launched)
        launched = before + host[k + 1] if k + 1 < len(host) else 0.0
        seen = max(ended, launched)
        times.append(seen)
        before = seen
    return np.diff(times, prepend=0.0)


def _served(batches: list[Batch], seconds: np.ndarray) -> Served:
    arrays = Measured(
        seconds,
        np.array([b.tokens for b in batches], np.float64),
        np.array([len(b.decodes) for b in batches], np.float64),
        [b.features()[0] for b in batches],
        NODES,
    )
    return Served(arrays, groups([bool(b.prefills) for b in batches]))


@pytest.mark.parametrize("seed", range(3))
def test_a_host_that_the_device_waits_for_is_found_in_the_log(seed: int) -> None:
    batches = _batches(2500, seed)
    seconds = _logged(batches, LAUNCH_S)
    served = _served(batches, seconds)
    found = served.solve()
    assert found.graph_tokens == 512.0
    assert 0.7 * LAUNCH_S < found.eager_floor <= 1.02 * LAUNCH_S  # some of it is hidden behind the batch before
    assert served.said(found).sum() == pytest.approx(seconds.sum(), rel=0.03)
    model = model_of(found, "found")
    for batch in (Batch((), (1500,) * 40), Batch(((3000, 0),), (1500,) * 20)):
        truth, said = (iteration_seconds(m.compiled(), batch.features()) for m in (DEVICE, model))
        assert said == pytest.approx(truth, rel=0.08)


@pytest.mark.parametrize("seed", range(3))
def test_where_the_host_is_fast_there_is_no_floor(seed: int) -> None:
    batches = _batches(1500, seed)
    found = _served(batches, _logged(batches, 0.0)).solve()
    assert (found.eager_floor, found.graph_tokens) == (0.0, 0.0)
    assert np.all(np.diff(found.table) >= 0.0)
    for n, seconds in TABLE:
        assert np.interp(n, found.nodes, found.table) == pytest.approx(seconds, rel=0.05, abs=5e-4)


def test_batches_with_prompts_go_with_the_one_before_them() -> None:
    assert groups([False, False, True, True, False, True, False]).tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert groups([True, True, False]).tolist() == [0, 0, 1]
    assert np.bincount(groups([True] * 120)).max() == 50
