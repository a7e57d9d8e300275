"""Where an executor's model runs: device, number format and threads, as a spec says or as they fit the model."""

from collections.abc import Mapping

import torch

from engine.device.real.models import DTYPES
from engine.errors import InputError


def _check_cuda(dtype: str) -> None:
    """Flash attention needs bf16 and compute capability 8.0.

    Raises:
        InputError: another dtype, no CUDA device, or one that is too old.
    """
    if dtype != "bf16":
        raise InputError(f"executor: dtype: expected bf16 on CUDA (flash attention takes no other), got {dtype!r}")
    if not torch.cuda.is_available():
        raise InputError("executor: expected a CUDA device, found none: use transformers:tiny, or add device=cpu")
    if (capability := torch.cuda.get_device_capability()) < (8, 0):
        raise InputError(
            f"executor: expected a CUDA device of capability 8.0 or more (Ampere, Hopper), got {capability[0]}."
            f"{capability[1]} ({torch.cuda.get_device_name()}): use transformers:tiny, or add device=cpu"
        )


def place(source: str, options: Mapping[str, str]) -> tuple[str, str]:
    """Device and dtype of a spec, with the defaults of its model.

    Raises:
        InputError: no such device or dtype, or they do not fit together.
    """
    device = options.get("device", "cpu" if source == "tiny" else "cuda")
    if device not in ("cuda", "cpu"):
        raise InputError(f"executor: device: expected cuda or cpu, got {device!r}")
    dtype = options.get("dtype", "bf16" if device == "cuda" else "fp32")
    if dtype not in DTYPES:
        raise InputError(f"executor: dtype: expected {' or '.join(DTYPES)}, got {dtype!r}")
    if device == "cuda":
        _check_cuda(dtype)
    return device, dtype


def set_threads(threads: str) -> None:
    """Give torch so many threads, as many as it likes for an empty text.

    Raises:
        InputError: not a number of threads.
    """
    if not threads:
        return
    if not threads.isdecimal() or int(threads) < 1:
        raise InputError(f"executor: threads: expected a whole number >= 1, got {threads!r}")
    torch.set_num_threads(int(threads))
