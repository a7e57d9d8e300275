"""Limits of `vllm bench serve --goodput`: the rate of the requests whose mean times kept them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from engine.errors import InputError
from engine.files.reading import kind_of
from engine.ranges import MOST_SECONDS, Bounds, parse_number
from engine.runs.distribution import Floats

_MILLISECONDS = Bounds(0.0, 1000.0 * MOST_SECONDS, noun="milliseconds")


@dataclass(frozen=True)
class Goodput:
    """Upper limits in milliseconds; what is None is not limited.

    A finished request is good if its TTFT, its TPOT (the mean over its gaps, 0 for a single token) and its latency are
    each at most their limit, as in vllm/benchmarks/serve.py (`calculate_metrics`). A pause between two tokens that the
    mean hides is not seen; that is what `slo_goodput` is for, which asks for every gap.
    """

    ttft: float | None = None
    """Time to first token."""
    tpot: float | None = None
    """Mean time per output token after the first."""
    e2el: float | None = None
    """Latency, arrival to completion."""

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            InputError: none, or one that is negative or not finite.
        """
        limits = asdict(self)
        if all(limit is None for limit in limits.values()):
            raise InputError("goodput: expected at least one of ttft, tpot and e2el")
        for name, limit in limits.items():
            if limit is not None:
                _MILLISECONDS.check(limit, f"goodput: {name}")

    @classmethod
    def parse(cls, pairs: Sequence[str]) -> "Goodput":
        """Read pairs as on vLLM's command line, such as ``("ttft:200", "tpot:50")``.

        Raises:
            InputError: another name, a name twice, or no number of milliseconds >= 0.
        """
        limits: dict[str, float] = {}
        for pair in pairs:
            name, _, text = pair.partition(":")
            number = parse_number(text)
            in_range = number is not None and 0.0 <= number <= _MILLISECONDS.high
            if name not in ("ttft", "tpot", "e2el") or name in limits or not in_range:
                raise InputError(
                    "goodput: expected ttft:MS, tpot:MS or e2el:MS with milliseconds >= 0, each once, "
                    f"got {kind_of(pair)}"
                )
            limits[name] = float(number or 0.0)
        return cls(**limits)

    def count(self, ttft: Floats, tpot: Floats, e2el: Floats) -> int:
        """How many finished requests are good; seconds, one value of each for every finished request."""
        good = np.ones(len(e2el), np.bool_)
        for limit, values in ((self.ttft, ttft), (self.tpot, tpot), (self.e2el, e2el)):
            if limit is not None:
                good &= values <= limit / 1000.0
        return int(np.count_nonzero(good))
