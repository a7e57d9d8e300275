"""`llmsched capacity`: the largest load that each policy sustains, by both criteria."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from agents.evaluation.capacity import CapacityResult, Search, search_capacity
from agents.evaluation.fleet import Fleet
from agents.fleet_options import FleetOptions
from agents.options import ComparisonOptions, parse_rates
from agents.reporting.capacity_tables import capacity_grids, capacity_remarks
from agents.reporting.grid import print_lines, show, terminal_console
from agents.work.files import check_writable, claimed, write_json
from agents.work.processes import workers_for
from agents.work.progress import OnProgress, bars
from engine.cluster.seats import Seat
from engine.errors import InputError
from engine.ranges import Rate, number


@dataclass(frozen=True, kw_only=True)
class Command(ComparisonOptions, FleetOptions):
    """Find the largest arrival rate that each policy sustains, by the paper's and by the sound criterion.

    With --replicas or --fleet that of several servers behind a router, each with the policy.
    """

    rates: str | None = None
    """Grid instead of bisection: 1.0,1.4,1.8 or 1.0:2.0:0.1."""
    low: Rate | None = None
    """Bisection starts between this rate (default: 0.1 for each replica) ..."""
    high: Rate | None = None
    """... and this one, requests/s (default: 4 for each replica),"""
    tolerance: Annotated[float, number(0.0, 1e6, above=True)] | None = None
    """and ends when they are this close (default: 0.01 for each replica)."""
    router: str | None = None
    """Router in front of the replicas (`llmsched routers`; default: least_tokens)."""
    out: Path = Path("out/capacity")
    """Folder of the results (capacity.json, cells.jsonl)."""

    def search(self) -> Search:
        """Where to look.

        Raises:
            InputError: options that do not fit.
        """
        if self.rate_scale != 1.0:
            raise InputError("rate_scale: expected 1, since the capacity search sets the rate itself")
        rates, fleet = None if self.rates is None else parse_rates(self.rates), self.behind()
        replicas = 1 if fleet is None else len(fleet.seats(""))
        return Search(
            rates=rates,
            low=0.1 * replicas if self.low is None else self.low,
            high=4.0 * replicas if self.high is None else self.high,
            tolerance=0.01 * replicas if self.tolerance is None else self.tolerance,
            fleet=fleet,
            **self.setup(),
        )

    def behind(self) -> Fleet | None:
        """The replicas behind their router; None: one server.

        Raises:
            InputError: a router without replicas, or replicas that cannot be.
        """
        if self.replicas is None and self.fleet is None:
            if self.router is not None:
                raise InputError("router: expected --replicas or --fleet beside it, got neither")
            return None
        return Fleet.of(self.router or "least_tokens", self.seats(Seat("", self.model(), self.engine)))

    def run(self) -> None:
        """Search, print, write.

        Raises:
            InputError: options that do not fit, or a place that cannot be written.
        """
        search = self.search()
        check_writable(self.json)
        with claimed(self.out, "capacity"), bars(self.progress) as progress:
            result = self._search(search, progress)
        console = terminal_console()
        for grid in capacity_grids(result):
            show(grid, console, self.wide)
        print_lines(console, capacity_remarks(result))
        print(f"written: {self.json or self.out / 'capacity.json'}")

    def _search(self, search: Search, progress: OnProgress) -> CapacityResult:
        progress("getting ready", 0, 0)
        result = search_capacity(
            search,
            workers=workers_for(self.workers),
            cells_path=self.out / "cells.jsonl",
            resume=self.resume,
            on_cell=partial(progress, "cells"),
        )
        for path in (self.out / "capacity.json", self.json):
            write_json(path, result)
        return result
