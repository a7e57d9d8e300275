"""`llmsched ab`: policies in a real server on the same arrivals, beside each other and beside their simulation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from agents.options import TableOptions, parse_rates
from agents.policies import split_policies
from agents.reporting.grid import Grid, Head, Part, figure, print_lines, show, terminal_console
from agents.vllm.agreement import compare, fit_profile, to_dict
from agents.vllm.late import GRAPH_TOKENS, late_of
from agents.vllm.orders import Difference, Pair, Rank, compare_policies, errors
from agents.vllm.plan import PROBED, PROFILE, Plan
from agents.vllm.results import METRICS, Measured, read_folders
from agents.work.files import check_writable, write_json
from engine.device.latency import LatencyModel, load_profile
from engine.errors import InputError
from engine.extras import need
from engine.ranges import Count

_TITLES = (
    *("TTFT median, s", "mean", "p99", "p99 TBT strict, s"),
    *("E2E mean, s", "SLO met", "goodput, 1/s", "makespan, s"),
)
_SHORT = ("TTFT median", "mean TTFT", "p99 TTFT", "p99 TBT strict", "mean E2E", "SLO met", "goodput", "makespan")
_HIGH = 0.8
"""A rank correlation that is good enough to choose policies by."""


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions):
    """Policies in a real vLLM server on the same arrivals: measured, paired, and beside their simulation.

    With --server vllm servers are started in turn, with --urls those that are there are asked, both over HTTP; FOLDERs
    are what that or `python -m agents.vllm replay` wrote, --results what `vllm bench serve --save-detailed` did.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER [FOLDER ...]")] = ()
    """Folders of earlier runs of one engine, taken together: seeds and repeats of a policy at a load are pooled."""
    without: str = ""
    """Policies of the folders to leave out, such as one that has changed since."""
    server: Literal["none", "vllm"] = "none"
    """Start `vllm serve`: for the policy plain as it is, for all others with our scheduler."""
    urls: tuple[str, ...] = ()
    """Servers that run already (http://host:8000): each gets the same requests."""
    results: tuple[Path, ...] = ()
    """Results of `vllm bench serve --save-detailed`, of the same requests."""
    slo: tuple[str, ...] = ()
    """Deadlines for --results: ttft:2 tbt:0.1 (s)."""
    plan: Path | None = None
    """File with everything that is to be run (`agents.vllm.plan.Plan`), instead of the next five."""
    model: str = "tiny"
    """Folder of the model, or tiny, qwen-0.5b or mistral-7b with random weights."""
    policies: str = "plain,stock,slackfit"
    """Policies for --server; plain: vLLM without our scheduler, stock: our scheduler leaves it to vLLM and logs."""
    rates: str = "4"
    """Arrival rates, requests/s: 1.0,1.4,1.8 or 1.0:2.0:0.2 (both ends included)."""
    num_requests: Count = 200
    """Requests of each cell."""
    seeds: Count = 1
    """Draws of the requests."""
    out: Path = Path("out/ab")
    """Folder of what is measured; cells that are there are not measured again."""
    vllm: str = ""
    """The command of vLLM (default: of this environment, or the first on the path)."""
    profile: str = ""
    """Latency profile that the policies are told and that predicts. Default: what fits a probe of the engine, known
    batches before the first cell of --server vllm; of FOLDERs without one what their scheduler logged in stock mode."""
    fit: Path | None = None
    """Also write the fitted profile to this file."""
    json: Path | None = None
    """Also write every figure to this file."""

    def run(self) -> None:
        """Measure or read, fit, simulate, compare, print, write.

        Raises:
            InputError: nothing to compare, a server that cannot be reached, files of another kind, an unknown policy,
                or a file that cannot be written.
        """
        check_writable(self.json, self.fit)
        cells = self._measured()
        if not cells:
            raise InputError("ab: expected a complete cell at least, got none")
        model = self._model(cells)
        if self.fit and model:
            model.save(self.fit)
        pairs = compare(cells, model)
        differing, found = compare_policies(pairs)
        console = terminal_console()
        for grid in (_cells_grid(pairs), _differences_grid(differing), _ranks_grid(found)):
            if grid.parts[0].rows:
                show(grid, console, self.wide)
        print_lines(console, [*_agreement(pairs, found), *_remarks(pairs)])
        if self.json:
            write_json(self.json, to_dict(pairs, found, differing, model))

    def _measured(self) -> list[Measured]:
        """The cells, served now or read."""
        self._check_source()
        if self.results:
            from agents.vllm.bench_results import read_results

            return read_results(self.results, self.slo)
        if not self.folders:
            self._serve()
        return self._kept(read_folders(self.folders or (self.out,)))

    def _kept(self, cells: Sequence[Measured]) -> list[Measured]:
        left_out = split_policies(self.without) if self.without else ()
        return [cell for cell in cells if cell.cell.policy not in left_out]

    def _check_source(self) -> None:
        asked = {"FOLDERs": self.folders, "--urls": self.urls, "--results": self.results}
        given = [name for name, value in asked.items() if value] + ["--server"] * (self.server != "none")
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise InputError(f"ab: expected one of FOLDERs, --server vllm, --urls, --results, got {got}")

    def _serve(self) -> None:
        need("vllm", "ab")
        from agents.vllm import over_http
        from agents.vllm.serve import executable

        plan = self._asked()
        console = terminal_console()
        if self.urls:
            over_http.at_urls(plan, self.urls, self.out, console.print)
        else:
            over_http.in_turn(plan, executable(self.vllm), self.out, console.print)

    def _asked(self) -> Plan:
        """What is to be served."""
        if self.plan is not None:
            return Plan.read(self.plan)
        return Plan(
            policies=split_policies(self.policies),
            rates=parse_rates(self.rates),
            seeds=tuple(range(self.seeds)),
            num_requests=self.num_requests,
            model=self.model,
            profile=self.profile or PROBED,
        )

    def _model(self, cells: Sequence[Measured]) -> LatencyModel | None:
        """What to predict with; None: nothing is known of the device."""
        if self.profile not in ("", PROBED):
            return load_profile(self.profile)
        places = [folder / PROFILE for folder in self.folders or (self.out,)]
        if probed := next((place for place in places if place.exists()), None):
            return load_profile(str(probed))
        return fit_profile(cells, "engine") if any(cell.steps for cell in cells) else None


