"""`llmsched bench`: the measurements of `agents.bench.speed`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.bench import speed
from agents.options import ProgressOptions, TableOptions
from agents.reporting.grid import Grid, Head, Part, show, terminal_console
from agents.work.files import check_writable, write_json
from agents.work.progress import bars
from engine.errors import InputError
from engine.extras import need

GOALS: dict[str, tuple[str, float]] = {
    "simulate_iterations_per_s": (">=", 500_000),
    "capacity_curve_s": ("<=", 3.0),
    "vector_env_steps_per_s": (">=", 400_000),
    "scalar_to_cartpole": (">=", 0.6),
    "ppo_to_null_env": (">=", 0.85),
    "cold_start_s": ("<=", 20.0),
    "warm_start_s": ("<=", 1.5),
    "simulate_peak_mib": ("<=", 250.0),
    "slowest_policy_to_sarathi": (">=", 0.2),
    "cluster_4_to_simulate": ("<=", 1.15),
    "cluster_16_to_simulate": ("<=", 1.4),
    "routing_decisions_per_s": (">=", 60_000),
    "cluster_peak_mib": ("<=", 1536.0),
    "router_env_decisions_per_s": (">=", 40_000),
}
"""What each figure must reach on a quiet machine."""


@dataclass(frozen=True)
class Command(TableOptions, ProgressOptions):
    """Measure speed and memory: one thread, medians, peers in turn in the same process."""

    only: str | None = None
    """Comma-separated measurements: simulate, capacity, vector, scalar, ppo, start, peak, growth, policies, cluster,
    cluster_peak, router (default: all)."""
    scale: float = 1.0
    """Size of the measurements; below 1 they are quicker and less exact."""
    json: Path | None = None
    """Also write every figure to this file."""

    def _names(self) -> list[str]:
        """The measurements that are wanted."""
        if self.only is None:
            names = [*speed.MEASUREMENTS]
        else:
            names = [name.strip() for name in self.only.split(",")]
        for name in names:
            if name not in speed.MEASUREMENTS:
                raise InputError(f"only: expected measurements among {', '.join(speed.MEASUREMENTS)}, got {name!r}")
        if "ppo" in names:
            need("train", "bench: ppo")
        return names

    def run(self) -> None:
        """Measure, print, write.

        Raises:
            InputError: an unknown measurement, a scale that is not positive, or a file that cannot be written.
        """
        names = self._names()
        if not 0.0 < self.scale <= 100.0:
            raise InputError(f"scale: expected a number in (0, 100], got {self.scale}")
        check_writable(self.json)
        console = terminal_console()
        with bars(self.progress) as progress:
            result = speed.bench(names, self.scale, progress)
        show(_figures(result), console, self.wide)
        for part in result.get("growth", {}).values():
            show(_growth(part), console, self.wide)
        if "policy_to_sarathi" in result:
            show(_policies(result), console, self.wide)
        write_json(self.json, result)


def _figures(result: dict[str, Any]) -> Grid:
    machine, rows = result["machine"], []
    for name, value in result.items():
        if isinstance(value, int | float) and name not in ("scale", "threads"):
            measured = f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
            rows.append((name, measured, *_held(name, value)))
    title = f"{machine['processor']}, {machine['cores']} cores, load {machine['load'] or 0:.1f}, one thread"
    heads = (Head("figure", "name"), Head("measured"), Head("goal"), Head("held", "prose"))
    return Grid(heads, [Part(rows, title)])


def _held(name: str, value: float) -> tuple[str, str]:
    """The goal of a figure, and whether it is held; nothing where there is none."""
    if name not in GOALS:
        return "", ""
    sign, goal = GOALS[name]
    return f"{sign} {goal:,g}", "yes" if (value >= goal if sign == ">=" else value <= goal) else "NO"


def _policies(result: dict[str, Any]) -> Grid:
    shares = result["policy_to_sarathi"]
    rows = [(name, f"{rate:,.0f}", f"{shares[name]:.2f}") for name, rate in result["policy_iterations_per_s"].items()]
    heads = (Head("policy", "name"), Head("iterations/s"), Head("to Sarathi"))
    return Grid(heads, [Part(rows, "64 requests running, about 200 waiting")])


def _growth(rows: list[dict[str, Any]]) -> Grid:
    first = next(iter(rows[0]))
    unit = "environment steps per s" if first == "rows" else "ns per iteration of a whole simulation"
    cells = [[f"{value:,.0f}" for value in row.values()] for row in rows]
    return Grid([Head(name) for name in rows[0]], [Part(cells, f"Growth with {first}, {unit}")])
