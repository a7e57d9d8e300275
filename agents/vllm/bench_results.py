"""Results of `vllm bench serve --save-detailed` as cells of an A/B: what servers did with the same requests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.vllm.plan import Cell, Plan
from agents.vllm.results import Measured, Served
from engine.demand.tiers import parse_slo
from engine.demand.vllm_results import SUMMARY_KEY
from engine.errors import InputError
from engine.files.reading import LARGE, kind_of, read_mapping
from engine.ranges import number

COLUMNS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors")
"""Keys that are read: tokens, s, lists of s, s on one clock, texts (empty: none)."""
_SECONDS = number(0.0, 1e9, noun="seconds")


def read_results(paths: Sequence[Path], slo: Sequence[str]) -> list[Measured]:
    """A cell for each file, named after it; no request counts as good where `slo` (ttft:SECONDS ...) is empty.

    Raises:
        InputError: another kind of file, one without details, or files of different requests.
    """
    columns = [_columns(path) for path in paths]
    for path, own in zip(paths, columns, strict=True):
        if own["input_lens"] != columns[0]["input_lens"]:
            raise InputError(f"{path}: expected the requests of {paths[0]}, got others (input_lens)")
    tiers = parse_slo(slo or ("tbt:1",))
    each = {"name": "all", "share": 1.0, "tbt": tiers[0].tbt_s, "ttft": tiers[0].ttft_s, "strict": True}
    starts = columns[0]["start_times"]
    rate = round(len(starts) / max(1e-9, max(starts) - min(starts)), 2)
    plan = Plan(tuple(path.stem for path in paths), (rate,), num_requests=len(starts), tiers=(each,))
    found = []
    for path, own in zip(paths, columns, strict=True):
        served = _served(own, (tiers[0].ttft_s, tiers[0].tbt_s) if slo else None)
        found.append(Measured(Cell(path.stem, rate, 0), plan, served, None))
    return found


def _columns(path: Path) -> dict[str, list[Any]]:
    """The lists of a file, as long as each other.

    Raises:
        InputError: it has others.
    """
    data = read_mapping(path, "a result of vllm bench serve", LARGE)
    if SUMMARY_KEY not in data:
        raise InputError(f"{path}: expected a result of vllm bench serve, got a file without {SUMMARY_KEY!r}")
    for key in COLUMNS:
        values = data.get(key)
        if values is None:
            raise InputError(f"{path}: expected {key}, which vllm bench serve writes with --save-detailed")
        if not isinstance(values, list) or len(values) != len(data[COLUMNS[0]]) or not values:
            raise InputError(f"{path}: {key}: expected a list with a value for each request, got {kind_of(values)}")
    for k in range(len(data[COLUMNS[0]])):
        _check_times(data, k, f"{path}: request {k}")
    return {key: data[key] for key in COLUMNS}


def _check_times(data: Mapping[str, Any], k: int, where: str) -> None:
    """Make sure that the times of request `k` are some."""
    gaps = data["itls"][k]
    if not isinstance(gaps, list):
        raise InputError(f"{where}: itls: expected a list of seconds, got {kind_of(gaps)}")
    times = [("ttfts", data["ttfts"][k]), ("start_times", data["start_times"][k])]
    for name, value in [*times, *(("itls", gap) for gap in gaps)]:
        _SECONDS.check(value, f"{where}: {name}")


def _served(own: dict[str, list[Any]], deadlines: tuple[float, float] | None) -> Served:
    """What became of the requests; `deadlines`: of the first token and of every gap (s)."""
    failed = np.array([bool(error) for error in own["errors"]]) | (np.array(own["output_lens"]) == 0)
    start = np.array(own["start_times"], np.float64)
    gaps = tuple(np.array(one, np.float64) for one in own["itls"])
    ttft = np.where(failed, np.inf, np.array(own["ttfts"], np.float64))
    e2e = ttft + np.array([one.sum() for one in gaps])
    finish = np.where(failed, np.nan, start - start.min() + e2e)
    good = np.full(len(start), np.nan)
    if deadlines:
        longest = np.array([one.max(initial=0.0) for one in gaps])
        good = (~failed & (ttft <= deadlines[0]) & (longest <= deadlines[1])).astype(np.float64)
    return Served(ttft, finish, e2e, np.zeros(len(start), int), good, gaps)
