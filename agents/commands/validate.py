"""`llmsched validate`: a real executor and its surrogate side by side."""

from dataclasses import asdict, dataclass
from pathlib import Path

from agents.device import validate
from agents.evaluation.arrivals import arrivals_note, by_load
from agents.options import ProgressOptions, ServerOptions, SourceOptions, TableOptions, parse_rates
from agents.policies import resolve, split_policies
from agents.reporting.grid import Grid, Head, Part, figure, print_lines, show, terminal_console
from agents.work.files import check_writable, write_json
from agents.work.progress import bars
from engine.extras import need
from engine.ranges import Seed


@dataclass(frozen=True, kw_only=True)
class Command(SourceOptions, ServerOptions, ProgressOptions, TableOptions):
    """The same traces through a real executor and through its fitted profile: TTFT, TBT and ranking side by side."""

    executor: str = "transformers"
    """transformers (Mistral-7B on CUDA, random weights), transformers:tiny (CPU), transformers:FOLDER."""
    policies: str = "sarathi,slai"
    """Policies, comma separated: baselines, folders of trained policies, classes of your own (FILE.py:Class)."""
    shares: str = "0.5,0.9,1.1"
    """Arrival rates as shares of the surrogate's capacity (Sarathi's throughput with all requests there at once)."""
    rescale: bool = False
    """Give the surrogate the speed that the device has in each run: for machines whose speed drifts."""
    seed: Seed = 0
    """Draws the requests."""
    json: Path | None = None
    """Also write every figure to this file."""

    def run(self) -> None:
        """Serve, compare, print, write.

        Raises:
            InputError: options that do not fit, no such device, or a file that cannot be written.
        """
        shares, policies = parse_rates(self.shares, "shares"), [resolve(spec) for spec in split_policies(self.policies)]
        check_writable(self.json)
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
