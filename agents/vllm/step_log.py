"""What the scheduler inside vLLM writes: a line for each batch (`llmsched fit --from vllm-log`), and its counters."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.server.features import Features, contents

COLUMNS = (
    *("start", "seconds", "prompt_tokens", "decodes", "context", "prompts", "prompt_context"),
    *("running", "waiting", "held", "planned", "decide_us"),
)
"""Of the log, times in s; the second line of them: `Note`."""
_LINE = "%.6f,%.6f,%d,%d,%d,%d,%d,%d,%d,%d,%d,%.1f"
_KEPT = 100_000


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


class StepLog:
    """Collects lines and decision times in memory; `flush` writes them.

    Args:
        path: of the log; none if empty.
        counters: of the counters' file; none if empty.
        about: goes into that file.
    """

    def __init__(self, path: str, counters: str, about: dict[str, Any]) -> None:
        self._path, self._counters, self._about = path, counters, about
        self.count = Counters()
        self.last_error = ""
        self._lines: list[str] = []
        self._decisions: list[tuple[int, float, float]] = []
        if path and not Path(path).exists():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._lines.append(",".join(COLUMNS))

    def decision(self, note: Note, all_us: float) -> None:
        """A step was decided; with all that steering does it took so long (microseconds, without vLLM's own turn)."""
        if len(self._decisions) < _KEPT:
            self._decisions.append((note.running + note.waiting, note.decide_us, all_us))

    def batch(self, start: float, seconds: float, features: Features, note: Note) -> None:
        """A batch has ended: its start and seconds, its features, and what was noted when it was scheduled."""
        if not self._path:
            return
        told = (*contents(features), note.running, note.waiting, note.held, note.planned, note.decide_us)
        self._lines.append(_LINE % (start, seconds, *told))
        if len(self._lines) > 4096:
            self._write_lines()

    def _write_lines(self) -> None:
        if self._path and self._lines:
            with open(self._path, "a") as file:
                file.write("\n".join(self._lines) + "\n")
        self._lines.clear()

    def flush(self) -> None:
        """Write what there is."""
        self._write_lines()
        if self._counters:
            place = Path(self._counters)
            place.parent.mkdir(parents=True, exist_ok=True)
            whole = place.with_name(place.name + ".new")  # whoever reads it meanwhile finds all of it
            whole.write_text(json.dumps(self.summary()) + "\n")
            whole.replace(place)

    def summary(self) -> dict[str, Any]:
        """The counters, and quantiles of decision times (us): before vLLM's own turn, and with what comes after."""
        found = {**self._about, **asdict(self.count), "last_error": self.last_error}
        times = np.array(self._decisions).reshape(-1, 3)
        for name, chosen in (("all", times), ("from_100_present", times[times[:, 0] >= 100])):
            if len(chosen):
                deciding, total = (np.quantile(chosen[:, k], (0.5, 0.99)).round(1).tolist() for k in (1, 2))
                times_us = {"before_p50_p99": deciding, "total_p50_p99": total}
                found[f"decision_us_{name}"] = {"count": len(chosen)} | times_us
        return found
