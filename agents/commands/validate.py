"""`llmsched validate`: a profile beside what it stands for, a real executor or the run of a real server."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from agents.device import validate
from agents.device.against import replay, with_limits
from agents.evaluation.arrivals import arrivals_note, by_load
from agents.options import ProgressOptions, ServerOptions, SourceOptions, TableOptions, parse_rates
from agents.policies import resolve, split_policies
from agents.reporting.against_page import html_of, plot_replay
from agents.reporting.against_tables import grids, origin, remarks
from agents.reporting.grid import Grid, Head, Part, figure, print_lines, show, terminal_console
from agents.reporting.study_plots import check_plot, write_plot
from agents.work.files import check_writable, write_atomically, write_json
from agents.work.progress import bars
from engine.demand.server_run import LIMITS, OPTIONS, read_run
from engine.errors import InputError
from engine.extras import need
from engine.ranges import Seed

_NOT_OF_A_RUN = (
    *("executor", "policies", "shares", "rescale", "semantics", "horizon", "warmup"),
    *(own.name for own in fields(SourceOptions)),
)
"""Options that say nothing of the run of a real server."""


@dataclass(frozen=True, kw_only=True)
class Command(SourceOptions, ServerOptions, ProgressOptions, TableOptions):
    """A profile beside a real executor on the same traces, or beside the log of a real server's run."""

    against: Path | None = None
    """The run of a real server instead of an executor: NAME-requests.jsonl (`engine.demand.server_run`), with
    NAME-meta.json (limits) and NAME-timeseries.csv beside it if they are there. Limits as options win over its own."""
    policy: str = "vllm_v1"
    """What scheduled in that run; its token budget and seats are the server's limits unless they are given."""
    plot: Path | None = None
    """Also plot what that run and its simulation did each second to this PNG file."""
    report: Path | None = None
    """Also write all of that, tables and plot, to this HTML file."""
    executor: str = "transformers"
    """transformers (Mistral-7B on CUDA, random weights), transformers:tiny (CPU), transformers:FOLDER."""
    policies: str = "sarathi,slai"
    """Policies, comma separated: baselines, folders of trained policies, classes of your own (FILE.py:Class)."""
    shares: str = "0.5,0.9,1.1"
    """Arrival rates as shares of the surrogate's capacity (Sarathi's throughput with all requests there at once)."""
    rescale: bool = False
    """Give the surrogate the speed that the device has in each run: for machines whose speed drifts."""
    seed: Seed = 0
    """Draws the requests, and predictions of lengths."""
    json: Path | None = None
    """Also write every figure to this file."""

    def run(self) -> None:
        """Serve, compare, print, write.

        Raises:
            InputError: options that do not fit, no such device or run, or a file that cannot be written.
        """
        check_writable(self.json)
        if self.against is None:
            self._refuse(("policy", "plot", "report"), "--against beside it")
            self._beside_executor()
        else:
            self._refuse(_NOT_OF_A_RUN, "none beside --against")
            self._beside_run(self.against)

    def _refuse(self, names: Iterable[str], expected: str) -> None:
        """Find an option that says nothing in the chosen mode."""
        for name in names:
            if getattr(self, name) != getattr(Command, name):
                raise InputError(f"{name}: expected {expected}, got {getattr(self, name)}")

    def _beside_run(self, path: Path) -> None:
        """The run of a real server and its simulation."""
        check_plot(self.plot)
        check_plot(self.report)  # which has the plot in it
        run, model = read_run(path), self.model()
        limits = run.limits | self._given_limits()
        result = replay(run, with_limits(self.policy, limits), model, self.engine.replace(**limits), self.seed)
        console = terminal_console()
        print_lines(console, origin(result))
        for grid in grids(result):
            show(grid, console, self.wide)
        print_lines(console, remarks(result))
        write_json(self.json, result)
        write_plot(self.plot, partial(plot_replay, result))
        if self.report is not None:
            write_atomically(self.report, html_of(result))

    def _given_limits(self) -> dict[str, int | str]:
        """The limits of the server that options say: those that are not the defaults."""
        defaults = (self.preset() or Command()).engine
        given = {name: getattr(self.engine, name) for name in (*LIMITS, *OPTIONS)}
        return {name: value for name, value in given.items() if value != getattr(defaults, name)}

    def _beside_executor(self) -> None:
        """A real executor and its surrogate."""
        shares, policies = parse_rates(self.shares, "shares"), [resolve(spec) for spec in split_policies(self.policies)]
        source, model = self.source(), self.model()
        need("real", "executor")
        from engine.device.real.executor import ROOM, make_executor

        executor = make_executor(self.executor, int(ROOM * self.engine.capacity_tokens), self.seed)
        limit = validate.capacity(source, model, self.engine)
        rates = [share * limit for share in shares]
        with bars(self.progress) as progress:
            twins = validate.Twins(executor, model, self.engine, self.rescale)
            rows = validate.compare(policies, source, rates, twins, self.seed, progress)
        console = terminal_console()
        show(_table(rows, limit, self.profile), console, self.wide)
        print_lines(console, (_ranking(rows, share, rate) for share, rate in zip(shares, rates, strict=True)))
        print_lines(console, [arrivals_note(by_load((row.rate, row.arrival_rate) for row in rows))])
        result = {
            "executor": executor.provenance(),
            "profile": model.name,
            "capacity": limit,
            "config": {"tiers": [asdict(tier) for tier in source.tiers]},
            "rescaled": self.rescale,
            "rows": rows,
        }
        write_json(self.json, result)


def _ranking(rows: list[validate.Row], share: float, rate: float) -> str:
    """Whether device and surrogate rank the policies alike at one rate."""
    words = {True: "the same", False: "NOT the same"}
    same = {of: words[validate.same_ranking(rows, rate, f"{of}_ttft_ms")] for of in ("median", "p99")}
    return f"{share:g} of capacity: ranking {', '.join(f'by {of} TTFT {word}' for of, word in same.items())}"


def _table(rows: list[validate.Row], limit: float, profile: str) -> Grid:
    cells = []
    for row in rows:
        figures = (
            f"{figure(row.device[key], '.4g')} / {figure(row.surrogate[key], '.4g')} ({figure(row.ratio[key], '.2f')})"
            for key in validate.METRICS
        )
        cells.append((f"{row.rate:.3g}", row.policy, *figures, f"{row.batches:.2f}", str(row.fallbacks)))
    figure_heads = [Head(title, "number", int("median" not in title)) for title in validate.METRICS.values()]
    heads = (Head("requests/s", "name"), Head("policy", "name"), *figure_heads)
    more = (Head("batches", "number", 2), Head("fallbacks", "number", 3))
    caption = f"capacity {limit:.2f} requests/s; batches: predicted / measured seconds of the device's own batches"
    return Grid((*heads, *more), [Part(cells, f"Device / surrogate {profile}, ms (surrogate / device)")], caption)
