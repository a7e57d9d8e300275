"""The `slackfit` action: the parameters of that baseline (`baselines.slackfit`), anew for every batch.

The predicted seconds of the batch (at most STRICT_LIMIT_S while a user of the strict tier decodes, else RELAXED_FACTOR
as long), the decode rule in units of them, and from which use of the KV blocks decodes run to free it; prompts go by
shortest remaining.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from baselines.families.filling import AUTO, FILLING, Filling, Rule, fill_by_rule
from engine.compiled.records import cells_of, record, records
from engine.device.latency import LatencyModel
from engine.device.predicting import DEVICE, check_device, device_of
from engine.ranges import number
from engine.server.policy import HotKernel, Kernel
from engine.server.queue import QUEUED, Queue
from engine.server.state import Memory, Plan, View
from llmsched_env.actions.allocation import BEFORE_DEVICE, SLACK_LEVELS
from llmsched_env.actions.queue_memory import QueueCodec
from llmsched_env.observation import SEEN

LIMITS_S = (0.05, 0.06, 0.07, 0.075, 0.08, 0.085, 0.09, 0.095, 0.1)
"""Predicted durations that slackfit fills, seconds."""
STRICT_LIMIT_S = 0.095
"""The longest of them while a user of the strict tier decodes."""
RELAXED_FACTOR = 1.5
"""While there is none, batches may be longer by this factor."""
SHARES = ((0.3, 1.0), (0.45, 1.0), (0.6, 1.0), (0.75, 1.0))
"""slackfit's eager_from and memory_limit, shares of the KV blocks."""

PARAMS = np.dtype(
    [
        ("limits", "f8", (len(LIMITS_S),)),  # s
        ("slacks", "f8", (len(SLACK_LEVELS),)),  # batch durations
        ("profile", DEVICE),
        ("ageing", "f8"),  # tokens/s
        ("close", "f8"),
        ("shares", "f8", (len(SHARES), 2)),
    ],
    align=True,
)
MEMORY = np.dtype(
    [
        ("seen", SEEN),
        ("limit", "f8"),  # index of the present choice in LIMITS_S
        ("slack", "f8"),  # in SLACK_LEVELS
        ("shares", "f8"),  # in SHARES
        ("filling", FILLING),
    ],
    align=True,
)
"""What is remembered of the server."""
_params, _memory, _requests = record(PARAMS), record(MEMORY), records(QUEUED)

Weight = Annotated[float, number(0.0, 1e9, below=True)]


@HotKernel
def fill_batch(view: View, memory: Memory, plan: Plan) -> None:
    """Build the batch for the levels in the memory (see the module docstring)."""
    p, m = _params(memory.params), _memory(memory.row)
    limit, shares = p.limits[int(m.limit)], p.shares[int(m.shares)]
    rule = Rule(
        min(limit, STRICT_LIMIT_S),
        RELAXED_FACTOR * limit,
        RELAXED_FACTOR * p.limits[len(LIMITS_S) - 1],
        p.slacks[int(m.slack)],
        shares[0],
        shares[1],
        p.ageing,
        p.close,
        0.0,
        AUTO,
    )
    queue = Queue(m.filling.queue, _requests(memory.request))
    fill_by_rule(view, plan, Filling(queue, m.filling.clock, p.profile), rule)


@dataclass(frozen=True)
class Slackfit(QueueCodec):
    """All choices are the knobs of slackfit: predicted seconds of a batch, slack of decodes that must run, KV share."""

    name: ClassVar[str] = "slackfit"
    PARAMS: ClassVar[np.dtype] = PARAMS
    ENDLESS: ClassVar[tuple[str, ...]] = ("slacks",)
    BEFORE: ClassVar[Mapping[str, float]] = {"ageing": 0.0, "close": 0.0, **BEFORE_DEVICE}
    kernel: ClassVar[Kernel] = fill_batch
    own_cells: ClassVar[int] = cells_of(FILLING)
    DECODES: ClassVar[tuple[int, ...]] = (0, 0, 0)
    FALLBACK: ClassVar[tuple[int, ...]] = (LIMITS_S.index(0.085), 0, 0)
    LEARNS: ClassVar[bool] = True

    ageing: Weight = 0.0
    """Tokens that a prompt counts less for each second since its arrival: against starvation."""
    close: Weight = 0.0
    """When a batch ends early with a finished prompt (`baselines.slackfit`)."""

    @property
    def heads(self) -> dict[str, int]:
        """The names of the dimensions are those of `allocation`, which it takes the place of."""
        return {"budget": len(LIMITS_S), "decode_rule": len(SLACK_LEVELS), "prefill_order": len(SHARES)}

    def named(self, model: LatencyModel) -> dict[str, Any]:
        """The kernel's parameters by name."""
        return {
            "limits": LIMITS_S,
            "slacks": SLACK_LEVELS,
            "profile": device_of(model),
            "ageing": self.ageing,
            "close": self.close,
            "shares": SHARES,
        }

    def check_params(self, params: np.ndarray) -> None:
        """Check parameters that come from a file.

        Raises:
            InputError: numbers that no codec of this kind has.
        """
        super().check_params(params)
        check_device(params.view(PARAMS)[0]["profile"])
