"""`llmsched reproduce`: the tables of `agents.studies.reproduce`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from agents.files import check_writable, json_text, write_atomically
from agents.options import parse_rates
from agents.reporting.tables import console_for_tables
from agents.studies import reproduce
from engine.errors import InputError

FIGURES = {
    "median_ttft_s": "median TTFT",
    "p99_ttft_s": "p99 TTFT",
    "p99_tbt_strict_s": "p99 TBT strict",
    "p99_tbt_relaxed_s": "p99 TBT relaxed",
}


@dataclass(frozen=True)
class Command:
    """Reproduce the SLAI paper's comparison: Sarathi FCFS against SLAI by load, and the gain in capacity."""

    lengths: Path | None = None
    """Real length file (num_prefill_tokens,num_decode_tokens), requests drawn as by the public SLAI code; without it
    lengths come from the shipped openchat_sharegpt4 table."""
    rates: str = "1.0:2.2:0.2"
    """Nominal arrival rates in requests/s: a list or start:end:step."""
    seeds: int = 3
    """Number of seeds, from 42 on (42 is the public code's)."""
    num_requests: int = 2500
    """Requests per run."""
    json: Path | None = None
    """Also write every cell to this file."""

    def run(self) -> None:
        """Measure, print, write.

        Raises:
            InputError: a number out of range, an unreadable length file, or a file that cannot be written.
        """
        if self.seeds < 1:
            raise InputError(f"seeds: expected a whole number >= 1, got {self.seeds}")
        if self.num_requests < 1:
            raise InputError(f"num_requests: expected a whole number >= 1, got {self.num_requests}")
        check_writable(self.json)
        console = console_for_tables()
        study = reproduce.load_study(self.lengths, self.num_requests)
        seeds = range(reproduce.SEEDS[0], reproduce.SEEDS[0] + self.seeds)
        with console.status("") as status:
            result = reproduce.reproduce(study, parse_rates(self.rates), seeds, progress=status.update)
        for semantics in reproduce.SEMANTICS:
            console.print(_table(result, semantics))
        console.print(_capacity(result))
        if result["deviations"]:
            console.print(_deviations(result))
        if self.json is not None:
            write_atomically(self.json, json_text(result))


def _mean(values: list[float | None]) -> str:
    """Mean over seeds, and the range where the seeds differ visibly."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    low, high = (f"{value:.3f}" for value in (min(known), max(known)))
    mean = f"{sum(known) / len(known):.3f}"
    return mean if low == high else f"{mean} ({low}-{high})"


def _table(result: dict[str, Any], semantics: str) -> Table:
    setting = result["setting"]
    table = Table(
        title=f"{semantics} semantics, seconds, mean over seeds (range)",
        caption=f"TTFT: {setting['ttft'][semantics]}; {setting['lengths']}, {setting['num_requests']} requests",
    )
    table.add_column("rate")
    table.add_column("policy")
    for title in FIGURES.values():
        table.add_column(title, justify="right")
    table.add_column("capacity verdicts")
    for rate in setting["rates"]:
        for policy in setting["policies"]:
            key = (semantics, policy, rate)
            cells = [c for c in result["cells"] if (c["semantics"], c["policy"], c["rate"]) == key]
            figures = (_mean([cell[name] for cell in cells]) for name in FIGURES)
            verdicts = sorted({cell["verdict"] for cell in cells})
            table.add_row(f"{rate:g}", policy, *figures, ", ".join(verdicts))
        table.add_section()
    return table


def _capacity(result: dict[str, Any]) -> Table:
    table = Table(title="Capacity, nominal requests/s by seed, and the gain of SLAI over Sarathi")
    for title in ("semantics", "criterion", *result["setting"]["policies"], "gain by seed", "mean gain"):
        table.add_column(title)
    for gain in result["gains"]:
        row = [gain["semantics"], gain["criterion"]]
        for policy in result["setting"]["policies"]:
            found = [c for c in result["capacities"] if (c["semantics"], c["policy"]) == (row[0], policy)]
            row.append(" ".join(f"{c[gain['criterion']]:.2f}" for c in found))
        row.append(" ".join(f"{100 * g:+.0f} %" for g in gain["per_seed"]))
        table.add_row(*row, f"{100 * gain['mean']:+.1f} %")
    held = {True: "yes", False: "NO", None: "not comparable (needs --lengths, 2500 requests, all four rates)"}
    table.caption = "; ".join(f"{name}: {held[value]}" for name, value in result["targets"].items())
    return table


def _deviations(result: dict[str, Any]) -> Table:
    same = "the same requests" if result["setting"]["real_lengths"] else "other requests of the same kind"
    table = Table(title=f"Against the public code, seed {result['setting']['seeds'][0]}, {same}")
    for title in ("rate", "policy", "figure", "public, s", "here, s", "deviation"):
        table.add_column(title, justify="left" if title in ("policy", "figure") else "right")
    for row in result["deviations"]:
        ours = "-" if row["ours"] is None else f"{row['ours']:.3f}"
        deviation = "-" if row["deviation"] is None else f"{100 * row['deviation']:+.1f} %"
        cells = (row["policy"], FIGURES[row["figure"]], f"{row['public']:g}", ours, deviation)
        table.add_row(f"{row['rate']:g}", *cells)
    return table
