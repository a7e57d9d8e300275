"""Histograms of lengths that a vLLM server publishes at /metrics, as a trace without times.

Read are ``vllm:request_prompt_tokens`` and ``vllm:request_generation_tokens``: how many finished requests had up to so
many tokens, and their sum. A file is one snapshot of counters since the server began: it has no duration, so it says
nothing about the rate, and nothing about which prompts had which outputs. The rows are quantiles of both, paired in a
fixed random order.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from engine.demand.raw_trace import WHAT, RawTrace, Start, TraceFile
from engine.errors import InputError
from engine.files.lines import lines_of
from engine.ranges import MOST_TOKENS, parse_number

PROMPTS, OUTPUTS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
"""Names of the histograms."""
ROWS = 4096
"""Quantiles that are taken of each."""
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*", re.ASCII)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SPECIAL = {"NaN": math.nan, "+Inf": math.inf, "-Inf": -math.inf}
_STEEPEST = 0.02
"""Mean place of the lengths within their buckets, at least (and at most 1 less it), as a share of the width."""


@dataclass(eq=False)
class Histogram:
    """The samples of one histogram, summed over engines."""

    counts: dict[float, float] = field(default_factory=lambda: defaultdict(float))
    """Requests with up to so many tokens, by the upper ends of the buckets."""
    total: float = 0.0
    """Tokens of all of them."""

    @property
    def requests(self) -> float:
        """Requests in all buckets."""
        return max(self.counts.values(), default=0.0)

    def quantiles(self, number: int) -> npt.NDArray[np.int64]:
        """Lengths (tokens) at the middles of so many equal parts, int64[number], ascending.

        Within their bucket lengths follow a power law, the same in all buckets, whose exponent keeps the mean of the
        requests. The last bucket, which has no upper end, reaches as far again as the one before it.
        """
        ends = np.array(sorted(self.counts))
        shares = np.diff([self.counts[end] for end in ends], prepend=0.0) / self.requests
        low = np.concatenate([[0.0], ends[:-1]])
        high = np.where(np.isfinite(ends), ends, 2.0 * np.maximum(low, 1.0))
        place = (self.total / self.requests - shares @ low) / (shares @ (high - low))
        exponent = 1.0 / min(max(place, _STEEPEST), 1.0 - _STEEPEST) - 1.0
        below = np.concatenate([[0.0], np.cumsum(shares)])
        levels = (np.arange(number) + 0.5) / number
        bucket = np.minimum(np.searchsorted(below, levels, side="right") - 1, len(ends) - 1)
        inside = np.clip((levels - below[bucket]) / np.maximum(shares[bucket], 1e-300), 0.0, 1.0) ** exponent
        tokens = np.rint(low[bucket] + (high - low)[bucket] * inside)
        return np.asarray(np.clip(tokens, np.maximum(np.floor(low[bucket]) + 1, 1), MOST_TOKENS).astype(np.int64))


@dataclass(frozen=True)
class PrometheusText:
    """What a vLLM server answers at /metrics."""

    name: str = "Prometheus text of vLLM"
    """Name of the format."""
    about: str = f"/metrics with the histograms {PROMPTS} and {OUTPUTS}; arrivals are drawn (--rate)"
    """What is in such a file."""
    is_text: bool = False
    """Tokens are counted already."""

    def recognises(self, start: Start) -> bool:
        """A comment of the exposition format, or a sample of vLLM's."""
        return start.line.startswith(("# HELP ", "# TYPE ", "vllm:"))

    def read(self, file: TraceFile) -> RawTrace:
        """Quantiles of both histograms as rows.

        Raises:
            InputError: a histogram that is missing, empty or broken, or those of several models.
        """
        prompts, outputs = _histograms(file)
        raw = RawTrace(file.path, self.name, ("", PROMPTS, OUTPUTS), "quantile", unit="s", in_order=False)
        paired = np.random.default_rng(0).permutation(outputs.quantiles(ROWS))
        for row, (prompt, output) in enumerate(zip(prompts.quantiles(ROWS).tolist(), paired.tolist(), strict=True)):
            raw.add(row, None, prompt, output)
        raw.notes.append(
            f"{ROWS} quantiles of {prompts.requests:.0f} requests, prompts and outputs independent; one snapshot has "
            "no duration, so no rate"
        )
        return raw


def _histograms(file: TraceFile) -> tuple[Histogram, Histogram]:
    """The histograms of prompts and of outputs."""
    found, models = _collected(file)
    if missing := [name for name, histogram in found.items() if not histogram.counts]:
        expected = f"vLLM's histograms {PROMPTS} and {OUTPUTS}"
        raise InputError(f"{file.path}: expected {expected}; missing {', '.join(missing)}")
    if len(models) > 1:
        raise InputError(f"{file.path}: expected the metrics of one model, got those of {', '.join(sorted(models))}")
    for name, histogram in found.items():
        _check(histogram, f"{file.path}: {name}")
    return found[PROMPTS], found[OUTPUTS]


def _collected(file: TraceFile) -> tuple[dict[str, Histogram], set[str]]:
    """Both histograms, and the models that they name."""
    found, models = {PROMPTS: Histogram(), OUTPUTS: Histogram()}, set[str]()
    for line, text in lines_of(file.file, file.path, WHAT):
        if text.isspace() or text.startswith("#"):
            continue
        where = f"{file.path}, line {line}"
        metric, labels, value = _sample(text, where)
        name, _, part = metric.rpartition("_")
        if name in found and part in ("bucket", "sum"):
            models |= {labels["model_name"]} if "model_name" in labels else set()
            if part == "sum":
                found[name].total += value
            else:
                found[name].counts[_end(labels, where)] += value
    return found, models


def _sample(text: str, where: str) -> tuple[str, dict[str, str], float]:
    """Name, labels and value of the sample in a line."""
    match = _SAMPLE.fullmatch(text)
    value = _SPECIAL.get(match[3], parse_number(match[3])) if match else None
    if match is None or value is None:
        raise InputError(f"{where}: expected a sample (name{{labels}} number), got {text.strip()[:60]!r}")
    return match[1], dict(_LABEL.findall(match[2] or "")), float(value)


def _end(labels: dict[str, str], where: str) -> float:
    """The upper end of a bucket."""
    text = labels.get("le", "")
    end = math.inf if text == "+Inf" else parse_number(text)
    if end is None or not end >= 0.0:
        raise InputError(f'{where}: expected a bucket with le="TOKENS" or le="+Inf", got {text!r}')
    return float(end)


def _check(histogram: Histogram, where: str) -> None:
    """Find a histogram that says nothing, or something impossible."""
    counts = [histogram.counts[end] for end in sorted(histogram.counts)]
    if not histogram.requests > 0.0:
        raise InputError(f"{where}: expected at least one finished request, got none")
    if not (math.isfinite(histogram.total) and histogram.total > 0.0):
        raise InputError(f"{where}_sum: expected a number of tokens > 0, got {histogram.total:g}")
    if math.inf not in histogram.counts or not all(a <= b < math.inf for a, b in pairwise(counts)):
        raise InputError(f'{where}_bucket: expected counts that rise up to le="+Inf", got others')
