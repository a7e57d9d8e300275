"""The parameters of the action codec as a stored policy brings them: what they may be, and which device they know."""

import numpy as np

from baselines.families.filling import PROFILE_PARAMS, profile_params
from engine.device.latency import LatencyModel
from engine.errors import InputError
from llmsched_env.action import ACTION_SIZES, ALLOCATION_PARAMS

_LEVELS, _SLACKS = ACTION_SIZES[0], ACTION_SIZES[0] + ACTION_SIZES[1]
_KIND, _PROFILE = _SLACKS, _SLACKS + 1
_KINDS = ("tokens", "time", "slackfit")
_PER_TOKEN, _PER_PAIR = _PROFILE + 2, _PROFILE + 3
_MOST = 1e9
"""Largest level, seconds, or factor; compiled code turns some of them into whole numbers."""


def check_codec(codec: np.ndarray, budget: str) -> None:
    """Check the codec's parameters before compiled code takes them for levels, divisors and indices.

    Args:
        codec: float64[ALLOCATION_PARAMS].
        budget: kind of the environment's budgets.

    Raises:
        InputError: a number that no codec of this kind has.
    """
    slacks, others = codec[_LEVELS:_SLACKS], np.delete(codec, np.s_[_LEVELS:_SLACKS])
    if len(codec) != ALLOCATION_PARAMS or not ((others >= 0.0) & (others <= _MOST)).all() or not (slacks > 0.0).all():
        raise InputError(f"codec: expected {ALLOCATION_PARAMS} numbers from 0 to {_MOST:g}, decode rules above 0")
    if codec[_KIND] != _KINDS.index(budget):
        raise InputError(f"codec: expected the budgets of {budget!r}, got kind {codec[_KIND]:g}")
    if codec[_KIND] > 0.0 and codec[_PER_TOKEN] + (codec[_PER_PAIR] if budget == "slackfit" else 0.0) <= 0.0:
        raise InputError("codec: expected a device on which a token takes time")


def knows_device(codec: np.ndarray, model: LatencyModel) -> bool:
    """Whether the codec predicts batches with the numbers of this profile."""
    return bool(np.array_equal(codec[_PROFILE : _PROFILE + PROFILE_PARAMS], np.array(profile_params(model))))
