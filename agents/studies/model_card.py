"""The model card of a shipped policy: which loads and workloads it wins, ties and loses.

    python3 -m agents.studies.model_card [--policy pretrained-ppo]     # about 2 minutes on 2 cores

Compares it with SLAI and with slackfit tuned for each workload, and writes card.json and CARD.md beside the policy
(agents/learning/pretrained, agents/learning/pretrained-ppo).
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.evaluation.evaluate import Evaluation, evaluate
from agents.learning.search.evolution import EvolutionConfig, shipped_recipe
from agents.policies import PRETRAINED, SHIPPED, pretrained_folder
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


def compare(policy: str, setting: Setting, rival: str, requests: int, workers: int) -> list[dict[str, Any]]:
    """Each load and metric of a shipped policy against a rival on the same traces."""
    evaluation = Evaluation(
        policies=(policy, rival),
        source=Source(workload=setting.workload, num_requests=requests),
        seeds=setting.seeds,
        reference=rival,
        profile=load_profile(setting.profile),
        config=EngineConfig(),
        loads=setting.loads,
    )
    result = evaluate(evaluation, workers=workers, with_windows=False)
    bases = {row.load: row.metrics for row in result.summary if row.policy == rival}
    found = []
    for row in result.paired:
        if row.policy == policy and row.metric in METRICS:
            difference = row.difference
            base = bases[row.load][row.metric].mean
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
                    "seeds": setting.seeds,
                }
            )
    return found


def markdown(card: dict[str, Any]) -> str:
    """The card for people."""
    lines = [
        f"# {card['policy']}",
        "",
        f"Trained by `{card['command']}` (`{card['recipe']}`: {card['method']}).",
        f"One linear layer; a choice holds for {card['hold']} iterations. Training traces: {card['training']}.",
        *([card["afterwards"]] if card["afterwards"] else []),
        "",
        "Differences to a rival on the same arrivals, 95 % paired intervals; it *wins* or *loses* where the interval",
        "excludes zero. None of these traces was used in training or for choosing the policy. Azure lengths, bursts,",
        "steps and the fast device were not trained on; other traces of them chose the recipe's `close`. Written by",
        f"`python3 -m agents.studies.model_card --policy {card['policy']}`.",
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


def _origin(name: str) -> dict[str, Any]:
    """How a shipped policy came about."""
    about = json.loads((pretrained_folder(name) / "policy.json").read_text(encoding="utf-8"))
    env = about["env"]
    rates, others, recipe, method, afterwards = env["rates"], "", "queue.yml", "PPO for queues", ""
    if name == PRETRAINED:
        searched = EvolutionConfig.from_yaml(shipped_recipe())
        rates, others = searched.rates, "".join(f"; {one.name}" for one in searched.scenarios)
        recipe, method = "evolution.yml", "CMA-ES from slackfit:tuned on whole runs"
        afterwards = (
            f"Set after the search, by scores on the suite `training`: `close_until` {env['action']['close_until']:g}, "
            f"`longest` {env['action']['longest']:g} (batches, beside the limits in seconds that it was searched with)."
        )
    return {
        "policy": name,
        "command": about["command"],
        "recipe": f"agents/learning/hyperparams/{recipe}",
        "method": method,
        "hold": env["action"]["hold"],
        "afterwards": afterwards,
        "training": "Poisson arrivals at "
        + ", ".join(f"{rate:g}" for rate in rates)
        + f" requests/s, openchat_sharegpt4 lengths, profile {env['profile']}{others}",
    }


def main() -> None:
    """Evaluate, write the card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", choices=SHIPPED, default=PRETRAINED, help="which of those that ship")
    parser.add_argument("--out", type=Path, help="folder for card.json and CARD.md (default: the policy's own)")
    parser.add_argument("--requests", type=int, default=4000, help="requests in each trace")
    parser.add_argument("--seeds", type=int, default=0, help="traces at each load, instead of 5 or 10")
    options = parser.parse_args()
    if options.requests < 1 or options.seeds < 0:
        parser.error(f"--requests, --seeds: expected 1 and 0 at least, got {options.requests} and {options.seeds}")
    workers = default_workers()
    results = [
        row
        for setting in SETTINGS
        for rival in (setting.tuned, "slai")
        for row in compare(
            options.policy,
            replace(setting, seeds=options.seeds or setting.seeds),
            rival,
            options.requests,
            workers,
        )
    ]
    card = {"format": "llmsched-card/1", **_origin(options.policy), "results": results}
    out = options.out or pretrained_folder(options.policy)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "card.json", card)
    write_atomically(out / "CARD.md", markdown(card))
    print(f"written: {out}/card.json, CARD.md ({len(results)} comparisons)")


if __name__ == "__main__":
    main()
