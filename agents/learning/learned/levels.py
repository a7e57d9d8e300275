"""Levels as logits: how a policy that outputs a real number for each head is a bundle like any other."""

from collections.abc import Sequence

import numpy as np


def level_layer(weight: np.ndarray, bias: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The last layer of a network whose heads give real levels ``x = weight @ latent + bias``, as logits.

    The logit of level j is ``2 j x - j^2``, which is largest at the level nearest to x.

    Args:
        weight: float64[heads, latent].
        bias: float64[heads].
        sizes: levels of each head.

    Returns:
        Weight float32[levels of all heads, latent] and bias float32[levels of all heads].
    """
    weights, biases = [], []
    for head, size in enumerate(sizes):
        levels = np.arange(size, dtype=np.float64)
        weights.append(2.0 * np.outer(levels, weight[head]))
        biases.append(2.0 * levels * bias[head] - levels**2)
    return np.concatenate(weights).astype(np.float32), np.concatenate(biases).astype(np.float32)
