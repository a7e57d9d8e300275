"""What an evaluation found, as records: `Comparison` and its parts; their fields are the keys of result.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from agents.evaluation.looks import Behaviour, Windows
from agents.evaluation.statistics import Interval
from agents.work.records import READ, as_json, part, picked
from engine.demand.requests import Tier
from engine.demand.tiers import parse_tiers
from engine.errors import InputError
from engine.fields import from_mapping
from engine.files.reading import kind_of

FORMAT = "llmsched-evaluation/2"

CDF_SHARES = np.concatenate([np.linspace(0.0, 0.99, 100), [0.995, 0.999, 1.0]])
"""Shares at which the TTFT distribution of a cell is kept."""
VERDICTS = ("unknown", "stable", "starving", "late", "saturated")
"""What `engine.runs.report` says of a load, from good to bad."""
JUDGEMENTS = ("better", "worse", "no clear difference")
"""What is said of a difference: the last where its interval contains zero."""


def number_at(report: Mapping[str, Any], key: str) -> float:
    """A number of a report by its key, `tiers.strict.p99_itl_ms` for one of a tier; nan where there is none.

    Raises:
        InputError: the report has no such key.
    """
    node: object = report
    rest = key
    while isinstance(node, Mapping) and rest and rest not in node:  # a key may itself have a point, as p99.9_ttft_ms
        first, _, rest = rest.partition(".")
        node = node.get(first)
    if not isinstance(node, Mapping) or rest not in node:
        raise InputError(f"report: expected a number at {key}, got none")
    value = node[rest]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"report: expected a number or null at {key}, got {kind_of(value)}")
    return float(value)


def _check_word(word: object, known: Sequence[str], where: str) -> None:
    if word not in known:
        raise InputError(f"{where}: expected one of {', '.join(known)}, got {kind_of(word)}")


class Reported:
    """A run with the numbers that `engine.runs.report.Report.to_dict` writes."""

    report: dict[str, Any]

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the service tiers."""
        return tuple(self.report["tiers"])

    @property
    def verdict(self) -> str:
        """What the report says of the load, one of VERDICTS."""
        return str(self.report["capacity"]["verdict"])

    def number(self, key: str) -> float:
        """A number of the report by its key; nan where there is none.

        Raises:
            InputError: the report has no such key.
        """
        return number_at(self.report, key)


@dataclass(frozen=True)
class Cell(Reported):
    """One run: a policy at one load with one seed."""

    policy: str
    load: float | None
    """Arrival rate that was asked for, requests/s; None: recorded times."""
    seed: int
    trace: str
    """Digest of the requests."""
    rate: float | None
    """Arrival rate at which they came, requests/s."""
    source: str
    """Where they came from, in words."""
    prediction: str
    """Channel of the predictions, "" for none."""
    longest_request: int
    """Tokens of the longest request, prompt and output."""
    report: dict[str, Any]
    """The numbers of the run, as `engine.runs.report.Report.to_dict` writes them."""
    ttft_quantiles_ms: tuple[float, ...]
    """TTFT at the shares of CDF_SHARES, ms; empty where nobody has one."""

    def __post_init__(self) -> None:
        """Check the parts of the report that everything else goes by.

        Raises:
            InputError: one is missing or something else.
        """
        for name in ("tiers", "capacity"):
            if not isinstance(self.report.get(name), Mapping):
                raise InputError(f"report.{name}: expected a mapping, got {kind_of(self.report.get(name))}")
        _check_word(self.report["capacity"].get("verdict"), VERDICTS, "report.capacity.verdict")
        if len(self.ttft_quantiles_ms) not in (0, len(CDF_SHARES)):
            of = f"{len(CDF_SHARES)} numbers or none, got {len(self.ttft_quantiles_ms)}"
            raise InputError(f"ttft_quantiles_ms: expected {of}")

    @property
    def key(self) -> tuple[str, float | None, int]:
        """What tells cells of one evaluation apart."""
        return self.policy, self.load, self.seed

    def meets(self, criterion: str) -> bool:
        """Whether the run meets the criterion `paper` or `sound`."""
        return bool(self.report["capacity"].get(criterion))


@dataclass(frozen=True)
class Trace:
    """The requests of one load and seed, the same for all policies; the fields are those of `Cell`."""

    load: float | None
    seed: int
    trace: str
    rate: float | None
    source: str

    @classmethod
    def of(cls, cell: Cell) -> "Trace":
        """The trace that a cell was served."""
        return cls(cell.load, cell.seed, cell.trace, cell.rate, cell.source)


@dataclass(frozen=True)
class Summary:
    """One policy at one load, over the seeds."""

    policy: str
    load: float | None
    seeds: int
    paper: int
    """Seeds that meet the paper's criterion ..."""
    sound: int
    """... and the sound one."""
    verdict: str
    """The commonest verdict; of equally common ones the worst."""
    metrics: dict[str, Interval]
    """Means over the seeds with 95 % intervals, by key of the report."""

    def __post_init__(self) -> None:
        """Check the word.

        Raises:
            InputError: it is no verdict.
        """
        _check_word(self.verdict, VERDICTS, "verdict")

    def __getitem__(self, metric: str) -> Interval:
        """The mean of a metric over the seeds.

        Raises:
            InputError: there is none of this name.
        """
        if metric not in self.metrics:
            raise InputError(f"summary of {self.policy} at load {self.load}: expected the metric {metric}, got none")
        return self.metrics[metric]


