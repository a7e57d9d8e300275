"""slackfit: shortest remaining prompt first, batches of a predicted duration, decodes held while they have slack.

Our own baseline. It adapts to its device: the durations that its latency profile predicts are corrected by those seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from baselines.families.aims import FEW_SEATS, PHASES, RULE, Rule
from baselines.families.filling import FILLING, Filling, fill_by_rule
from baselines.families.profiled import Profiled
from baselines.parameters import Batches, NumberFrom0, Share, ShareFrom0, TokensPerSecond, WeightFrom0
from engine.compiled.records import cells_of, record, records
from engine.config import EngineConfig
from engine.device.predicting import DEVICE
from engine.server.policy import Space, kernel_of
from engine.server.queue import QUEUED, Queue
from engine.server.state import Memory, Plan, View

PARAMS = np.dtype([("rule", RULE), ("profile", DEVICE)], align=True)


@dataclass(frozen=True)
class Slackfit(Profiled):
    """Fill each batch up to a predicted duration: urgent decodes, prompts by shortest remaining, then other decodes.

    The duration is a share of the tightest deadline among those who decode, so there may be any number of tiers; one
    that no batch with a prompt can meet does not count.

    While memory gets short, first the decodes with much KV, then all of them run in every batch, to free it; while
    seats get short, all of them run in shorter batches. The predicted duration is corrected by what the last batches
    took, so the profile needs only the right shape.
    """

    limit: Share = 0.8
    """Share of the tightest deadline between tokens, among those of the users who decode, that a batch takes."""
    longest: Batches = 6.0
    """Longest batch, in those of one token (6: 0.14 s on the default device): a longer one saves next to nothing. It
    may always take as long as one of prompts alone needs to compute 0.8 of the device's most tokens per second."""
    slack: NumberFrom0 = 2.5
    """A decode must run if less than this many batches, this one and then longest ones, are left until its deadline."""
    eager_from: ShareFrom0 = 0.8
    """Share of the KV blocks in use from which decodes with much KV run in any case: with twice the mean here, with
    any at memory_limit."""
    memory_limit: ShareFrom0 = 0.8
    """Share of the KV blocks in use from which every decode runs."""
    ageing: TokensPerSecond = 0.0
    """Tokens that a prompt counts less for each second since its arrival: 0 lets long prompts starve, many is FCFS."""
    close: WeightFrom0 = 0.0
    """A batch ends early with a finished prompt if this many times the seconds that its user saves are more than what
    another iteration costs those behind (0: never); not while KV is short (eager_from)."""
    close_until: Share = FEW_SEATS
    """Share of the seats in use up to which batches end early: decodes that they leave out keep seats. Beyond 0.75,
    where seats are short, none does in any case."""
    phases: Literal["auto", "mixed", "exclusive"] = "auto"
    """Prompts and decodes in one batch (mixed), apart (exclusive), or as the profile says is shorter (auto)."""

    name: ClassVar[str] = "slackfit"
    paper: ClassVar[str] = "ours"
    knows: ClassVar[str] = "prompt length, tier, batch times, a latency profile"
    eviction: ClassVar[str] = "youngest, when a decode finds no block"
    evidence: ClassVar[str] = "ours"
    request_memory: ClassVar[int] = cells_of(QUEUED)
    row_memory: ClassVar[int] = cells_of(FILLING)
    FORMER: ClassVar[Mapping[str, str]] = {
        "strict_limit": "limit is a share of the tightest deadline (0.8 of 0.1 s for 0.08)",
        "relaxed_limit": "longest is in shortest batches of the device (6 of 23 ms for 0.14)",
    }
    """Parameters that there were, and what says the same now."""
    space: ClassVar[Space] = {
        "limit": (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95),
        "longest": (4.0, 5.0, 6.0, 8.0),
        "slack": (1.5, 2.0, 2.5, 3.0, 4.0),
        "eager_from": (0.5, 0.6, 0.7, 0.8, 0.9),
        "memory_limit": (0.7, 0.8, 0.9, 0.95, 1.0, 1.1),
        "close": (0.0, 0.25, 0.5, 1.0, 2.0),
    }

    @property
    def _foresight(self) -> float:
        """Weight of a predicted output token beside a prompt token in the order of prompts."""
        return 0.0

    def params(self, config: EngineConfig) -> np.ndarray:
        """A record of PARAMS: the rule, then the device in the place of the profile's name."""
        rule = Rule(
            limit=self.limit,
            longest=self.longest,
            longest_s=np.inf,
            next_s=np.inf,
            slack=self.slack,
            eager_from=self.eager_from,
            memory_limit=self.memory_limit,
            ageing=self.ageing,
            close=self.close,
            close_until=self.close_until,
            foresight=self._foresight,
            phases=PHASES[self.phases],
        )
        return np.concatenate([np.array(rule), self.device()])


@dataclass(frozen=True)
class Clairvoyant(Slackfit):
    """slackfit told the true output lengths: an anchor, not a system. Prompts go by remaining prompt and output tokens.

    What a long output costs is memory, so this pays where KV is short; there it is worth 4 to 6 % of the mean TTFT.
    """

    foresight: WeightFrom0 = 1.0
    """Weight of an output token beside a prompt token."""

    name: ClassVar[str] = "clairvoyant"
    knows: ClassVar[str] = "output length, prompt length, tier, batch times, a latency profile"
    prediction: ClassVar[str] = "oracle"
    space: ClassVar[Space] = {**Slackfit.space, "foresight": (0.5, 1.0, 2.0, 4.0)}

    @property
    def _foresight(self) -> float:
        return self.foresight


_params, _seen, _requests = record(PARAMS), record(FILLING), records(QUEUED)


@kernel_of(Slackfit)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, seen = _params(memory.params), _seen(memory.row)
    queue = Queue(seen.queue, _requests(memory.request))
    fill_by_rule(view, plan, Filling(queue, seen.clock, p.profile), p.rule)
