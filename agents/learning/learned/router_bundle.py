"""A trained router: one network that scores a replica by its features, kept in a folder (`stored_policy`).

    weights.safetensors   float64 `mean`, `std`; float32 `layer_<k>.weight` [out, in], `layer_<k>.bias`
    policy.json           format, names of the features, network, clip, training command, versions, hashes

The network maps the normalised features of a replica and of the request (`engine.cluster.features`) to one number, the
logit of that replica: the same weights for all of them, so that there may be any number.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.learning.learned.layers import Layers, check_layers, check_numbers, layers_of, tensors_of
from agents.learning.learned.stored_policy import read_network, write_policy
from engine.cluster.features import REPLICA_NAMES, REQUEST_NAMES
from engine.errors import InputError
from engine.fields import convert
from engine.ranges import number

FORMAT = "llmsched-router/1"
FEATURE_NAMES = (*REPLICA_NAMES, *REQUEST_NAMES)
"""What a scoring network may see: the features of a replica, then those of the request."""


@dataclass(frozen=True, eq=False)
class RouterBundle:
    """Everything that a trained router is."""

    layers: Layers
    """Weight float32[out, in] and bias float32[out] of each layer; the last one gives the logit."""
    mean: np.ndarray
    """float64[features], subtracted from the features."""
    std: np.ndarray
    """float64[features], what the difference is divided by."""
    features: tuple[str, ...] = FEATURE_NAMES
    """Names of the features that the network sees, in its order."""
    activation: str = "relu"
    """Between the layers: tanh or relu."""
    clip: float = 1e4
    """Largest absolute value of a normalised feature."""
    command: str = ""
    """How the training was started."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of what trained it."""
    sources: str = ""
    """Hash of the source files that trained it."""

    def __post_init__(self) -> None:
        """Check that the parts fit each other and the features of this version.

        Raises:
            InputError: they do not, or a number is not finite.
        """
        if unknown := [name for name in self.features if name not in FEATURE_NAMES]:
            raise InputError(f"bundle: made for other features than those of this version, with {unknown[0][:80]!r}")
        inputs = len(self.features)
        if not inputs or len(set(self.features)) < inputs:
            raise InputError("bundle: features: expected at least one, and each once")
        if (outputs := check_layers(self, inputs)) != 1:
            raise InputError(f"bundle: expected one number for each replica, got {outputs}")
        check_numbers(self, {"mean": (self.mean, inputs), "std": (self.std, inputs)})

    @property
    def columns(self) -> np.ndarray:
        """int64[features], where among FEATURE_NAMES those stand that the network sees."""
        return np.array([FEATURE_NAMES.index(name) for name in self.features])

    def save(self, folder: Path) -> None:
        """Write the bundle; an older one in this place is replaced at once, never half.

        Raises:
            InputError: the folder holds something else than a bundle.
            OSError: the place cannot be written.
        """
        network = {"widths": [len(bias) for _, bias in self.layers], "activation": self.activation}
        kept = {name: getattr(self, name) for name in _TYPES}
        about = {"features": list(self.features), "network": network, "clip": self.clip, **kept}
        write_policy(Path(folder), about, tensors_of(self), FORMAT)

    @classmethod
    def load(cls, folder: Path) -> "RouterBundle":
        """Read a bundle and check everything in it; no code from the files is run.

        Raises:
            InputError: files are missing or damaged, another format, or made for other features.
        """
        about, tensors = read_network(Path(folder), FORMAT, _KEYS, "features")
        try:
            return cls(
                layers=layers_of(tensors, about["network"]["widths"]),
                mean=tensors["mean"],
                std=tensors["std"],
                features=tuple(about["features"]),
                activation=convert(about["network"]["activation"], str, "network.activation"),
                clip=number(0.0, 1e300, above=True).check(about["clip"], "clip"),
                **{name: convert(about[name], kind, name) for name, kind in _TYPES.items()},
            )
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None


_TYPES: dict[str, Any] = {"versions": dict[str, str], "command": str, "sources": str}
"""What a bundle keeps as it is, with its type."""
_KEYS = frozenset({"features", "network", "clip", *_TYPES})
