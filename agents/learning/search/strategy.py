"""CMA-ES whose generations can be repeated from what their points cost: no state of the search is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError

MARKS = 2
"""Numbers by which the points of a generation are known again."""


def new_search(start: np.ndarray, sigma: float, population: int, seed: int) -> Any:
    """A search that begins at a point.

    Args:
        start: float64[parameters].
        sigma: spread of the first generation.
        population: points of a generation.
        seed: of the points.
    """
    import cma

    options = {"popsize": population, "seed": seed + 1, "verbose": -9, "tolfun": 0.0, "tolx": 0.0}
    return cma.CMAEvolutionStrategy(start, sigma, options)


def marks(points: Sequence[np.ndarray]) -> list[float]:
    """What the points of a generation are known again by."""
    flat = np.concatenate(points)
    return [float(flat.sum()), float(np.abs(flat).sum())]


def repeat(search: Any, numbers: Sequence[float], folder: Path) -> None:
    """Ask for the points of a finished generation again and tell what they cost.

    Args:
        search: as it was before that generation.
        numbers: costs of the points, then their marks.
        folder: of the run, for the message.

    Raises:
        InputError: these are other points, so the search would not be the same.
    """
    points, (*costs, total, size) = search.ask(), numbers
    if marks(points) != [total, size]:
        raise InputError(
            f"resume: {folder}: the search does not repeat here (made with other versions of cma or numpy, or changed)"
        )
    search.tell(points, costs)
