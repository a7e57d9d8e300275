"""The codec in policies of the first format: 30 numbers without names, of which some counted for each action."""

from collections.abc import Mapping

import numpy as np

from engine.errors import InputError

_KINDS = ("tokens", "time", "slackfit")
_FIRST = {"levels": 9, "slacks": 5, "kind": 1, "overhead": 1, "floor": 1, "per_token": 1, "per_pair": 1}
_FIRST |= {"per_context": 1, "ageing": 1, "close": 1, "shares": 8}
"""How many numbers there were of each parameter, in their order."""
_PROFILE = ("overhead", "floor", "per_token", "per_pair", "per_context")


def named_codec(numbers: np.ndarray, env: Mapping[str, object]) -> dict[str, np.ndarray]:
    """The parameters by the names that they have today (`llmsched_env.actions`).

    Args:
        numbers: float64[30].
        env: the environment, as the policy's file has it.

    Raises:
        InputError: other numbers, or those of another kind of budgets.
    """
    if numbers.shape != (sum(_FIRST.values()),):
        raise InputError(f"codec: expected {sum(_FIRST.values())} numbers, got shape {numbers.shape}")
    parts = dict(zip(_FIRST, np.split(numbers, np.cumsum(list(_FIRST.values()))[:-1]), strict=True))
    budget, kind = env.get("budget"), float(parts["kind"][0])
    if budget not in _KINDS or kind != _KINDS.index(str(budget)):
        raise InputError(f"codec: expected the budgets of {budget!r}, got kind {kind:g}")
    named = {"slacks": parts["slacks"], **{f"profile.{name}": parts[name] for name in _PROFILE}}
    if budget == "slackfit":
        return named | {"limits": parts["levels"], **{name: parts[name] for name in ("ageing", "close", "shares")}}
    return named | {"budgets": parts["levels"], "timed": parts["kind"]}
