"""What a compiled learned policy is made of: `remember`, `encode`, then a network of its own, then `act`.

Memory of such a policy: the codec's parameters come first in `params`, the observer's and the codec's cells first in
`row` and `request`; whatever the network needs follows behind them.
"""

import numpy as np

from engine.compiled.jit import hot
from engine.server.state import Memory, Plan, View
from llmsched_env.action import (
    ACTION_SIZES,
    ALLOCATION_PARAMS,
    ALLOCATION_REQUEST_MEMORY,
    ALLOCATION_ROW_MEMORY,
    BUDGET,
    ORDER,
    RULE,
    allocate_batch,
    allocation_params,
)
from llmsched_env.observation import OBSERVATION_SIZE, encode, remember

ENV_PARAMS = ALLOCATION_PARAMS
ENV_REQUEST_MEMORY = ALLOCATION_REQUEST_MEMORY
HELD, CHOICE = ALLOCATION_ROW_MEMORY, ALLOCATION_ROW_MEMORY + 1
"""Cells of the row memory for policies that hold a choice: iterations that it has held, its levels."""
ENV_ROW_MEMORY = CHOICE + len(ACTION_SIZES)

env_params = allocation_params
"""The first ENV_PARAMS parameters of a learned policy: ``env_params(latency_model, budget_kind, ageing, close)``."""


@hot
def act(view: View, memory: Memory, choice: np.ndarray, plan: Plan) -> None:
    """Turn a choice (int64[3]: indices of budget, decode rule, prefill order) into a plan."""
    memory.row[BUDGET] = choice[0]
    memory.row[RULE] = choice[1]
    memory.row[ORDER] = choice[2]
    allocate_batch(view, memory, plan)


__all__ = [
    "ACTION_SIZES",
    "ENV_PARAMS",
    "ENV_REQUEST_MEMORY",
    "ENV_ROW_MEMORY",
    "OBSERVATION_SIZE",
    "act",
    "encode",
    "env_params",
    "remember",
]
