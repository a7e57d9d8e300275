"""How a choice becomes a plan: by the codec of the action, or by the arm that it picks."""

from typing import Any

import numpy as np

from engine.compiled.jit import inner
from engine.server.state import Memory, Server
from llmsched_env.asking import set_levels
from llmsched_env.rows import Memories


@inner
def memory_of(memories: Memories, world: int, e: int, k: int) -> Memory:
    """What kernel `k` remembers of row `e`, which is in this world."""
    return Memory(memories.params[world, k], memories.request[e, k], memories.row[e, k])


@inner
def plan_by_codec(
    kernels: tuple[Any, ...], server: Server, memories: Memories, world: int, e: int, choice: np.ndarray
) -> None:
    """Plan the batch that the codec makes of a choice of its own."""
    memory = memory_of(memories, world, e, 0)
    set_levels(memory, choice)
    kernels[0](server.visible, memory, server.plan)


@inner
def plan_choice(
    kernels: tuple[Any, ...], server: Server, memories: Memories, world: int, e: int, choice: np.ndarray
) -> None:
    """Plan the batch of a choice: that of an arm if there are any, else the codec's."""
    if len(kernels) > 1:
        k = 1 + choice[0]
        kernels[k](server.visible, memory_of(memories, world, e, k), server.plan)
    else:
        plan_by_codec(kernels, server, memories, world, e, choice)
