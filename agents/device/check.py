"""Everything that needs a GPU, in one run of under 8 minutes: correctness, speed against the floors, profile and fit.

    python3 scripts/gpu_check.py --attention joint --out out/gpu

For one kernel of `engine.device.real.attention`: the errors of its launches, seconds of a few batches against the
least that the device needs, what a KV token costs a decode in batches with and without a prompt chunk, the profile.
Needs torch with CUDA, transformers, numba and scipy, and the repository as the working folder; the rest of llmsched's
requirements are not imported. Writes OUT/NAME.csv (with .json), OUT/NAME.json (the fitted profile) and
OUT/gpu_check-NAME.json (every figure; written after each stage). Exit code 1: a figure misses its target; 2: it cannot
run.
`--executor transformers:tiny` runs the same stages on a CPU, where there is no flash attention and no floor.
"""

import argparse
import json
import math
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agents.device import profiling
from agents.work.files import json_text, write_atomically
from engine.device.fitting import Batch, Clock, fit
from engine.errors import InputError

if TYPE_CHECKING:
    from engine.device.real.executor import TransformersExecutor

DEVICES = {"H100": (3.35e12, 8e14), "H200": (4.8e12, 8e14)}
"""Bytes/s of the memory (data sheets) and bf16 operations/s that large matrix products reach, by a part of the name."""
LAYERS, HEAD, KV_BYTES, PAIR_FLOPS = 6.98e9, 0.26e9, 131_072, 4 * 4096 * 32
"""Of Mistral-7B: weights in the layers, and outside them; bytes per KV token; operations per (query, key) pair."""
BATCHES = {
    "decode 1 @ 1024": Batch((), (1024,)),
    "decode 32 @ 1024": Batch((), (1024,) * 32),
    "decode 128 @ 1024": Batch((), (1024,) * 128),
    "prefill 512": Batch(((512, 0),)),
    "prefill 2048": Batch(((2048, 0),)),
}
SHARES = {"decode": 0.70, "prefill": 0.65}
"""Share of the floor that a step must reach."""
ROUNDS: dict[Clock, int] = {"wall": profiling.ROUNDS, "device": 3}
"""Times that the grid is measured: the seconds of a GPU alone vary little."""
CONTEXTS = (256, 2048)
"""KV tokens of the decodes between which the cost of one is measured."""
ERROR = 1e-2
"""Largest error of the launches, relative to the largest output in fp32."""


