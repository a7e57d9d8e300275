"""What an A/B left behind (`agents.vllm.cell_files`), and its numbers (`engine.runs.metrics`)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.vllm.cell_files import META, REQUESTS, STEPS, read_lines, read_meta
from agents.vllm.plan import PLAIN, PROBED, PROFILE, Cell, Plan
from agents.vllm.settings import STOCK, Settings
from engine.config import EngineConfig
from engine.demand.requests import Tier
from engine.errors import InputError
from engine.fields import from_mapping
from engine.runs.metrics import summarize, ttft_samples
from engine.runs.record import Record
from engine.server.state import FINISHED

METRICS = (
    *("median_ttft_s", "mean_ttft_s", "p99_ttft_s", "p99_tbt_strict_s"),
    *("mean_e2e_s", "slo_met", "goodput", "makespan_s"),
)
"""Numbers of a cell: times in s (e2e: from when a request was due to its last token), a share, requests/s."""


class Served(NamedTuple):
    """The requests of a cell, one value each."""

    ttft: np.ndarray  # s, from when it was due; inf without a token
    finish: np.ndarray  # s from the first arrival, nan: not finished
    e2e: np.ndarray  # s, from when it was due to the last token; inf: not finished
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

    def settings(self) -> Settings:
        """What the scheduler was told."""
        return self.plan.settings(self.cell.policy)

    def tiers(self) -> tuple[Tier, ...]:
        """The tiers of its users."""
        return self.plan.workload(self.cell.rate).tiers


def _served(lines: Sequence[dict[str, Any]], tiers: Sequence[Tier]) -> Served:
    inf, nan = float("inf"), float("nan")
    ttft = np.array([inf if one["first"] is None else one["first"] - one["due"] for one in lines])
    finish = np.array([nan if one["finish"] is None else one["finish"] for one in lines])
    e2e = np.nan_to_num(finish - np.array([one["due"] for one in lines]), nan=inf)
    tier = np.array([one["tier"] for one in lines])
    gaps = tuple(1e-4 * np.array(one["gaps"], np.float64) for one in lines)
    longest = np.array([one.max(initial=0.0) for one in gaps])
    good = ~np.isnan(finish) & _in_time(ttft, longest, tier, tiers)
    return Served(ttft, finish, e2e, tier, good.astype(np.float64), gaps)


def _in_time(ttft: np.ndarray, longest: np.ndarray, tier: np.ndarray, tiers: Sequence[Tier]) -> np.ndarray:
    """Whose first token and longest gap (s) were within the deadlines of their tier."""
    deadlines = np.array([(one.ttft_s, one.tbt_s) for one in tiers])[tier]
    found: np.ndarray = (ttft <= deadlines[:, 0]) & (longest <= deadlines[:, 1])
    return found


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
        "mean_e2e_s": float(served.e2e[every].mean()),
        "slo_met": float(served.good[every].mean()),
        "goodput": float(served.good[every].sum()) / makespan,
        "makespan_s": makespan,
    }


def numbers_in(record: Record, tiers: Sequence[Tier], front_s: float = 0.0) -> dict[str, float]:
    """The same numbers of a simulated run, by the deadlines of `tiers`: those in the record are what the policy saw.

    Args:
        record: of the run.
        tiers: of its users.
        front_s: s, to the engine and back, which the run knows nothing of.
    """
    report, longest = summarize(record), record.ledger["max_gap"]
    strict = [tier for tier in report.tiers if tier.strict]
    good = _in_time(ttft_samples(record) + front_s, longest, record.requests.tier, tiers)
    good &= record.request["status"] == FINISHED
    makespan = report.duration_s - float(record.requests.arrival[0]) + front_s
    return {
        "median_ttft_s": report.ttft.p50 + front_s,
        "mean_ttft_s": report.ttft.mean + front_s,
        "p99_ttft_s": report.ttft.p99 + front_s,
        "p99_tbt_strict_s": strict[0].itl.p99 if len(strict) == 1 else float("nan"),
        "mean_e2e_s": report.e2el.mean + front_s if report.completed == report.arrived else float("inf"),
        "slo_met": float(good.mean()),
        "goodput": float(good.sum()) / makespan,
        "makespan_s": makespan,
    }


def read_folders(folders: Sequence[Path]) -> list[Measured]:
    """The cells of one engine in some folders; policies that were told otherwise in one than in another get new names.

    Raises:
        InputError: as `read_cells`; cells of one load that are of different requests.
    """
    cells = [cell for folder in folders for cell in read_cells(folder)]
    loads: dict[float, Measured] = {}
    for cell in cells:
        first = loads.setdefault(cell.cell.rate, cell)
        if cell.plan.workload(cell.cell.rate) != first.plan.workload(cell.cell.rate):
            raise InputError(f"{cell.cell}: expected the requests of the other folders at this load, got others")
    told: dict[str, list[Settings]] = {}
    for cell in cells:
        known = told.setdefault(cell.cell.policy, [])
        if _told(cell) not in known:
            known.append(_told(cell))
    return [_renamed(cell, told[cell.cell.policy]) for cell in cells]


def _told(cell: Measured) -> Settings:
    """What the scheduler was told; what was fitted to a probe is the same in every folder."""
    settings = cell.settings()
    return replace(settings, profile=PROBED) if Path(settings.profile).name == PROFILE else settings


def _renamed(cell: Measured, told: Sequence[Settings]) -> Measured:
    """The cell, its policy's name with what sets it apart from others of that name."""
    name, own = cell.cell.policy, asdict(_told(cell))
    differing = [key for key, value in own.items() if any(asdict(other)[key] != value for other in told)]
    if not differing or name in (STOCK, PLAIN):
        return cell
    new = f"{name} ({', '.join(f'{key}={own[key]}' for key in differing)})"
    plan = replace(cell.plan, variants={**cell.plan.variants, new: asdict(cell.settings())})
    return replace(cell, cell=replace(cell.cell, policy=new), plan=plan)


def read_cells(folder: Path) -> list[Measured]:
    """The cells in a folder.

    Raises:
        InputError: no such folder, or one of something else.
    """
    plan = from_mapping(Plan, read_meta(folder)["plan"], f"{folder / META}: plan")
    plan = plan.knowing(folder)
    steps = _read_steps(folder)
    found: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for line in read_lines(folder / REQUESTS):
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
    return [replace(one, limits=_limits(one, limits)) for one in cells]


def _limits(cell: Measured, others: dict[str, Any] | None) -> dict[str, Any] | None:
    """The limits of its server: those that our scheduler saw, or another cell's where it is the same one without it."""
    if cell.counters:
        limits: dict[str, Any] = cell.counters["limits"]
        return limits
    return others if cell.plan.is_plain(cell.cell.policy) else None


def _read_steps(folder: Path) -> dict[int, list[str]]:
    """The lines of the step log by cell, each behind the same head."""
    head, *lines = read_lines(folder / STEPS)
    columns = head.partition(",")[2]
    steps: dict[int, list[str]] = {}
    for line in lines:
        number, _, rest = line.partition(",")
        steps.setdefault(int(number), [columns]).append(rest)
    return steps
