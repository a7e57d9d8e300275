"""How predictions of output lengths change while requests are served."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from engine.demand.columns import IntArray, value_error
from engine.errors import InputError


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a predictor says after the first prediction: nothing, or a new one whenever so many tokens are out."""

    channel: str = ""
    """Spec of the channel that the predictions come from (`engine.demand.predictions`), for reports."""
    every: int = 0
    """Output tokens from one prediction of a request to its next (0: the first one stays)."""
    first: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    """Place of each request's refreshed predictions in `total`, int64[n + 1]; unused if `every` is 0."""
    total: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Refreshed predictions of the *total* output in tokens, float32: those of request i after `every`, 2 `every`, ...
    output tokens are ``total[first[i] : first[i + 1]]``, one for every time that the request goes on after it."""
    stale_half: bool = False
    """What remains of a request that has outlived its prediction: half of what it has generated so far (at least one
    token) instead of one token."""

    def head(self, n: int) -> Forecast:
        """The forecast of the first n requests."""
        if self.every == 0:
            return self
        return replace(self, first=self.first[: n + 1], total=self.total[: self.first[n]])

    def take(self, index: npt.NDArray[np.int64]) -> Forecast:
        """The forecast of some of the requests."""
        if self.every == 0:
            return self
        parts = [self.total[self.first[i] : self.first[i + 1]] for i in index]
        first = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return replace(self, first=first, total=np.concatenate([*parts, self.total[:0]]))

    def check(self, output: IntArray) -> None:
        """Check that the refreshed predictions are those of requests with these outputs.

        Raises:
            InputError: wrong number of predictions, or one that is not a positive number.
        """
        if self.every == 0:
            return
        expected = np.concatenate([[0], np.cumsum((output - 1) // self.every)])
        if self.every < 0 or not np.array_equal(self.first, expected) or self.total.shape[0] != expected[-1]:
            raise InputError(f"forecast: expected (output - 1) // {self.every} predictions for each request")
        bad = ~(np.isfinite(self.total) & (self.total > 0.0))
        if bad.any():
            raise value_error("forecast", "a positive number of tokens", self.total, bad)
