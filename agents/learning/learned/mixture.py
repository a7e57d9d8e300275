"""`LearnedMixture`: a trained network chooses which baseline builds the next batch, in one compiled kernel.

It decides what the environment does for the same choices (`llmsched_env.step`): the arm plans; what cannot be done is
cut; and where nothing is left to do and nothing comes, the codec's fallback is planned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Self

import numpy as np

from agents.learning.learned.network import best, forward, header_of, network_params, scratch_cells
from agents.learning.learned.policy import LearnedPolicy
from engine.compiled.jit import inner
from engine.compiled.kept import kept
from engine.compiled.random import splitmix64
from engine.config import EngineConfig
from engine.device.latency import LatencyModel
from engine.server.core import begin
from engine.server.features import FEATURES
from engine.server.plan import clear
from engine.server.policy import Kernel, Policy
from engine.server.state import LEDGER, TIER, Hidden, Memory, Plan, Server, View
from llmsched_env.actions import Codec
from llmsched_env.asking import ASKED, due, set_levels
from llmsched_env.observation import OBSERVATION_SIZE, encode, remember

_PARAMS, _REQUEST, _ROW = 0, 2, 4
"""Where a place says where something begins and ends: in the parameters, a request's cells, the server's cells."""


@kept
def draw(logits: np.ndarray, iteration: int) -> int:
    """An arm with the odds of softmax(logits); a run depends on nothing but the trace."""
    odds = np.cumsum(np.exp(logits - logits.max()))
    uniform = float(splitmix64(np.uint64(iteration))) / 2.0**64
    return min(int(np.searchsorted(odds, uniform * odds[-1], side="right")), len(logits) - 1)


@kept
def make_legal(view: View, plan: Plan) -> None:
    """Cut a plan to what can be done, by the rule with which the environment does it (`engine.server.core.begin`).

    Baselines that reserve KV for a whole request rely on it that every request was admitted by themselves; among
    others their plans may ask for more than there is.

    Args:
        view: the server, of which a copy is tried.
        plan: changed in place.
    """
    n = view.request.shape[0]
    copy = View(view.request.copy(), view.queue.copy(), view.running.copy(), view.row.copy())
    hidden = Hidden(
        np.zeros(n, LEDGER),
        np.zeros(n, np.int32),
        np.zeros(1, TIER),
        np.zeros((1, 1), np.int32),
        np.zeros(1, np.float32),
        np.zeros(n),
    )
    begin(Server(copy, hidden, plan, np.zeros(1, FEATURES)), False)
    size = 0
    for k in range(plan.size[0]):
        entry = plan.entry[k]
        if entry.tokens != 0:
            kept_entry = plan.entry[size]
            kept_entry.request, kept_entry.tokens, kept_entry.reserve = entry.request, entry.tokens, entry.reserve
            size += 1
    plan.size[0] = size


@inner
def _is_stuck(view: View, plan: Plan) -> bool:
    """Whether nobody is served although somebody is there, and there is nothing to wait for."""
    row = view.row[0]
    waits = row.next_arrival < row.num_requests or plan.wake[0] < np.inf
    return bool(plan.size[0] == 0 and row.num_waiting + row.num_running > 0 and not waits)


def _caller(kernels: tuple[Kernel, ...]) -> Callable[..., None]:
    """``f(k, view, memory, plan)``: kernel number k plans (compiled code only calls what it knows by name)."""
    first = kernels[0]

    def call_last(k: int, view: View, memory: Memory, plan: Plan) -> None:
        first(view, memory, plan)

    if len(kernels) == 1:
        return inner(call_last)
    others = _caller(kernels[1:])

    def call(k: int, view: View, memory: Memory, plan: Plan) -> None:
        if k == 0:
            first(view, memory, plan)
        else:
            others(k - 1, view, memory, plan)

    return inner(call)


@kept
def _part(memory: Memory, place: np.ndarray) -> Memory:
    """The memory of one of several policies in a common one: its parameters, its block of request lines, its cells."""
    n, first, last = memory.request.shape[0], place[_REQUEST], place[_REQUEST + 1]
    lines = memory.request.reshape(memory.request.size)[n * first : n * last].reshape(n, last - first)
    params = memory.params[place[_PARAMS] : place[_PARAMS + 1]]
    return Memory(params, lines, memory.row[place[_ROW] : place[_ROW + 1]])


Places = tuple[tuple[int, ...], ...]
"""For the codec and every arm (begin, end) of its parameters, of its cells for each request, of its cells."""


def _places(codec: Codec, params: Sequence[np.ndarray], arms: Sequence[Policy]) -> Places:
    parts = [(len(params[0]), codec.request_memory, codec.row_memory)]
    parts += [(len(p), max(1, a.request_memory), max(1, a.row_memory)) for p, a in zip(params[1:], arms, strict=True)]
    ends = np.cumsum(parts, axis=0)
    begins = ends - np.array(parts)
    return tuple(tuple(np.column_stack([b, e]).ravel().tolist()) for b, e in zip(begins, ends, strict=True))


@cache
def _mixture(codec: Codec, arms: tuple[Kernel, ...], parts: Places, sampled: bool) -> Kernel:
    """The kernel of policies that choose among these arms; the network follows the last of the parts."""
    make, run, places, number = codec.kernel, _caller(arms), np.array(parts), len(arms)
    decodes, fallback, heads = np.array(codec.DECODES), np.array(codec.FALLBACK), np.array([len(arms)])
    network, scratch_at = parts[-1][_PARAMS + 1], parts[-1][_ROW + 1]

    def plan_mixture(view: View, memory: Memory, plan: Plan) -> None:
        own, p = _part(memory, places[0]), memory.params[network:]
        remember(view, own)
        if due(view.row[0], header_of(p).skips > 0.0, 0.0) != ASKED:
            set_levels(own, decodes)
            make(view, own, plan)
            return
        observation, scratch = np.empty(OBSERVATION_SIZE, np.float32), memory.row[scratch_at:]
        encode(view, own, observation)
        logits, choice = forward(p, observation, scratch), np.zeros(1, np.int64)
        if sampled:
            choice[0] = draw(scratch[logits : logits + number], view.row[0].iterations)
        else:
            best(scratch, logits, heads, choice)
        run(choice[0], view, _part(memory, places[1 + choice[0]]), plan)
        make_legal(view, plan)
        if _is_stuck(view, plan):
            clear(view, plan)
            set_levels(own, fallback)
            make(view, own, plan)

    return Kernel(plan_mixture)


@dataclass(frozen=True)
class LearnedMixture(LearnedPolicy):
    """A trained network that chooses (or draws) which baseline builds the next batch."""

    name: ClassVar[str] = "learned-mixture"
    eviction: ClassVar[str] = "as the chosen baseline"
    _model: ClassVar[LatencyModel | None] = None

    def make_kernel(self) -> Kernel:
        """Network, arms and codec, compiled."""
        kernels = tuple(arm.kernel for arm in self._arms if arm.kernel)
        return _mixture(self._codec, kernels, self._parts(EngineConfig()), self.bundle.sampled)

    def params(self, config: EngineConfig) -> np.ndarray:
        """Those of the codec and of the arms, then the network."""
        return np.concatenate([*self._params(config), network_params(self.bundle)])

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """Fresh memory for the codec and every arm, with room for the layers."""
        _, _, _, columns, _, cells = self._parts(config)[-1]
        row = np.zeros(cells + scratch_cells(self.bundle))
        return Memory(self.params(config), np.zeros((num_requests, columns)), row)

    def on(self, model: LatencyModel) -> Self:
        """The same network; codec and arms predict with the numbers of this device."""
        return super().on(model)._told(model)

    @property
    def _codec(self) -> Codec:
        return self.bundle.env.action.codec

    @property
    def _arms(self) -> Sequence[Policy]:
        arms = self.bundle.env.action.policies(self.bundle.env.prediction)
        return [arm.on(self._model) for arm in arms] if self._model else arms

    def _params(self, config: EngineConfig) -> list[np.ndarray]:
        return [self.bundle.codec, *(arm.params(config) for arm in self._arms)]

    def _parts(self, config: EngineConfig) -> Places:
        return _places(self._codec, self._params(config), self._arms)
