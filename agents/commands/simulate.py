"""`llmsched simulate`: one policy, one trace, its numbers."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import baselines
from agents.evaluation.arrivals import arrivals_note, by_load
from agents.evaluation.trained_for import remark
from agents.options import GoodputOptions, ProgressOptions, ServerOptions, SourceOptions, TableOptions
from agents.policies import resolve
from agents.reporting.grid import Grid, Head, Part, figure, print_lines, show, terminal_console
from agents.work.files import check_writable, write_json
from agents.work.progress import bars
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel
from engine.extras import need
from engine.ranges import Rate, Seed
from engine.runs.distribution import Distribution
from engine.runs.goodput import Goodput
from engine.runs.report import Report
from engine.runs.serve import Deployment, Run
from engine.server.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Command(SourceOptions, ServerOptions, GoodputOptions, TableOptions, ProgressOptions):
    """Serve one trace with one policy and print its numbers."""

    policy: str = "slai"
    """A baseline (slai:offset=3), random, the folder of a trained policy, or a class of your own: module:Class or
    path/file.py:Class, perhaps with parameters (mine.py:Mine:k=3)."""
    executor: str | None = None
    """Serve with a real model; --profile is then what policies predict by: transformers (Mistral-7B on CUDA, random
    weights), transformers:tiny (a small one on the CPU), transformers:FOLDER; then ,dtype= and ,device= if need be."""
    rate: Rate | None = None
    """Arrival rate, requests/s (default 1.6, or the recorded times of a trace)."""
    seed: Seed = 0
    """Draws whatever is random in the requests."""
    json: Path | None = None
    """Also write the numbers to this file, under the keys of `vllm bench serve` where they mean the same."""

    def run(self) -> None:
        """Simulate, print, write.

        Raises:
            InputError: options that do not fit, or a file that cannot be written.
        """
        check_writable(self.json)
        limits = self.limits()
        (load,) = self.loads(self.rate, None)
        source, policy, model = self.source(), resolve(self.policy), self.model()
        requests = source.requests(load, self.seed)
        told, channel = source.predicted(policy, requests, self.seed), source.channel(policy)
        with bars(self.progress) as bar:
            run = self._deployment(model, limits).run(policy.on(model), told, partial(bar, "requests"))
        trained = remark(policy, requests.tiers, model if self.executor is None else None, self.engine, source)
        about: dict[str, object] = {"left_out": source.left_out(), "notes": [trained] if trained else []}
        about |= {"request_rate": "inf" if len(requests) > 1 and math.isinf(requests.rate) else load}
        write_json(self.json, self._data(run, requests, about, channel))
        console = terminal_console()
        print_lines(console, (*_origin(policy, requests, channel, load, run.report), trained, outcome(run.report)))
        show(seconds_grid(run.report), console, self.wide)
        print_lines(console, (*remarks(run.report), *self._limited(run)))

    def _deployment(self, model: LatencyModel, limits: Goodput | None) -> Deployment:
        """The server on the model, or on the real executor with somebody who steps in where the policy fails."""
        counted = Deployment(
            executor=model, config=self.engine, horizon_s=self.horizon, warmup_s=self.warmup, goodput=limits
        )
        if self.executor is None:
            return counted
        need("real", "executor")
        from engine.device.real.executor import ROOM, make_executor

        executor = make_executor(self.executor, int(ROOM * self.engine.capacity_tokens), self.seed)
        return replace(counted, executor=executor, fallback=baselines.make("sarathi"))

    def _data(self, run: Run, requests: Requests, about: dict[str, object], channel: str) -> dict[str, object]:
        """The report as JSON, with where its requests came from."""
        return {
            **run.report.to_dict(),
            "trace": requests.digest(),
            "source": requests.source,
            **about,
            "config": {"tiers": [asdict(tier) for tier in requests.tiers]},
            "max_concurrency": requests.loop.places if requests.loop else None,
            "prediction": channel,
            "executor": self.executor,
            "fallbacks": run.record.fallbacks,
        }

    def _limited(self, run: Run) -> Iterator[str]:
        """What only some runs have: vLLM's goodput, and how often the fallback decided."""
        if self.goodput:
            within = f"within {' '.join(self.goodput)} ms (vLLM's request goodput)"
            yield f"{figure(run.report.request_goodput, '.3f')} requests/s {within}"
        if self.executor is not None:
            of = f"{run.record.fallbacks} of {run.report.iterations} batches"
            yield f"{self.executor}: {of} by the fallback, sarathi"


def _origin(policy: Policy, requests: Requests, channel: str, load: float | None, report: Report) -> Iterator[str]:
    """Who served what: the trace, the predictions, the rate at which requests came."""
    yield f"{policy.spec} on {requests.source} (trace {requests.digest()})"
    if channel:
        yield f"predictions of output lengths: {channel}"
    if requests.loop and load is None and not math.isnan(report.arrival_rate):
        yield f"Arrivals, requests/s: came {report.arrival_rate:.3g}."
    else:
        yield arrivals_note(by_load([(load, report.arrival_rate)]))


def _swaps(report: Report) -> str:
    if not report.swaps:
        return ""
    sizes = [f"{size / 2**30:.1f} GiB" for size in (report.swapped_out_bytes, report.swapped_in_bytes)]
    return f", {report.swaps} swaps ({sizes[0]} out, {sizes[1]} in)"


def outcome(report: Report) -> str:
    """How many requests were served, and the verdict, in one line."""
    at_length = f" ({report.ended_by_length} at max_model_len)" if report.ended_by_length else ""
    return (
        f"{report.completed} of {report.arrived} requests finished{at_length}, {report.unfinished} unfinished, "
        f"{report.dropped} dropped in {report.duration_s:.1f} s: {report.verdict}"
    )


def seconds_grid(report: Report) -> Grid:
    """The distributions of a run, in seconds."""
    samples: dict[str, Distribution] = {"TTFT": report.ttft, "TPOT": report.tpot, "E2E": report.e2el}
    samples |= {f"TBT {tier.name} (<= {tier.tbt_deadline_s:g})": tier.itl for tier in report.tiers}
    rows = []
    for name, sample in samples.items():
        values = (sample.mean, sample.p50, sample.p90, sample.p99, sample.max)
        rows.append((name, *(figure(value, ".3f") for value in values)))
    heads = (Head("mean", "number", 2), Head("median"), Head("p90", "number", 3), Head("p99"), Head("max", "number", 1))
    return Grid((Head("seconds", "prose"), *heads), [Part(rows)])


def remarks(report: Report) -> list[str]:
    """Deadlines met, the server's work and who waited, a line each."""
    tiers = [f"{tier.name} {figure(tier.slo_attainment, '.1%')}" for tier in report.tiers]
    return [
        f"SLO met {', '.join(tiers)}; all {figure(report.slo_attainment, '.1%')}; "
        f"goodput {figure(report.goodput, '.3f')} requests/s, "
        f"{figure(report.output_throughput, '.0f')} output tokens/s",
        f"{report.iterations} iterations of {figure(1000 * report.mean_iteration_s, '.1f')} ms with "
        f"{figure(report.mean_batch_requests, '.1f')} requests, {figure(report.mean_batch_tokens, '.0f')} tokens; busy "
        f"{figure(report.busy_share, '.0%')}, KV {figure(report.kv_use, '.0%')}, "
        f"{report.evictions} evictions{_swaps(report)}",
        f"longest wait {figure(report.max_wait_s, '.1f')} s, Jain index {figure(report.jain_index, '.2f')}; capacity: "
        f"paper {'yes' if report.paper else 'no'}, sound {'yes' if report.sound else 'no'}",
    ]
