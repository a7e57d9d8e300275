"""The range of every number that a command takes, by the name of its option: one meaning per name in all commands."""

from dataclasses import fields
from typing import Any

from engine.demand.workload import BYTES_PER_REQUEST
from engine.machine import check_memory
from engine.ranges import COUNT, RATE, SECONDS, SEED, number, whole

OPTIONS = {
    "seed": SEED,
    "seeds": whole(1, 10**6),
    "workers": whole(1, 10**6),
    "num_requests": COUNT,
    "requests": COUNT,
    "rate": RATE,
    "rate_scale": RATE,
    "warmup": SECONDS,
    "rounds": whole(1, 10**6),
    "total_timesteps": whole(1, 10**12),
    "generations": whole(1, 10**9),
    "updates": whole(1, 10**9),
    "pairs": whole(1, 10**6),
    "limit": COUNT,
    "low": RATE,
    "high": RATE,
    "tolerance": number(0.0, 1e6, above=True),
}
"""Ranges by name; an option that is not given (None) has none."""


def check_options(command: Any) -> None:
    """Check the numbers among the options of a command.

    Raises:
        InputError: one is out of its range, or asks for more requests than there is memory for.
    """
    for field in fields(command):
        value = getattr(command, field.name)
        if field.name in OPTIONS and value is not None:
            OPTIONS[field.name].check(value, field.name)
            if field.name == "num_requests":
                check_memory(value, BYTES_PER_REQUEST, "num_requests")
