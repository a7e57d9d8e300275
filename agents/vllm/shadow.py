"""The shadow of a vLLM server: its requests as a policy sees them, and the plan of a policy for them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from agents.vllm import shadow_state as state
from agents.vllm.correction import Correction
from agents.vllm.server import Request
from engine.compiled.entry import entry
from engine.config import EngineConfig
from engine.demand.requests import Tier
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.runs.driving import memory_of
from engine.server.features import Features, new_features
from engine.server.policy import Policy
from engine.server.state import new_server, set_limits

CAPACITY = 1 << 15
"""Requests that one shadow can hold; then it is made anew."""


class ShadowError(RuntimeError):
    """The shadow is not what the server is, or a plan cannot be read."""


class Steps(NamedTuple):
    """What a policy asks of the server; requests by their index. Who has KV and is not named goes on."""

    budget: int
    """Tokens of the batch."""
    admitted: list[int]
    """Waiting requests to be admitted, in the policy's order."""
    cut: list[list[int]]
    """Started prompts that get a part of what they lack, and how many tokens fewer."""
    held: list[int]
    """Requests with KV that are not to run."""
    victims: list[int]
    """Requests that are to lose their KV."""
    apart: int
    """New prompts that get fewer tokens than they lack though others come behind them: vLLM gives them all."""


class Flight:
    """A batch that vLLM has scheduled and whose tokens are not there yet."""

    def __init__(self, batch: np.ndarray, iteration: int, start: float, features: Features, predicted: float) -> None:
        self.batch, self.iteration, self.start = batch, iteration, start
        self.features, self.predicted = features, predicted  # s

    @property
    def has_prompt(self) -> bool:
        """Whether a chunk of a prompt is in it."""
        return self.features.requests > self.features.decodes


