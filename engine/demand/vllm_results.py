"""Results of `vllm bench serve --save-detailed` as a trace: the requests that a real server was sent.

The file is one JSON object; ``input_lens`` and ``output_lens`` are the tokens of each request, ``start_times`` (newer
versions of vLLM) the seconds at which it was sent, ``errors`` what went wrong. Without start times the lengths alone
are taken, and arrivals need a rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.demand.raw_trace import RawTrace, Start, TraceFile
from engine.errors import InputError
from engine.files.reading import LARGE, kind_of, read_mapping

KEYS = ("start_times", "input_lens", "output_lens")
SUMMARY_KEY = "total_input_tokens"
"""Key of every result of the command, with details or without."""


@dataclass(frozen=True)
class VllmResults:
    """The result of one run of the benchmark."""

    name: str = "vllm bench serve"
    """Name of the format."""
    about: str = "results of --save-detailed: input_lens, output_lens and, of newer versions, start_times (s)"
    """What is in such a file."""
    is_text: bool = False
    """Tokens are counted already."""

    def recognises(self, start: Start) -> bool:
        """One object with a key that every result has."""
        return start.first == "{" and f'"{SUMMARY_KEY}"' in start.text

    def read(self, file: TraceFile) -> RawTrace:
        """Read the requests of the benchmark; failed ones are left out and counted.

        Raises:
            InputError: not such a result, or one without details.
        """
        times, prompts, outputs, errors = _columns(file.path)
        columns = (KEYS[0] if times else "", *KEYS[1:])
        raw = RawTrace(file.path, self.name, columns, "request", unit="s", in_order=False)
        for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
            if output == 0 or (errors and errors[index]):
                raw.left_out["failed requests"] += 1
            else:
                raw.add(index, times[index] if times else None, prompt, output)
        if not times:
            raw.notes.append("no start_times in it")
        return raw


def _columns(path: Path) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Times, prompts, outputs and errors; times and errors are empty where an older version did not write them."""
    data = read_mapping(path, "a result of vllm bench serve", LARGE)
    if missing := [key for key in KEYS[1:] if key not in data]:
        raise InputError(f"{path}: expected {', '.join(missing)}, which vllm bench serve writes with --save-detailed")
    times, prompts, outputs = (_list(path, data, key) for key in KEYS)
    errors = _list(path, data, "errors")
    for key, values in (("output_lens", outputs), ("start_times", times), ("errors", errors)):
        # What an older version does not write is absent; the lengths are always there.
        if len(values) != len(prompts) and (values or key == "output_lens"):
            raise InputError(f"{path}: {key}: expected {len(prompts)} values as in input_lens, got {len(values)}")
    return times, prompts, outputs, errors


def _list(path: Path, data: dict[str, Any], key: str) -> list[Any]:
    values = [] if data.get(key) is None else data[key]
    if not isinstance(values, list):
        raise InputError(f"{path}: {key}: expected a list, got {kind_of(values)}")
    return values
