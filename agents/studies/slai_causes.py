"""Where SLAI loses against stock vLLM on one device, and by what: one setting or one circumstance changed at a time.

    python -m agents.studies.slai_causes [--profile NAME] [--num-blocks N]

Simulations of a vLLM server with the limits of the A/B in docs/results/inside-vllm.md; prints the tables of
docs/results/slai-inside-vllm.md.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.policies import resolve
from agents.work.processes import default_workers, run_in_order
from engine.config import EngineConfig
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.metrics import summarize
from engine.runs.report import Report
from engine.runs.simulate import simulate

STOCK, SLAI = "vllm_v1:max_num_batched_tokens=8192,max_num_seqs=256", "slai"
SMALL = STOCK.replace("8192", "2048")
NOBODY = "offset=1000,pressure_offset=1000"
"""Setting of SLAI with which every decode is past its last time, so that nobody is held."""
LOADS = (6.0, 9.0, 10.0, 11.0, 12.0)
NEAR = 10.5
"""Requests/s at which causes are looked for: near what the H200 can serve."""
SETTINGS = {
    "stock vLLM": STOCK,
    "SLAI": SLAI,
    "token budget 1024": "slai:token_budget=1024",
    "token budget 2048": "slai:token_budget=2048",
    "token budget 8192": "slai:token_budget=8192",
    "nobody is held": f"slai:{NOBODY}",
    "token budget 8192, nobody is held": f"slai:token_budget=8192,{NOBODY}",
    "offset 10": "slai:offset=10",
    "offset 20": "slai:offset=20",
    "256 decodes in a batch": "slai:max_decodes=256",
    "memory limit 0.7": "slai:memory_limit=0.7",
    "order fcfs": "slai:order=fcfs",
}


@dataclass(frozen=True)
class World:
    """A device, a server on it, and its traffic."""

    profile: str
    server: EngineConfig
    workload: dict[str, Any] = field(default_factory=dict)
    """Of a `Workload`, beside rate and number."""

    def changed(self, mixed: str = "", **server: Any) -> "World":
        """The same with another mixing cost or another server."""
        return World(self.profile + mixed, self.server.replace(**server), self.workload)


@dataclass(frozen=True)
class Task:
    """One run."""

    world: World
    policy: str
    rate: float
    num_requests: int
    seed: int


def serve(task: Task) -> Report:
    """What comes of a run."""
    world = task.world
    requests = Workload(rate=task.rate, num_requests=task.num_requests, **world.workload).generate(task.seed)
    return summarize(simulate(resolve(task.policy), requests, load_profile(world.profile), world.server))


def circumstances(world: World) -> dict[str, World]:
    """The world, and the same with one thing changed."""
    blocks = world.server.num_blocks
    return {
        "none": world,
        "mixing cost 1: a decode's KV costs nothing more beside a prompt": world.changed(":mixed=1"),
        "mixing cost 2: it costs twice as much": world.changed(":mixed=2"),
        "no asynchronous scheduling": world.changed(async_scheduling=False),
        "half the KV": world.changed(num_blocks=blocks // 2),
        "twice the KV": world.changed(num_blocks=2 * blocks),
        "a prefix cache has what a request lost": world.changed(prefix_cache="own"),
        "bursts (gamma, cv 3)": World(world.profile, world.server, {"arrivals": "gamma", "cv": 3.0}),
    }


def _short(seconds: float) -> str:
    digits = 3 if seconds < 1.0 else 2 if seconds < 10.0 else 1
    return f"{seconds:.{digits}f}"


def _means(reports: Sequence[Report]) -> dict[str, float]:
    """Means over seeds."""
    columns: dict[str, list[float]] = {
        "p50": [one.ttft.p50 for one in reports],
        "mean": [one.ttft.mean for one in reports],
        "p99": [one.ttft.p99 for one in reports],
        "e2e": [one.e2el.mean for one in reports],
        "slo": [100.0 * one.slo_attainment for one in reports],
        "output": [one.output_throughput for one in reports],
        "evictions": [one.evictions for one in reports],
    }
    return {name: float(np.mean(values)) for name, values in columns.items()}


def _row(name: str, found: dict[str, float]) -> str:
    ttft = " / ".join(_short(found[key]) for key in ("p50", "mean", "p99"))
    rest = f"{found['e2e']:.1f} | {found['slo']:.1f} | {found['output']:.0f} | {found['evictions']:.0f}"
    return f"| {name} | {ttft} | {rest} |"


def _both(name: str, stock: dict[str, float], slai: dict[str, float]) -> str:
    pairs = [f"{_short(stock[key])} / {_short(slai[key])}" for key in ("mean", "e2e")]
    pairs += [f"{stock[key]:.{digits}f} / {slai[key]:.{digits}f}" for key, digits in (("slo", 1), ("output", 0))]
    return f"| {name} | {' | '.join(pairs)} | {100.0 * (1.0 - slai['output'] / stock['output']):.1f} |"


_COLUMNS = "TTFT median / mean / p99, s | end-to-end mean, s | SLO met, % | output, tokens/s | evictions"


def _asked(world: World) -> Iterator[tuple[World, str, float]]:
    """The cells of all tables, in their order: world, policy, requests/s."""
    yield from ((world, policy, rate) for rate in LOADS for policy in (STOCK, SMALL, SLAI))
    yield from ((world, policy, NEAR) for policy in SETTINGS.values())
    yield from ((one, policy, NEAR) for one in circumstances(world).values() for policy in (STOCK, SLAI))


def tables(world: World, num_requests: int, seeds: int, workers: int) -> Iterator[str]:
    """The three tables, line by line."""
    tasks = [Task(*cell, num_requests, seed) for cell in _asked(world) for seed in range(seeds)]
    reports = run_in_order(serve, tasks, workers, lambda *_: None)
    found = iter([_means(reports[k : k + seeds]) for k in range(0, len(reports), seeds)])
    yield from ("", f"| requests/s | scheduler | {_COLUMNS} |", "|---|---|---|---|---|---|---|")
    for rate in LOADS:
        for name in ("stock vLLM, 8192 tokens", "stock vLLM, 2048 tokens", "SLAI"):
            yield _row(f"{rate:g} | {name}", next(found))
    yield from ("", f"| at {NEAR:g} requests/s | {_COLUMNS} |", "|---|---|---|---|---|---|")
    for name in SETTINGS:
        yield _row(name, next(found))
    yield from ("", "| change | TTFT mean, s | end-to-end mean, s | SLO met, % | output, tokens/s | SLAI's loss, % |")
    yield "|---|---|---|---|---|---|"
    for name in circumstances(world):
        yield _both(name, next(found), next(found))


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--profile", default="h200-vllm-mistral-7b", help="latency profile of the engine")
    parser.add_argument("--num-blocks", type=int, default=56_916, help="KV blocks of 16 tokens (default: the H200's)")
    parser.add_argument("--requests", type=int, default=1000, help="requests of a run")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each cell")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes")
    options = parser.parse_args(words)
    if min(options.num_blocks, options.requests, options.seeds) < 1:
        parser.error("--num-blocks, --requests, --seeds: expected 1 at least")
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Run everything and print the tables."""
    options = options_of(words)
    server = EngineConfig(
        num_blocks=options.num_blocks,
        max_num_seqs=256,
        max_batched_tokens=8192,
        max_model_len=8448,
        watermark=0.0,
        async_scheduling=True,
    )
    for line in tables(World(options.profile, server), options.requests, options.seeds, options.workers):
        print(line)


if __name__ == "__main__":
    main()
