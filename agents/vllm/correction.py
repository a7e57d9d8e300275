"""How far predicted seconds of batches are off, as they are measured in a running engine."""

import numpy as np

_FORGET, _LEAST, _MOST = 0.05, 0.2, 5.0
"""What each batch takes off the running sums of measured and predicted seconds, and the bounds of their ratio in it."""


class Correction:
    """Running ratios of measured to predicted seconds, of batches without prompts and with.

    Of sums, not a mean of ratios: vLLM launches a batch before it looks at the result of the one before. Where that
    takes long (no CUDA graph), a short batch seems two or three times as long as it is, and the long one behind it
    shorter by as many seconds.
    """

    def __init__(self) -> None:
        self.ratio = np.zeros(2)
        """float64[2]: without prompts, with; 0: not known."""
        self._sums = [[0.0, 0.0], [0.0, 0.0]]
        self._total = np.zeros((2, 2))
        self.learned = [0, 0]
        """Batches of each kind."""

    def learn(self, has_prompt: bool, seconds: float, predicted: float) -> None:
        """A batch took so long (s)."""
        sums, believed = self._sums[has_prompt], min(max(seconds, _LEAST * predicted), _MOST * predicted)
        self.learned[int(has_prompt)] += 1
        self._total[int(has_prompt)] += believed, predicted
        sums[0] += believed - _FORGET * sums[0]
        sums[1] += predicted - _FORGET * sums[1]
        self.ratio[int(has_prompt)] = sums[0] / sums[1]

    def overall(self) -> list[float]:
        """Measured over predicted seconds of all batches so far without prompts, and with; 0: there were none."""
        return [float(seconds / predicted) if predicted else 0.0 for seconds, predicted in self._total]

    def expected(self, has_prompt: bool, predicted: float) -> float:
        """How long a batch is expected to take (s)."""
        return predicted * float(self.ratio[int(has_prompt)] or 1.0)