class Shadow:
    """The requests of a vLLM server and a policy that plans for them.

    Args:
        config: the limits of the server.
        tiers: of its users.
        model: predicts how long batches take; measured ones correct it.
        policy: plans; None: nobody does.
    """

    def __init__(
        self, config: EngineConfig, tiers: Sequence[Tier], model: LatencyModel, policy: Policy | None, capacity: int
    ) -> None:
        self.config, self.tiers, self.capacity = config, tuple(tiers), capacity
        self.server = new_server(capacity, len(self.tiers))
        self.view, self.row = self.server.visible, self.server.visible.row
        set_limits(self.row, config)
        self.row["num_requests"] = self.row["released"] = capacity
        self.policy = policy.on(model) if policy else None
        if self.policy is not None and self.policy.channel:
            raise InputError(f"policy {self.policy.spec!r}: expected one without predictions, got one that needs them")
        self.memory = memory_of(self.policy, config, capacity) if self.policy else None
        self.ends = np.zeros(capacity, np.int32)
        self.index: dict[str, int] = {}
        self.requests: dict[int, Request] = {}  # by index
        self._latency, self._features = model.compiled(), new_features()
        self._numbers = np.asarray(self._features).view(np.float64)[: len(Features._fields)]  # the same memory
        self._steps = np.zeros((2 * capacity + 1, 2), np.int64)
        self.correction = Correction()
        self._entered = self._begun = 0  # counts that the row has too, where reading them takes ten times as long
        self._duration = 0.0
        self.last_end = 0.0
        self._ready()

    def _ready(self) -> None:
        """Compile now what every batch needs."""
        view, plan, batch = self.view, self.server.plan, np.zeros((0, 2), np.int64)
        self._look = entry(state.look, view, plan, 0.0, 0.0, 0)
        self._read_plan = entry(state.read_plan, view, plan, self._steps)
        given = self._features, batch, self.ends, self._latency, self.correction.ratio
        self._begin = entry(state.begin, view, *given, 0.0)
        self._end = entry(state.end, view, batch, 0, 0.0)
        self._enter = entry(state.enter, view, 0.0, 0, 0, 0.0, 0.0, 0)
        self._leave = entry(state.leave, view, 0)
        self._admit = entry(state.admit, view, 0, 0)
        self.decode: Callable[..., Any] | None = None
        if self.policy is not None and self.policy.runs_compiled:
            assert self.policy.kernel is not None
            self.decode = entry(self.policy.kernel.compiled, view, self.memory, plan)
        elif self.policy is not None:
            self.decode = self.policy.plan

    @property
    def is_full(self) -> bool:
        """Whether no further request fits."""
        return self._entered >= self.capacity

    def enter(self, request: Request, arrival: float, tier: int) -> int:
        """A request has arrived at a time (s), and belongs to a tier; returns its index.

        Raises:
            ShadowError: there is no room for it.
        """
        if self.is_full:
            raise ShadowError(f"expected at most {self.capacity} requests since the shadow was made, got one more")
        t, prompt = self.tiers[tier], request.num_prompt_tokens
        i: int = self._enter(self.view, arrival, prompt, tier, t.tbt_s, t.ttft_s, int(t.strict))
        self._entered = i + 1
        self.ends[i] = max(1, min(request.max_tokens, self.config.max_model_len - prompt))
        self.index[request.request_id], self.requests[i] = i, request
        return i

    def leave(self, name: str) -> None:
        """A request is gone; one that nobody knows is none."""
        if (i := self.index.pop(name, -1)) >= 0:
            del self.requests[i]
            self._leave(self.view, i)

    def evict(self, name: str) -> None:
        """The server has preempted a request."""
        state.evict(self.view, self.index[name])

    def admit(self, name: str, computed: int) -> None:
        """The server has admitted a request, whose first `computed` tokens it had in its cache."""
        self._admit(self.view, self.index[name], computed)

    def restore(self, name: str, known: int, computed: int, output: int, coming: int) -> None:
        """A request that has entered runs already.

        Args:
            name: of it.
            known: its tokens, prompt and output.
            computed: those that are computed, or will be by what is under way.
            output: output tokens.
            coming: further ones that are under way.
        """
        i, length, generated = self.index[name], known + coming, output + coming
        self._admit(self.view, i, computed)
        self._set_output(i, known, length, generated)
        if generated and computed >= length - 1:
            r = self.view.request[i]
            r["prompt"] = r["prefilled"] = length - generated
            self.row[0]["num_prefilling"] -= 1

    def restore_waiting(self, name: str, known: int, output: int) -> None:
        """A request that has entered has output already: vLLM had preempted it."""
        self._set_output(self.index[name], known, known, output)

    def _set_output(self, i: int, prompt: int, length: int, generated: int) -> None:
        r = self.view.request[i]
        r["prompt"], r["length"], r["generated"] = prompt, length, generated
        if generated:
            r["has_token"], r["last_token"] = 1, r["arrival"]
            self.row[0]["no_first_token"] -= 1

    def order_queue(self, names: list[str]) -> None:
        """The queue stands in this order."""
        self.view.queue[: len(names)] = [self.index[name] for name in names]

    def begin(self, scheduled: dict[str, int], start: float) -> Flight:
        """The server has scheduled so many tokens of these requests, at `start` (s)."""
        batch = np.empty((len(scheduled), 2), np.int64)
        batch[:, 0] = np.fromiter(map(self.index.__getitem__, scheduled), np.int64, len(scheduled))
        batch[:, 1] = np.fromiter(scheduled.values(), np.int64, len(scheduled))
        begins, given = max(start, self.last_end), (self._latency, self.correction.ratio)
        predicted, self._duration = self._begin(self.view, self._features, batch, self.ends, *given, begins)
        self._begun += 1
        return Flight(batch, self._begun - 1, start, Features(*self._numbers.tolist()), predicted)

    def end(self, flight: Flight, now: float) -> float:
        """A batch has ended: correct its times, for whoever plans; returns its seconds."""
        seconds = now - max(flight.start, self.last_end)
        self.last_end = now
        if self.decode is None:
            return seconds
        self.correction.learn(flight.has_prompt, seconds, flight.predicted)
        self._end(self.view, flight.batch, flight.iteration, now)
        if flight.iteration == self._begun - 1:
            self._duration = seconds
        return seconds

    def look(self, now: float, under_way: float, free: int) -> tuple[int, int]:
        """Bring the shadow to a decision at `now` (s); what runs since `under_way` (s; inf: nothing) ends before it.

        Returns:
            Requests that vLLM should have running, and waiting.
        """
        begins = now if under_way == np.inf else max(now, max(under_way, self.last_end) + self._duration)
        found: tuple[int, int] = self._look(self.view, self.server.plan, begins, self._duration, free)
        return found

    def plan(self) -> Steps:
        """What the policy asks for, after `look`.

        Raises:
            ShadowError: its plan names nobody who is there.
            Exception: whatever the policy raises.
        """
        assert self.decode is not None
        self.decode(self.view, self.memory, self.server.plan)
        admitted, cut, held, victims, budget, apart = self._read_plan(self.view, self.server.plan, self._steps)
        if budget < 0:
            raise ShadowError("a plan that cannot be read")
        if not admitted + cut + held + victims:
            return Steps(budget, [], [], [], [], 0)
        rows = self._steps[: admitted + cut + held + victims].tolist()
        indices, behind = [row[0] for row in rows], admitted + cut
        left_out = indices[behind : behind + held], indices[behind + held :]
        return Steps(budget, indices[:admitted], rows[admitted:behind], *left_out, apart)
