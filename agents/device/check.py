"""Everything that needs a GPU, in one run of under 8 minutes: correctness, speed against the floors, profile and fit.

    python3 scripts/gpu_check.py --out out/gpu

Needs torch with CUDA, transformers, numba and scipy, and the repository as the working folder; the rest of llmsched's
requirements are not imported. Writes OUT/profile.csv (with .json), OUT/NAME.json (the fitted profile) and
OUT/gpu_check.json (every figure; written after each stage). Exit code 1: a figure misses its
target; 2: it cannot run.
`--executor transformers:tiny` runs the same stages on a CPU, where there is no flash attention and no floor.
"""

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agents.device import profiling
from agents.work.files import json_text, write_atomically
from engine.device.fitting import fit
from engine.errors import InputError

if TYPE_CHECKING:
    from engine.device.real.executor import TransformersExecutor

FLOORS_S = {
    "decode 1 @ 1024": (4.3e-3, 0.70),
    "decode 32 @ 1024": (5.5e-3, 0.70),
    "decode 128 @ 1024": (9.4e-3, 0.70),
    "prefill 512": (9.0e-3, 0.65),
    "prefill 2048": (37e-3, 0.65),
}
"""Least seconds on an H100 (3.35 TB/s, 800 TFLOP/s bf16; 7.242 B weights, 128 KiB of KV per token) and the share that a
step must reach of it."""
BATCHES: dict[str, tuple[tuple[tuple[int, int], ...], tuple[int, ...]]] = {
    "decode 1 @ 1024": ((), (1024,)),
    "decode 32 @ 1024": ((), (1024,) * 32),
    "decode 128 @ 1024": ((), (1024,) * 128),
    "prefill 512": (((512, 0),), ()),
    "prefill 2048": (((2048, 0),), ()),
}
ERROR = 1e-2
"""Largest error of the launches, relative to the largest output in fp32."""


def attention_errors(seed: int = 0) -> dict[str, float]:
    """Decodes alone, chunks alone and both: largest error of the bf16 launches against SDPA in fp32, relative."""
    from engine.device.real.attention import attend, reference

    generator = torch.Generator("cuda").manual_seed(seed)
    heads, kv_heads, dim, buffer = 32, 8, 128, 40_000
    cases = {
        "decodes": ([1] * 9, [1, 2, 15, 16, 17, 128, 1000, 1024, 4097], 9),
        "chunks": ([1, 7, 64, 300, 512], [1, 7, 100, 300, 2560], 0),
        "both": ([1, 1, 1, 256, 33], [513, 64, 2000, 256, 1057], 3),
    }
    errors = {}
    for name, (new, used, decodes) in cases.items():
        starts = np.cumsum([0, *[length + 3 for length in used]])
        edges = np.cumsum([0, *new])
        write = np.concatenate(
            [start + length - n + np.arange(n) for start, length, n in zip(starts, used, new, strict=False)]
        )
        q, k, v = (
            torch.randn(edges[-1], h, dim, device="cuda", generator=generator, dtype=torch.bfloat16)
            for h in (heads, kv_heads, kv_heads)
        )
        caches = [
            torch.randn(buffer, kv_heads, dim, device="cuda", generator=generator, dtype=torch.bfloat16)
            for _ in range(2)
        ]
        cu_q, start, used_k = (torch.tensor(x, dtype=torch.int32, device="cuda") for x in (edges, starts, used))
        place = torch.tensor(write, device="cuda")
        out = attend(q, k, v, *caches, place, cu_q, start, used_k, decodes, max(new), max(used), dim**-0.5)
        exact = reference(q.float(), caches[0].float(), caches[1].float(), cu_q, start, used_k, dim**-0.5)
        errors[name] = float((out.float() - exact).abs().max() / exact.abs().max())
    return errors


def steps(executor: "TransformersExecutor", largest: int) -> dict[str, dict[str, float]]:
    """Median and smallest seconds of the batches of BATCHES with at most so many tokens, and the share of the floor."""
    found = {}
    for name, (prefills, decodes) in BATCHES.items():
        if sum(n for n, _ in prefills) + len(decodes) <= largest:
            seconds = executor.measure(prefills, decodes, repeats=21, warmup=5)
            found[name] = {"median_s": float(np.median(seconds)), "min_s": float(seconds.min())}
            if executor.device.type == "cuda":
                found[name] |= {
                    "floor_s": FLOORS_S[name][0],
                    "share_of_floor": FLOORS_S[name][0] / found[name]["median_s"],
                }
    return found


def limits(executor: "TransformersExecutor", tokens: int, budget_s: float) -> profiling.Limits:
    """The densest grid whose measurement fits the time."""
    for thin in (1, 2, 3, 4, 6, 8):
        chosen = profiling.Limits(tokens=tokens, context=3 * tokens, thin=thin)
        if profiling.ROUNDS * profiling.estimate_s(executor, profiling.grid(chosen)) <= budget_s:
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
            f"{name}: {100 * row['share_of_floor']:.0f} % of the floor, at least {100 * FLOORS_S[name][1]:.0f} %"
            for name, row in result["steps"].items()
            if row["share_of_floor"] < FLOORS_S[name][1]
        ]
        bounds = {"held-out mixed": 5.0, "held-out decode": 3.0, "held-out prefill": 3.0}
        residuals = result["fit"]
        lines += [
            f"{kind}: mean error {residuals[kind]['mape']:.1f} %, at most {bound} %"
            for kind, bound in bounds.items()
            if residuals[kind]["mape"] > bound
        ]
    return lines


def main() -> int:
    """Run the stages; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--executor", default="transformers")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--name", default="h100-mistral-7b", help="name of the fitted profile")
    parser.add_argument("--tokens", type=int, default=2048, help="largest batch (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=240.0, help="time for the profile (default: %(default)s)")
    options = parser.parse_args()
    from engine.device.real.executor import make_executor

    began = time.perf_counter()
    executor = make_executor(options.executor, profiling.Limits().capacity_tokens)
    provenance = {**executor.provenance(), "date": datetime.now(UTC).date().isoformat()}
    result: dict[str, Any] = {"format": "llmsched-gpu-check/1", "device": provenance}

    def done(stage: str, value: object) -> None:
        result[stage] = value
        result["seconds"] = time.perf_counter() - began
        write_atomically(options.out / "gpu_check.json", json_text(result))
        print(f"{result['seconds']:6.1f} s  {stage}: {json.dumps(value)}", flush=True)

    options.out.mkdir(parents=True, exist_ok=True)
    if provenance["cuda"]:
        done("attention", attention_errors())
    done("steps", steps(executor, options.tokens))
    chosen = limits(executor, options.tokens, options.seconds)
    table = options.out / "profile.csv"
    points = profiling.todo(table, profiling.grid(chosen), provenance)
    done("profile", {"rows": sum(1 for _ in profiling.measure(executor, table, points)), "thin": chosen.thin})
    model = fit(profiling.read_points(table), options.name, profiling.read_provenance(table))
    model.save(options.out / f"{options.name}.json")
    done("fit", model.provenance["residuals"])
    lines = missed(result)
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
