"""The `slackfit` action: the parameters of that baseline (`baselines.slackfit`), anew for every batch.

The predicted seconds of the batch, a share of the tightest deadline among those who decode; the decode rule in batches;
and from which use of the KV blocks decodes run to free it. Prompts go by shortest remaining.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from baselines.families.aims import FEW_SEATS, PHASES, Rule
from baselines.families.filling import FILLING, Filling, fill_by_rule
from engine.compiled.records import cells_of, record, records
from engine.device.latency import LatencyModel
from engine.device.predicting import DEVICE
from engine.ranges import number
from engine.server.policy import HotKernel, Kernel
from engine.server.queue import QUEUED, Queue
from engine.server.state import Memory, Plan, View
from llmsched_env.actions.action import PROFILE
from llmsched_env.actions.queue_memory import QueueCodec
from llmsched_env.observation import SEEN

LIMITS = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""slackfit's limit, shares of the tightest deadline."""
SLACKS = (float("inf"), 4.0, 3.0, 2.5, 2.0)
"""Its slack, batches (inf: all decodes run)."""
SHARES = ((0.3, 1.0), (0.45, 1.0), (0.6, 1.0), (0.8, 0.8))
"""Its eager_from and memory_limit, shares of the KV blocks."""

PARAMS = np.dtype(
    [
        (PROFILE, DEVICE),
        ("of_deadline", "f8", (len(LIMITS),)),  # shares
        ("longest_s", "f8", (len(LIMITS),)),  # s, most that a batch takes beside that; the last one: the next batch
        ("slacks", "f8", (len(SLACKS),)),  # batches
        ("longest", "f8"),  # shortest batches
        ("ageing", "f8"),  # tokens/s
        ("close", "f8"),
        ("close_until", "f8"),  # share of the seats
        ("phases", "f8"),  # AUTO, MIXED or EXCLUSIVE
        ("shares", "f8", (len(SHARES), 2)),
    ],
    align=True,
)
MEMORY = np.dtype(
    [
        ("seen", SEEN),
        ("limit", "f8"),  # index of the present choice in LIMITS
        ("slack", "f8"),  # in SLACKS
        ("shares", "f8"),  # in SHARES
        ("filling", FILLING),
    ],
    align=True,
)
"""What is remembered of the server."""
_params, _memory, _requests = record(PARAMS), record(MEMORY), records(QUEUED)

FORMER_DEADLINE_S, FORMER_LONGEST_S, FORMER_FACTOR = 0.1, 0.095, 1.5
"""What levels in seconds were made for: the strict tier's deadline, the longest batch beside a strict user, and how
much longer one might be without."""

Weight = Annotated[float, number(0.0, 1e9, below=True)]


@HotKernel
def fill_batch(view: View, memory: Memory, plan: Plan) -> None:
    """Build the batch for the levels in the memory (see the module docstring)."""
    p, m = _params(memory.params), _memory(memory.row)
    level, shares = int(m.limit), p.shares[int(m.shares)]
    rule = Rule(
        limit=p.of_deadline[level],
        longest=p.longest,
        longest_s=p.longest_s[level],
        next_s=p.longest_s[len(LIMITS) - 1],
        slack=p.slacks[int(m.slack)],
        eager_from=shares[0],
        memory_limit=shares[1],
        ageing=p.ageing,
        close=p.close,
        close_until=p.close_until,
        foresight=0.0,
        phases=p.phases,
    )
    queue = Queue(m.filling.queue, _requests(memory.request))
    fill_by_rule(view, plan, Filling(queue, m.filling.clock, p.profile), rule)


@dataclass(frozen=True)
class Slackfit(QueueCodec):
    """All choices are the knobs of slackfit: predicted seconds of a batch, slack of decodes that must run, KV share."""

    name: ClassVar[str] = "slackfit"
    PARAMS: ClassVar[np.dtype] = PARAMS
    ENDLESS: ClassVar[tuple[str, ...]] = ("slacks", "longest", "longest_s")
    BEFORE: ClassVar[Mapping[str, float]] = {
        "ageing": 0.0,
        "close": 0.0,
        "close_until": FEW_SEATS,
        "phases": PHASES["auto"],
    }
    kernel: ClassVar[Kernel] = fill_batch
    own_cells: ClassVar[int] = cells_of(FILLING)
    DECODES: ClassVar[tuple[int, ...]] = (0, 0, 0)
    FALLBACK: ClassVar[tuple[int, ...]] = (LIMITS.index(0.85), 0, 0)
    LEARNS: ClassVar[bool] = True

    ageing: Weight = 0.0
    """Tokens that a prompt counts less for each second since its arrival: against starvation."""
    close: Weight = 0.0
    """When a batch ends early with a finished prompt (`baselines.slackfit`)."""
    close_until: Annotated[float, number(0.0, 1.0)] = FEW_SEATS
    """Share of the seats in use up to which batches end early (`baselines.slackfit`)."""
    longest: Annotated[float, number(0.0, 1e6, above=True, below=True)] = 6.0
    """Longest batch, in the shortest ones of the device (`baselines.slackfit`)."""
    phases: Literal["auto", "mixed", "exclusive"] = "auto"
    """Prompts and decodes in one batch (mixed), apart (exclusive), or as the profile says is shorter (auto)."""

    @property
    def heads(self) -> dict[str, int]:
        """The names of the dimensions are those of `allocation`, which it takes the place of."""
        return {"budget": len(LIMITS), "decode_rule": len(SLACKS), "prefill_order": len(SHARES)}

    def named(self, model: LatencyModel) -> dict[str, Any]:
        """The kernel's parameters by name."""
        return {
            "of_deadline": LIMITS,
            "longest_s": (np.inf,) * len(LIMITS),
            "slacks": SLACKS,
            "longest": self.longest,
            "ageing": self.ageing,
            "close": self.close,
            "close_until": self.close_until,
            "phases": PHASES[self.phases],
            "shares": SHARES,
        }

    def from_names(self, named: Mapping[str, np.ndarray]) -> np.ndarray:
        """The parameters of a stored policy, also of one whose batch limits are seconds.

        Raises:
            InputError: a name that this codec does not have, or one too few, or another number of cells.
        """
        if "limits" not in named:
            return super().from_names(named)
        kept = {name: cells for name, cells in named.items() if name != "limits"}
        limits = named["limits"]
        of_deadline = np.minimum(limits, FORMER_LONGEST_S) / FORMER_DEADLINE_S
        seconds = {"of_deadline": of_deadline, "longest_s": FORMER_FACTOR * limits, "longest": np.array([np.inf])}
        return super().from_names(kept | seconds)
