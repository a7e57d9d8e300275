"""At which rate requests really came, beside the rate that was asked for."""

import math
from collections.abc import Iterable, Mapping


def by_load(pairs: Iterable[tuple[float | None, float | None]]) -> dict[float | None, list[float]]:
    """Realised rates (requests/s) by the load that was asked for; pairs without a finite rate are left out."""
    found: dict[float | None, list[float]] = {}
    for load, rate in pairs:
        if rate is not None and math.isfinite(rate):
            found.setdefault(load, []).append(rate)
    return found


def _one(load: float | None, rates: list[float]) -> str:
    mean, low, high = (f"{rate:.3g}" for rate in (sum(rates) / len(rates), min(rates), max(rates)))
    came = mean if low == high else f"{mean} ({low} to {high})"
    return f"recorded {came}" if load is None else f"asked {load:g}, came {came}"


def arrivals_note(rates: Mapping[float | None, list[float]]) -> str:
    """One line: mean (lowest to highest over the traces) for each load; "" where nothing is known."""
    if not rates:
        return ""
    return f"Arrivals, requests/s: {'; '.join(_one(load, found) for load, found in rates.items())}."
