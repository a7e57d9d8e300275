"""What the networks of all bundles have in common: normalised inputs, layers, one activation between them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from engine.errors import InputError

ACTIVATIONS = ("tanh", "relu")
MAX_LAYERS, MAX_WIDTH = 8, 4096

Layers = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Weight float32[out, in] and bias float32[out] of each layer."""


class Network(Protocol):
    """A network as bundles have it (`agents.learning.learned.bundle.Bundle`)."""

    @property
    def layers(self) -> Layers:
        """The last one gives the outputs."""

    @property
    def activation(self) -> str:
        """One of ACTIVATIONS."""

    @property
    def mean(self) -> np.ndarray:
        """float64[inputs], subtracted from the inputs."""

    @property
    def std(self) -> np.ndarray:
        """float64[inputs], what the differences are divided by."""

    @property
    def clip(self) -> float:
        """Largest absolute value of a normalised input."""


def check_layers(network: Network, width: int) -> int:
    """Check that the layers fit each other; returns the number of outputs.

    Args:
        network: what is checked.
        width: inputs of the first layer.

    Raises:
        InputError: they do not fit, or are too many or too wide.
    """
    if not 1 <= len(network.layers) <= MAX_LAYERS or network.activation not in ACTIVATIONS:
        raise InputError(f"bundle: expected 1 to {MAX_LAYERS} layers with tanh or relu between them")
    for k, (weight, bias) in enumerate(network.layers):
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise InputError(f"bundle: layer {k}: expected {width} inputs, got weights {weight.shape}")
        width = weight.shape[0]
        if not 1 <= width <= MAX_WIDTH:
            raise InputError(f"bundle: layer {k}: expected a width of 1 to {MAX_WIDTH}, got {width}")
    return width


def check_numbers(network: Network, sizes: Mapping[str, tuple[np.ndarray, int]]) -> None:
    """Check vectors by name, each with the size that it should have, and that everything is finite.

    Raises:
        InputError: another size, a number that is not finite, or no positive scale or clip.
    """
    for name, (array, size) in sizes.items():
        if array.shape != (size,):
            raise InputError(f"bundle: {name}: expected {size} numbers, got {array.shape}")
    for name, array in tensors_of(network).items():
        if not np.isfinite(array).all():
            raise InputError(f"bundle: {name}: expected finite numbers")
    if not (network.std > 0.0).all() or not 0.0 < network.clip < float("inf"):
        raise InputError("bundle: expected positive normalisation scales and a positive clip")


def tensors_of(network: Network) -> dict[str, np.ndarray]:
    """All arrays by the names that they have in files."""
    found = {"mean": network.mean, "std": network.std}
    for k, (weight, bias) in enumerate(network.layers):
        found |= {f"layer_{k}.weight": weight, f"layer_{k}.bias": bias}
    return found


def layers_of(tensors: Mapping[str, np.ndarray], widths: Sequence[int]) -> Layers:
    """The layers among arrays by name."""
    return tuple((tensors[f"layer_{k}.weight"], tensors[f"layer_{k}.bias"]) for k in range(len(widths)))