def _both(pair: Pair, metric: str) -> str:
    real = pair.real[metric]
    if pair.predicted is None:
        return figure(real, ".3g")
    predicted = pair.predicted[metric]
    error = f" ({100 * (predicted / real - 1):+.0f} %)" if real > 0 and np.isfinite(predicted) else ""
    return f"{figure(real, '.3g')} / {figure(predicted, '.3g')}{error}"


def _cells_grid(pairs: Sequence[Pair]) -> Grid:
    heads = (Head("policy", "name"), Head("rate"), Head("seed"), *(Head(title) for title in _TITLES))
    rows = [
        (
            p.measured.cell.policy,
            f"{p.measured.cell.rate:g}",
            str(p.measured.cell.seed),
            *(_both(p, m) for m in METRICS),
        )
        for p in sorted(pairs, key=lambda p: (p.measured.cell.rate, p.measured.cell.seed))
    ]
    is_predicted = any(pair.predicted for pair in pairs)
    return Grid(heads, [Part(rows, "measured / predicted (error of the prediction)" if is_predicted else "measured")])


def _differences_grid(found: Sequence[Difference]) -> Grid:
    """Every policy against the first one."""
    heads = (Head("policy", "name"), Head("rate"), *(Head(title.partition(",")[0]) for title in _TITLES))
    reference = found[0].reference if found else ""
    by_policy: dict[tuple[str, float], dict[str, str]] = {}
    for one in found:
        if one.reference == reference:
            low, high = figure(one.low, "+.3g"), figure(one.high, "+.3g")
            texts = by_policy.setdefault((one.policy, one.rate), {})
            texts[one.metric] = f"{figure(one.value, '+.3g')} [{low}, {high}]"
    rows = [(policy, f"{rate:g}", *(texts[m] for m in METRICS)) for (policy, rate), texts in by_policy.items()]
    title = f"more than {reference}, on the same requests, 95 % interval over them and over seeds"
    return Grid(heads, [Part(rows, title)])


def _ranks_grid(found: Sequence[Rank]) -> Grid:
    heads = (Head("rate"), Head("pairs", "name"), *(Head(title.partition(",")[0]) for title in _TITLES))
    rows = []
    for rate in dict.fromkeys(one.rate for one in found):
        own = [one for one in found if one.rate == rate]
        every = [f"{figure(o.tau, '.2f')} [{figure(o.low, '.2f')}, {figure(o.high, '.2f')}]" for o in own]
        told = [f"{figure(o.tau_told_apart, '.2f')} of {o.told_apart}" for o in own]
        rows += [(f"{rate:g}", f"all {own[0].pairs}", *every), (f"{rate:g}", "told apart", *told)]
    title = "Kendall's tau of the policies' order, measured and predicted: of all pairs with its 95 % interval, and of \
those that the measurement tells apart"
    return Grid(heads, [Part(rows, title)])


def _agreement(pairs: Sequence[Pair], found: Sequence[Rank]) -> list[str]:
    """How far the predictions are off, and how many of the orders are right."""
    lines = []
    if sizes := errors(pairs):
        named = zip(METRICS, _SHORT, strict=True)
        texts = [f"{title} {100 * sizes[metric]:.0f} %" for metric, title in named if metric in sizes]
        lines.append(f"error of the prediction, median of its size over the cells: {', '.join(texts)}")
    lines += _taus("all pairs", [one.tau for one in found])
    return lines + _taus("pairs told apart", [one.tau_told_apart for one in found])


def _taus(title: str, taus: Sequence[float]) -> list[str]:
    """How many of them are high."""
    known = [tau for tau in taus if np.isfinite(tau)]
    high = sum(tau >= _HIGH for tau in known)
    said = f"tau of {title}: median {np.median(known):.2f}, {high} of {len(known)} at least {_HIGH}" if known else ""
    return [said] if known else []


def _remarks(pairs: Sequence[Pair]) -> list[str]:
    """What the schedulers counted that should not be, requests that did not finish, how late results were seen."""
    names = ("fallbacks", "passed", "stalled", "held_ran", "over_budget", "rebuilt", "refused")
    counted = [pair.measured.counters for pair in pairs if pair.measured.counters]
    totals = ", ".join(f"{name} {sum(counters[name] for counters in counted)}" for name in names)
    lost = sum(int(np.isnan(pair.measured.served.finish).sum()) for pair in pairs)
    lines = [f"counted inside the engine: {totals}"] if counted else []
    return [*lines, *_delays(pairs), *([f"requests that did not finish: {lost}"] if lost else [])]


def _delays(pairs: Sequence[Pair]) -> list[str]:
    """How late results and tokens were seen."""
    late, lines = late_of([pair.measured for pair in pairs]), []
    if np.isfinite(late.launch_s):
        long = f"batches of more than {GRAPH_TOKENS} tokens were launched in {1000 * late.launch_s:.0f} ms"
        lines.append(f"{long} (median of {late.launches}): so long nothing was seen of the batch before")
    if np.isfinite(late.front_s):
        lines.append(f"to the engine and back: {1000 * late.front_s:.1f} ms beside waiting and batches")
    return lines
