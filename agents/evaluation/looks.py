"""A closer look at policies, as records: some seconds step by step, and what they do at each load."""

from dataclasses import dataclass, field

import numpy as np

from agents.work.records import LATER
from engine.errors import InputError

BINS = 10
"""Parts of the KV memory, by which behaviour is told apart."""


def _check_lengths(record: "Timeline | Behaviour", length: int | None = None) -> None:
    """Refuse columns of different lengths."""
    columns = {name: value for name, value in vars(record).items() if isinstance(value, tuple)}
    for name, values in columns.items():
        length = len(values) if length is None else length
        if len(values) != length:
            raise InputError(f"{name}: expected {length} values, got {len(values)}")


@dataclass(frozen=True)
class Timeline:
    """What the iterations of some seconds were, one value each."""

    start_s: tuple[float, ...]
    duration_s: tuple[float, ...]
    prefill_tokens: tuple[int, ...]
    decode_tokens: tuple[int, ...]
    kv_use: tuple[float, ...]
    """Share of the blocks in use."""
    waiting: tuple[int, ...]
    """Requests that wait."""
    running: tuple[int, ...]
    """Requests that have a seat."""

    def __post_init__(self) -> None:
        """Check that each iteration has a value in every column.

        Raises:
            InputError: one is shorter than another.
        """
        _check_lengths(self)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns as arrays."""
        return {name: np.array(values) for name, values in vars(self).items()}


@dataclass(frozen=True)
class DecisionTime:
    """How long one decision takes, microseconds."""

    mean: float
    median: float
    p99: float


@dataclass(frozen=True)
class Look:
    """A minute of a run, looked at step by step."""

    timeline: Timeline
    """The last seconds of it."""
    decision_us: DecisionTime | None
    """None if there were too few decisions to measure."""
    largest_batch_tokens: int
    largest_batch_requests: int
    unmeasured_share: float = field(default=0.0, metadata={LATER: True})
    """Of the prompt tokens, in chunks that are shorter than the profile knows behind their context."""


@dataclass(frozen=True)
class Windows:
    """A minute of every policy at one load."""

    load: float | None
    seed: int
    policies: dict[str, Look]
    """By label."""


@dataclass(frozen=True)
class Behaviour:
    """What a policy does at one load: see `agents.evaluation.behaviour`."""

    policy: str
    load: float | None
    iterations: tuple[int, ...]
    """Iterations with prompt tokens, by use of the KV blocks (in BINS parts)."""
    batch_s: tuple[float | None, ...]
    """Their mean seconds; None where there was none."""
    held_share: tuple[float | None, ...]
    """Mean share of the decodes present that did not run in them."""
    deadline_share: dict[str, float | None]
    """By tier, mean gap between two tokens / TBT deadline."""
    overtaken_share: float | None
    """Of the other prompts present, the part that came before the one that runs: 0 is first come first served."""

    def __post_init__(self) -> None:
        """Check that each part of the KV memory has its values.

        Raises:
            InputError: one is missing.
        """
        _check_lengths(self, BINS)
