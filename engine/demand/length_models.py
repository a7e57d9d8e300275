"""Length models other than tables, and the spec strings that name every model."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from engine.demand.lengths import TABLE_FOLDER, JointQuantileTable, LengthModel, LengthPair, check_pairs
from engine.demand.requests import INT32_MAX
from engine.errors import InputError
from engine.fields import checked
from engine.ranges import number, whole
from engine.spec import Spec

LENGTH_FORMS = {
    "fixed:PROMPT,OUTPUT": "every request has PROMPT and OUTPUT tokens",
    "lognormal:PMU,PSIGMA,OMU,OSIGMA[,MAX]": "independent log-normal lengths (mean and s.d. of ln), "
    "cut to MAX tokens in total (default 8192)",
    "FILE.json": "a joint quantile table made with engine.demand.lengths.measure_table",
}
"""How a length model that is not a shipped table is written, and what it means."""
Tokens = Annotated[int, whole(1, INT32_MAX)]
LogMean = Annotated[float, number(-1e4, 1e4)]
LogDeviation = Annotated[float, number(0.0, 1e4)]


@dataclass(frozen=True)
class FixedLengths:
    """Every request has the same lengths."""

    prompt_tokens: Tokens
    """Prompt length of every request (tokens)."""
    output_tokens: Tokens
    """Output length of every request (tokens)."""

    def __post_init__(self) -> None:
        """Check both lengths."""
        checked(self, "fixed lengths: ")

    @property
    def description(self) -> str:
        """One line that names the model in reports."""
        return f"fixed lengths ({self.prompt_tokens} + {self.output_tokens} tokens)"

    def draw(self, rng: np.random.Generator, n: int) -> LengthPair:
        """Return n equal pairs (tokens), int64[n] each; nothing is drawn from `rng`."""
        return np.full(n, self.prompt_tokens, dtype=np.int64), np.full(n, self.output_tokens, dtype=np.int64)


@dataclass(frozen=True)
class LogNormalLengths:
    """Independent log-normal lengths: quick, but real ones are neither log-normal nor independent.

    The prompt is rounded and cut to 1..max_total_tokens - 1, then the output to 1..max_total_tokens - prompt.
    """

    prompt_mu: LogMean
    """Mean of the logarithm of the prompt length (ln tokens)."""
    prompt_sigma: LogDeviation
    """Standard deviation of the logarithm of the prompt length (ln tokens)."""
    output_mu: LogMean
    """Mean of the logarithm of the output length (ln tokens)."""
    output_sigma: LogDeviation
    """Standard deviation of the logarithm of the output length (ln tokens)."""
    max_total_tokens: Annotated[int, whole(2, INT32_MAX)] = 8192
    """Largest prompt + output (tokens)."""

    def __post_init__(self) -> None:
        """Check that the parameters describe a distribution."""
        checked(self, "lognormal lengths: ")

    @property
    def description(self) -> str:
        """One line that names the model in reports."""
        return (
            f"log-normal lengths (ln prompt {self.prompt_mu:g} +- {self.prompt_sigma:g}, "
            f"ln output {self.output_mu:g} +- {self.output_sigma:g}, at most {self.max_total_tokens} tokens)"
        )

    def draw(self, rng: np.random.Generator, n: int) -> LengthPair:
        """Draw n prompt and n output lengths (tokens), int64[n] each."""
        normal = rng.standard_normal((2, n))
        # Cutting the exponent first keeps exp from overflowing for absurd parameters.
        limit = math.log(self.max_total_tokens)
        prompt = np.rint(np.exp(np.minimum(self.prompt_mu + self.prompt_sigma * normal[0], limit)))
        output = np.rint(np.exp(np.minimum(self.output_mu + self.output_sigma * normal[1], limit)))
        prompt = np.clip(prompt, 1, self.max_total_tokens - 1)
        output = np.clip(output, 1, self.max_total_tokens - prompt)
        return prompt.astype(np.int64), output.astype(np.int64)


class EmpiricalLengths:
    """Rows of real data: whole (prompt, output) pairs, so that their dependence is kept.

    Up to as many pairs as there are rows are drawn without replacement (the data in shuffled order, as the
    public SLAI code shuffles its file by seed); more are drawn with replacement.
    """

    def __init__(self, prompt: npt.ArrayLike, output: npt.ArrayLike, name: str = "empirical") -> None:
        """Keep n pairs of lengths (tokens, >= 1) under a name for reports.

        Raises:
            InputError: no rows, arrays of unequal length, or a value that is not a whole number >= 1.
        """
        self.prompt, self.output = check_pairs(prompt, output)
        self.name = name

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.prompt.shape[0])

    @property
    def description(self) -> str:
        """One line that names the data in reports."""
        return f"{self.name} lengths ({len(self)} rows, shuffled)"

    def draw(self, rng: np.random.Generator, n: int) -> LengthPair:
        """Draw n pairs of prompt and output lengths (tokens), int64[n] each."""
        size = len(self)
        rows = rng.choice(size, n, replace=False) if n <= size else rng.integers(size, size=n)
        return self.prompt[rows], self.output[rows]


def table_names() -> tuple[str, ...]:
    """Return the names of the shipped joint quantile tables."""
    return tuple(sorted(path.stem for path in TABLE_FOLDER.glob("*.json")))


@functools.lru_cache(maxsize=64)
def parse_lengths(spec: str) -> LengthModel:
    """Return the length model that a spec string names.

    Known are the names of the shipped tables and the forms in `LENGTH_FORMS`. Results are kept: a table
    file is read once per process.

    Raises:
        InputError: an unknown name (lists the known ones), bad numbers, or an unreadable table file.
    """
    parsed = Spec.parse(spec)
    if parsed.name == "fixed" and parsed.rest:
        prompt, output = _numbers(parsed, 2, 2)
        return FixedLengths(prompt, output)  # type: ignore[arg-type]  # checked there
    if parsed.name == "lognormal" and parsed.rest:
        prompt_mu, prompt_sigma, output_mu, output_sigma, *total = _numbers(parsed, 4, 5)
        limit = total[0] if total else LogNormalLengths.max_total_tokens
        return LogNormalLengths(prompt_mu, prompt_sigma, output_mu, output_sigma, limit)  # type: ignore[arg-type]
    if spec in table_names():
        return JointQuantileTable.load(TABLE_FOLDER / f"{spec}.json")
    if spec.endswith(".json"):
        return JointQuantileTable.load(spec)
    known = ", ".join((*table_names(), *LENGTH_FORMS))
    raise InputError(f"lengths: expected one of {known}; got {spec!r}")


def _numbers(spec: Spec, fewest: int, most: int) -> list[float]:
    parts, where = spec.rest.split(","), f"lengths {str(spec)!r}"
    if not fewest <= len(parts) <= most:
        count = str(fewest) if fewest == most else f"{fewest} or {most}"
        raise InputError(f"{where}: expected {count} numbers, got {len(parts)}")
    return [number().parse(part, where) for part in parts]
