"""A trained policy: network, normalisation, codec and environment, kept in a folder (`stored_policy`).

The network maps the normalised observation through layers with one activation to the logits of every action head;
`clip((observation - mean) / std)` is the normalisation. `codec` are the parameters of the action's codec (what the
policy knew about its device in training), so a bundle does not depend on a profile file.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.learning.learned.layers import Layers, check_layers, check_numbers, layers_of, tensors_of
from agents.learning.learned.stored_env import from_stored, to_stored
from agents.learning.learned.stored_policy import CODEC, own_names, read_policy, write_policy
from engine.compiled.records import cells_of
from engine.errors import InputError
from engine.fields import convert
from engine.ranges import number
from llmsched_env.actions import Codec, Mixture, Slackfit
from llmsched_env.config import EnvConfig
from llmsched_env.observation import OBSERVATION_NAMES

MAX_ARMS = 64


@dataclass(frozen=True, eq=False)
class Bundle:
    """Everything that a trained policy is."""

    layers: Layers
    """Weight float32[out, in] and bias float32[out] of each layer; the last one gives the logits."""
    activation: str
    """Between the layers: tanh or relu."""
    mean: np.ndarray
    """float64[inputs], subtracted from an observation."""
    std: np.ndarray
    """float64[inputs], what the difference is divided by."""
    clip: float
    """Largest absolute value of a normalised entry."""
    codec: np.ndarray
    """float64, parameters of the action's codec, in the order of its PARAMS."""
    env: EnvConfig
    """The environment of the training."""
    observation: tuple[str, ...] = OBSERVATION_NAMES
    """Names of the entries of the observation that the network sees, in its order; where a function of the user makes
    the observation, what stands for them."""
    sampled: bool = False
    """Whether a mixture draws its arm with the odds of the logits, instead of taking the most probable."""
    command: str = ""
    """How the training was started."""
    timesteps: int = 0
    """Decisions that the policy was trained on."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of what trained it."""
    sources: str = ""
    """Hash of the source files that trained it."""

    def __post_init__(self) -> None:
        """Check that the parts fit each other and this version of the environment.

        Raises:
            InputError: they do not, or a number is not finite.
        """
        if self.env.observation:
            object.__setattr__(self, "observation", own_names(self.mean.size))
        self._check_layers()
        self._check_numbers()
        action = self.env.action
        if self.sampled and isinstance(action, Codec):
            raise InputError(f"bundle: sampled: expected a mixture, got the {action.name} action")
        if isinstance(action, Mixture) and len(action.arms) > MAX_ARMS:
            raise InputError(f"bundle: expected at most {MAX_ARMS} arms, got {len(action.arms)}")

    def _check_layers(self) -> None:
        width = check_layers(self, len(self.observation))
        if width != sum(self.heads):
            raise InputError(f"bundle: expected {sum(self.heads)} logits (heads {list(self.heads)}), got {width}")

    def _check_numbers(self) -> None:
        codec, inputs = self.env.action.codec, len(self.observation)
        sizes = {"mean": (self.mean, inputs), "std": (self.std, inputs), "codec": (self.codec, cells_of(codec.PARAMS))}
        check_numbers(self, sizes)
        codec.check_params(self.codec)

    @property
    def columns(self) -> np.ndarray:
        """int64[inputs], where in the observation of this version the network's entries stand."""
        if self.env.observation:
            return np.arange(len(self.observation))
        return np.array([OBSERVATION_NAMES.index(name) for name in self.observation])

    @property
    def heads(self) -> tuple[int, ...]:
        """Choices of each action head."""
        return self.env.action.sizes

    def adjusted(self, **settings: float) -> "Bundle":
        """The same policy with other settings of its action: `ageing`, `close`, `close_until`, `longest`.

        Args:
            settings: of `llmsched_env.Slackfit`, by name.

        Raises:
            InputError: a value that does not fit, or a policy whose actions are not slackfit's parameters.
        """
        changes: dict[str, Any] = dict(settings)
        if not changes:
            return self
        action = self.env.action
        if not isinstance(action, Slackfit):
            raise InputError(
                f"bundle: {next(iter(changes))}: expected a policy with the slackfit action, got {action.name}"
            )
        action = replace(action, **changes)
        named = {name: np.array([getattr(action, name)], np.float64) for name in changes}
        codec = action.from_names(action.to_names(self.codec) | named)
        return replace(self, codec=codec, env=replace(self.env, action=action))

    def save(self, folder: Path) -> None:
        """Write the bundle; an older one in this place is replaced at once, never half.

        Raises:
            InputError: the folder holds something else than a bundle.
            OSError: the place cannot be written.
        """
        codec = {CODEC + name: numbers for name, numbers in self.env.action.codec.to_names(self.codec).items()}
        write_policy(Path(folder), self._describe(), codec | tensors_of(self))

    def _describe(self) -> dict[str, Any]:
        env, table = to_stored(self.env)
        return ({} if table is None else {"length_table": table}) | {
            "observation": list(self.observation),
            "action": {"kind": self.env.action.name, "heads": list(self.heads)},
            "network": {"widths": [len(bias) for _, bias in self.layers], "activation": self.activation},
            "clip": self.clip,
            "env": env,
            **{name: getattr(self, name) for name in _TYPES},
        }

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Read a bundle, also one of the first format, and check everything in it; no code from the files is run.

        Raises:
            InputError: files are missing or damaged, another format, or made for other spaces.
        """
        about, tensors = read_policy(Path(folder))
        try:
            env = from_stored(about["env"], about.get("length_table"))
            if about["action"].get("heads") != list(env.action.sizes):
                raise InputError(f"made for actions {about['action'].get('heads')}, expected {list(env.action.sizes)}")
            codec = {name.removeprefix(CODEC): a for name, a in tensors.items() if name.startswith(CODEC)}
            return cls(
                layers=layers_of(tensors, about["network"]["widths"]),
                mean=tensors["mean"],
                std=tensors["std"],
                codec=env.action.codec.from_names(codec),
                clip=number(0.0, 1e300, above=True).check(about["clip"], "clip"),
                activation=convert(about["network"]["activation"], str, "network.activation"),
                env=env,
                observation=tuple(about["observation"]),
                **{name: convert(about[name], kind, name) for name, kind in _TYPES.items()},
            )
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None


_TYPES: dict[str, Any] = {
    "sampled": bool,
    "versions": dict[str, str],
    "command": str,
    "timesteps": int,
    "sources": str,
}
"""What a bundle keeps as it is, with its type."""