def attention_errors(kernel: str, seed: int = 0) -> dict[str, float]:
    """Decodes alone, chunks alone and both: largest error of the bf16 launches against SDPA in fp32, relative."""
    from engine.device.real.attention import OPERATORS, PAGE, reference
    from engine.device.real.forward import pack, unpack

    generator = torch.Generator("cuda").manual_seed(seed)
    heads, kv_heads, dim, buffer = 32, 8, 128, 2560 * PAGE
    cases = {
        "decodes": ([1] * 9, [1, 2, 15, 16, 17, 128, 1000, 1024, 4097], 9),
        "chunks": ([1, 7, 64, 300, 512], [1, 7, 100, 300, 2560], 0),
        "both": ([1, 1, 1, 256, 33], [513, 64, 2000, 256, 1057], 3),
    }
    errors = {}
    for name, (new, used, decodes) in cases.items():
        starts = PAGE * np.cumsum([0, *[1 + length // PAGE for length in used[:-1]]])
        items = [(int(start), length - n, n) for start, length, n in zip(starts, used, new, strict=True)]
        packed, sizes = pack(np.zeros(sum(new), np.int64), items, np.zeros(0))
        layout = unpack(torch.from_numpy(packed).cuda(), sum(new), len(items), decodes, *sizes)[2]
        options: dict[str, Any] = {"device": "cuda", "generator": generator, "dtype": torch.bfloat16}
        qkv = [torch.randn(sum(new), h, dim, **options) for h in (heads, kv_heads, kv_heads)]
        caches = [torch.randn(buffer, kv_heads, dim, **options) for _ in range(2)]
        out = OPERATORS[kernel](qkv, *caches, layout.places, layout.limits, dim**-0.5)
        places = (layout.cu_q, layout.start, layout.used)
        exact = reference(qkv[0].float(), caches[0].float(), caches[1].float(), *places, dim**-0.5)
        errors[name] = float((out.float() - exact).abs().max() / exact.abs().max())
    return errors


def floor_s(batch: Batch, device: str) -> float | None:
    """Seconds that a device of this name needs at least for a batch of Mistral-7B in bf16; None where unknown."""
    known = [figures for name, figures in DEVICES.items() if name in device]
    if not known:
        return None
    bandwidth, rate = known[0]
    pairs = sum(n * (context + (n + 1) / 2) for n, context in batch.prefills)
    reads = 2 * (LAYERS + HEAD) + KV_BYTES * sum(batch.decodes)
    return max(reads / bandwidth, (2 * LAYERS * batch.tokens + PAIR_FLOPS * pairs) / rate)


def steps(executor: "TransformersExecutor", largest: int, clock: Clock) -> dict[str, dict[str, float]]:
    """Median and smallest seconds of the batches of BATCHES with at most so many tokens, and the share of the floor."""
    found = {}
    for name, batch in BATCHES.items():
        if batch.tokens <= largest:
            seconds = executor.measure(batch.prefills, batch.decodes, repeats=21, warmup=5, clock=clock)
            found[name] = {"median_s": float(np.median(seconds)), "min_s": float(seconds.min())}
            floor = floor_s(batch, executor.provenance()["device"])
            if floor is not None:
                found[name] |= {"floor_s": floor, "share_of_floor": floor / found[name]["median_s"]}
    return found


def kv_token_costs(executor: "TransformersExecutor", largest: int, clock: Clock) -> list[dict[str, float]]:
    """What a KV token costs a decode (s) beside prompt chunks of some sizes (0: none), and the ratio to that without.

    The slope of the seconds between decodes of CONTEXTS KV tokens, everything else in the batch the same.
    """
    rows: list[dict[str, float]] = []
    for decodes in (8, 32, 96):
        alone = math.nan
        for chunk in (0, 64, 256, 512, 1024):
            if chunk + decodes > largest:
                continue
            prefills = ((chunk, 0),) if chunk else ()
            low, high = (
                float(np.median(executor.measure(prefills, (context,) * decodes, 15, 4, clock))) for context in CONTEXTS
            )
            cost = (high - low) / (decodes * (CONTEXTS[1] - CONTEXTS[0]))
            alone = alone if chunk else cost
            row = {"decodes": decodes, "chunk": chunk, "seconds_low": low, "seconds_high": high}
            rows.append({**row, "per_kv_token_s": cost, "ratio": cost / alone})
    return rows


def limits(executor: "TransformersExecutor", tokens: int, budget_s: float, clock: Clock) -> profiling.Limits:
    """The densest grid whose measurement fits the time."""
    for thin in (1, 2, 3, 4, 6, 8):
        chosen = profiling.Limits(tokens=tokens, context=3 * tokens, thin=thin)
        if ROUNDS[clock] * profiling.estimate_s(executor, profiling.grid(chosen), clock) <= budget_s:
            return chosen
    return chosen


def missed(result: dict[str, Any]) -> list[str]:
    """The targets that were not reached, one line each."""
    lines = [
        f"attention, {name}: error {error:.2g}, at most {ERROR}"
        for name, error in result.get("attention", {}).items()
        if not error <= ERROR
    ]
    if result["device"]["cuda"]:
        lines += [
            f"{name}: {100 * row['share_of_floor']:.0f} % of the floor, at least {100 * SHARES[name.split()[0]]:.0f} %"
            for name, row in result.get("steps of the device", result["steps"]).items()
            if row.get("share_of_floor", 1.0) < SHARES[name.split()[0]]
        ]
        bounds = {"held-out mixed": 5.0, "held-out decode": 3.0, "held-out prefill": 3.0}
        residuals = result.get("fit", {})
        lines += [
            f"{kind}: mean error {residuals[kind]['mape']:.1f} %, at most {bound} %"
            for kind, bound in bounds.items()
            if kind in residuals and residuals[kind]["mape"] > bound
        ]
    return lines


class Record:
    """Every figure of a check, printed and written as soon as it is known."""

    def __init__(self, path: Path, provenance: dict[str, Any]) -> None:
        self.path, self.began = path, time.perf_counter()
        self.result: dict[str, Any] = {"format": "llmsched-gpu-check/2", "device": provenance}

    def add(self, stage: str, value: object) -> None:
        """Write the figures of a stage."""
        self.result |= {stage: value, "seconds": time.perf_counter() - self.began}
        write_atomically(self.path, json_text(self.result))
        print(f"{self.result['seconds']:6.1f} s  {stage}: {json.dumps(value)}", flush=True)


def _profiled(
    executor: "TransformersExecutor", record: Record, options: argparse.Namespace, clock: Clock
) -> dict[str, dict[str, float]]:
    """Measure the grid and fit the profile; returns the residuals."""
    chosen = limits(executor, options.tokens, options.seconds, clock)
    table = options.out / f"{options.name}.csv"
    points = profiling.todo(table, profiling.grid(chosen), record.result["device"], ROUNDS[clock])
    rows = sum(1 for _ in profiling.measure(executor, table, points, clock))
    record.add("profile", {"rows": rows, "thin": chosen.thin})
    model = fit(profiling.read_points(table), options.name, profiling.read_provenance(table))
    model.save(options.out / f"{options.name}.json")
    return model.provenance["residuals"]


def main() -> int:
    """Run the stages; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--executor", default="transformers")
    parser.add_argument("--attention", default="", help="kernel on CUDA: split, joint or fa3 (default: split)")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--name", default="h100-mistral-7b", help="name of the fitted profile")
    parser.add_argument("--tokens", type=int, default=2048, help="largest batch (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=240.0, help="time for the profile (default: %(default)s; 0: none)"
    )
    options = parser.parse_args()
    from engine.device.real.executor import make_executor

    spec = f"{options.executor},attention={options.attention}" if options.attention else options.executor
    executor = make_executor(spec, profiling.Limits().capacity_tokens)
    clock: Clock = "device" if executor.device.type == "cuda" else "wall"
    provenance = {**executor.provenance(), "clock": clock, "date": datetime.now(UTC).date().isoformat()}
    options.out.mkdir(parents=True, exist_ok=True)
    record = Record(options.out / f"gpu_check-{options.name}.json", provenance)
    if provenance["cuda"]:
        record.add("attention", attention_errors(provenance["attention"]))
    record.add("steps", steps(executor, options.tokens, "wall"))
    if clock == "device":
        record.add("steps of the device", steps(executor, options.tokens, clock))
    record.add("kv_token", kv_token_costs(executor, options.tokens, clock))
    if options.seconds > 0.0:
        record.add("fit", _profiled(executor, record, options, clock))
    lines = missed(record.result)
    reached = "every target reached" if provenance["cuda"] else "done (the targets are those of a GPU)"
    print("\n".join(f"MISSED  {line}" for line in lines) or reached)
    return 1 if lines else 0


def run() -> int:
    """`main`, with what it cannot do as one line on standard error and exit code 2."""
    try:
        return main()
    except InputError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run())
