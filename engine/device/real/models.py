"""Mistral models for the executor: random weights of a given architecture, or a local folder's."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, MistralConfig

from engine.device.real.attention import registered
from engine.errors import InputError
from engine.files.reading import read_mapping

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

MISTRAL_7B: dict[str, Any] = {
    "vocab_size": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "sliding_window": None,
    "rope_theta": 1e6,
}
"""Mistral-7B v0.3 (config.json of mistralai/Mistral-7B-v0.3)."""
TINY: dict[str, Any] = {
    **MISTRAL_7B,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 224,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
"""The same architecture, small enough for tests on a CPU."""


@contextlib.contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Turns running out of memory for `what` into an InputError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(
            f"executor: expected memory for {what}, the device has not enough: lower --engine.num-blocks, or use "
            "transformers:tiny"
        ) from error


def build(config: MistralConfig, dtype: torch.dtype, device: str, seed: int = 0, kernel: str = "split") -> Any:
    """A model with random weights, made on its device, that attends by a kernel of `engine.device.real.attention`.

    Raises:
        InputError: the device has no memory for it.
    """
    attention = registered(kernel)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with enough_memory("the weights"), torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            models: Any = AutoModelForCausalLM
            return models.from_config(config, attn_implementation=attention).to(dtype)
    finally:
        torch.set_default_dtype(previous)


def from_folder(folder: Path, dtype: torch.dtype, device: str, kernel: str = "split") -> Any:
    """A model from a local folder in the format of transformers.

    Raises:
        InputError: no such folder, another architecture, no weights, or not enough memory.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"executor: expected a folder with config.json and weights, got {str(folder)!r}")
    kind = read_mapping(file, "a model's configuration").get("model_type")
    if kind != "mistral":
        raise InputError(f"{file}: model_type: expected 'mistral', got {kind!r}")
    try:
        with enough_memory("the weights"):
            models: Any = AutoModelForCausalLM
            model = models.from_pretrained(folder, attn_implementation=registered(kernel), local_files_only=True)
            return model.to(device=device, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"executor: cannot load {folder}: {str(error).splitlines()[0]}") from None
