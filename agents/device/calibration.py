"""What a fit to kernels lacks: an engine's host time per iteration, known or found from one published number."""

from dataclasses import replace
from typing import Any, NamedTuple

from engine.device.fitting import Batch
from engine.device.latency import LatencyModel, iteration_seconds
from engine.errors import InputError
from engine.ranges import number, whole

CONTEXT = 1024
"""KV tokens of each decode where nobody says."""
_EXPECTED = "match: expected tpot=MS@BATCH or tpot=MS@BATCHxCONTEXT, such as tpot=23.6@64x1024"
_MS, _BATCH, _TOKENS = number(0.0, 1e6, above=True), whole(1, 2**16), whole(1, 2**24)


def batch_seconds(model: LatencyModel, batch: Batch) -> float:
    """Seconds of one batch by a model."""
    return float(iteration_seconds(model.compiled(), batch.features()))


def decode_seconds(model: LatencyModel, decodes: int, context: int = CONTEXT) -> float:
    """Seconds of an iteration of so many decodes alone, with as many KV tokens each."""
    return batch_seconds(model, Batch((), (context,) * decodes))


class Match(NamedTuple):
    """A published time per output token."""

    seconds: float
    decodes: int
    context: int

    @classmethod
    def parse(cls, text: str) -> "Match":
        """From ``tpot=MS@BATCH`` or ``tpot=MS@BATCHxCONTEXT``.

        Raises:
            InputError: something else.
        """
        name, _, rest = text.partition("=")
        ms, _, batch = rest.partition("@")
        decodes, _, context = batch.partition("x")
        try:
            if name != "tpot":
                raise InputError(name)
            values = _MS.parse(ms, name), _BATCH.parse(decodes, name), _TOKENS.parse(context or str(CONTEXT), name)
        except InputError:
            raise InputError(f"{_EXPECTED}, got {text!r}") from None
        return cls(values[0] / 1e3, *values[1:])


def with_overhead(model: LatencyModel, seconds: float, reason: str) -> LatencyModel:
    """The model with this much more host time per iteration; its provenance says so."""
    said: dict[str, Any] = {"added_s": seconds, "reason": reason, "residuals": "are those without it"}
    provenance = {**model.provenance, "host": said}
    return replace(model, overhead=model.overhead + seconds, provenance=provenance)


def matched(model: LatencyModel, match: Match) -> LatencyModel:
    """The model with as much host time as makes decodes alone take what was published.

    Raises:
        InputError: they take longer without any.
    """
    alone = decode_seconds(model, match.decodes, match.context)
    missing = match.seconds - alone
    what = f"{match.decodes} decodes of {match.context} KV tokens"
    if missing < 0.0:
        raise InputError(
            f"match: expected more than the {1e3 * alone:.3g} ms of {what} without a host, got {1e3 * match.seconds:g}"
        )
    return with_overhead(model, missing, f"matched: an iteration of {what} takes {1e3 * match.seconds:g} ms")
