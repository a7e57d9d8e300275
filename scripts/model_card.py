"""The model card of the shipped policy, from evaluations: which loads and workloads it wins, ties and loses.

    llmsched evaluate --policies pretrained,slai,slackfit:tuned ... --reference slackfit:tuned --json out/card.json
    python3 scripts/model_card.py out/card.json

Writes card.json and CARD.md beside the policy (agents/learning/pretrained).
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "agents" / "learning" / "pretrained"
METRICS = {
    "median_ttft_ms": "TTFT median",
    "mean_ttft_ms": "TTFT mean",
    "p99_ttft_ms": "TTFT p99",
    "p999_ttft_ms": "TTFT p99.9",
    "max_wait_s": "longest wait",
    "request_goodput": "goodput",
}
WORDS = {"better": "wins", "worse": "loses"}


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each load and metric of the shipped policy against the reference of one evaluation."""
    found = []
    for row in result["paired"]:
        if row["policy"] == "pretrained" and row["metric"] in METRICS:
            low, high = row["difference"]["low"], row["difference"]["high"]
            base = row["difference"]["mean"] / row["relative"] if row["relative"] else float("nan")
            found.append(
                {
                    "workload": result["config"]["source"]["trace"] or result["config"]["source"]["workload"],
                    "profile": result["config"]["profile"]["name"],
                    "load": row["load"],
                    "reference": result["reference"],
                    "metric": row["metric"],
                    "relative": row["relative"],
                    "interval": [low / base, high / base],
                    "verdict": WORDS.get(row["judgement"], "ties"),
                    "seeds": result["config"]["seeds"],
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
        "excludes zero. None of these traces was used in training or for choosing the policy.",
        "",
        "| workload | requests/s | against | metric | difference | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in card["results"]:
        low, high = (100.0 * share for share in row["interval"])
        lines.append(
            f"| {row['workload']} | {row['load']} | {row['reference']} | {METRICS[row['metric']]} "
            f"| {100.0 * row['relative']:+.1f} % [{low:+.1f}, {high:+.1f}] | {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def main(paths: list[str]) -> None:
    """Read evaluations, write the card."""
    policy = json.loads((FOLDER / "policy.json").read_text(encoding="utf-8"))
    results = [row for path in paths for row in rows(json.loads(Path(path).read_text(encoding="utf-8")))]
    card = {
        "format": "llmsched-card/1",
        "command": policy["command"],
        "recipe": "agents/learning/hyperparams/evolution.yml",
        "hold": policy["env"]["hold"],
        "training": "Poisson arrivals at " + ", ".join(f"{r:g}" for r in policy["env"]["rates"]) + " requests/s, "
        f"openchat_sharegpt4 lengths, profile {policy['env']['profile']}",
        "results": results,
    }
    (FOLDER / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "CARD.md").write_text(markdown(card), encoding="utf-8")
    print(f"written: {FOLDER}/card.json, CARD.md ({len(results)} comparisons)")


if __name__ == "__main__":
    main(sys.argv[1:])
