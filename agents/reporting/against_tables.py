"""A run of a real server beside its simulation, as tables and remarks."""

from collections.abc import Iterator

import numpy as np

from agents.device.against import NUMBERS, Pair, Replay
from agents.reporting.grid import Grid, Head, Part, figure

TITLES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "queueing": "queueing"}
"""Times of requests as a table names them."""
SERIES = {
    "running": "requests running",
    "waiting": "requests waiting",
    "prompt": "prompt tokens/s",
    "output": "output tokens/s",
}
"""What is looked at each second, as tables and plots name it."""


def _number(value: float | None) -> str:
    """Four digits, or all before the point."""
    return figure(value, ",.0f" if value is not None and value >= 1000.0 else ".4g")


def _cell(pair: Pair) -> str:
    """Both numbers, and how they differ."""
    both = f"{_number(pair.measured)} / {_number(pair.simulated)}"
    return both if pair.relative is None else f"{both} ({pair.relative:+.1%})"


def grids(replay: Replay) -> Iterator[Grid]:
    """Times of requests, and of a run with a log what there was each second."""
    yield times_grid(replay)
    if has_log(replay):
        yield seconds_grid(replay)


def times_grid(replay: Replay) -> Grid:
    """Times of requests."""
    rows = [(TITLES[name], *(_cell(pairs[key]) for key in NUMBERS)) for name, pairs in replay.times_s.items()]
    heads = [Head(key.replace("p50", "median"), "number", order) for order, key in enumerate(NUMBERS)]
    part = Part(rows, "Requests: measured / simulated (simulated against measured)")
    return Grid((Head("seconds", "name"), *heads), [part])


def has_log(replay: Replay) -> bool:
    """Whether it is known what the run did each second."""
    return all(series.measured is not None for series in replay.seconds.values())


def seconds_grid(replay: Replay) -> Grid:
    """What there was each second, in the mean and at most, of a run with a log."""
    rows = []
    for name, title in SERIES.items():
        series = replay.seconds[name]
        sides = (series.measured or [], series.simulated)
        pairs = (Pair(*(float(of(side)) for side in sides)) for of in (np.mean, np.max))
        rows.append((title, *map(_cell, pairs), _number(series.mean_difference())))
    heads = (Head("", "name"), Head("mean"), Head("most", "number", 2), Head("mean distance", "number", 1))
    return Grid(heads, [Part(rows, "Each second: measured / simulated (simulated against measured)")])


def origin(replay: Replay) -> Iterator[str]:
    """What was served on what, a line each."""
    left_out = f", {replay.unfinished} that did not finish left out" if replay.unfinished else ""
    about = f" ({replay.about})" if replay.about else ""
    yield f"{replay.run}: {replay.requests} requests{left_out}{about}"
    limits = replay.limits
    yield (
        f"{replay.policy} on {replay.profile}: {limits.num_blocks} KV blocks of {limits.block_size} tokens, at most "
        f"{limits.max_num_seqs} requests and {limits.max_batched_tokens} tokens in a batch, "
        f"{limits.max_model_len} tokens in a request; prefix cache: {limits.prefix_cache}, "
        f"{'asynchronous' if limits.async_scheduling else 'synchronous'} scheduling"
    )


def remarks(replay: Replay) -> Iterator[str]:
    """The makespan, and what the simulation did that no log tells of the run."""
    yield f"makespan, s: {_cell(replay.makespan_s)}"
    known = "" if replay.evictions.measured is None else f" (measured: {replay.evictions.measured})"
    yield (
        f"simulated: {replay.finished} of {replay.requests} requests finished, {replay.iterations} iterations, "
        f"{replay.evictions.simulated} evictions{known}"
    )
    if not replay.stated:
        yield "The run states no limits (NAME-meta.json beside it): they are those of the options and the profile."
    if not has_log(replay):
        yield "The run has no log of its seconds (NAME-timeseries.csv beside it)."
