"""The arrival processes that workloads name: what each is, which keys its spec takes, how it draws times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from engine.demand import arrivals
from engine.demand.arrivals import FloatArray

if TYPE_CHECKING:
    from engine.demand.workload import Workload

ArrivalName = Literal["poisson", "gamma", "onoff", "ramp", "step", "burst", "toy", "recorded", "closed"]
"""The names in `PROCESSES`, for command lines."""
_COMMON_KEYS = ("num_requests", "lengths", "trace", "unservable", "max_concurrency")
_RATE_KEYS = ("rate", *_COMMON_KEYS, "gap_cap")


@dataclass(frozen=True)
class Process:
    """One arrival process."""

    about: str
    """What it is, in a line."""
    keys: tuple[str, ...]
    """Fields of a workload that its spec may set."""
    describe: Callable[[Workload], str]
    """A workload's arrivals in a few words."""
    times: Callable[[Workload, np.random.Generator], FloatArray]
    """Draws a workload's arrival times, float64[num_requests] (s)."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a workload that its name alone sets."""

    @property
    def has_rate(self) -> bool:
        """Whether requests arrive at a rate that can be chosen."""
        return "rate" in self.keys


def _operational(workload: Workload, rng: np.random.Generator, cv: float = 1.0) -> FloatArray:
    """Sums of gaps of mean 1, float64[num_requests]."""
    return arrivals.operational_times(rng, workload.num_requests, cv, workload.gap_cap)


def _poisson(workload: Workload, rng: np.random.Generator) -> FloatArray:
    return _operational(workload, rng) / workload.rate


def _gamma(workload: Workload, rng: np.random.Generator) -> FloatArray:
    return _operational(workload, rng, workload.cv) / workload.rate


def _onoff(workload: Workload, rng: np.random.Generator) -> FloatArray:
    rates = (workload.off_factor * workload.rate, workload.on_factor * workload.rate)
    return arrivals.on_off(rng, _operational(workload, rng), rates, (workload.off_mean_s, workload.on_mean_s))


def _ramp(workload: Workload, rng: np.random.Generator) -> FloatArray:
    return arrivals.ramp(_operational(workload, rng), workload.rate, workload.ramp_end_rate)


def _step(workload: Workload, rng: np.random.Generator) -> FloatArray:
    rates = (workload.rate, workload.step_factor * workload.rate)
    sojourns_s = (workload.step_every_s - workload.step_s, workload.step_s)
    return arrivals.steps(_operational(workload, rng), rates, sojourns_s)


def _at_once(workload: Workload, rng: np.random.Generator) -> FloatArray:
    return np.zeros(workload.num_requests)


def _evenly(workload: Workload, rng: np.random.Generator) -> FloatArray:
    return arrivals.evenly_spaced(workload.num_requests, workload.rate)


PROCESSES: dict[str, Process] = {
    "poisson": Process(
        "exponential gaps at a constant rate",
        _RATE_KEYS,
        lambda w: f"Poisson arrivals at {w.rate:g}/s",
        _poisson,
    ),
    "gamma": Process(
        "Gamma gaps at a constant rate: cv below 1 is smoother than Poisson, above 1 burstier",
        (*_RATE_KEYS, "cv"),
        lambda w: f"Gamma arrivals at {w.rate:g}/s with CV {w.cv:g}",
        _gamma,
    ),
    "onoff": Process(
        "Poisson with a rate that jumps between two levels (MMPP-2)",
        (*_RATE_KEYS, "off_factor", "on_factor", "off_mean_s", "on_mean_s"),
        lambda w: (
            f"on-off arrivals at {w.off_factor:g} and {w.on_factor:g} times {w.rate:g}/s "
            f"for {w.off_mean_s:g} s and {w.on_mean_s:g} s in the mean"
        ),
        _onoff,
    ),
    "ramp": Process(
        "Poisson with a rate that goes linearly from rate to ramp_end_rate",
        (*_RATE_KEYS, "ramp_end_rate"),
        lambda w: f"Poisson arrivals, {w.rate:g}/s going linearly to {w.ramp_end_rate:g}/s",
        _ramp,
    ),
    "step": Process(
        "Poisson with a rate that is step_factor times as high for the last step_s seconds of every step_every_s",
        (*_RATE_KEYS, "step_factor", "step_s", "step_every_s"),
        lambda w: (
            f"Poisson arrivals at {w.rate:g}/s, {w.step_factor:g} times that for {w.step_s:g} of every "
            f"{w.step_every_s:g} s"
        ),
        _step,
    ),
    "burst": Process("every request at t = 0", _COMMON_KEYS, lambda w: "all arrivals at t = 0", _at_once),
    "toy": Process(
        "equal requests at equal distances, nothing random: latencies can be computed by hand",
        ("rate", "num_requests", "lengths", "max_concurrency"),
        lambda w: f"toy arrivals every {1.0 / w.rate:g} s",
        _evenly,
        {"rate": 0.5, "num_requests": 8, "lengths": "fixed:512,8"},
    ),
    "recorded": Process(
        "rows of a trace file one after the other at their recorded times, from a random row on",
        ("num_requests", "trace", "unservable", "max_concurrency"),
        lambda w: "arrivals at recorded times from a random row on",
        _at_once,
    ),
    "closed": Process(
        "users who each send a request, wait for all of it, think (exp:MEAN or fixed:SECONDS) and send the next",
        ("concurrency", "think", "num_requests", "lengths", "trace", "unservable"),
        lambda w: "",
        _at_once,
    ),
}
"""Every arrival process by name. Times of `recorded` come from the trace, those of `closed` from its users."""
