"""What each choice of the training recipe is worth: variants trained with several seeds, compared on the same traces.

    python3 -m agents.studies.ablations                  # all variants, three seeds each: some three hours on 2 cores
    python3 -m agents.studies.ablations --only evolution --seeds 1
    python3 -m agents.studies.ablations --only queue queue-last --total-timesteps 3_000_000
    python3 -m agents.studies.ablations --trained               # only compare what was trained

Trains into OUT/VARIANT-SEED what is not there yet, then prints a Markdown table: difference to slackfit:tuned, mean
over training seeds [lowest, highest], on ten held-out traces at each load. Writes OUT/ablations.json.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from agents.evaluation.evaluate import Evaluation, evaluate
from agents.evaluation.result import Comparison
from agents.learning.ppo.train_config import queue_recipe
from agents.learning.search.evolution import shipped_recipe
from agents.source import Source
from agents.work.files import write_json
from agents.work.processes import child_environment
from engine.config import EngineConfig
from engine.device.latency import load_profile

ARMS = ("slai", "sarathi", "sarathi:order=spf", "slackfit:tuned")
WARM = ["train", "--env.budget", "slackfit", "--env.close", "1", "--teacher", "slackfit:tuned"]
WARM_HOLD = [*WARM, "--env.hold", "8"]
QUEUE = ["train", "--hyperparams", str(queue_recipe())]
SCRATCH = [*QUEUE, "--teacher", "", "--queue.reference", ""]
MIXTURE = ["train", "--hyperparams", "LLMSchedMixture-v0", "--env.arms", *ARMS]
VARIANTS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "evolution": ("the shipped recipe", ["evolve"], {}),
    "evolution-constant": (
        "no observation: one setting for all states",
        ["evolve"],
        {"features": [], "generations": 40},
    ),
    "evolution-one-workload": ("trained on the default workload alone", ["evolve"], {"scenarios": []}),
    "evolution-no-close": ("batches never end early", ["evolve"], {"close": 0.0}),
    "evolution-no-loss-weight": ("losses at one load cost no more than gains", ["evolve"], {"loss_weight": 0.0}),
    "ppo-tokens": ("PPO, token budgets, from scratch", ["train"], {}),
    "ppo-warm": ("PPO from slackfit:tuned, a decision per batch", WARM, {}),
    "ppo-warm-hold": ("the same, decisions hold for 8 batches", WARM_HOLD, {}),
    "ppo-warm-hold-60s": ("the same, discount 1/e in 60 s instead of 5", [*WARM_HOLD, "--discount-s", "60"], {}),
    "ppo-warm-hold-goodput": ("the same, 1 for each request in time", [*WARM_HOLD, "--env.reward.goodput", "1"], {}),
    "queue": ("PPO for queues, its recipe", QUEUE, {}),
    "queue-observed": ("the critic sees what the actor sees", [*QUEUE, "--queue.no-privileged"], {}),
    "queue-unpaired": ("advantages without the group's mean", [*QUEUE, "--queue.no-paired"], {}),
    "queue-no-resync": ("rows of a group drift apart", [*QUEUE, "--queue.no-resync"], {}),
    "queue-no-differences": ("the critic fits returns alone", [*QUEUE, "--queue.differences", "0"], {}),
    "queue-absolute": ("costs as they are at each load", [*QUEUE, "--queue.no-relative-costs"], {}),
    "queue-5s": ("discount 1/e in 5 s", [*QUEUE, "--discount-s", "5"], {}),
    "queue-steps": ("noise anew for each decision", [*QUEUE, "--queue.exploration", "steps"], {}),
    "queue-last": ("the actor itself, no running mean", [*QUEUE, "--queue.averaging", "0"], {}),
    "queue-constraints": ("deadlines as constraints", [*QUEUE, "--queue.late-limit", "0.001"], {}),
    "queue-scratch": ("PPO for queues without a teacher", SCRATCH, {}),
    "ppo-mixture": ("PPO chooses among SLAI, Sarathi (FCFS, SPF), slackfit:tuned", MIXTURE, {}),
    "static-mixture": ("the same arms with fixed odds, by policy gradient", ["mixture", "--arms", ",".join(ARMS)], {}),
}
"""Name -> what it is, command, changes of the recipe."""
RATES = (1.4, 1.6, 1.8, 2.0)
BASE = "slackfit:tuned"
SHORT = 8192
"""Decisions of a PPO that only tries the script."""
METRICS = {"mean_ttft_ms": "mean TTFT", "median_ttft_ms": "median TTFT", "slo_goodput": "goodput"}


@dataclass(frozen=True)
class Budget:
    """How long each training is."""

    short: bool = False
    """Next to nothing, to try the script."""
    timesteps: int | None = None
    """Decisions of a PPO, instead of its recipe's."""
    generations: int | None = None
    """Generations of an evolution, instead of its recipe's."""


