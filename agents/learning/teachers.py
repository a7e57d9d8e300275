"""Baselines that lie in the action space, as functions of the observation: what learners can begin from."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

import baselines
from baselines.sarathi import Sarathi
from baselines.slackfit import Slackfit
from engine.errors import InputError
from llmsched_env.actions import Allocation
from llmsched_env.actions import Slackfit as SlackfitAction
from llmsched_env.actions.allocation import ORDERS, TOKEN_LEVELS
from llmsched_env.actions.slackfit import LIMITS, SHARES, SLACKS
from llmsched_env.config import EnvConfig

SETTINGS = ("ageing", "close", "close_until", "longest", "phases")
"""What slackfit and its action both have, and what is no choice there."""

Teacher = Callable[[np.ndarray], np.ndarray]
"""Observations float32[n, observations] -> choices int64[n, heads]."""


def teacher(spec: str, env: EnvConfig) -> Teacher:
    """The choices of a baseline.

    Raises:
        InputError: a baseline that is not in this action space.
    """
    policy = baselines.make(spec)
    action = env.action
    if isinstance(action, SlackfitAction) and type(policy) is Slackfit:
        return _slackfit(policy, action)
    if isinstance(action, Allocation) and action.budget == "tokens" and isinstance(policy, Sarathi):
        order = ORDERS.index(policy.order) if policy.order in ORDERS else 0
        return constant(_nearest(TOKEN_LEVELS, policy.token_budget), 0, order)
    raise InputError(
        "teacher: expected slackfit with the slackfit action or sarathi with the allocation action by tokens, "
        f"got {spec!r} with {action}"
    )


def _nearest(levels: tuple[float, ...], value: float) -> int:
    return int(np.argmin(np.abs(np.array(levels) - value)))


def constant(*choice: int) -> Teacher:
    """The same choice whatever is observed."""
    return lambda observations: np.tile(np.array(choice, np.int64), (len(observations), 1))


def as_taught(spec: str, env: EnvConfig) -> EnvConfig:
    """The environment in which a teacher of the slackfit action is what the spec says: with its settings."""
    policy = baselines.make(spec)
    if not (isinstance(env.action, SlackfitAction) and isinstance(policy, Slackfit)):
        return env
    return replace(env, action=replace(env.action, **{name: getattr(policy, name) for name in SETTINGS}))


def _slackfit(policy: Slackfit, action: SlackfitAction) -> Teacher:
    """The nearest levels; slackfit itself reacts to deadlines and to memory, so they do not change.

    Raises:
        InputError: what is no choice but a setting of the action is another one there.
    """
    for name in SETTINGS:
        wanted, found = getattr(policy, name), getattr(action, name)
        if wanted != found:
            raise InputError(f"teacher: expected env.{name} as in {policy.spec!r}, {wanted}, got {found}")
    if policy.profile:
        raise InputError(f"teacher: expected slackfit on the device of the environment, got profile={policy.profile}")
    shares = np.array(SHARES) - np.array([policy.eager_from, policy.memory_limit])
    slack = 1 + _nearest(SLACKS[1:], policy.slack)
    return constant(_nearest(LIMITS, policy.limit), slack, int(np.abs(shares).sum(1).argmin()))
