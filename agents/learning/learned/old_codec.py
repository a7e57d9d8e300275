"""Codecs of bundles of earlier versions: 30 numbers without names, of which some counted for each action."""

import numpy as np

from engine.errors import InputError
from llmsched_env.actions import Allocation, Codec
from llmsched_env.actions.action import to_cells

_NUMBERS = 30
_KINDS = ("tokens", "time", "slackfit")


def from_old(numbers: np.ndarray, codec: Codec) -> np.ndarray:
    """The parameters of a codec; those of today stay as they are.

    Args:
        numbers: float64, as a bundle has them.
        codec: of the bundle's action.

    Raises:
        InputError: the numbers of a codec for another action.
    """
    if numbers.shape != (_NUMBERS,):
        return numbers
    kind, known = numbers[14], ("slackfit",) if not isinstance(codec, Allocation) else ("tokens", "time")
    if kind not in [_KINDS.index(name) for name in known]:
        raise InputError(f"codec: expected the budgets of {' or '.join(known)}, got kind {kind:g}")
    profile = dict(zip(codec.PARAMS["profile"].names or (), numbers[15:20], strict=True))
    named = {"slacks": numbers[9:14], "profile": profile}
    if isinstance(codec, Allocation):
        named |= {"budgets": numbers[:9], "timed": kind}
    else:
        named |= {"limits": numbers[:9], "ageing": numbers[20], "close": numbers[21]}
        named["shares"] = numbers[22:30].reshape(4, 2)
    return to_cells(codec.PARAMS, named, "codec")
