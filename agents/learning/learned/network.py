"""The network of a learned policy, compiled: the entries of the observation that it knows, by name; layers; choices."""

import numpy as np

from agents.learning.learned.bundle import Bundle
from agents.learning.learned.layers import ACTIVATIONS, MAX_LAYERS, Network
from engine.compiled.kept import kept
from engine.compiled.records import cells_of, record

HEADER = np.dtype(
    [
        ("skips", "f8"),  # whether nobody is asked about iterations without any prompt work
        ("hold", "f8"),  # iterations for which a choice holds
        ("relu", "f8"),  # whether the activation is relu, not tanh
        ("clips_at", "f8"),  # of normalised observations
        ("inputs", "f8"),  # entries of the observation that the network sees
        ("layers", "f8"),
        ("widths", "f8", (MAX_LAYERS,)),
    ],
    align=True,
)
"""A network's first parameters; then come, for each input, its place in the observation, its mean and its std, and for
each layer the weights [in, out] and the biases."""
NETWORK, header_of = cells_of(HEADER), record(HEADER)


def network_params(bundle: Bundle) -> np.ndarray:
    """A bundle as the parameters of `forward`, float64."""
    return packed(bundle, bundle.columns, bundle.env.skip_decode_only, bundle.env.action.holds)


def packed(network: Network, columns: np.ndarray, skips: bool = False, hold: int = 1) -> np.ndarray:
    """A network as the parameters of `forward`, float64.

    Args:
        network: layers and normalisation.
        columns: int64[inputs], where its inputs stand in what it is shown.
        skips: whether nobody is asked about iterations without any prompt work.
        hold: iterations for which a choice holds.
    """
    header = np.zeros(1, HEADER)
    header["skips"], header["hold"] = skips, hold
    header["relu"], header["clips_at"] = ACTIVATIONS.index(network.activation), network.clip
    header["inputs"], header["layers"] = len(network.mean), len(network.layers)
    header["widths"][0, : len(network.layers)] = [len(bias) for _, bias in network.layers]
    parts = [header.view(np.float64), columns.astype(np.float64), network.mean, network.std]
    for weight, bias in network.layers:
        parts += [weight.T.astype(np.float64).ravel(), bias.astype(np.float64)]
    return np.concatenate(parts)


def scratch_cells(network: Network) -> int:
    """float64 cells that `forward` needs beside the parameters: twice the largest width, that of the input included."""
    return 2 * max(len(network.mean), *(len(bias) for _, bias in network.layers))


@kept
def _read(p: np.ndarray, observation: np.ndarray, scratch: np.ndarray) -> int:
    """Gather and normalise what the network sees; returns how much that is."""
    header = header_of(p)
    size, clip = int(header.inputs), header.clips_at
    place, mean, std = NETWORK, NETWORK + size, NETWORK + 2 * size
    for i in range(size):
        x = (observation[int(p[place + i])] - p[mean + i]) / p[std + i]
        # Rounded as the learner's observations are.
        scratch[i] = np.float32(min(max(x, -clip), clip))
    return size


@kept
def _activate(values: np.ndarray, relu: bool) -> None:
    for j in range(values.shape[0]):
        values[j] = max(values[j], 0.0) if relu else np.tanh(values[j])


@kept
def forward(p: np.ndarray, observation: np.ndarray, scratch: np.ndarray) -> int:
    """Run the network; returns where in `scratch` the logits start.

    Args:
        p: float64, the network's parameters (layout: see HEADER).
        observation: float32, of which `columns` says what it sees.
        scratch: float64[scratch_cells].
    """
    header, inputs = header_of(p), _read(p, observation, scratch)
    source, target, at, layers = 0, scratch.shape[0] // 2, NETWORK + 3 * inputs, int(header.layers)
    for k in range(layers):
        width = int(header.widths[k])
        bias = at + inputs * width
        for j in range(width):
            scratch[target + j] = p[bias + j]
        for i in range(inputs):
            x, start = scratch[source + i], at + i * width
            for j in range(width):
                scratch[target + j] += x * p[start + j]
        if k < layers - 1:
            _activate(scratch[target : target + width], header.relu > 0.0)
        at, inputs = bias + width, width
        source, target = target, source
    return source


@kept
def best(scratch: np.ndarray, at: int, heads: np.ndarray, choice: np.ndarray) -> None:
    """The largest logit of each head (the first of equals), as SB3's deterministic prediction."""
    for h in range(heads.shape[0]):
        winner = 0
        for j in range(heads[h]):
            if scratch[at + j] > scratch[at + winner]:
                winner = j
        choice[h] = winner
        at += heads[h]
