"""How much a policy that believes predictions of output lengths gains, by the error of the predictions and the load.

Every policy serves the same requests with each channel of predictions; its mean latency is compared, seed by seed, with
that of a reference that needs none. *Pays* means that the whole 95 % interval of the difference is below zero.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from agents.evaluation.setup import Setup, policy_of
from agents.evaluation.statistics import mean_interval, paired_interval
from agents.work.processes import run_tasks
from agents.work.provenance import versions
from engine.demand.predictions import errors, parse_channel
from engine.errors import InputError
from engine.runs.metrics import summarize
from engine.runs.report import finite

METRICS = {"mean_e2e_s": "mean latency", "mean_ttft_s": "mean TTFT", "p99_ttft_s": "p99 TTFT"}
"""What is measured in each run (s)."""


@dataclass(frozen=True)
class Task:
    """One run."""

    setup: Setup
    policy: str
    load: float | None
    seed: int


def run_task(task: Task) -> dict[str, Any]:
    """Serve one load and seed with one policy and channel; times in seconds."""
    record = task.setup.serve(task.policy, task.load, task.seed)
    report = summarize(record, warmup_s=task.setup.warmup_s)
    return {
        "policy": task.policy,
        "channel": task.setup.source.prediction if policy_of(task.policy).channel else None,
        "load": task.load,
        "seed": task.seed,
        "arrival_rate": finite(report.arrival_rate),
        "mean_e2e_s": finite(report.e2el.mean),
        "mean_ttft_s": finite(report.ttft.mean),
        "p99_ttft_s": finite(report.ttft.p99),
        "slo_attainment": finite(report.slo_attainment),
        "evictions": report.evictions,
    }


def check(setup: Setup, channels: tuple[str, ...]) -> tuple[str, ...]:
    """The channels in canonical form, after a look at everything else.

    Raises:
        InputError: no channel, an unknown one, one twice, or policies that are not what the study needs.
    """
    specs = tuple(parse_channel(channel).spec for channel in channels)
    if not specs or len(set(specs)) < len(specs):
        raise InputError(f"channels: expected at least one, each once, got {', '.join(channels) or 'none'}")
    if policy_of(setup.reference).channel:
        raise InputError(f"reference: expected a policy that needs no predictions, got {setup.reference!r}")
    for policy in setup.policies:
        if policy != setup.reference and not policy_of(policy).channel:
            raise InputError(f"policies: expected policies that need predictions, got {policy!r}")
    return specs


def sensitivity(
    setup: Setup,
    loads: tuple[float | None, ...],
    channels: tuple[str, ...],
    *,
    workers: int = 1,
    on_cell: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run every policy with every channel, load and seed.

    Args:
        setup: policies that need predictions, the reference among them; the source's own channel is not used.
        loads: arrival rates in requests/s, None for recorded times.
        channels: specs of channels.
        workers: processes.
        on_cell: called with (runs finished, all runs).

    Returns:
        JSON: `setting`; `channels` with the errors measured at the first load (mean over seeds of the mean absolute
        error in tokens and of Kendall's tau of the first predictions); `cells`; `rows`, one per policy, load and
        channel, with each metric's mean and difference to the reference; `pays`, per policy and load the channels
        that pay.

    Raises:
        InputError: bad input.
    """
    specs = check(setup, channels)
    setup.check(loads[0])
    told = {spec: replace(setup, source=replace(setup.source, prediction=spec)) for spec in specs}
    seeds = range(setup.seeds)
    tasks = [Task(setup, setup.reference, load, seed) for load in loads for seed in seeds]
    others = [policy for policy in setup.policies if policy != setup.reference]
    tasks += [Task(told[c], p, load, seed) for c in specs for load in loads for p in others for seed in seeds]
    if min(workers, len(tasks)) > 1:
        setup.compile()
    cells: list[dict[str, Any]] = [{}] * len(tasks)
    for index, cell in run_tasks(run_task, tasks, workers):
        cells[index] = cell
        if on_cell:
            on_cell(sum(map(bool, cells)), len(tasks))
    rows = [_row(cells, setup.reference, p, load, c) for p in others for load in loads for c in specs]
    return {
        "setting": setup.to_dict() | {"loads": list(loads), "reference": setup.reference},
        "versions": versions(),
        "channels": [_errors(told[spec], loads[0], others[0]) for spec in specs],
        "cells": cells,
        "rows": rows,
        "pays": [
            {"policy": p, "load": load, "channels": [r["channel"] for r in rows if _pays(r, p, load)]}
            for p in others
            for load in loads
        ],
    }


def _pays(row: dict[str, Any], policy: str, load: float | None) -> bool:
    difference = row["mean_e2e_s"]["difference"]
    return row["policy"] == policy and row["load"] == load and difference["high"] is not None and difference["high"] < 0


def _row(cells: list[dict[str, Any]], reference: str, policy: str, load: float | None, channel: str) -> dict[str, Any]:
    def values(name: str, key: tuple[str, str | None]) -> list[float]:
        return [
            math.nan if c[name] is None else c[name]
            for c in cells
            if (c["policy"], c["channel"]) == key and c["load"] == load
        ]

    row: dict[str, Any] = {"policy": policy, "load": load, "channel": channel}
    for name in METRICS:
        ours, theirs = values(name, (policy, channel)), values(name, (reference, None))
        difference = paired_interval(ours, theirs)
        base = mean_interval(theirs).mean
        row[name] = {
            "mean": mean_interval(ours).to_dict(),
            "difference": difference.to_dict(),
            "relative": finite(difference.mean / base) if base else None,
        }
    return row


def _errors(setup: Setup, load: float | None, policy: str) -> dict[str, Any]:
    """Measured errors of a channel, mean over the seeds."""
    found = [errors(setup.requests_for(policy, load, seed)) for seed in range(setup.seeds)]
    mean = {name: finite(mean_interval([getattr(e, name) for e in found]).mean) for name in ("mae", "tau")}
    return {"channel": setup.source.prediction, **mean}
