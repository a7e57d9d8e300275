"""`llmsched region`: what replicas that differ carry behind a router, by a linear programme and by simulation."""

from dataclasses import dataclass
from pathlib import Path

from agents.options import ProgressOptions, TableOptions, UpToMillion
from agents.reporting.grid import Grid, Head, Part, figure, show, terminal_console
from agents.studies.region import UNFINISHED, WORLDS, Carried, Region, study
from agents.work.files import check_writable, write_json
from agents.work.progress import bars
from engine.ranges import Count


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions, ProgressOptions):
    """Measure what routers carry: equal replicas, replicas of several speeds, kinds that suit different requests."""

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
        show(_grid(result), terminal_console(), self.wide)
        write_json(self.json, result)


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
    return Grid(heads, parts, caption)


def _row(one: Carried) -> tuple[str, ...]:
    theory = None if one.theory is None else 100.0 * one.theory
    return (
        one.router,
        figure(theory, ".1f"),
        figure(100.0 * one.simulated, ".1f"),
        figure(100.0 * one.unfinished, ".2f"),
    )