@dataclass(frozen=True)
class Difference:
    """How much a metric of one policy differs from that of the reference, seed by seed on the same traces."""

    policy: str
    load: float | None
    metric: str
    difference: Interval
    relative: float | None
    """The mean over that of the reference; None where the reference has 0 or nothing."""
    judgement: str
    """One of JUDGEMENTS."""

    def __post_init__(self) -> None:
        """Check the word.

        Raises:
            InputError: it is no judgement.
        """
        _check_word(self.judgement, JUDGEMENTS, "judgement")


@dataclass(frozen=True)
class Contestant:
    """What a report says about a policy."""

    label: str
    name: str
    paper: str
    knows: str
    eviction: str
    evidence: str
    parameters: dict[str, bool | int | float | str]
    fingerprint: str


@dataclass(frozen=True)
class _Server:
    prompt_emits: bool
    num_blocks: int
    block_size: int


@dataclass(frozen=True)
class _Device:
    name: str
    provenance: dict[str, Any]


@dataclass(frozen=True)
class _Requests:
    rate_scale: float
    trace: str | None = None
    trace_sha256: str | None = None


@dataclass(frozen=True)
class Setting:
    """The parts of a configuration that reports show."""

    loads: tuple[float | None, ...]
    seeds: int
    goodput: dict[str, float | None] | None
    engine: _Server = field(metadata=part(_Server))
    profile: _Device = field(metadata=part(_Device))
    source: _Requests = field(metadata=part(_Requests))
    tiers: tuple[Tier, ...] = field(default=(), metadata={READ: parse_tiers})


def _windows(value: object, where: str) -> Windows | None:
    """Windows, none for an empty mapping."""
    return None if value == {} else from_mapping(Windows, value, where)


def _check_places(part: str, found: Sequence[tuple[object, ...]], expected: Sequence[tuple[object, ...]]) -> None:
    """Refuse a part of a result that has not one row for each place."""
    known, wanted = set(found), set(expected)
    if known == wanted and len(found) == len(expected):
        return
    wrong = [place for place in expected if place not in known] or [place for place in found if place not in wanted]
    got = f"none for {', '.join(map(str, wrong[0]))}" if wrong and wrong[0] in wanted else f"{len(found)} rows"
    raise InputError(f"{part}: expected one row for each policy and load, {len(expected)} in all, got {got}")


@dataclass(frozen=True)
class Comparison:
    """The result of an evaluation; `to_dict` is what result.json holds."""

    config: dict[str, Any]
    """The evaluation as plain data."""
    config_hash: str
    reference: str
    """The policy that the others are compared with."""
    bound: float | None
    """Requests/s that no scheduler sustains; None: no bound."""
    versions: dict[str, str]
    policies: tuple[Contestant, ...]
    traces: tuple[Trace, ...]
    cells: tuple[Cell, ...]
    """Every run, by load, seed, policy."""
    summary: tuple[Summary, ...]
    """Means over seeds, by load and policy."""
    paired: tuple[Difference, ...]
    """Differences to the reference."""
    windows: Windows | None = field(metadata={READ: _windows})
    """A minute of each policy step by step, with the times of decisions; None if nobody looked."""
    behaviour: tuple[Behaviour, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            InputError: an empty part, or a policy that is missing in one at some load.
        """
        for name in ("policies", "traces", "cells", "summary"):
            if not getattr(self, name):
                raise InputError(f"{name}: expected at least one entry, got none")
        pairs = list(product(self.labels, self.setting.loads))
        _check_places("summary", [(row.policy, row.load) for row in self.summary], pairs)
        if self.behaviour:
            _check_places("behaviour", [(row.policy, row.load) for row in self.behaviour], pairs)
        found = [(row.policy, row.load, row.metric) for row in self.paired]
        others = (label for label in self.labels if label != self.reference)
        metrics = dict.fromkeys(metric for _, _, metric in found)
        _check_places("paired", found, list(product(others, self.setting.loads, metrics)))

    @property
    def labels(self) -> tuple[str, ...]:
        """What the policies are called."""
        return tuple(policy.label for policy in self.policies)

    @cached_property
    def setting(self) -> Setting:
        """The parts of the configuration that reports show.

        Raises:
            InputError: the configuration lacks one.
        """
        return picked(Setting, self.config, "config")

    def at(self, load: float | None) -> list[Summary]:
        """The summaries of one load, policy by policy."""
        return [row for row in self.summary if row.load == load]

    def of(self, policy: str) -> list[Summary]:
        """The summaries of one policy, load by load."""
        return [row for row in self.summary if row.policy == policy]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        values = {own.name: as_json(getattr(self, own.name)) for own in fields(self)}
        return {"format": FORMAT} | values | {"windows": as_json(self.windows) if self.windows else {}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Comparison":
        """The result that JSON holds, as `to_dict` wrote it.

        Raises:
            InputError: something else, or of another format; names the place.
        """
        if data.get("format") != FORMAT:
            got = data.get("format")
            again = " of an older llmsched: run evaluate again" if str(got).startswith("llmsched-evaluation/") else ""
            raise InputError(f"expected a result with format {FORMAT!r}, got {kind_of(got)}{again}")
        return from_mapping(cls, {key: value for key, value in data.items() if key != "format"}, "result")
