"""What every source of measurements takes and gives, and how iterations are composed of layers that were measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from agents.device.importing.model import DEVICES
from agents.device.profiling import Limits, grid
from engine.device.fitting import Batch, Point
from engine.errors import InputError

LARGEST_GRID = Limits()
"""The batches that are composed: those that `llmsched profile` measures."""


@dataclass(frozen=True, kw_only=True)
class Importing:
    """Options that say what of the data is meant; each source says which of them it takes."""

    model: Path | None = None
    """With --from: config.json of the model (Hugging Face), or its folder (llmservingsim: as a rule in DIR)."""
    system: str | None = None
    """With --from aiconfigurator: the device, such as h100_sxm; a wrong one gets a list of what there is."""
    backend: str = "vllm"
    """With --from aiconfigurator: the engine whose kernels were measured."""
    version: str | None = None
    """With --from aiconfigurator: version of the engine (default: the current one of the tables)."""
    tp: Annotated[int, DEVICES] = 1
    """With --from aiconfigurator: devices that share each layer (tensor parallelism)."""
    attention: Literal["joint", "separate"] = "joint"
    """With --from llmservingsim: prompts and decodes of a batch in one launch, as measured, or in a launch for each."""

    def refuse_others(self, takes: Sequence[str], who: str) -> None:
        """Refuse options that were given and that the source does not take.

        Args:
            takes: names of those that it takes.
            who: the source, for messages.

        Raises:
            InputError: there is one.
        """
        for one in fields(Importing):
            if one.name not in takes and getattr(self, one.name) != one.default:
                known = f"{who} takes {', '.join(takes)}" if takes else who
                raise InputError(f"{one.name}: expected none here ({known}), got {getattr(self, one.name)}")


@dataclass(frozen=True)
class Imported:
    """Measured batches with what they were measured on."""

    points: list[Point]
    provenance: dict[str, Any] = field(default_factory=dict)


class Composer(Protocol):
    """Seconds of iterations from measured layers."""

    def seconds(self, batch: Batch) -> float:
        """Seconds of one batch."""


def composed(composer: Composer, limits: Limits = LARGEST_GRID) -> list[Point]:
    """The grid of batches that a real device would be measured on, each composed."""
    return [Point(kind, batch, composer.seconds(batch)) for kind, batch in grid(limits)]
