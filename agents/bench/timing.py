"""Rates that are compared, measured in turn in one process, so that all meet the same machine."""

from collections.abc import Callable, Mapping
from statistics import median


def alternate(rounds: int, rates: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Median of each rate over the rounds; within a round every one is measured once, in turn."""
    seen: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(rounds):
        for name, rate in rates.items():
            seen[name].append(rate())
    return {name: median(values) for name, values in seen.items()}
