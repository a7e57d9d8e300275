"""`EngineConfig` refuses what no server can be."""

import math

import pytest

from engine.config import EngineConfig
from engine.errors import InputError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_size", 0),
        ("num_blocks", -1),
        ("max_num_seqs", 2.5),
        ("max_batched_tokens", True),
        ("max_model_len", "many"),
        ("watermark", 1.0),
        ("watermark", -0.1),
        ("watermark", math.nan),
        ("decision_s", -1e-9),
        ("decision_per_request_s", math.inf),
        ("decision_s", math.nan),
        ("ttft_at", "never"),
    ],
)
def test_an_impossible_limit_is_named_in_one_line(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"^engine\.{name}: expected .*, got ") as caught:
        EngineConfig().replace(**{name: value})
    assert "\n" not in str(caught.value)


def test_an_unknown_limit_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown field 'blocksize', known: block_size, num_blocks"):
        EngineConfig().replace(blocksize=16)


def test_the_longest_servable_request_fits_the_model_and_the_kv_above_the_watermark() -> None:
    config = EngineConfig(block_size=16, num_blocks=200, watermark=0.01, max_model_len=16_384)
    assert config.watermark_blocks == 2
    assert config.max_request_tokens == 198 * 16
    assert config.replace(max_model_len=500).max_request_tokens == 500
