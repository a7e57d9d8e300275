"""The model card of the shipped policy: which loads and workloads it wins, ties and loses.

    python3 -m agents.studies.model_card     # about 2 minutes on 2 cores

Compares it with SLAI and with slackfit tuned for each workload, and writes card.json and CARD.md beside the policy
(agents/learning/pretrained).
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.evaluation.evaluate import Evaluation, evaluate
from agents.learning.search.evolution import EvolutionConfig, shipped_recipe
from agents.policies import PRETRAINED, pretrained_folder
from agents.source import Source
from agents.work.files import write_atomically, write_json
from agents.work.processes import default_workers
from engine.config import EngineConfig
from engine.device.latency import load_profile

PROFILE = "rtx6000ada-mistral-7b"
FASTER = f"{PROFILE}:speed=2"
METRICS = {
    "median_ttft_ms": "TTFT median",
    "mean_ttft_ms": "TTFT mean",
    "p99_ttft_ms": "TTFT p99",
    "p99.9_ttft_ms": "TTFT p99.9",
    "max_wait_s": "longest wait",
    "slo_goodput": "goodput",
}
WORDS = {"better": "wins", "worse": "loses"}


@dataclass(frozen=True)
class Setting:
    """Where the policy is judged."""

    workload: str
    loads: tuple[float, ...]
    profile: str = PROFILE
    seeds: int = 5

    @property
    def tuned(self) -> str:
        """Slackfit with the setting tuned for this workload and device."""
        place = self.workload if self.profile == PROFILE else f"{self.workload}@{self.profile}"
        return "slackfit:tuned" if place == "poisson" else f"slackfit:tuned={place}"


SETTINGS = (
    Setting("poisson", (1.4, 1.6, 1.8, 2.0), seeds=10),
    Setting("gamma:cv=2", (1.4, 1.8)),
    Setting("step", (1.6, 1.8)),
    Setting("poisson:lengths=azure2023_conv", (2.5, 3.5)),
    Setting("poisson:lengths=azure2023_code", (3.0, 4.0)),
    Setting("poisson", (2.8, 3.6), profile=FASTER),
)


def compare(setting: Setting, rival: str, requests: int, seeds: int, workers: int) -> list[dict[str, Any]]:
    """Each load and metric of the shipped policy against a rival on the same traces."""
    evaluation = Evaluation(
        policies=(PRETRAINED, rival),
        source=Source(workload=setting.workload, num_requests=requests),
        seeds=seeds,
        reference=rival,
        profile=load_profile(setting.profile),
        config=EngineConfig(),
        loads=setting.loads,
    )
    result = evaluate(evaluation, workers=workers, with_windows=False)
    found = []
    for row in result.paired:
        if row.policy == PRETRAINED and row.metric in METRICS:
            difference = row.difference
            base = difference.mean / row.relative if row.relative else float("nan")
            found.append(
                {
                    "workload": setting.workload,
                    "profile": setting.profile,
                    "load": row.load,
                    "reference": rival,
                    "metric": row.metric,
                    "relative": row.relative,
                    "interval": [difference.low / base, difference.high / base],
                    "verdict": WORDS.get(row.judgement, "ties"),
                    "seeds": seeds,
                }
            )
    return found


def markdown(card: dict[str, Any]) -> str:
    """The card for people."""
    lines = [
        "# The shipped policy",
        "",
        f"Trained by `{card['command']}` (`{card['recipe']}`: CMA-ES from slackfit:tuned on whole runs).",
        f"One linear layer; a choice holds for {card['hold']} iterations. Training traces: {card['training']}.",
        "",
        "Differences to a rival on the same arrivals, 95 % paired intervals; it *wins* or *loses* where the interval",
        "excludes zero. None of these traces was used in training or for choosing the policy. Azure lengths, bursts,",
        "steps and the fast device were not trained on; other traces of them chose the recipe's `close`. Written by",
        "`python3 -m agents.studies.model_card`.",
        "",
        "| workload | requests/s | against | metric | difference | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in card["results"]:
        low, high = (100.0 * share for share in row["interval"])
        place = row["workload"] if row["profile"] == PROFILE else f"{row['workload']} on a device twice as fast"
        rival = "slai" if row["reference"] == "slai" else "slackfit tuned for it"
        lines.append(
            f"| {place} | {row['load']} | {rival} | {METRICS[row['metric']]} "
            f"| {100.0 * row['relative']:+.1f} % [{low:+.1f}, {high:+.1f}] | {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Evaluate, write the card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=pretrained_folder(), help="folder for card.json and CARD.md")
    parser.add_argument("--requests", type=int, default=4000, help="requests in each trace")
    parser.add_argument("--seeds", type=int, default=0, help="traces at each load, instead of 5 or 10")
    options = parser.parse_args()
    policy = json.loads((pretrained_folder() / "policy.json").read_text(encoding="utf-8"))
    recipe = EvolutionConfig.from_yaml(shipped_recipe())
    workers = default_workers()
    results = [
        row
        for setting in SETTINGS
        for rival in (setting.tuned, "slai")
        for row in compare(setting, rival, options.requests, options.seeds or setting.seeds, workers)
    ]
    card = {
        "format": "llmsched-card/1",
        "command": policy["command"],
        "recipe": "agents/learning/hyperparams/evolution.yml",
        "hold": policy["env"]["action"]["hold"],
        "training": "Poisson arrivals at "
        + ", ".join(f"{rate:g}" for rate in recipe.rates)
        + f" requests/s, openchat_sharegpt4 lengths, profile {policy['env']['profile']}"
        + "".join(f"; {one.name}" for one in recipe.scenarios),
        "results": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "card.json", card)
    write_atomically(options.out / "CARD.md", markdown(card))
    print(f"written: {options.out}/card.json, CARD.md ({len(results)} comparisons)")


if __name__ == "__main__":
    main()
