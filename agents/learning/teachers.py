"""Baselines that lie in the action space, as functions of the observation: what learners can begin from."""

from collections.abc import Callable

import numpy as np

import baselines
from baselines.sarathi import Sarathi
from baselines.slackfit import Slackfit
from engine.errors import InputError
from llmsched_env.actions import Allocation
from llmsched_env.actions import Slackfit as SlackfitAction
from llmsched_env.actions.allocation import ORDERS, SLACK_LEVELS, TOKEN_LEVELS
from llmsched_env.actions.slackfit import LIMITS_S, SHARES
from llmsched_env.config import EnvConfig

Teacher = Callable[[np.ndarray], np.ndarray]
"""Observations float32[n, observations] -> choices int64[n, heads]."""


def teacher(spec: str, env: EnvConfig) -> Teacher:
    """The choices of a baseline.

    Raises:
        InputError: a baseline that is not in this action space.
    """
    policy = baselines.make(spec)
    action = env.action
    if isinstance(action, SlackfitAction) and isinstance(policy, Slackfit):
        return _slackfit(policy)
    if isinstance(action, Allocation) and action.budget == "tokens" and isinstance(policy, Sarathi):
        order = ORDERS.index(policy.order) if policy.order in ORDERS else 0
        return _constant(_nearest(TOKEN_LEVELS, policy.token_budget), 0, order)
    raise InputError(
        "teacher: expected slackfit with the slackfit action or sarathi with the allocation action by tokens, "
        f"got {spec!r} with {action}"
    )


def _nearest(levels: tuple[float, ...], value: float) -> int:
    return int(np.argmin(np.abs(np.array(levels) - value)))


def _constant(*choice: int) -> Teacher:
    return lambda observations: np.tile(np.array(choice, np.int64), (len(observations), 1))


def _slackfit(policy: Slackfit) -> Teacher:
    """The nearest levels; slackfit itself reacts to the strict tier and to memory, so they do not change."""
    shares = np.array(SHARES) - np.array([policy.eager_from, policy.memory_limit])
    slack = 1 + _nearest(SLACK_LEVELS[1:], policy.slack)
    return _constant(_nearest(LIMITS_S, policy.strict_limit), slack, int(np.abs(shares).sum(1).argmin()))
