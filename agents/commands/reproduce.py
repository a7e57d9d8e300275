"""`llmsched reproduce`: the tables of `agents.studies.reproduce`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from agents.evaluation.arrivals import arrivals_note, by_load
from agents.options import ProgressOptions, TableOptions, parse_rates
from agents.reporting.grid import Grid, Head, Part, show, terminal_console
from agents.studies import reproduce
from agents.work.files import check_writable, json_text, write_atomically
from agents.work.progress import bars
from engine.errors import InputError

FIGURES = {
    "median_ttft_s": "median TTFT",
    "p99_ttft_s": "p99 TTFT",
    "p99_tbt_strict_s": "p99 TBT strict",
    "p99_tbt_relaxed_s": "p99 TBT relaxed",
}


@dataclass(frozen=True)
class Command(TableOptions, ProgressOptions):
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
        console = terminal_console()
        study = reproduce.load_study(self.lengths, self.num_requests)
        seeds = range(reproduce.SEEDS[0], reproduce.SEEDS[0] + self.seeds)
        with bars(self.progress) as progress:
            result = reproduce.reproduce(study, parse_rates(self.rates), seeds, progress=progress)
        for semantics in reproduce.SEMANTICS:
            show(_table(result, semantics), console, self.wide)
        show(_capacity(result), console, self.wide)
        if came := arrivals_note(by_load((cell["rate"], cell["arrival_rate"]) for cell in result["cells"])):
            console.print(Text(came))
        if result["deviations"]:
            show(_deviations(result), console, self.wide)
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


def _table(result: dict[str, Any], semantics: str) -> Grid:
    setting, rows = result["setting"], []
    for rate in setting["rates"]:
        for policy in setting["policies"]:
            key = (semantics, policy, rate)
            cells = [c for c in result["cells"] if (c["semantics"], c["policy"], c["rate"]) == key]
            figures = (_mean([cell[name] for cell in cells]) for name in FIGURES)
            verdicts = sorted({cell["verdict"] for cell in cells})
            rows.append((f"{rate:g}", policy, *figures, ", ".join(verdicts)))
    each = len(setting["policies"])
    ends = frozenset(range(each - 1, len(rows), each))
    heads = (Head("rate", "name"), Head("policy", "name"), *(Head(title) for title in FIGURES.values()))
    title = f"{semantics} semantics, seconds, mean over seeds (range)"
    caption = f"TTFT: {setting['ttft'][semantics]}; {setting['lengths']}, {setting['num_requests']} requests"
    return Grid((*heads, Head("capacity verdicts", "prose", 1)), [Part(rows, title, ends)], caption)


_SIGNS = {"exact": "", "above": ">", "below": "<"}
"""Of a capacity that the search's limits hide."""


def _capacity(result: dict[str, Any]) -> Grid:
    policies, rows = result["setting"]["policies"], []
    for gain in result["gains"]:
        row = [gain["semantics"], gain["criterion"]]
        for policy in policies:
            found = [c for c in result["capacities"] if (c["semantics"], c["policy"]) == (row[0], policy)]
            row.append(
                " ".join(_SIGNS[reproduce.bound_of(rate := c[gain["criterion"]])] + f"{rate:.2f}" for c in found)
            )
        row.append(" ".join(f"{100 * g:+.0f} %" for g in gain["per_seed"]))
        sign = {"at least": ">= ", "at most": "<= "}.get(gain["bound"], "")
        rows.append((*row, "-" if gain["bound"] == "open" else f"{sign}{100 * gain['mean']:+.1f} %"))
    names = (Head("semantics", "name"), Head("criterion", "name"))
    figures = (*(Head(policy, "prose") for policy in policies), Head("gain by seed", "prose", 1), Head("mean gain"))
    held = {True: "yes", False: "NO", None: "not comparable (needs --lengths, 2500 requests, all four rates)"}
    caption = "; ".join(f"{name}: {held[value]}" for name, value in result["targets"].items())
    title = "Capacity, nominal requests/s by seed, and the gain of SLAI over Sarathi"
    return Grid((*names, *figures), [Part(rows, title)], caption)


def _deviations(result: dict[str, Any]) -> Grid:
    rows = []
    for row in result["deviations"]:
        ours = "-" if row["ours"] is None else f"{row['ours']:.3f}"
        deviation = "-" if row["deviation"] is None else f"{100 * row['deviation']:+.1f} %"
        figures = (f"{row['public']:g}", ours, deviation)
        rows.append((f"{row['rate']:g}", row["policy"], FIGURES[row["figure"]], *figures))
    same = "the same requests" if result["setting"]["real_lengths"] else "other requests of the same kind"
    title = f"Against the public code, seed {result['setting']['seeds'][0]}, {same}"
    names = (Head("rate", "name"), Head("policy", "name"), Head("figure", "prose"))
    return Grid((*names, Head("public, s"), Head("here, s"), Head("deviation")), [Part(rows, title)])
