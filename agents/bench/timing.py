"""Rates that are compared, measured in turn in one process, so that all meet the same machine; memory of a process."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median


def alternate(rounds: int, rates: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Median of each rate over the rounds; within a round every one is measured once, in turn."""
    seen: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(rounds):
        for name, rate in rates.items():
            seen[name].append(rate())
    return {name: median(values) for name, values in seen.items()}


def peak_mib() -> float:
    """Largest resident size of this process so far (MiB)."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike ru_maxrss it does not start from the size of the parent.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024.0 * 1024.0)
