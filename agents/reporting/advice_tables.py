"""Advice on settings as tables and lines."""

from collections.abc import Iterator

from agents.evaluation.statistics import Interval
from agents.reporting.grid import Grid, Head, Part, figure
from agents.studies.advice.judge import Advice, Regime, Row
from agents.studies.advice.replicas import Replicas

HEADS = (
    Head("policy", "name"),
    Head("carries, req/s"),
    Head("SLO kept, %", "number", 2),
    Head("goodput, req/s"),
    Head("gain, req/s"),
    Head("at your load", "number", 1),
)
REGIME_HEADS = (
    Head("req/s", "name"),
    Head("best setting of vLLM", "name"),
    Head("gain, req/s"),
    Head("best policy", "name", 1),
    Head("gain, req/s", "number", 1),
)


def _ranged(interval: Interval, form: str) -> str:
    """A mean with its interval, if there is one."""
    mean, low, high = (figure(value, form) for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]" if interval.low < interval.high else mean


def advice_grids(advice: Advice) -> list[Grid]:
    """What everybody carries, and which setting is best at which load."""
    settings = [_cells(row, advice) for row in advice.rows if row.is_setting]
    others = [_cells(row, advice) for row in advice.rows if not row.is_setting]
    caption = (
        "Carries: the load with the largest goodput (requests/s within the SLO) of those that are met by the sound "
        "criterion (p99 TBT within the SLO, median TTFT < 0.5 s, p99 TTFT < 10 s, no growing queue); gain: goodput "
        "beyond the advised setting's on the same requests; 95 % intervals over the seeds"
    )
    parts = [Part(settings, f"vLLM: the advised setting, then those left of {advice.tried} that were tried")]
    parts += [Part(others, "Other schedulers on the same server")] if others else []
    regimes = Grid(
        REGIME_HEADS,
        [Part([_regime(one, advice) for one in advice.regimes], "Where the answer changes")],
        "Goodput beyond the advised setting's at the upper end of the loads; who adds less than 1 % is not named",
    )
    return [Grid(HEADS, parts, caption), regimes]


def _cells(row: Row, advice: Advice) -> tuple[str, ...]:
    return (
        f"{row.policy}{' (advised)' if row.policy == advice.advised else ''}",
        _ranged(row.carries, ".3f"),
        figure(100.0 * row.attainment or None, ".1f"),
        _ranged(row.goodput, ".3f"),
        "" if row.policy == advice.advised else _ranged(row.gain, "+.3f"),
        "-" if row.at_rate is None else _ranged(row.at_rate, ".3f"),
    )


def _regime(regime: Regime, advice: Advice) -> tuple[str, ...]:
    def beside(policy: str, gain: Interval) -> tuple[str, str]:
        return ("as advised", "") if policy == advice.advised else (policy, _ranged(gain, "+.3f"))

    loads = f"{regime.low:g} to {regime.high:g}" if regime.low < regime.high else f"{regime.low:g}"
    return (loads, *beside(regime.setting, regime.setting_gain), *beside(regime.policy, regime.policy_gain))


def advice_lines(advice: Advice) -> Iterator[str]:
    """The advice in words, and the command line to paste."""
    row = advice.row
    yield f"Traffic: {advice.traffic}"
    asked = "not known (--rate)" if advice.rate is None else f"{advice.rate:.4g} requests/s"
    yield f"Load: {asked}; no scheduler sustains more than {advice.bound:.3g} requests/s of this kind on this device."
    yield (
        f"Advised: {advice.advised} carries {_ranged(row.carries, '.3g')} requests/s, "
        f"of which {row.attainment:.1%} keep the SLO: a goodput of {_ranged(row.goodput, '.3f')} requests/s."
    )
    if advice.rate is not None and advice.rate > row.carries.mean:
        yield f"Your load is more than one GPU carries: {advice.rate:.4g} against {row.carries.mean:.4g} requests/s."
    yield from _better(advice)
    if grid := advice.grid:
        yield (
            f"Of all {grid.settings} settings served in full {grid.best} has the best goodput, "
            f"{grid.best_goodput:.3f} requests/s; the advised one has {grid.advised_goodput:.3f} ({grid.share:+.2%})."
        )
    yield from advice.notes
    yield advice.command


def _better(advice: Advice) -> Iterator[str]:
    """The scheduler that carries more for sure, if there is one."""
    better = [row for row in advice.rows if not row.is_setting and row.gain.low > 0.0]
    if better:
        best = max(better, key=lambda row: row.goodput.mean)
        share = best.gain.mean / advice.row.goodput.mean if advice.row.goodput.mean else 0.0
        gain = _ranged(best.gain, "+.3f")
        yield (
            f"A better scheduler on the same server: {best.policy} carries {_ranged(best.carries, '.3g')} requests/s, "
            f"a goodput {gain} requests/s ({share:+.0%}) beyond."
        )


def replica_grid(day: Replicas) -> Grid:
    """GPUs by the hour."""
    rows = [(f"{one.start_h:g}", f"{one.hours:g}", f"{one.rate:g}", str(one.gpus)) for one in day.stretches]
    heads = (Head("from hour"), Head("hours", "number", 1), Head("req/s"), Head("GPUs"))
    return Grid(heads, [Part(rows, "GPUs over the day")])


def replica_lines(day: Replicas) -> Iterator[str]:
    """The day in a line or two."""
    yield (
        f"GPUs: {day.peak} at the peak, {day.mean:.2f} in the mean ({day.gpu_hours:g} GPU hours a day), each with at "
        f"most {day.load:.3g} requests/s."
    )
    if day.cost is not None and day.peak_cost is not None:
        yield f"Price: {day.cost:,.2f} a day as the hours need it, {day.peak_cost:,.2f} with the peak's GPUs all day."
