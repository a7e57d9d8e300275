"""When the learner is asked for a choice, and how long one holds: in the environment, and in policies that left it.

Nobody is asked about an empty server, nor, with `skip_decode_only`, about an iteration in which every running request
decodes and no prompt waits. A choice then holds for `hold` iterations, those that are skipped not counted.
"""

import numpy as np

from engine.compiled.jit import inner
from engine.server.state import Memory
from llmsched_env.actions.action import LEVELS

NOBODY, DECODES, HELD, ASKED = range(4)
"""What comes next: a request must arrive first, all decodes run, the last choice still holds, the learner is asked."""


@inner
def due(row: np.record, skips: bool, left: float) -> int:
    """What comes next on a server.

    Args:
        row: the server's `ROW` record.
        skips: whether iterations without any prompt work pass by themselves.
        left: iterations for which the last choice still holds.
    """
    if row.num_waiting + row.num_running == 0:
        return NOBODY
    if skips and row.num_waiting + row.num_prefilling == 0:
        return DECODES
    return HELD if left > 0.0 else ASKED


@inner
def set_levels(memory: Memory, choice: np.ndarray) -> None:
    """Tell a codec what the next batch is to be.

    Args:
        memory: the codec's.
        choice: a number for each dimension of its action, in its range.
    """
    for d in range(choice.shape[0]):
        memory.row[LEVELS + d] = choice[d]
