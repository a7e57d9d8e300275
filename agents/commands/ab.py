"""`llmsched ab`: what policies did inside a vLLM engine, beside what a simulation of the same requests says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from agents.options import TableOptions
from agents.reporting.grid import Grid, Head, Part, figure, print_lines, show, terminal_console
from agents.vllm.agreement import Pair, Rank, compare, fit_profile, ranks, to_dict
from agents.vllm.results import METRICS, read_cells
from agents.work.files import check_writable, write_json
from engine.device.latency import load_profile
from engine.errors import InputError

_TITLES = ("TTFT median, s", "mean", "p99", "p99 TBT strict, s", "SLO met", "goodput, 1/s", "makespan, s")


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions):
    """Measured beside predicted: an A/B of `python -m agents.vllm replay` in a vLLM engine, and its simulation."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Its folders, of one engine."""
    profile: str = ""
    """Latency profile to predict with (default: one fitted to what the engine's scheduler logged in stock mode)."""
    fit: Path | None = None
    """Also write the fitted profile to this file."""
    json: Path | None = None
    """Also write every figure to this file."""

    def run(self) -> None:
        """Read, fit, simulate, compare, print, write.

        Raises:
            InputError: no folder, none that is there, no complete cell in them, an unknown policy, or a file that
                cannot be written.
        """
        if not self.folders:
            raise InputError("folders: expected at least one that `agents.vllm.replay` wrote, got none")
        check_writable(self.json, self.fit)
        cells = [cell for folder in self.folders for cell in read_cells(folder)]
        if not cells:
            raise InputError(f"{self.folders[0]}: expected a complete cell at least, got none")
        model = load_profile(self.profile) if self.profile else fit_profile(cells, "engine")
        if self.fit:
            model.save(self.fit)
        pairs = compare(cells, model)
        found = ranks(pairs)
        console = terminal_console()
        show(_cells_grid(pairs), console, self.wide)
        if found:
            show(_ranks_grid(found), console, self.wide)
        print_lines(console, _remarks(pairs))
        if self.json:
            write_json(self.json, to_dict(pairs, found, model))


def _both(pair: Pair, metric: str) -> str:
    real, predicted = pair.real[metric], pair.predicted[metric]
    error = f" ({100 * (predicted / real - 1):+.0f} %)" if real > 0 and np.isfinite(predicted) else ""
    return f"{figure(real, '.3g')} / {figure(predicted, '.3g')}{error}"


def _cells_grid(pairs: Sequence[Pair]) -> Grid:
    heads = (Head("policy", "name"), Head("rate"), Head("seed"), *(Head(title) for title in _TITLES))
    rows = [
        (
            p.measured.cell.policy,
            f"{p.measured.cell.rate:g}",
            str(p.measured.cell.seed),
            *(_both(p, m) for m in METRICS),
        )
        for p in sorted(pairs, key=lambda p: (p.measured.cell.rate, p.measured.cell.seed))
    ]
    return Grid(heads, [Part(rows, "measured / predicted (error of the prediction)")])


def _ranks_grid(found: Sequence[Rank]) -> Grid:
    heads = (Head("rate"), *(Head(title.partition(",")[0]) for title in _TITLES))
    by_rate: dict[float, list[str]] = {}
    for one in found:
        text = f"{figure(one.tau, '.2f')} [{figure(one.low, '.2f')}, {figure(one.high, '.2f')}]"
        by_rate.setdefault(one.rate, []).append(text)
    rows = [(f"{rate:g}", *texts) for rate, texts in by_rate.items()]
    return Grid(heads, [Part(rows, "Kendall's tau of the policies' order, measured and predicted, 95 % interval")])


def _remarks(pairs: Sequence[Pair]) -> list[str]:
    """What the schedulers counted that should not be."""
    names = ("fallbacks", "passed", "stalled", "held_ran", "over_budget", "rebuilt", "refused")
    totals = {name: sum(pair.measured.counters[name] for pair in pairs) for name in names}
    return ["counted inside the engine: " + ", ".join(f"{name} {count}" for name, count in totals.items())]
