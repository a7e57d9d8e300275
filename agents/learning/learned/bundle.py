"""A trained policy as a folder of two files that can be read without running any code from them.

    weights.safetensors   float64 `codec`, `mean`, `std`; float32 `layer_<k>.weight` [out, in] and `layer_<k>.bias`
    policy.json           format, spaces, network, clip, environment (with the length table of a user's file), versions,
                          training command, hashes

The network maps the normalised observation through layers with one activation to the logits of every action head;
`clip((observation - mean) / std)` is the normalisation. `codec` are the parameters of the action codec (what the
policy knew about its device in training), so a bundle does not depend on a profile file.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.learning.learned.old_codec import from_old
from agents.learning.learned.stored_env import from_stored, to_stored
from agents.work.files import new_folder, replace_folder
from agents.work.provenance import TRAINS, source_hash, versions
from engine.compiled.records import cells_of
from engine.errors import InputError
from engine.fields import convert
from engine.files.reading import read_bytes, read_json
from engine.ranges import number
from llmsched_env.actions import Codec, Mixture, Slackfit
from llmsched_env.config import EnvConfig
from llmsched_env.observation import OBSERVATION_NAMES, OBSERVATION_SIZE

FORMAT = "llmsched-policy/1"
WEIGHTS_FILE, POLICY_FILE = "weights.safetensors", "policy.json"
MAX_LAYERS, MAX_WIDTH = 8, 4096
MOST_OBSERVATIONS = 1 << 16
"""Numbers that an observation function of a user may make of a server."""
ACTIVATIONS = ("tanh", "relu")

_KEYS = (
    "format",
    "observation",
    "action",
    "network",
    "clip",
    "sampled",
    "env",
    "versions",
    "command",
    "timesteps",
    "sources",
    "weights_sha256",
)
_OPTIONAL = {"length_table"}
MAX_ARMS = 64
_HEADER = 1 << 20
"""Largest part of the weights file beside the numbers, bytes."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """Everything that a trained policy is."""

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    """Weight float32[out, in] and bias float32[out] of each layer; the last one gives the logits."""
    activation: str
    """Between the layers: tanh or relu."""
    mean: np.ndarray
    """float64[observations], subtracted from an observation."""
    std: np.ndarray
    """float64[observations], what the difference is divided by."""
    clip: float
    """Largest absolute value of a normalised entry."""
    codec: np.ndarray
    """float64, parameters of the action's codec, in the order of its PARAMS."""
    env: EnvConfig
    """The environment of the training."""
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
        self._check_layers()
        codec = self.env.action.codec
        for name, size in (("mean", self.inputs), ("std", self.inputs), ("codec", cells_of(codec.PARAMS))):
            if getattr(self, name).shape != (size,):
                raise InputError(f"bundle: {name}: expected {size} numbers, got {getattr(self, name).shape}")
        codec.check_params(self.codec)
        for name, array in self.tensors().items():
            # The codec's decode rule "all" is a slack of infinity.
            if np.isnan(array).any() or (name != "codec" and not np.isfinite(array).all()):
                raise InputError(f"bundle: {name}: expected finite numbers")
        if self.sampled and isinstance(self.env.action, Codec):
            raise InputError(f"bundle: sampled: expected a mixture, got the {self.env.action.name} action")
        if not (self.std > 0.0).all() or not 0.0 < self.clip < float("inf"):
            raise InputError("bundle: expected positive normalisation scales and a positive clip")
        if isinstance(self.env.action, Mixture) and len(self.env.action.arms) > MAX_ARMS:
            raise InputError(f"bundle: expected at most {MAX_ARMS} arms, got {len(self.env.action.arms)}")

    def _check_layers(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LAYERS or self.activation not in ACTIVATIONS:
            raise InputError(f"bundle: expected 1 to {MAX_LAYERS} layers with tanh or relu between them")
        width = self.inputs
        for k, (weight, bias) in enumerate(self.layers):
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise InputError(f"bundle: layer {k}: expected {width} inputs, got weights {weight.shape}")
            width = weight.shape[0]
            if not 1 <= width <= MAX_WIDTH:
                raise InputError(f"bundle: layer {k}: expected a width of 1 to {MAX_WIDTH}, got {width}")
        if width != sum(self.heads):
            raise InputError(f"bundle: expected {sum(self.heads)} logits (heads {list(self.heads)}), got {width}")

    @property
    def inputs(self) -> int:
        """Numbers of an observation: the environment's, or those of the user's function that it was trained with."""
        return self.mean.size if self.env.observation else OBSERVATION_SIZE

    @property
    def heads(self) -> tuple[int, ...]:
        """Choices of each action head."""
        return self.env.action.sizes

    def adjusted(self, ageing: float | None = None, close: float | None = None) -> "Bundle":
        """The same policy with another `ageing` or `close` (`llmsched_env.Slackfit`).

        Raises:
            InputError: a value that does not fit, or a policy whose actions are not slackfit's parameters.
        """
        changes: dict[str, Any] = {
            name: value for name, value in (("ageing", ageing), ("close", close)) if value is not None
        }
        if not changes:
            return self
        action = self.env.action
        if not isinstance(action, Slackfit):
            raise InputError(
                f"bundle: {next(iter(changes))}: expected a policy with the slackfit action, got {action.name}"
            )
        action = replace(action, **changes)
        codec = self.codec.copy()
        parameters = codec.view(action.PARAMS)[0]
        parameters["ageing"], parameters["close"] = action.ageing, action.close
        return replace(self, codec=codec, env=replace(self.env, action=action))

    def tensors(self) -> dict[str, np.ndarray]:
        """All arrays by their names in the weights file."""
        found = {"codec": self.codec, "mean": self.mean, "std": self.std}
        for k, (weight, bias) in enumerate(self.layers):
            found |= {f"layer_{k}.weight": weight, f"layer_{k}.bias": bias}
        return found

    def save(self, folder: Path) -> None:
        """Write the bundle; an older one in this place is replaced at once, never half.

        Raises:
            InputError: the folder holds something else than a bundle.
            OSError: the place cannot be written.
        """
        from safetensors.numpy import save

        folder = Path(folder)
        if folder.exists() and not (folder / POLICY_FILE).exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: expected a new or empty folder or an older bundle to replace")
        weights = save({name: np.ascontiguousarray(array) for name, array in self.tensors().items()})
        new = new_folder(folder)
        try:
            (new / WEIGHTS_FILE).write_bytes(weights)
            text = json.dumps(self._describe(hashlib.sha256(weights).hexdigest()), indent=2)
            (new / POLICY_FILE).write_text(text + "\n", encoding="utf-8")
            replace_folder(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _describe(self, weights_sha256: str) -> dict[str, Any]:
        env, table = to_stored(self.env)
        return ({} if table is None else {"length_table": table}) | {
            "format": FORMAT,
            "observation": _own_names(self.inputs) if self.env.observation else list(OBSERVATION_NAMES),
            "action": {"kind": self.env.action.name, "heads": list(self.heads)},
            "network": {"widths": [len(bias) for _, bias in self.layers], "activation": self.activation},
            "clip": self.clip,
            "sampled": self.sampled,
            "env": env,
            "versions": self.versions,
            "command": self.command,
            "timesteps": self.timesteps,
            "sources": self.sources,
            "weights_sha256": weights_sha256,
        }

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Read a bundle and check everything in it; no code from the files is run.

        Raises:
            InputError: files are missing or damaged, another format, or made for other spaces.
        """
        folder = Path(folder)
        about = _read_json(folder / POLICY_FILE)
        _check_about(about, folder / POLICY_FILE)
        widths, where = about["network"]["widths"], folder / WEIGHTS_FILE
        tensors = _read_tensors(where, about["weights_sha256"], _bytes(len(about["observation"]), widths) + _HEADER)
        names = {"codec", "mean", "std"}
        names |= {f"layer_{k}.{part}" for k in range(len(widths)) for part in ("weight", "bias")}
        if set(tensors) != names:
            raise InputError(f"{where}: expected tensors {sorted(names)}, got {sorted(tensors)}")
        layers = tuple((tensors[f"layer_{k}.weight"], tensors[f"layer_{k}.bias"]) for k in range(len(widths)))
        try:
            env = from_stored(about["env"], about.get("length_table"))
            if about["action"].get("heads") != list(env.action.sizes):
                raise InputError(f"made for actions {about['action'].get('heads')}, expected {list(env.action.sizes)}")
            return cls(
                layers=layers,
                mean=tensors["mean"],
                std=tensors["std"],
                codec=from_old(tensors["codec"], env.action.codec),
                clip=number(0.0, 1e300, above=True).check(about["clip"], "clip"),
                activation=convert(about["network"]["activation"], str, "network.activation"),
                env=env,
                **{key: convert(about[key], kind, key) for key, kind in _TYPES.items()},
            )
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None


_TYPES: dict[str, Any] = {
    "sampled": bool,
    "command": str,
    "timesteps": int,
    "versions": dict[str, str],
    "sources": str,
}


def _own_names(size: int) -> list[str]:
    """What stands for the names of the observation where a function of the user makes it."""
    return [f"own_{k}" for k in range(size)]


def _bytes(observations: int, widths: list[int]) -> int:
    """Size of all numbers of a policy with these layers."""
    inputs = [observations, *widths]
    numbers = sum((before + 1) * after for before, after in zip(inputs, widths, strict=False))
    return 4 * numbers + 8 * 2 * observations


def _read_json(path: Path) -> dict[str, Any]:
    data = read_json(path, "a policy bundle")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path}: expected a policy bundle with format {FORMAT!r}")
    return data


def _check_about(about: dict[str, Any], path: Path) -> None:
    if set(about) - _OPTIONAL != set(_KEYS):
        key = sorted((set(about) - _OPTIONAL) ^ set(_KEYS))[0]
        raise InputError(f"{path}: {'unknown' if key in about else 'missing'} key {key!r}")
    own, names = isinstance(about["env"], dict) and about["env"].get("observation"), about["observation"]
    size = len(names) if own and isinstance(names, list) else 0
    if names != (_own_names(size) if own and 1 <= size <= MOST_OBSERVATIONS else list(OBSERVATION_NAMES)):
        raise InputError(f"{path}: made for another observation than that of this version")
    network, action = about["network"], about["action"]
    if not isinstance(network, dict) or set(network) != {"widths", "activation"}:
        raise InputError(f"{path}: network: expected widths and activation")
    widths = convert(network["widths"], list[int], f"{path}: network.widths")
    if not 1 <= len(widths) <= MAX_LAYERS or not all(1 <= width <= MAX_WIDTH for width in widths):
        raise InputError(f"{path}: network.widths: expected 1 to {MAX_LAYERS} numbers from 1 to {MAX_WIDTH}")
    if not isinstance(action, dict) or not isinstance(about["env"], dict):
        raise InputError(f"{path}: action, env: expected mappings")


def _read_tensors(path: Path, sha256: Any, limit: int) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    data = read_bytes(path, "weights", limit)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{path}: damaged, or not the weights of this policy.json (hash differs)")
    try:
        tensors = load(data)
    except Exception as error:  # foreign data: safetensors alone has a dozen kinds of errors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: expected safetensors, {reason[:120]}") from None
    for name, array in tensors.items():
        expected = np.float32 if name.startswith("layer_") else np.float64
        if array.dtype != expected:
            raise InputError(f"{path}: {name}: expected {np.dtype(expected)}, got {array.dtype}")
    return tensors


def export(model: Any, normalizer: Any, env: EnvConfig, codec: np.ndarray, command: str = "") -> Bundle:
    """The actor of an SB3 actor-critic model as a bundle.

    Args:
        model: an SB3 algorithm with an `ActorCriticPolicy` of plain layers (PPO, A2C).
        normalizer: the `agents.learning.ppo.normalize.TimedNormalize` that it was trained behind, or None.
        env: the environment that it was trained on.
        codec: parameters of the action's codec.
        command: how the training was started.

    Raises:
        InputError: the network is not a plain stack of layers with one activation.
    """
    policy, arrays = model.policy, []
    kinds = {type(m).__name__.lower() for m in policy.mlp_extractor.policy_net if not hasattr(m, "weight")}
    if len(kinds) > 1 or not kinds <= set(ACTIVATIONS):
        raise InputError(f"export: expected layers with one of {', '.join(ACTIVATIONS)}, got {sorted(kinds)}")
    for module in (*policy.mlp_extractor.policy_net, policy.action_net):
        if hasattr(module, "weight"):
            weight, bias = (p.detach().cpu().numpy().astype(np.float32) for p in (module.weight, module.bias))
            arrays.append((weight, bias))
    inputs = arrays[0][0].shape[1]
    mean, std, clip = np.zeros(inputs), np.ones(inputs), float(np.finfo(np.float32).max)
    if normalizer is not None:
        (mean, std), clip = normalizer.scale, float(normalizer.clip_obs)
    return Bundle(
        layers=tuple(arrays),
        activation=next(iter(kinds), "tanh"),
        mean=mean,
        std=std,
        clip=clip,
        codec=np.asarray(codec, np.float64),
        env=env,
        command=command,
        timesteps=int(model.num_timesteps),
        versions=versions(TRAINS),
        sources=source_hash(),
    )
