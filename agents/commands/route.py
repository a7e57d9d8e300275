"""`llmsched route`: routers head to head in front of a fleet of replicas, on the same arrivals."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agents.evaluation.setup import Setup
from agents.fleet_options import FleetOptions
from agents.options import GoodputOptions, ReportOptions, RunsOptions, ServerOptions, SourceOptions, UpToMillion
from agents.reporting.grid import print_lines, show, terminal_console
from agents.reporting.result_folder import ResultFolder
from agents.reporting.route_plots import draw_all
from agents.reporting.route_tables import (
    difference_grid,
    fleet_grid,
    html_text,
    markdown_text,
    remark_lines,
    replica_grid,
)
from agents.routers import is_router_folder
from agents.studies.route.records import Routes
from agents.studies.route.run import Routing, run_routing
from agents.work.files import claimed
from agents.work.processes import workers_for
from agents.work.progress import OnProgress, bars
from engine.cluster.seats import Seat
from engine.ranges import Rate
from engine.spec import split_specs

USUAL_REPLICAS = 4


@dataclass(frozen=True, kw_only=True)
class Command(SourceOptions, ServerOptions, GoodputOptions, FleetOptions, RunsOptions, ReportOptions):
    """Compare routers in front of a fleet of replicas: the fleet, paired differences, how far replicas are apart.

    Four replicas, unless --replicas or --fleet says otherwise, each the same server with the same policy. Finished
    runs are kept in OUT/cells.jsonl: after an interruption --resume goes on from there.
    """

    routers: str = "random,least_tokens,jsq"
    """Routers, comma separated (`llmsched routers` lists them): jsq:age=5, power_of_d:d=3, pretrained-router:age=1, the
    folder of a trained one, classes of your own (module:Class or path/file.py:Class); the others are compared with the
    first."""
    policy: str = "slai"
    """Policy of each replica: a baseline, pretrained, the folder of a trained one, a class of your own."""
    rate: Rate | None = None
    """Arrival rate of the whole fleet, requests/s (default 1.6 for each replica, or the recorded times of a trace)."""
    rates: str | None = None
    """Several of them: 4,8 or 4:8:1 (both ends included)."""
    seeds: UpToMillion = 3
    """Seeds 0 ... N-1, each a common trace for all routers."""
    out: Path = Path("out/route")
    """Folder of the results (route.json, table.md, report.html, its plots, cells.jsonl)."""

    def routing(self) -> Routing:
        """What to run.

        Raises:
            InputError: options that do not fit.
        """
        fleet = self.seats(Seat(self.policy, self.model(), self.engine), USUAL_REPLICAS)
        setup = Setup(
            policies=tuple(dict.fromkeys(seat.policy for seat in fleet)),
            source=self.source(),
            seeds=self.seeds,
            reference=fleet[0].policy,
            profile=self.model(),
            config=self.engine,
            horizon_s=self.horizon,
            warmup_s=self.warmup,
            goodput=self.limits(),
        )
        specs = split_specs(self.routers, is_router_folder)
        return Routing(routers=specs, fleet=fleet, setup=setup, loads=self._loads(len(fleet)))

    def _loads(self, replicas: int) -> tuple[float | None, ...]:
        """The loads of the fleet; where none is said, that of one server for each replica."""
        loads = self.loads(self.rate, self.rates)
        is_said = self.rate is not None or self.rates is not None
        return loads if is_said else tuple(None if load is None else load * replicas for load in loads)

    def run(self) -> None:
        """Run, print, write.

        Raises:
            InputError: options that do not fit, or a place that cannot be written.
        """
        routing = self.routing()
        places = ResultFolder(self.out, "route", self.json, self.report)
        places.check()
        with claimed(self.out, "route"), bars(self.progress) as progress:
            result = self._run(routing, progress)
            images = draw_all(result)
            places.write(result, markdown_text(result), partial(html_text, result, images), images)
        console = terminal_console()
        for grid in (fleet_grid(result), difference_grid(result), replica_grid(result)):
            if grid is not None:
                show(grid, console, self.wide)
        print_lines(console, remark_lines(result))
        print(*places.lines(), sep="\n")

    def _run(self, routing: Routing, progress: OnProgress) -> Routes:
        progress("getting ready", 0, 0)
        workers = workers_for(self.workers)
        return run_routing(routing, workers=workers, folder=self.out, resume=self.resume, progress=progress)
