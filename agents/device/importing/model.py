"""The shape of a model from its config.json, as Hugging Face writes it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from engine.errors import InputError
from engine.fields import checked
from engine.files.reading import is_there, kind_of, read_mapping
from engine.ranges import whole

FILE = "config.json"
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a number by the name of its type."""
DEVICES = whole(1, 64)
"""Devices that may share each layer (tensor parallelism)."""
_Size = Annotated[int, whole(1, 2**24)]


@dataclass(frozen=True)
class Shape:
    """What the time and the memory of a dense model with grouped-query attention depend on."""

    num_hidden_layers: _Size
    """Layers."""
    num_attention_heads: _Size
    """Query heads."""
    num_key_value_heads: _Size
    """KV heads."""
    head_dim: _Size
    """Numbers of a head."""
    dtype: str = "bfloat16"
    """Type of weights and KV."""

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            InputError: one is not a positive whole number, or another type of numbers.
        """
        checked(self, "model")
        if self.dtype not in DTYPE_BYTES:
            raise InputError(f"model.dtype: expected one of {', '.join(DTYPE_BYTES)}, got {self.dtype!r}")

    def kv_bytes_per_token(self, tp: int = 1) -> int:
        """Bytes of KV that each of `tp` devices holds for a token; a KV head is never divided."""
        heads = -(-self.num_key_value_heads // tp)
        return 2 * self.num_hidden_layers * heads * self.head_dim * DTYPE_BYTES[self.dtype]

    def to_dict(self) -> dict[str, Any]:
        """For a provenance, under the names of config.json."""
        return asdict(self)


def shape_of(config: dict[str, Any], where: str) -> Shape:
    """The shape that the keys of a config.json say.

    Raises:
        InputError: a key is missing, or says something else.
    """
    try:
        return Shape(
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=_first(config, "num_key_value_heads", "num_attention_heads"),
            head_dim=_head_dim(config, where),
            dtype=_first({"default": "bfloat16", **config}, "dtype", "torch_dtype", "default"),
        )
    except KeyError as absent:
        raise InputError(f"{where}: expected the {FILE} of a language model, found no {absent.args[0]}") from None
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _first(config: dict[str, Any], *names: str) -> Any:
    """The first of these keys that says something."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def _head_dim(config: dict[str, Any], where: str) -> Any:
    """Numbers of a head; some files say only those of all heads."""
    if config.get("head_dim") is not None:
        return config["head_dim"]
    hidden, heads = config.get("hidden_size"), config["num_attention_heads"]
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise InputError(f"{where}: expected head_dim or a hidden_size of whole heads, got {kind_of(hidden)}")
    return hidden // heads


def memory_of(provenance: dict[str, Any]) -> dict[str, int]:
    """Bytes of KV per token on each device, if the provenance of a table says the shape of the model.

    Raises:
        InputError: it says one that cannot be, or no number of devices.
    """
    model = provenance.get("model")
    if not isinstance(model, dict):
        return {}
    shape = shape_of({"dtype": provenance.get("dtype"), **model}, "provenance.model")
    devices = DEVICES.check(provenance.get("tp", 1), "provenance.tp")
    return {"kv_bytes_per_token": shape.kv_bytes_per_token(int(devices))}


def read_config(path: Path) -> dict[str, Any]:
    """A config.json, given as the file or the folder that holds it.

    Raises:
        InputError: no such file, or no JSON mapping.
    """
    file = path / FILE if path.is_dir() else path
    if not is_there(file):
        raise InputError(f"{file}: expected the {FILE} of a model, found none (--model names it)")
    return read_mapping(file, f"the {FILE} of a model")
