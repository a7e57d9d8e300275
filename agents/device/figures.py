"""What profiles say side by side: seconds of a few batches, errors of the fit, range, memory, what they stand for."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from agents.device.calibration import CONTEXT, batch_seconds, decode_seconds
from engine.device.fitting import HELD_OUT, Batch
from engine.device.latency import LatencyModel
from engine.device.memory import server_of
from engine.fields import convert

DECODES = (1, 32, 128)
"""Decodes of CONTEXT KV tokens each in a batch."""
PROMPTS = (512, 2048)
"""Tokens of a prompt alone."""
CHUNKS, SOME = ((512, 0),), 32
"""A chunk, and decodes beside it, with which the cost of mixing is told."""


@dataclass(frozen=True)
class Errors:
    """Errors of a fit on batches that it did not see, in % of the measured seconds."""

    mean: float
    p95: float


@dataclass(frozen=True)
class Figures:
    """One profile in figures; None where it does not say."""

    name: str
    decode_s: dict[int, float]
    """Seconds of so many decodes of CONTEXT KV tokens."""
    prefill_s: dict[int, float]
    """Seconds of a prompt of so many tokens."""
    overhead_s: float
    """Seconds of every iteration, whatever is in it."""
    beside_chunk: float | None
    """What a KV token costs a decode in a batch with a prompt chunk, relative to one without; None: not known."""
    errors: dict[str, Errors]
    """Of each held-out set."""
    most_tokens: int | None
    """Largest batch that was measured, tokens."""
    longest: int | None
    """Most KV tokens of a request that were measured."""
    num_blocks: int | None
    """KV blocks of the device."""
    kv_bytes_per_token: int | None
    device: str
    engine: str
    attention: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"context_tokens": CONTEXT}


def figures(model: LatencyModel) -> Figures:
    """The figures of a profile.

    Raises:
        InputError: its provenance says errors or a memory that cannot be.
    """
    said, validity = model.provenance, model.provenance.get("validity", {})
    server_of(model)
    errors = _errors(model)
    return Figures(
        name=model.name,
        decode_s={count: decode_seconds(model, count) for count in DECODES},
        prefill_s={tokens: batch_seconds(model, Batch(((tokens, 0),))) for tokens in PROMPTS},
        overhead_s=model.overhead,
        beside_chunk=_beside_chunk(model) if HELD_OUT[2] in errors else None,
        errors=errors,
        most_tokens=_end(validity, "tokens"),
        longest=_end(validity, "context_tokens"),
        num_blocks=said.get("num_blocks"),
        kv_bytes_per_token=said.get("kv_bytes_per_token"),
        device=_text(said, "device"),
        engine=_text(said, "engine", "software", "executor"),
        attention=_text(said, "attention"),
        source=_text(said, "source", "method", "executor"),
    )


def _errors(model: LatencyModel) -> dict[str, Errors]:
    """The errors of each held-out set that a profile says."""
    where, found = f"profile {model.name!r}: provenance.residuals", {}
    residuals = model.provenance.get("residuals")
    sets = residuals if isinstance(residuals, dict) else {}  # earlier fits listed them point by point
    for kind in (kind for kind in HELD_OUT if kind in sets):
        said = convert(sets[kind], dict[str, Any], f"{where}.{kind}")
        found[kind] = Errors(*(convert(said.get(key), float, f"{where}.{kind}.{key}") for key in ("mape", "p95")))
    return found


def _beside_chunk(model: LatencyModel) -> float | None:
    """Cost of a KV token of a decode beside a chunk, relative to that without one; None where it costs nothing."""
    costs, device = [], replace(model, eager_floor=0.0)  # which may hide what attention costs
    for chunks in ((), CHUNKS):
        short, long = (batch_seconds(device, Batch(chunks, (context,) * SOME)) for context in (CONTEXT, 2 * CONTEXT))
        costs.append(long - short)
    return costs[1] / costs[0] if costs[0] > 0.0 else None


def _end(validity: dict[str, Any], name: str) -> int | None:
    """The upper end of a range of validity."""
    return int(validity[name][1]) if name in validity else None


def _text(said: dict[str, Any], *names: str) -> str:
    """The first of these entries that a provenance has, as a text of one line that a terminal can show."""
    text = next((str(said[name]) for name in names if said.get(name)), "not stated")
    return text if text.isprintable() else ascii(text)
