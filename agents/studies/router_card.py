"""The card of the learned router: in front of which fleets it wins, ties and loses, against rivals that were tuned.

    python3 -m agents.studies.router_card [--router FOLDER] [--others FOLDER,FOLDER]

Every fleet of 2, 4 and 8 replicas, equal or of two speeds, at three loads, with reports that are fresh, 1 s and 5 s
old, and two schedulers. Rivals see reports of the same age; their parameters are those that do best on training traces,
for each age, kind of fleet and scheduler by itself. Writes card.json and CARD.md beside the router.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation.statistics import Interval, paired_interval
from agents.learning.heldout import TRAINING_SEED
from agents.learning.learned.router import load_router
from agents.learning.learned.router_bundle import RouterBundle
from agents.learning.search.router_worlds import SPEED, Trial, World, all_worlds, mean_ttft_s
from agents.policies import pretrained_folder
from agents.routers import PRETRAINED_ROUTER
from agents.work.files import write_atomically, write_json
from agents.work.processes import default_workers, run_tasks
from engine.spec import split_list

REPLICAS, LOADS, AGES = (2, 4, 8), (1.4, 1.7, 2.0), (0.0, 1.0, 5.0)
POLICIES = ("slai", "slackfit:tuned")
GRIDS = {
    "least_tokens": (
        "least_tokens:output_weight=0",
        *(f"least_tokens:output_weight={w},mean_output={m}" for w in (0.25, 1, 4) for m in (64, 256)),
    ),
    "max_weight": tuple(f"max_weight:mean_output={m}" for m in (1, 64, 256, 1024)),
    "lmetric": ("lmetric",),
}
"""Rivals and what is tried of each; LMetric looks at the router's own counts alone, which are never old."""
WORDS = {True: "wins", False: "loses"}


@dataclass(frozen=True)
class Result:
    """The learned router beside one rival in one world, over the seeds."""

    world: World
    rival: str
    spec: str
    """The rival with its tuned parameters."""
    ttft_s: float
    """Mean TTFT behind the learned router."""
    relative: float
    """The difference to the rival's, over that."""
    interval: tuple[float, float]
    """95 % interval of it, paired."""
    verdict: str
    """`wins`, `ties` or `loses`."""

    @classmethod
    def of(cls, world: World, rival: str, spec: str, ours: np.ndarray, theirs: np.ndarray) -> "Result":
        """From the mean TTFT of both on the same traces."""
        difference: Interval = paired_interval(ours, theirs)
        base = float(theirs.mean())
        verdict = WORDS[difference.mean < 0.0] if difference.excludes_zero else "ties"
        interval = (difference.low / base, difference.high / base)
        return cls(world, rival, spec, float(ours.mean()), difference.mean / base, interval, verdict)

    @property
    def place(self) -> str:
        """The world in words."""
        return f"{self.world.replicas} {_fleet(self.world)}, {self.world.load:g}, {self.world.policy}"

    @property
    def text(self) -> str:
        """The difference with its interval, in %."""
        return f"{100 * self.relative:+.1f} % [{100 * self.interval[0]:+.1f}, {100 * self.interval[1]:+.1f}]"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"world": self.world._asdict()}


def _fleet(world: World) -> str:
    return f"mixed 1:{SPEED}" if world.is_mixed else "equal"


def _age(world: World) -> str:
    return f"{world.age:g} s old" if world.age else "fresh"


def measure(trials: Sequence[Trial], workers: int) -> np.ndarray:
    """Mean TTFT of each trial, s, float64[trials]."""
    found = np.zeros(len(trials))
    for index, value in run_tasks(mean_ttft_s, trials, workers):
        found[index] = value
    return found


def tuned(worlds: Sequence[World], requests: int, workers: int) -> dict[tuple[str, float, bool], str]:
    """For each rival, age and kind of fleet the spec with the least mean logarithm of TTFT, on training traces."""
    specs = [spec for grid in GRIDS.values() for spec in grid]
    seed = TRAINING_SEED + (1 << 30)
    trials = [Trial(spec, one, requests * one.speeds, seed + k) for spec in specs for k, one in enumerate(worlds)]
    logs = dict(zip(specs, np.log(measure(trials, workers)).reshape(len(specs), -1), strict=True))
    best = {}
    for age, is_mixed in sorted({(one.age, one.is_mixed) for one in worlds}):
        where = [(one.age, one.is_mixed) == (age, is_mixed) for one in worlds]
        for rival, grid in GRIDS.items():
            best[rival, age, is_mixed] = min(grid, key=lambda spec: float(logs[spec][where].mean()))
    return best


