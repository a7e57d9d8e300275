"""What the parameters of schedulers count, with their ranges: types of fields that `engine.fields.checked` knows.

The largest values are those that kernels, which count in float64, can count with.
"""

from typing import Annotated, Any, Literal

from engine.ranges import MOST, Bounds

_EXACT = 2**53
"""Up to it float64 counts whole numbers."""


def _counted(low: int, noun: str = "", high: int = _EXACT) -> Bounds:
    return Bounds(low, high, whole=True, noun=noun)


def _measured(low: float, noun: str = "", high: float = MOST, **options: Any) -> Bounds:
    return Bounds(low, high, noun=noun, **options)


Tokens = Annotated[int, _counted(1, "tokens")]
TokensFrom0 = Annotated[int, _counted(0, "tokens")]
Requests = Annotated[int, _counted(1, "requests")]
RequestsFrom0 = Annotated[int, _counted(0, "requests")]
Iterations = Annotated[int, _counted(1, "iterations")]
IterationsFrom0 = Annotated[int, _counted(0, "iterations")]
TimesFrom0 = Annotated[int, _counted(0, "times")]
Levels = Annotated[int, _counted(1, "levels", 64)]
Seed = Annotated[int, _counted(0, high=_EXACT - 1)]
"""Whole numbers, from 1 on unless the name says otherwise."""
Seconds = Annotated[float, _measured(0.0, "seconds", above=True)]
SecondsFrom0 = Annotated[float, _measured(0.0, "seconds")]
Batches = Annotated[float, _measured(0.0, "batches", 1e6, above=True, below=True)]
Share = Annotated[float, _measured(0.0, "a share", above=True)]
PartFrom0 = Annotated[float, _measured(0.0, "a share", 1.0, below=True)]
ShareFrom0 = Annotated[float, _measured(0.0, "a share")]
NumberFrom0 = Annotated[float, _measured(0.0)]
WeightFrom0 = Annotated[float, _measured(0.0, high=1e9, below=True)]
MarginTokens = Annotated[float, _measured(0.0, "tokens")]
TokensPerSecond = Annotated[float, _measured(0.0, "tokens/s", 1e9, below=True)]
PerSecond = Annotated[float, _measured(0.0, "1/s", 1e6, above=True)]
Factor = Annotated[float, _measured(1.0, "a factor")]
"""Numbers, above 0 unless the name says otherwise; a share of KV may be above 1, a part of it is below."""
Order = Literal["fcfs", "spf"]
Variant = Literal["paper", "code"]
"""Words."""
