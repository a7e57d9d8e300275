"""Does the surrogate tell the truth? The same trace through a real executor and through its fitted profile."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import baselines
from agents.source import Source
from agents.work.progress import OnProgress
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import parse_workload
from engine.device.latency import Executor, LatencyModel
from engine.runs.metrics import summarize
from engine.runs.simulate import simulate
from engine.server.policy import Policy
from engine.server.state import Server

METRICS = {
    "median_ttft_ms": "TTFT median",
    "p99_ttft_ms": "TTFT p99",
    "median_itl_ms": "TBT median",
    "p99_itl_ms": "TBT p99",
}


def capacity(source: Source, model: LatencyModel, config: EngineConfig) -> float:
    """Requests per second that Sarathi serves on the surrogate when all of them are there at once."""
    if source.trace is None:
        source = replace(source, workload=_burst(source.workload))
    requests = source.requests(None, 0)
    requests = requests.replace(arrival=requests.arrival * 0.0)
    row = simulate(baselines.make("sarathi"), requests, model, config).row[0]
    return len(requests) / float(row.now)


def _burst(spec: str) -> str:
    lengths = parse_workload(spec).lengths
    return f"burst:lengths={lengths}" if isinstance(lengths, str) else "burst"


class _SideBySide:
    """An executor that also asks the model how long each of its batches should take."""

    def __init__(self, executor: Executor, model: LatencyModel) -> None:
        self.executor, self.model = executor, model
        self.measured = self.predicted = 0.0

    @property
    def real_time(self) -> bool:
        return self.executor.real_time

    def start(self, requests: Requests) -> None:
        self.executor.start(requests)

    def seconds(self, server: Server) -> float:
        took = self.executor.seconds(server)
        self.measured += took
        self.predicted += self.model.seconds(server)
        return took


def compare(
    policies: Sequence[Policy],
    source: Source,
    rates: Sequence[float],
    executor: Executor,
    model: LatencyModel,
    config: EngineConfig,
    seed: int,
    progress: OnProgress,
    rescale: bool = False,
) -> list[dict[str, Any]]:
    """Serve the trace of each rate with each policy, on the device and on the model.

    With `rescale` the model first gets the speed that the device had in that run, for machines whose speed drifts.

    Returns:
        One row per rate and policy: `rate` (asked) and `arrival_rate` (came) in requests/s, `policy`, `device` and
        `surrogate` (each METRICS key in ms), `ratio` (surrogate / device), `batches` (predicted / measured seconds of
        the device's own batches: how far the device is from the speed at which it was profiled) and `fallbacks`.
    """
    rows: list[dict[str, Any]] = []
    fallback = baselines.make("sarathi")
    for rate in rates:
        for policy in policies:
            progress("runs", len(rows), len(rates) * len(policies))
            requests = source.requests(rate, seed)
            came = requests.rate
            channel = source.channel(policy)
            told = predict(requests, channel, seed) if channel else requests
            both = _SideBySide(executor, model)
            real = simulate(policy, told, both, config, fallback=fallback)
            speed = both.predicted / both.measured
            simulated = simulate(policy, told, model.scaled(1.0 / speed) if rescale else model, config)
            figures = [summarize(record).to_dict() for record in (real, simulated)]
            device, surrogate = ({key: report[key] for key in METRICS} for report in figures)
            rows.append(
                {
                    "rate": rate,
                    "arrival_rate": came if math.isfinite(came) else None,
                    "policy": policy.spec,
                    "device": device,
                    "surrogate": surrogate,
                    "ratio": {key: _ratio(surrogate[key], device[key]) for key in METRICS},
                    "batches": speed,
                    "fallbacks": real.fallbacks,
                }
            )
    return rows


def _ratio(surrogate: float | None, device: float | None) -> float | None:
    return surrogate / device if surrogate is not None and device else None


def same_ranking(rows: Sequence[dict[str, Any]], rate: float, key: str) -> bool:
    """Whether device and surrogate put the policies of one rate in the same order."""
    chosen = [row for row in rows if row["rate"] == rate]
    orders = [sorted(chosen, key=lambda row, side=side: row[side][key]) for side in ("device", "surrogate")]  # type: ignore[misc]
    return orders[0] == orders[1]
