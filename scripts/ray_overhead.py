"""What a task costs on Ray: `python scripts/ray_overhead.py`, on a cluster of its own that ends with it.

Prints, as JSON, the seconds until the first task is done (the cluster starts, a worker imports), then for tasks that do
nothing the median over rounds of the seconds of a task: with as many at once as there are, and one after the other.
"""

import argparse
import json
import statistics
import time
from operator import neg

from agents.work.processes import done_by, run_tasks
from agents.work.ray_backend import PENDING, Ray


def seconds(tasks: int, workers: int) -> float:
    """Seconds of each of these tasks."""
    start = time.perf_counter()
    found = dict(run_tasks(neg, range(tasks), workers))
    assert found == {k: -k for k in range(tasks)}
    return (time.perf_counter() - start) / tasks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--tasks", type=int, default=200, help="in each round")
    options = parser.parse_args()
    with done_by(Ray("local")):
        figures = {"first_s": seconds(1, 1)}
        for name, workers in (("together_s", PENDING), ("one_by_one_s", 1)):
            figures[name] = statistics.median(seconds(options.tasks, workers) for _ in range(options.rounds))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
