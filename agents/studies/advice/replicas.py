"""GPUs over a day: as many as the rate of each hour needs, where one carries what was found.

Requests are taken to be spread evenly, so that each GPU gets arrivals of the same kind at its share of the rate; GPUs
come and go at once at the hours of the profile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.demand.rate_profile import Stretch
from engine.errors import InputError


@dataclass(frozen=True)
class Staffed:
    """A part of the day."""

    start_h: float
    hours: float
    rate: float
    """Requests/s that come."""
    gpus: int


@dataclass(frozen=True)
class Replicas:
    """What a day takes; the fields are keys of advice.json."""

    load: float
    """Requests/s that are given to one GPU at most: the least load of any seed at which the advised setting carries
    most."""
    stretches: tuple[Staffed, ...]
    peak: int
    """Most GPUs at a time."""
    mean: float
    """GPUs in the mean over the day."""
    gpu_hours: float
    """Of a day with as many GPUs as each hour needs."""
    price: float | None
    """Of a GPU hour; None: not said."""
    cost: float | None
    """Of such a day."""
    peak_cost: float | None
    """Of a day with as many GPUs as its peak needs."""


def replicas(day: Sequence[Stretch], load: float, price: float | None) -> Replicas:
    """Count the GPUs.

    Args:
        day: the rates; their hours sum to the day.
        load: requests/s that one GPU is given at most.
        price: of a GPU hour.

    Raises:
        InputError: one GPU carries nothing.
    """
    if not load > 0.0:
        raise InputError(
            "replicas: expected a setting that meets the SLO on every trace, got one that carries 0 on some"
        )
    staffed = tuple(Staffed(one.start_h, one.hours, one.rate, _needed(one.rate, load)) for one in day)
    hours, gpu_hours = sum(one.hours for one in staffed), sum(one.hours * one.gpus for one in staffed)
    peak = max(one.gpus for one in staffed)
    return Replicas(
        load=load,
        stretches=staffed,
        peak=peak,
        mean=gpu_hours / hours,
        gpu_hours=gpu_hours,
        price=price,
        cost=None if price is None else price * gpu_hours,
        peak_cost=None if price is None else price * peak * hours,
    )


def _needed(rate: float, load: float) -> int:
    """GPUs for a rate; a rate that is a whole multiple of the load up to rounding takes no further one."""
    return math.ceil(rate / load - 1e-9)
