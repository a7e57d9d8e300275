"""What the scheduler inside vLLM writes: a line for each batch (`llmsched fit --from vllm-log`), and its counters."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.server.features import Features, contents

COLUMNS = (
    *("start", "seconds", "prompt_tokens", "decodes", "context", "prompts", "prompt_context"),
    *("running", "waiting", "held", "planned", "decide_us"),
)
"""Of the log, times in s; the second line of them: `Note`."""
_LINE = "%.6f,%.6f,%d,%d,%d,%d,%d,%d,%d,%d,%d,%.1f"
_KEPT = 100_000
METRICS_S = 10.0
"""Between two writes of the metrics, while requests are present."""


@dataclass
class Note:
    """What the log says of a step beside its batch."""

    running: int
    """Requests that had KV before it."""
    waiting: int
    """Requests that waited."""
    held: int = 0
    """Of the running ones those that were held back."""
    planned: int = -1
    """Tokens that the policy planned; -1: nobody planned."""
    decide_us: float = 0.0
    """Microseconds until vLLM's own turn."""


@dataclass
class Counters:
    """How often what has happened."""

    steps: int = 0
    """Batches that were scheduled."""
    decided: int = 0
    """Of them by the policy."""
    fallbacks: int = 0
    """By vLLM, because the policy or the shadow failed."""
    passed: int = 0
    """By vLLM, because requests were there that policies do not know (grammars, remote KV)."""
    stalled: int = 0
    """By vLLM, because the policy planned nothing and nothing was under way."""
    holding: int = 0
    """Batches that held a running request back."""
    held: int = 0
    """Requests that were held back, over all batches."""
    held_ran: int = 0
    """Of them those that ran all the same."""
    over_budget: int = 0
    """Batches of more tokens than were planned."""
    under_plan: int = 0
    """Batches of fewer tokens than were planned."""
    cut_apart: int = 0
    """Plans with chunks of several new prompts, of which vLLM cuts the last one only."""
    preemptions: int = 0
    """Requests that vLLM preempted."""
    rebuilt: int = 0
    """Times that the shadow was made anew."""
    refused: int = 0
    """Settings that could not be read."""
    unwritten: int = 0
    """Files of these that could not be written."""


class StepLog:
    """Collects lines and decision times in memory; `flush` writes them. Where that fails it is counted, and no more.

    Args:
        log: CSV file with a line for each batch; none if empty.
        counters: JSON file with `summary`; none if empty.
        metrics: file with `exposition`; none if empty.
        about: goes into the counters' file; its policy is a label of the metrics.

    Raises:
        InputError: the folder of one of them cannot be made.
    """

    def __init__(self, log: str, counters: str, metrics: str, about: dict[str, Any]) -> None:
        self._log, self._counters, self._metrics = (_place(name) for name in (log, counters, metrics))
        self._about, self.count, self.last_error = about, Counters(), ""
        self._lines: list[str] = []
        self._decisions: list[tuple[int, float, float]] = []
        self._deciding_us = self._decided = self._written = 0.0
        self.off: list[float] = []
        """Measured over predicted seconds of batches without prompts and with (`agents.vllm.correction`)."""
        if self._log and not self._log.exists():
            self._lines.append(",".join(COLUMNS))

    def decision(self, note: Note, all_us: float) -> None:
        """A step was decided; with all that steering does it took so long (microseconds, without vLLM's own turn)."""
        self._decided += 1
        self._deciding_us += all_us
        if len(self._decisions) < _KEPT:
            self._decisions.append((note.running + note.waiting, note.decide_us, all_us))

    def batch(self, start: float, seconds: float, features: Features, note: Note) -> None:
        """A batch has ended: its start and seconds, its features, and what was noted when it was scheduled."""
        if not self._log:
            return
        told = (*contents(features), note.running, note.waiting, note.held, note.planned, note.decide_us)
        self._lines.append(_LINE % (start, seconds, *told))
        if len(self._lines) > 4096:
            self._try(self._write_lines)

    def flush(self) -> None:
        """Write what there is."""
        self._try(self._write_lines)
        if self._counters:
            self._try(_replace, self._counters, json.dumps(self.summary()) + "\n")
        if self._metrics:
            self._try(_replace, self._metrics, self.exposition())

    def tick(self, now: float) -> None:
        """It is `now` (s) while requests are present: write the metrics now and then."""
        if self._metrics and now - self._written >= METRICS_S:
            self._written = now
            self._try(_replace, self._metrics, self.exposition())

    def _try(self, write: Callable[..., None], *args: object) -> None:
        """Nobody's request is lost because a disk is full."""
        try:
            write(*args)
        except OSError as error:
            self.count.unwritten += 1
            self.last_error = f"{type(error).__name__}: {error}"

    def _write_lines(self) -> None:
        lines, self._lines = self._lines, []
        if self._log and lines:
            with open(self._log, "a") as file:
                file.write("\n".join(lines) + "\n")

    def exposition(self) -> str:
        """The counters as metrics of Prometheus, named as vLLM names its own."""
        label, lines = f"{{policy={json.dumps(self._about['policy'])}}}", []
        for name, count in asdict(self.count).items():
            lines += [f"# TYPE llmsched:{name}_total counter", f"llmsched:{name}_total{label} {count}"]
        lines += [
            "# TYPE llmsched:decision_seconds summary",
            f"llmsched:decision_seconds_count{label} {self._decided:g}",
        ]
        return "\n".join([*lines, f"llmsched:decision_seconds_sum{label} {1e-6 * self._deciding_us:.6f}"]) + "\n"

    def summary(self) -> dict[str, Any]:
        """The counters, and quantiles of decision times (us): before vLLM's own turn, and with what comes after."""
        found = {**self._about, **asdict(self.count), "last_error": self.last_error, "over_predicted": self.off}
        times = np.array(self._decisions).reshape(-1, 3)
        for name, chosen in (("all", times), ("from_100_present", times[times[:, 0] >= 100])):
            if len(chosen):
                deciding, total = (np.quantile(chosen[:, k], (0.5, 0.99)).round(1).tolist() for k in (1, 2))
                times_us = {"before_p50_p99": deciding, "total_p50_p99": total}
                found[f"decision_us_{name}"] = {"count": len(chosen)} | times_us
        return found


def _place(name: str) -> Path | None:
    """Where a file is to be, its folder made; None without a name.

    Raises:
        InputError: the folder cannot be made.
    """
    if not name:
        return None
    try:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{name}: expected a place that can be written, got {error}") from None
    return Path(name)


def _replace(place: Path, text: str) -> None:
    """Write a file; whoever reads it meanwhile finds all of it, or all of the one before."""
    whole = place.with_name(place.name + ".new")
    whole.write_text(text)
    whole.replace(place)
