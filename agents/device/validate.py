"""Does the surrogate tell the truth? The same trace through a real executor and through its fitted profile."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import baselines
from agents.source import Source
from agents.work.progress import OnProgress
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import parse_workload
from engine.device.latency import Around, Executor, LatencyModel
from engine.runs.distribution import finite
from engine.runs.serve import Deployment, Run
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


class _SideBySide(Around):
    """An executor that also asks the model how long each of its batches should take."""

    def __init__(self, executor: Executor, model: LatencyModel) -> None:
        super().__init__(executor)
        self.model = model
        self.measured = self.predicted = 0.0

    def seconds(self, server: Server) -> float:
        took = self.executor.seconds(server)
        self.measured += took
        self.predicted += self.model.seconds(server)
        return took


@dataclass(frozen=True)
class Twins:
    """A device and the model that stands in for it, behind the same server."""

    executor: Executor
    model: LatencyModel
    config: EngineConfig
    """Limits and semantics of the server."""
    rescale: bool = False
    """Give the model first the speed that the device had in the run, for machines whose speed drifts."""

    def serve(self, policy: Policy, requests: Requests) -> tuple[Run, Run, float]:
        """Serve a trace on both.

        Returns:
            The run on the device, that on the model, and predicted / measured seconds of the device's own batches.
        """
        policy = policy.on(self.model)
        both = _SideBySide(self.executor, self.model)
        fallback = baselines.make("sarathi")
        real = Deployment(executor=both, config=self.config, fallback=fallback).run(policy, requests)
        speed = both.predicted / both.measured
        model = self.model.scaled(1.0 / speed) if self.rescale else self.model
        return real, Deployment(executor=model, config=self.config).run(policy, requests), speed


@dataclass(frozen=True)
class Row:
    """One policy at one rate, on the device and on the model; METRICS in ms."""

    rate: float
    """Requests/s that were asked for ..."""
    arrival_rate: float | None
    """... and that came."""
    policy: str
    device: dict[str, float | None]
    surrogate: dict[str, float | None]
    ratio: dict[str, float | None]
    """Surrogate / device."""
    batches: float
    """Predicted / measured seconds of the device's own batches: how far it is from the speed at which it was
    profiled."""
    fallbacks: int
    """Batches that the fallback decided on the device."""


def compare(
    policies: Sequence[Policy], source: Source, rates: Sequence[float], twins: Twins, seed: int, progress: OnProgress
) -> list[Row]:
    """Serve the trace of each rate with each policy, on the device and on the model: a row for each."""
    rows: list[Row] = []
    for rate in rates:
        requests = source.requests(rate, seed)
        for policy in policies:
            progress("runs", len(rows), len(rates) * len(policies))
            real, simulated, speed = twins.serve(policy, source.predicted(policy, requests, seed))
            device, surrogate = (_figures(run) for run in (real, simulated))
            rows.append(
                Row(
                    rate=rate,
                    arrival_rate=finite(requests.rate),
                    policy=policy.spec,
                    device=device,
                    surrogate=surrogate,
                    ratio={key: _ratio(surrogate[key], device[key]) for key in METRICS},
                    batches=speed,
                    fallbacks=real.record.fallbacks,
                )
            )
    return rows


def _figures(run: Run) -> dict[str, float | None]:
    report = run.report.to_dict()
    return {key: report[key] for key in METRICS}


def _ratio(surrogate: float | None, device: float | None) -> float | None:
    return surrogate / device if surrogate is not None and device else None


def same_ranking(rows: Sequence[Row], rate: float, key: str) -> bool:
    """Whether device and surrogate put the policies of one rate in the same order."""
    chosen = [row for row in rows if row.rate == rate]
    by_device = sorted(chosen, key=lambda row: _or_last(row.device[key]))
    return by_device == sorted(chosen, key=lambda row: _or_last(row.surrogate[key]))


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value
