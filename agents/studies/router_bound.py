"""What there is to gain for a router in front of equal replicas whose reports are fresh.

    python3 -m agents.studies.router_bound [--router FOLDER]

Beside least tokens and the learned router: least tokens that knows every output length, and assignments that are
improved by local search on the whole trace, each change tried on the trace itself: somebody who knows the future.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from agents.evaluation.statistics import paired_interval
from agents.learning.learned.router import load_router
from agents.learning.search.router_worlds import Trial, World, aged, mean_of, mean_ttft_s, served
from agents.policies import pretrained_folder
from agents.routers import PRETRAINED_ROUTER
from agents.studies.router_card import LOADS
from agents.work.processes import default_workers, run_tasks
from engine.cluster.router import Router, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.spec import split_list

REFERENCE = "least_tokens:output_weight=0.25,mean_output=64"


@dataclass(frozen=True)
class _Assigned(Router):
    """Each request where it was said beforehand."""

    replica: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32), repr=False, compare=False)
    name = "assigned"

    @property
    def spec(self) -> str:
        """Its name: a whole trace is no setting."""
        return self.name

    def memory(self, replicas: int) -> RouterMemory:
        """The places, by request."""
        return RouterMemory(self.replica.astype(np.float64), np.zeros((replicas, 1)), np.zeros(1))


@router_kernel_of(_Assigned)
def _route(view: RouterView, memory: RouterMemory) -> int:
    return int(memory.params[view.row[0].index])


class Case(NamedTuple):
    """A trace in front of equal replicas."""

    trial: Trial
    tries: int
    """Changes that the local search tries."""


NAMES = ("least tokens", "learned", "least tokens that knows outputs", "local search that knows the trace")


def judged(case: Case) -> tuple[float, ...]:
    """Mean TTFT behind each of NAMES, s."""
    trial = case.trial
    usual = served(aged(REFERENCE, 0.0), trial)
    knowing = served(aged(REFERENCE, 0.0), trial, "oracle")
    return mean_of(usual), mean_ttft_s(trial), mean_of(knowing), improved(usual.replica, trial, case.tries)


def improved(start: np.ndarray, trial: Trial, tries: int) -> float:
    """Mean TTFT, s, after so many changes have been tried: a request sent elsewhere, or two that change places."""
    rng, best = np.random.default_rng(trial.seed), start.copy()
    least = mean_of(served(_Assigned(best), trial))
    for _ in range(tries):
        tried, i = best.copy(), int(rng.integers(len(best)))
        if rng.random() < 0.5:
            tried[i] = (tried[i] + rng.integers(1, trial.world.replicas)) % trial.world.replicas
        else:
            other = min(i + int(rng.integers(1, 9)), len(best) - 1)
            tried[i], tried[other] = tried[other], tried[i]
        found = mean_of(served(_Assigned(tried), trial))
        if found < least:
            best, least = tried, found
    return least


def lines(cases: Sequence[Case], found: np.ndarray, seeds: int) -> Iterator[str]:
    """A row for each world: least tokens' mean TTFT, then what others differ from it, in %, with paired intervals."""
    yield f"| requests/s for each, policy | {NAMES[0]}, s | {' | '.join(NAMES[1:])} |"
    yield f"|---|---|{'---|' * len(NAMES[1:])}"
    for k in range(0, len(cases), seeds):
        world, values = cases[k].trial.world, found[k : k + seeds]
        base, cells = values[:, 0].mean(), []
        for other in range(1, len(NAMES)):
            gap = paired_interval(values[:, other], values[:, 0])
            ends = 100.0 * np.array([gap.mean, gap.low, gap.high]) / base
            cells.append(f"{ends[0]:+.1f} % [{ends[1]:+.1f}, {ends[2]:+.1f}]")
        yield f"| {world.load:g}, {world.policy} | {base:.3f} | {' | '.join(cells)} |"


def main() -> None:
    """Serve, search, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--router", default=pretrained_folder(PRETRAINED_ROUTER), help="folder of the learned one")
    parser.add_argument("--replicas", type=int, default=4, help="how many, all alike")
    parser.add_argument("--requests", type=int, default=75, help="requests in each trace for each replica")
    parser.add_argument("--tries", type=int, default=300, help="changes that the local search tries on each trace")
    parser.add_argument("--seeds", type=int, default=5, help="traces in each world")
    parser.add_argument("--policies", default="slackfit:tuned", help="schedulers of the replicas")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes")
    options = parser.parse_args()
    bundle = load_router(options.router).bundle
    cases = [
        Case(Trial(bundle, World(options.replicas, False, load, policy, 0.0), size, seed), options.tries)
        for policy in split_list(options.policies)
        for load in LOADS
        for size in [options.requests * options.replicas]
        for seed in range(options.seeds)
    ]
    found = np.zeros((len(cases), len(NAMES)))
    for index, values in run_tasks(judged, cases, options.workers):
        found[index] = values
    print(*lines(cases, found, options.seeds), sep="\n")


if __name__ == "__main__":
    main()
