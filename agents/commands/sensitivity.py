"""`llmsched sensitivity`: the study of `agents.studies.sensitivity`."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

from agents.evaluation.arrivals import arrivals_note, by_load
from agents.evaluation.setup import Setup
from agents.options import ComparisonOptions
from agents.reporting.grid import Grid, Head, Part, figure, show, terminal_console
from agents.studies import sensitivity
from agents.work.files import check_writable, json_text, write_atomically
from agents.work.processes import default_workers
from agents.work.progress import bars
from engine.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Command(ComparisonOptions):
    """Policies that believe length predictions against one that does not, by prediction error and load."""

    policies: str = "ltr,trail:batch_cap=128,elis:batch_size=128,alise,srtf"
    """Policies that need predictions, comma separated."""
    reference: str | None = "sarathi"
    """Policy without predictions that the others are compared with."""
    channels: str = "rank:tau=1;rank:tau=0.8;rank:tau=0.64;rank:tau=0.52;rank:tau=0.28;rank:tau=0"
    """Channels of predictions, separated by semicolons, such as oracle;gauss:mae=100 (see `llmsched workloads`)."""
    rates: str = "1.4,1.6,1.8"
    """Arrival rates in requests/s: a list or start:end:step."""
    plot: Path | None = None
    """Also draw the relative mean latency against the error into this PNG file."""

    def run(self) -> None:
        """Measure, print, write.

        Raises:
            InputError: options that do not fit, or a file that cannot be written.
        """
        if self.prediction is not None:
            raise InputError("prediction: expected --channels here, got --prediction")
        if self.resume:
            raise InputError("resume: a sensitivity study cannot be resumed")
        check_writable(self.json, self.plot)
        setup = self._setup()
        channels = tuple(part.strip() for part in self.channels.split(";") if part.strip())
        workers = default_workers() if self.workers is None else self.workers
        console = terminal_console()
        with bars(self.progress) as progress:
            progress("getting ready", 0, 0)
            result = sensitivity.sensitivity(
                setup,
                self.loads(None, self.rates),
                channels,
                workers=workers,
                on_cell=partial(progress, "runs"),
            )
        show(_channels(result), console, self.wide)
        for name in sensitivity.METRICS:
            show(_table(result, name), console, self.wide)
        show(_pays(result), console, self.wide)
        if came := arrivals_note(by_load((cell["load"], cell["arrival_rate"]) for cell in result["cells"])):
            console.print(Text(came))
        if self.json is not None:
            write_atomically(self.json, json_text(result))
        if self.plot is not None:
            from agents.reporting.sensitivity_plot import plot_sensitivity

            write_atomically(self.plot, plot_sensitivity(result))

    def _setup(self) -> Setup:
        reference = self.reference or "sarathi"
        both = replace(self, policies=f"{reference},{self.policies}", reference=reference)
        return Setup(**both.setup())


def _load(load: float | None) -> str:
    return "recorded" if load is None else f"{load:g}"


def _channels(result: dict[str, Any]) -> Grid:
    rows = [(row["channel"], figure(row["mae"], ".0f"), figure(row["tau"], ".2f")) for row in result["channels"]]
    heads = (Head("channel", "name"), Head("mean absolute error, tokens"), Head("Kendall tau"))
    return Grid(heads, [Part(rows, "Predictions: errors measured, mean over seeds")])


def _table(result: dict[str, Any], name: str) -> Grid:
    lines: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        difference = row[name]["difference"]
        sure = difference["low"] is not None and (difference["low"] > 0.0 or difference["high"] < 0.0)
        text = f"{figure(row[name]['relative'], '+.0%').replace('%', ' %')}{'*' if sure else ' '}"
        lines.setdefault((row["policy"], _load(row["load"])), []).append(text)
    rows = [(*key, *texts) for key, texts in lines.items()]
    channels = [Head(channel["channel"]) for channel in result["channels"]]
    title = f"{sensitivity.METRICS[name].capitalize()} relative to {result['setting']['reference']}, same requests"
    caption = "* the 95 % interval of the paired difference excludes zero"
    return Grid((Head("policy", "name"), Head("load", "name"), *channels), [Part(rows, title)], caption)


def _pays(result: dict[str, Any]) -> Grid:
    rows = [(row["policy"], _load(row["load"]), ", ".join(row["channels"]) or "none") for row in result["pays"]]
    heads = (Head("policy", "name"), Head("load", "name"), Head("channels", "name"))
    return Grid(heads, [Part(rows, "Where believing predictions pays: mean latency lower for sure")])
