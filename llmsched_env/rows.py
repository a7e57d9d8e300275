"""The rows of a fleet as arrays: what the compiled step reads and writes."""

from typing import Any, NamedTuple

import numpy as np

from llmsched_env.observation import OBSERVATION_SIZE
from llmsched_env.reward import NUM_TERMS

LIMITS = np.dtype(
    [
        ("max_steps", "f8"),  # decisions (0: none)
        ("horizon_s", "f8"),  # s (0: none)
        ("skips", "f8"),  # whether iterations without any prompt work pass by themselves
        ("hold", "f8"),  # iterations
        ("max_episode_steps", "f8"),  # decisions (0: none)
        ("learns", "f8"),  # whether the codec's kernel is to see those iterations, too
    ],
    align=True,
)
"""When an episode ends, and when the learner is asked."""


class Memories(NamedTuple):
    """What the kernels of every row remember: number 0 is the action's codec and the observer, the others are arms."""

    params: np.ndarray  # float64[worlds, kernels, p]
    request: np.ndarray  # float64[rows, kernels, requests, k]
    row: np.ndarray  # float64[rows, kernels, m]


class Latencies(NamedTuple):
    """The latency models of the worlds that rows are in."""

    coefficient: np.ndarray  # COEFFICIENTS[worlds]
    table: np.ndarray  # float64[worlds, k, 2], tokens and seconds; of which each world has the first ...
    knots: np.ndarray  # int64[worlds]


class Outcome(NamedTuple):
    """What a step leaves behind for each row."""

    observation: np.ndarray  # float32[rows, OBSERVATION_SIZE]
    reward: np.ndarray  # float64[rows]
    terms: np.ndarray  # float64[rows, NUM_TERMS], unweighted
    elapsed_s: np.ndarray  # float64[rows]
    steps: np.ndarray  # int64[rows], decisions so far in the episode
    terminated: np.ndarray  # bool[rows]
    truncated: np.ndarray  # bool[rows]


class Rules(NamedTuple):
    """What does not change while rows are stepped."""

    weights: np.ndarray  # float64, RewardWeights.vector()
    tier_weight: np.ndarray  # float64[worlds, tiers], 0 for a tier that a world does not have
    limits: np.ndarray  # float64, a record of LIMITS
    sizes: np.ndarray  # int64[dimensions], choices in each dimension of an action
    decodes: np.ndarray  # int64[dimensions of the codec], its choice with which all decodes run and nothing else
    fallback: np.ndarray  # int64[dimensions of the codec], its choice where the learner's leads nowhere


class Rows(NamedTuple):
    """Everything that a step reads and writes; a choice is for row `e` of it."""

    servers: Any  # Server of arrays with a leading axis
    memories: Memories
    latency: Any  # Latencies, or an executor
    rules: Rules
    outcome: Outcome
    world: np.ndarray  # int64[rows], the world that each row is in


def new_memories(params: np.ndarray, rows: int, requests: int, request_cells: int, row_cells: int) -> Memories:
    """Zeroed memory for all kernels of all rows, beside their parameters, float64[worlds, kernels, p]."""
    kernels = params.shape[1]
    return Memories(
        params,
        np.zeros((rows, kernels, requests, request_cells)),
        np.zeros((rows, kernels, row_cells)),
    )


def new_outcome(rows: int) -> Outcome:
    """Zeroed outcome of a step."""
    return Outcome(
        np.zeros((rows, OBSERVATION_SIZE), np.float32),
        np.zeros(rows),
        np.zeros((rows, NUM_TERMS)),
        np.zeros(rows),
        np.zeros(rows, np.int64),
        np.zeros(rows, np.bool_),
        np.zeros(rows, np.bool_),
    )
