"""Rows of a vector environment that start and, having ended, start again in the same step."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.errors import InputError

Begin = Callable[[int, np.random.Generator], None]
"""Starts an episode in a row, which the generator draws."""


def start_rows(
    chosen: np.ndarray,
    seeds: Sequence[int | None],
    generators: list[np.random.Generator],
    has_episode: Callable[[int], bool],
    begin: Begin,
) -> None:
    """Start an episode in the chosen rows.

    Args:
        chosen: bool[rows].
        seeds: of each row; None goes on with the generator that it has.
        generators: of each row; those of rows with a seed are replaced.
        has_episode: whether a row has one.
        begin: starts one.

    Raises:
        InputError: a row that is not chosen has no episode; nothing has happened then.
    """
    for e in np.flatnonzero(~chosen).tolist():
        if not has_episode(e):
            raise InputError(f"options['reset_mask']: expected True for row {e}, which has no episode yet")
    for e in np.flatnonzero(chosen).tolist():
        if (own := seeds[e]) is not None:
            generators[e] = np.random.default_rng(own)
        begin(e, generators[e])


def restart_ended(
    ended: np.ndarray,
    observed: np.ndarray,
    report: Callable[[int], dict[str, Any]],
    generators: Sequence[np.random.Generator],
    begin: Begin,
) -> dict[str, Any]:
    """Start the rows again that have ended.

    Args:
        ended: bool[rows].
        observed: of each row; `begin` overwrites it.
        report: the numbers of an episode.
        generators: of each row.
        begin: starts an episode.

    Returns:
        What the infos say of those that ended, as Gymnasium has it for `AutoresetMode.SAME_STEP`; empty if none has.
    """
    if not ended.any():
        return {}
    final_obs, reports = np.full(len(ended), None, object), np.full(len(ended), None, object)
    for e in np.flatnonzero(ended).tolist():
        final_obs[e], reports[e] = observed[e].copy(), report(e)
        begin(e, generators[e])
    final_info = {"report": reports, "_report": ended}
    return {"final_obs": final_obs, "_final_obs": ended, "final_info": final_info, "_final_info": ended}