def command_of(name: str, seed: int, folder: Path, budget: Budget) -> list[str]:
    """The command that trains a variant with one seed into a folder."""
    _, words, changes = VARIANTS[name]
    command = [sys.executable, "-m", "agents.cli", *words, "--run-dir", str(folder), "--seed", str(seed)]
    if words[0] == "train":
        decisions = SHORT if budget.short else budget.timesteps
        # The last policy is compared, so none is evaluated on the way.
        command += ["--eval-every", "0", "--no-progress"]
        return [*command, *(["--total-timesteps", str(decisions)] if decisions else [])]
    command += ["--workers", "1"]
    if words[0] == "evolve":
        recipe = yaml.safe_load(shipped_recipe().read_text(encoding="utf-8")) | changes
        if budget.generations:
            recipe["generations"] = budget.generations
        if budget.short:
            recipe |= {"rates": [1.4], "requests": 50, "traces": 1, "generations": 1, "population": 4}
        path = folder.with_suffix(".yml")
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return [*command, "--recipe", str(path)]
    return [*command, *(["--updates", "1", "--pairs", "1", "--requests", "50"] if budget.short else [])]


def train(folder: Path, command: Sequence[str]) -> None:
    """Train one variant into its folder, unless that is done already."""
    if (folder / "final" / "policy.json").exists():
        return
    with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True, env=child_environment())
    print(f"trained: {folder}", file=sys.stderr, flush=True)


Relatives = dict[tuple[str, float | None, str], float]
"""Differences to the reference, relative to it, by policy, load and metric."""


def relatives(result: Comparison) -> Relatives:
    """Those of a comparison."""
    return {(row.policy, row.load, row.metric): row.relative or 0.0 for row in result.paired}


def against_base(policies: Sequence[str], traces: int, requests: int) -> Evaluation:
    """Policies beside slackfit:tuned on held-out traces at every load."""
    return Evaluation(
        policies=(BASE, *policies),
        source=Source(num_requests=requests),
        seeds=traces,
        reference=BASE,
        profile=load_profile("rtx6000ada-mistral-7b"),
        config=EngineConfig(),
        loads=RATES,
    )


def figures(found: Relatives, finals: dict[str, list[str]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """For JSON: variant -> metric -> load -> difference of each seed."""
    return {
        name: {m: {f"{rate:g}": [found[policy, rate, m] for policy in policies] for rate in RATES} for m in METRICS}
        for name, policies in finals.items()
    }


def table(found: Relatives, runs: dict[str, list[str]]) -> str:
    """Markdown: a line per variant, mean TTFT at each load, median TTFT and goodput over the loads."""
    head = [f"mean TTFT, {rate:g}/s" for rate in RATES] + ["median TTFT", "goodput"]
    lines = ["| variant | seeds | " + " | ".join(head) + " |", "|---" * (len(head) + 2) + "|"]
    for name, policies in runs.items():
        cells = [_cell([found[policy, rate, "mean_ttft_ms"] for policy in policies]) for rate in RATES]
        for metric in ("median_ttft_ms", "slo_goodput"):
            over = [[found[policy, rate, metric] for rate in RATES] for policy in policies]
            cells.append(_cell([sum(values) / len(values) for values in over]))
        lines.append(f"| {VARIANTS[name][0]} | {len(policies)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    low, high = min(values), max(values)
    spread = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if len(values) > 1 else ""
    return f"{100 * sum(values) / len(values):+.1f} %{spread}"


def folders_of(options: argparse.Namespace) -> dict[str, list[Path]]:
    """The run folders of each variant, one for each training seed; with --trained those that are there."""
    runs = {name: [options.out / f"{name}-{seed}" for seed in range(options.seeds)] for name in options.only}
    if options.trained:
        runs = {name: [folder for folder in folders if (folder / "final").exists()] for name, folders in runs.items()}
    return {name: folders for name, folders in runs.items() if folders}


def train_all(runs: dict[str, list[Path]], budget: Budget, workers: int) -> None:
    """Train what is not there yet, so many at a time."""
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(train, folder, command_of(name, seed, folder, budget))
            for name, folders in runs.items()
            for seed, folder in enumerate(folders)
        ]
        for job in jobs:
            job.result()


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/ablations"))
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--trained", action="store_true", help="compare what is in OUT already, train nothing")
    parser.add_argument("--traces", type=int, default=10, help="held-out traces at each load")
    parser.add_argument("--requests", type=int, default=4000, help="requests in each of them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--total-timesteps", type=int, help="decisions of each PPO (default: its recipe's)")
    parser.add_argument("--generations", type=int, help="generations of each evolution (default: its recipe's)")
    parser.add_argument("--short", action="store_true", help="train next to nothing: to try the script")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = folders_of(options)
    train_all(runs, Budget(options.short, options.total_timesteps, options.generations), options.workers)
    finals = {name: [f"{folder}/final" for folder in folders] for name, folders in runs.items()}
    policies = [final for trained in finals.values() for final in trained]
    evaluation = against_base(policies, options.traces, options.requests)
    found = relatives(evaluate(evaluation, workers=options.workers, with_windows=False))
    write_json(options.out / "ablations.json", figures(found, finals))
    print(table(found, finals))


if __name__ == "__main__":
    main()
