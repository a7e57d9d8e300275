"""`llmsched region`: what replicas that differ carry behind a router, by a linear programme and by simulation."""

from dataclasses import dataclass
from pathlib import Path

from agents.options import ProgressOptions, TableOptions, UpToMillion
from agents.reporting.grid import Grid, Head, Part, figure, show, terminal_console
from agents.studies.region import UNFINISHED, Carried, Region, study
from agents.studies.theorems import Loaded
from agents.studies.worlds import WORLDS
from agents.work.files import check_writable, write_json
from agents.work.progress import bars
from engine.ranges import Count


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions, ProgressOptions):
    """Measure what routers carry: equal replicas, replicas of several speeds, kinds that suit different requests.

    Of equal replicas also the two theorems of RAD's paper: above the bound requests pile up behind any router and any
    scheduler, below it RAD behind a random router keeps up.
    """

    worlds: str = ",".join(WORLDS)
    """Which of them, comma separated."""
    num_requests: Count = 40_000
    """Requests per run."""
    seeds: UpToMillion = 1
    """Seeds 0 ... N-1 of every load that is tried."""
    json: Path | None = None
    """Also write the result to this file."""

    def run(self) -> None:
        """Solve, simulate, print, write.

        Raises:
            InputError: an unknown world, or a file that cannot be written.
        """
        check_writable(self.json)
        names = [name.strip() for name in self.worlds.split(",")]
        with bars(self.progress) as progress:
            result = study(names, self.num_requests, self.seeds, progress)
        console = terminal_console()
        show(_grid(result), console, self.wide)
        if result.theorems:
            show(_theorems(result), console, self.wide)
        write_json(self.json, result)


MARKS = {"exact": "", "below": "< ", "above": ">= "}
"""Before a load where the search ended at its lowest or at its highest."""


def _grid(result: Region) -> Grid:
    """A part for each world."""
    heads = (
        *(Head("router", "name"), Head("theory, % of the most"), Head("simulated, %")),
        Head("unfinished at 97 %, %"),
    )
    parts = [
        Part([_row(one) for one in result.carried if one.world == world], f"{world}: at most {most:.4f} requests/unit")
        for world, most in result.capacity.items()
    ]
    caption = (
        "The most: what the linear programme over classes and replicas allows. Simulated: the largest load with at "
        f"most {UNFINISHED:.2%} of its requests unfinished at every replica when the last of {result.requests} arrives"
    )
    if any(one.bound == "below" for one in result.carried):
        caption += "; <: more are at the lowest load already, for which runs may be too short"
    return Grid(heads, parts, caption)


def _row(one: Carried) -> tuple[str, ...]:
    theory = None if one.theory is None else 100.0 * one.theory
    return (
        one.router,
        figure(theory, ".1f"),
        MARKS[one.bound] + figure(100.0 * one.simulated, ".1f"),
        figure(100.0 * one.unfinished, ".2f"),
    )


def _theorems(result: Region) -> Grid:
    """A part for each load."""
    heads = (
        *(Head("router", "name"), Head("scheduler", "name"), Head("unfinished half-way"), Head("at the end")),
        *(Head("of all, %"), Head("undone work, % at least"), Head("mean response, units", "number", 1)),
    )
    parts = [
        Part(
            [_loaded(one) for one in result.theorems if one.load == load], f"4 equal replicas, {load:.0%} of the bound"
        )
        for load in dict.fromkeys(one.load for one in result.theorems)
    ]
    caption = (
        f"Requests unfinished when half and when all of {result.requests} have come. Theorem 1: above the bound they "
        "grow for ever, whatever routes and schedules; theorem 2: below it RAD behind a random router keeps up"
    )
    return Grid(heads, parts, caption)


def _loaded(one: Loaded) -> tuple[str, ...]:
    counts = figure(one.unfinished_half_way, ".0f"), figure(one.unfinished, ".0f")
    shares = figure(100.0 * one.share, ".2f"), figure(100.0 * one.undone, ".2f")
    return one.router, one.scheduler, *counts, *shares, figure(one.mean_response, ".0f")
