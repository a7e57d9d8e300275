"""Requests of one's own: a trace file with times and lengths, served by several schedulers.

    python examples/own_trace.py --trace my_trace.csv

Without a file it writes a small one first, to show the format.
"""

import csv
from pathlib import Path

import numpy as np
import tyro

import baselines
from engine import load_profile, read_trace, simulate, summarize

COLUMNS = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")


def write_example(path: Path, num_requests: int) -> None:
    """A trace in which every tenth prompt is ten times as long.

    Args:
        path: of the csv file.
        num_requests: its rows.
    """
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(0.12, num_requests))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for k, time in enumerate(times.tolist()):
            writer.writerow([f"{time:.3f}", 3000 if k % 10 == 9 else 300, 100])


def main(trace: Path = Path("out/own_trace.csv"), num_requests: int = 300) -> dict[str, float]:
    """Serve a trace with four schedulers and print their times to first token.

    Args:
        trace: csv, jsonl or json (see the guide); written if it does not exist.
        num_requests: rows to write.

    Returns:
        p99 TTFT in seconds of each scheduler.
    """
    if not trace.exists():
        trace.parent.mkdir(parents=True, exist_ok=True)
        write_example(trace, num_requests)
    requests = read_trace(trace, seed=0)
    print(f"{requests.source}: {len(requests)} requests at {requests.rate:.2f}/s")
    profile, found = load_profile("rtx6000ada-mistral-7b"), {}
    for spec in ("vllm", "sarathi", "slai", "slackfit"):
        report = summarize(simulate(baselines.make(spec), requests, profile))
        found[spec] = report.ttft.p99
        print(f"{spec:10} TTFT median {report.ttft.p50:.3f} s, p99 {report.ttft.p99:.3f} s")
    return found


if __name__ == "__main__":
    tyro.cli(main)