def judged(
    bundles: Sequence[RouterBundle], worlds: Sequence[World], traces: range, requests: int, workers: int
) -> list[list[Result]]:
    """Each learned router in each world of one scheduler against each rival, on the same held-out traces."""
    specs = tuned(worlds, requests // 2, workers)
    routers: list[list[str | RouterBundle]] = [
        [*bundles, *(specs[rival, one.age, one.is_mixed] for rival in GRIDS)] for one in worlds
    ]
    trials = [
        Trial(router, one, requests * one.speeds, seed)
        for one, there in zip(worlds, routers, strict=True)
        for router in there
        for seed in traces
    ]
    found = measure(trials, workers).reshape(len(worlds), -1, len(traces))
    return [
        [
            Result.of(one, rival, specs[rival, one.age, one.is_mixed], ttft[k], ttft[len(bundles) + r])
            for one, ttft in zip(worlds, found, strict=True)
            for r, rival in enumerate(GRIDS)
        ]
        for k in range(len(bundles))
    ]


def _losses(results: Sequence[Result]) -> Iterator[str]:
    lost = sorted((one for one in results if one.verdict == "loses"), key=lambda one: -one.relative)
    yield f"Loses in {len(lost)} of {len(results)} comparisons" + (":" if lost else ".")
    if lost:
        yield from ("", "| fleet, requests/s for each, policy | reports | rival | mean TTFT |", "|---|---|---|---|")
        yield from (f"| {one.place} | {_age(one.world)} | `{one.spec}` | {one.text} |" for one in lost)


def _class(one: Result) -> tuple[str, str, str]:
    return _age(one.world), _fleet(one.world), one.rival


def _classes(results: Sequence[Result]) -> Iterator[tuple[str, str, list[Result]]]:
    """The results by reports, kind of fleet and rival."""
    for key in dict.fromkeys(_class(one) for one in results):
        yield *key[:2], [one for one in results if _class(one) == key]


def _counts(some: Sequence[Result]) -> str:
    return " / ".join(str(sum(one.verdict == word for one in some)) for word in ("wins", "ties", "loses"))


def _mean(some: Sequence[Result]) -> float:
    """Geometric mean of the ratios of mean TTFT, less 1, in %."""
    return 100.0 * float(np.expm1(np.mean(np.log1p([one.relative for one in some]))))


def markdown(card: dict[str, Any], results: Sequence[Result], others: Sequence[Sequence[Result]]) -> str:
    """The card for people: losses first."""
    lines = [
        f"# {card['router']}",
        "",
        f"Made by `{card['command']}`. Mean TTFT on {card['seeds']} held-out traces,",
        "common arrivals, 95 % paired intervals; the rivals' parameters are those that do best on training traces, for",
        "each age of the reports, kind of fleet and scheduler by itself. No weight and no parameter was chosen on",
        "traces 0 to 4, but the recipe was changed after a first one had been judged on them: `--first 5` takes others",
        "(docs/results/pretrained-router.md).",
        f"Mixed fleets: every other replica is {SPEED} times as fast, with twice the KV and 256 seats. Written by",
        "`python3 -m agents.studies.router_card`.",
        "",
        *_losses(results),
        "",
        "| reports | fleets | tuned rival | wins / ties / loses | mean TTFT, geometric mean | best, worst |",
        "|---|---|---|---|---|---|",
    ]
    for age, fleet, some in _classes(results):
        ends = [100.0 * end([one.relative for one in some]) for end in (min, max)]
        lines.append(
            f"| {age} | {fleet} | `{some[0].rival}` | {_counts(some)} | {_mean(some):+.1f} % "
            f"| {ends[0]:+.1f} %, {ends[1]:+.1f} % |"
        )
    if others:
        lines += ["", "Other trainings: wins / ties / loses, geometric mean, against each rival:", ""]
        lines += [f"| training | {' | '.join(GRIDS)} |", f"|---|{'---|' * len(GRIDS)}"]
        for name, found in zip(card["others"], others, strict=True):
            by_rival = [[one for one in found if one.rival == rival] for rival in GRIDS]
            lines.append(f"| {name} | " + " | ".join(f"{_counts(s)}, {_mean(s):+.1f} %" for s in by_rival) + " |")
    return "\n".join(lines) + "\n"


def options_of() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    shipped = pretrained_folder(PRETRAINED_ROUTER)
    parser.add_argument("--router", type=Path, default=shipped, help="folder of the router")
    parser.add_argument("--others", default="", help="folders of routers of other trainings, comma separated")
    parser.add_argument("--out", type=Path, help="folder for card.json and CARD.md (default: the router's own)")
    parser.add_argument("--requests", type=int, default=500, help="requests in each trace for each replica's speed")
    parser.add_argument("--seeds", type=int, default=5, help="traces in each world")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--policies", default=",".join(POLICIES), help="schedulers of the replicas")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes")
    options = parser.parse_args()
    if options.first < 0:
        parser.error(f"--first: expected 0 at least, got {options.first}")
    if options.requests < 2 or options.seeds < 2:
        parser.error(f"--requests, --seeds: expected 2 at least, got {options.requests} and {options.seeds}")
    return options


def main() -> None:
    """Tune the rivals, serve, write the card."""
    options = options_of()
    folders = split_list(options.others)
    bundles = [load_router(folder).bundle for folder in (options.router, *folders)]
    traces = range(options.first, options.first + options.seeds)
    by_policy = [
        judged(bundles, all_worlds(REPLICAS, LOADS, (policy,), AGES), traces, options.requests, options.workers)
        for policy in split_list(options.policies)
    ]
    results, *others = [list(chain(*some)) for some in zip(*by_policy, strict=True)]
    card = {
        "format": "llmsched-router-card/1",
        "router": options.router.name,
        "command": bundles[0].command,
        "seeds": options.seeds,
        "others": [Path(folder).name for folder in folders],
        "results": [one.to_dict() for one in results],
        "results_of_others": [[one.to_dict() for one in some] for some in others],
    }
    out = options.out or options.router
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "card.json", card)
    write_atomically(out / "CARD.md", markdown(card, results, others))
    print(f"written: {out}/card.json, CARD.md ({len(results)} comparisons)")


if __name__ == "__main__":
    main()
