"""Joint quantile tables: prompt and output lengths measured from real data, small enough to ship.

A table holds the quantile function of the prompt length, and for each of several equally likely bins of the
prompt's rank a quantile function of the output length. A draw takes one uniform number for the prompt,
which also selects the bin, and a second one for the output within the bin; so the dependence between the
two lengths is kept, which a product of two marginal distributions would lose (the correlation is -0.46 for
arxiv_summarization).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.demand.requests import INT32_MAX
from engine.errors import InputError
from engine.fields import convert
from engine.files.reading import kind_of, read_json
from engine.files.writing import write_atomically
from engine.ranges import number, whole

FORMAT = "llmsched-joint-quantiles/1"
TABLE_FOLDER = Path(__file__).parents[1] / "data" / "lengths"

_Number = Annotated[float, number(0.0, INT32_MAX)]
FloatArray = npt.NDArray[np.float64]
LengthPair = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _levels(steps: int, tail: tuple[float, ...]) -> FloatArray:
    body = np.arange(1, steps) / steps
    return np.unique(np.round(np.concatenate([tail, body, 1.0 - np.array(tail)]), 6))


# Dense at both ends: outputs have heavy tails (Azure code: p99 of 251 tokens, maximum 1899), where a linear
# piece across a convex quantile function would raise the mean.
PROMPT_LEVELS = _levels(100, (0.0, 0.0005, 0.001, 0.0025, 0.005))
OUTPUT_LEVELS = _levels(40, (0.0, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.03, 0.04))


class LengthModel(Protocol):
    """Anything that draws pairs of prompt and output lengths."""

    @property
    def description(self) -> str:
        """One line that names the model in reports."""
        ...

    def draw(self, rng: np.random.Generator, n: int) -> LengthPair:
        """Draw n prompt lengths and n output lengths (tokens, >= 1), int64[n] each."""
        ...


@dataclass(frozen=True, eq=False)
class JointQuantileTable:
    """Quantile functions of the prompt length and, by bin of the prompt's rank, of the output length.

    Sampling is by inverse CDF with linear interpolation between the stored quantiles, rounded to whole
    tokens.
    """

    name: str
    """Name of the table, as a workload's `lengths` refers to it."""
    prompt_levels: FloatArray
    """Probability levels of the prompt quantiles, float64[L], from 0 to 1, increasing."""
    prompt_tokens: FloatArray
    """Prompt quantiles, float64[L] (tokens), non-decreasing."""
    output_levels: FloatArray
    """Probability levels of the output quantiles, float64[M], from 0 to 1, increasing."""
    output_tokens: FloatArray
    """Output quantiles of each prompt bin, float64[B, M] (tokens), rows non-decreasing."""
    max_total_tokens: int
    """Largest prompt + output (tokens), 0 for none; larger outputs are cut to what the prompt leaves."""
    source: str
    """Where the measured data come from."""
    licence: str
    """Licence of the measured data."""
    rows: int
    """Number of measured pairs."""
    method: str
    """How the table was made, in words."""

    def __post_init__(self) -> None:
        """Check the shapes and orders that sampling relies on."""
        self._check_shapes()
        for label in ("prompt_tokens", "output_tokens"):
            if not _are_quantiles(getattr(self, label)):
                raise InputError(f"length table {self.name!r} {label}: expected non-decreasing values >= 1")
        if self.max_total_tokens and self.prompt_tokens[-1] > self.max_total_tokens - 1:
            raise InputError(
                f"length table {self.name!r}: expected prompts below {self.max_total_tokens} tokens in total"
            )

    def _check_shapes(self) -> None:
        for label in ("prompt_levels", "output_levels"):
            if not _are_levels(getattr(self, label)):
                raise InputError(f"length table {self.name!r} {label}: expected increasing levels from 0 to 1")
        if self.prompt_tokens.shape != self.prompt_levels.shape:
            raise InputError(f"length table {self.name!r} prompt_tokens: expected one value for each level")
        bins_right = self.output_tokens.ndim == 2 and self.output_tokens.shape[0] >= 1
        if not bins_right or self.output_tokens.shape[1] != self.output_levels.shape[0]:
            raise InputError(f"length table {self.name!r} output_tokens: expected bins of one value for each level")

    @property
    def description(self) -> str:
        """One line that names the table in reports."""
        return f"{self.name} lengths (joint quantiles of {self.rows} pairs)"

    def draw(self, rng: np.random.Generator, n: int) -> LengthPair:
        """Draw n prompt and n output lengths (tokens), int64[n] each."""
        uniform = rng.random((2, n))
        prompt = np.rint(np.interp(uniform[0], self.prompt_levels, self.prompt_tokens)).astype(np.int64)
        bins = (uniform[0] * self.output_tokens.shape[0]).astype(np.int64)
        left = np.searchsorted(self.output_levels, uniform[1], side="right") - 1
        low, high = self.output_levels[left], self.output_levels[left + 1]
        below, above = self.output_tokens[bins, left], self.output_tokens[bins, left + 1]
        output = np.rint(below + (above - below) * (uniform[1] - low) / (high - low)).astype(np.int64)
        if self.max_total_tokens:
            np.minimum(output, self.max_total_tokens - prompt, out=output)
        return prompt, output

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, complete or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        fields = {
            "format": FORMAT,
            **{label: getattr(self, label) for label in ("name", "source", "licence", "rows", "method")},
            "max_total_tokens": self.max_total_tokens,
            "prompt_levels": self.prompt_levels.tolist(),
            "prompt_tokens": _short(self.prompt_tokens),
            "output_levels": self.output_levels.tolist(),
            "output_tokens": [_short(row) for row in self.output_tokens],
        }
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items())
        write_atomically(path, "{\n" + lines + "\n}\n")

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data, exactly."""
        return {
            name: value.tolist() if isinstance(value := getattr(self, name), np.ndarray) else value
            for name in self.__dataclass_fields__
        }

    @classmethod
    def from_dict(cls, fields: object, where: str) -> JointQuantileTable:
        """A table from what `to_dict` gives; `where` is for messages.

        Raises:
            InputError: it is something else.
        """
        if not isinstance(fields, dict):
            raise InputError(f"{where}: expected a length table, got {kind_of(fields)}")
        return cls._from_fields(dict(fields), where)

    @classmethod
    def load(cls, path: str | Path) -> JointQuantileTable:
        """Read a table that `save` wrote.

        Raises:
            InputError: the file cannot be read or is not such a table.
        """
        fields = read_json(path, "a length table")
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise InputError(f"{path}: expected a length table with format {FORMAT!r}, got another file")
        del fields["format"]
        return cls._from_fields(fields, path)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any], path: str | Path) -> JointQuantileTable:
        expected = set(cls.__dataclass_fields__)
        if set(fields) != expected:
            wrong = ", ".join(sorted(expected.symmetric_difference(fields)))
            raise InputError(f"{path}: expected the fields of a length table, missing or unknown: {wrong}")
        for label in ("name", "source", "licence", "method"):
            convert(fields[label], str, f"{path}: {label}")
        fields["rows"] = whole(1).check(fields["rows"], f"{path}: rows")
        fields["max_total_tokens"] = whole(0, INT32_MAX).check(fields["max_total_tokens"], f"{path}: max_total_tokens")
        for label in ("prompt_levels", "prompt_tokens", "output_levels"):
            fields[label] = np.array(convert(fields[label], tuple[_Number, ...], f"{path}: {label}"), np.float64)
        bins = convert(fields["output_tokens"], tuple[tuple[_Number, ...], ...], f"{path}: output_tokens")
        if len(set(map(len, bins))) != 1:
            raise InputError(f"{path}: output_tokens: expected rows of equal length")
        fields["output_tokens"] = np.array(bins, np.float64)
        try:
            return cls(**fields)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _are_levels(levels: FloatArray) -> bool:
    """Whether probabilities rise from 0 to 1."""
    ends_right = levels.ndim == 1 and levels.shape[0] >= 2 and levels[0] == 0.0 and levels[-1] == 1.0
    return bool(ends_right and np.all(np.diff(levels) > 0.0))


def _are_quantiles(tokens: FloatArray) -> bool:
    """Whether quantiles, along the last axis, are lengths that do not fall."""
    return bool(np.all((tokens >= 1.0) & (tokens <= INT32_MAX)) and np.all(np.diff(tokens) >= 0.0))


def _short(values: FloatArray) -> list[int | float]:
    return [int(value) if value == int(value) else round(float(value), 2) for value in values]


def check_pairs(prompt: npt.ArrayLike, output: npt.ArrayLike) -> LengthPair:
    """Return prompt and output lengths (tokens) as int64 copies.

    Raises:
        InputError: no rows, arrays of unequal length, or a value that is not a whole number >= 1.
    """
    arrays = []
    for label, values in (("prompt", prompt), ("output", output)):
        array = np.asarray(values)
        if array.ndim != 1 or array.shape[0] == 0 or array.dtype.kind not in "iuf":
            raise InputError(f"{label} lengths: expected a one-dimensional array of numbers, not empty")
        bad = ~((array >= 1) & (array <= INT32_MAX) & (array == np.floor(array)))
        if bad.any():
            index = int(np.argmax(bad))
            raise InputError(f"{label} lengths[{index}]: expected a whole number of tokens >= 1, got {array[index]}")
        arrays.append(array.astype(np.int64))
    if arrays[0].shape != arrays[1].shape:
        counts = " and ".join(str(array.shape[0]) for array in arrays)
        raise InputError(f"lengths: expected as many prompts as outputs, got {counts}")
    return arrays[0], arrays[1]


def measure_table(
    prompt: npt.ArrayLike,
    output: npt.ArrayLike,
    *,
    name: str,
    source: str,
    licence: str,
    max_total_tokens: int = 0,
    bins: int = 20,
) -> JointQuantileTable:
    """Measure a joint quantile table from n pairs of lengths.

    Hazen's quantiles are used because the piecewise linear function through them has exactly the mean of
    the data. The rows are sorted by prompt (ties in file order) and cut into `bins` parts of equal count;
    the output quantiles are taken within each part.

    Args:
        prompt: n prompt lengths (tokens, >= 1).
        output: n output lengths (tokens, >= 1).
        name: name of the table.
        source: where the data come from.
        licence: licence of the data.
        max_total_tokens: largest prompt + output in the data (tokens), kept when drawing; 0 = no limit.
        bins: number of prompt bins.

    Raises:
        InputError: arrays of unequal length, values below 1, or fewer than two rows in a bin.
    """
    prompts, outputs = check_pairs(prompt, output)
    rows = prompts.shape[0]
    if not 1 <= bins <= rows // 2:
        raise InputError(f"bins: expected 1..{rows // 2} for {rows} rows (two rows in a bin at least), got {bins}")
    order = np.argsort(prompts, kind="stable")
    parts = np.array_split(outputs[order], bins)
    method = (
        "sample quantiles (Hazen: linear between (i - 1/2)/n): "
        f"the prompt's at {PROMPT_LEVELS.shape[0]} levels; the output's at "
        f"{OUTPUT_LEVELS.shape[0]} levels within each of {bins} equally filled bins of the prompt's rank"
    )
    return JointQuantileTable(
        name=name,
        prompt_levels=PROMPT_LEVELS,
        prompt_tokens=np.quantile(prompts, PROMPT_LEVELS, method="hazen"),
        output_levels=OUTPUT_LEVELS,
        output_tokens=np.array([np.quantile(part, OUTPUT_LEVELS, method="hazen") for part in parts]),
        max_total_tokens=max_total_tokens,
        source=source,
        licence=licence,
        rows=rows,
        method=method,
    )
