"""What an A/B left behind (`agents.vllm.cell_files`), and its numbers (`engine.runs.metrics`)."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.vllm.cell_files import FORMAT, META, REQUESTS, STEPS
from agents.vllm.plan import Cell, Plan
from engine.config import EngineConfig
from engine.demand.requests import Tier
from engine.errors import InputError
from engine.fields import from_mapping
from engine.files.reading import read_mapping
from engine.runs.report import Report

METRICS = ("median_ttft_s", "mean_ttft_s", "p99_ttft_s", "p99_tbt_strict_s", "slo_met", "goodput", "makespan_s")
"""Numbers of a cell: times in s, a share, requests/s."""


class Served(NamedTuple):
    """The requests of a cell, one value each."""

    ttft: np.ndarray  # s, from when it was due; inf without a token
    finish: np.ndarray  # s from the first arrival, nan: not finished
    tier: np.ndarray
    good: np.ndarray  # 1: finished, TTFT and every gap in time; nan: it is not known what is in time
    gaps: tuple[np.ndarray, ...]  # s, of each request


@dataclass(frozen=True)
class Measured:
    """A cell as it was served."""

    cell: Cell
    plan: Plan
    served: Served
    counters: dict[str, Any] | None
    """Of our scheduler; None: it was not there."""
    steps: tuple[str, ...] = ()
    """Lines of its step log, without the number of the cell."""
    limits: dict[str, Any] | None = None
    """Of the server, as far as they are known."""

    def config(self) -> EngineConfig:
        """The limits of the server."""
        return from_mapping(EngineConfig, self.limits or {}, "limits")

    def tiers(self) -> tuple[Tier, ...]:
        """The tiers of its users."""
        return self.plan.workload(self.cell.rate).tiers


def _served(lines: Sequence[dict[str, Any]], tiers: Sequence[Tier]) -> Served:
    inf, nan = float("inf"), float("nan")
    ttft = np.array([inf if one["first"] is None else one["first"] - one["due"] for one in lines])
    finish = np.array([nan if one["finish"] is None else one["finish"] for one in lines])
    tier = np.array([one["tier"] for one in lines])
    gaps = tuple(1e-4 * np.array(one["gaps"], np.float64) for one in lines)
    longest = np.array([one.max(initial=0.0) for one in gaps])
    deadlines = np.array([(t.ttft_s, t.tbt_s) for t in tiers])[tier]
    good = (ttft <= deadlines[:, 0]) & (longest <= deadlines[:, 1]) & ~np.isnan(finish)
    return Served(ttft, finish, tier, good.astype(np.float64), gaps)


def numbers_of(served: Served, tiers: Sequence[Tier], chosen: np.ndarray | None = None) -> dict[str, float]:
    """METRICS of a cell, or of a sample of its requests (`chosen`: indices)."""
    every = np.arange(len(served.ttft)) if chosen is None else chosen
    strict = [served.gaps[k] for k in every if tiers[served.tier[k]].strict]
    pooled = np.concatenate(strict) if strict else np.zeros(0)
    ttft, makespan = served.ttft[every], float(np.nanmax(served.finish))
    return {
        "median_ttft_s": float(np.median(ttft)),
        "mean_ttft_s": float(ttft.mean()),
        "p99_ttft_s": float(np.quantile(ttft, 0.99)),
        "p99_tbt_strict_s": float(np.quantile(pooled, 0.99)) if len(pooled) else float("nan"),
        "slo_met": float(served.good[every].mean()),
        "goodput": float(served.good[every].sum()) / makespan,
        "makespan_s": makespan,
    }


def numbers_in(report: Report, first: float) -> dict[str, float]:
    """The same numbers of a simulated run, whose first request came at `first` (s)."""
    strict = [tier for tier in report.tiers if tier.strict]
    makespan = report.duration_s - first
    return {
        "median_ttft_s": report.ttft.p50,
        "mean_ttft_s": report.ttft.mean,
        "p99_ttft_s": report.ttft.p99,
        "p99_tbt_strict_s": strict[0].itl.p99 if len(strict) == 1 else float("nan"),
        "slo_met": report.slo_attainment,
        "goodput": report.slo_attainment * report.arrived / makespan,
        "makespan_s": makespan,
    }


def read_cells(folder: Path) -> list[Measured]:
    """The cells in a folder.

    Raises:
        InputError: no such folder, or one of something else.
    """
    meta = read_mapping(folder / META, "what an A/B wrote")
    if meta.get("format") != FORMAT:
        raise InputError(f"{folder / META}: expected format {FORMAT!r}, got {meta.get('format')!r}")
    plan = from_mapping(Plan, meta["plan"], f"{folder / META}: plan")
    steps = _read_steps(folder)
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for line in _lines(folder / REQUESTS):
        entry = json.loads(line)
        if "cell" in entry:
            found.append((entry, []))
        else:
            found[-1][1].append(entry)
    cells = []
    for head, lines in found:
        cell = Cell(head["policy"], head["rate"], head["seed"])
        served = _served(lines, plan.workload(cell.rate).tiers)
        cells.append(Measured(cell, plan, served, head["counters"], tuple(steps.get(head["cell"], ()))))
    limits = next((one.counters["limits"] for one in cells if one.counters), None)
    return [replace(one, limits=one.counters["limits"] if one.counters else limits) for one in cells]


def _lines(path: Path) -> list[str]:
    """The lines of a compressed file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with gzip.open(path, "rt") as file:
            return file.read().splitlines()
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot read ({error})") from None


def _read_steps(folder: Path) -> dict[int, list[str]]:
    """The lines of the step log by cell, each behind the same head."""
    head, *lines = _lines(folder / STEPS)
    columns = head.partition(",")[2]
    steps: dict[int, list[str]] = {}
    for line in lines:
        number, _, rest = line.partition(",")
        steps.setdefault(int(number), [columns]).append(rest)
    return steps
