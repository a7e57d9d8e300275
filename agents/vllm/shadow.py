"""The shadow of a vLLM server: its requests as a policy sees them, and the plan of a policy for them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from agents.vllm import shadow_state as state
from engine.config import EngineConfig
from engine.demand.requests import Tier
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.runs.driving import memory_of
from engine.server.core import empty
from engine.server.features import new_features
from engine.server.policy import Policy
from engine.server.state import new_server, set_limits

CAPACITY = 1 << 15
"""Requests that one shadow can hold; then it is made anew."""
_WEIGHT, _LEAST, _MOST = 0.05, 0.2, 5.0
"""How much of the ratio of a batch's seconds to predicted ones counts, and between which bounds it is believed."""


class ShadowError(RuntimeError):
    """The shadow is not what the server is, or a plan cannot be read."""


class Steps(NamedTuple):
    """What a policy asks of the server."""

    served: list[list[int]]
    """(index, tokens, tokens that it lacks) of each request of the batch, in the policy's order."""
    victims: list[int]
    """Indices of requests that are to lose their KV."""
    is_everyone: bool
    """Whether these are all that vLLM has running, and each decodes."""


class Flight:
    """A batch that vLLM has scheduled and whose tokens are not there yet."""

    def __init__(self, batch: np.ndarray, iteration: int, start: float, features: np.ndarray) -> None:
        self.batch, self.iteration, self.start = batch, iteration, start
        self.has_prompt = bool(features[0]["requests"] > features[0]["decodes"])
        self.features = features.copy()
        self.predicted = 0.0


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
        self.names: dict[int, str] = {}
        self._latency, self._features = model.compiled(), new_features()
        self._steps = np.zeros((2 * capacity + 1, 3), np.int64)
        self._ratio = [0.0, 0.0]
        self._duration = 0.0
        self.last_end = 0.0
        self.decode = self._decider()

    def _decider(self) -> Any:
        """The policy's plan function, compiled now."""
        if self.policy is None:
            return None
        if self.policy.runs_compiled:
            assert self.policy.kernel is not None
            return self.policy.kernel.compiled
        return self.policy.plan

    @property
    def is_full(self) -> bool:
        """Whether no further request fits."""
        return bool(self.row[0]["next_arrival"] >= self.capacity)

    @property
    def leaving(self) -> int:
        """Requests whose last token is under way: vLLM has them running, and passes them over."""
        return int(self.row[0]["leaving"])

    def enter(self, name: str, arrival: float, prompt: int, most: int, tier: int) -> int:
        """A request has arrived: its name, time (s), prompt tokens, most output tokens and tier; returns its index.

        Raises:
            ShadowError: there is no room for it.
        """
        if self.is_full:
            raise ShadowError(f"expected at most {self.capacity} requests since the shadow was made, got one more")
        t = self.tiers[tier]
        i = int(state.enter(self.view, arrival, prompt, tier, t.tbt_s, t.ttft_s, int(t.strict)))
        self.ends[i] = max(1, min(most, self.config.max_model_len - prompt))
        self.index[name], self.names[i] = i, name
        return i

    def leave(self, name: str) -> None:
        """A request is gone; one that nobody knows is none."""
        if (i := self.index.pop(name, -1)) >= 0:
            del self.names[i]
            state.leave(self.view, i)

    def evict(self, name: str) -> None:
        """The server has preempted a request."""
        state.evict(self.view, self.index[name])

    def admit(self, name: str, computed: int) -> None:
        """The server has admitted a request, whose first `computed` tokens it had in its cache."""
        state.admit(self.view, self.index[name], computed)

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
        state.admit(self.view, i, computed)
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
        batch[:, 0] = [self.index[name] for name in scheduled]
        batch[:, 1] = list(scheduled.values())
        state.begin(self.view, self._features, batch, len(batch), self.ends)
        flight = Flight(batch, int(self.row[0]["iterations"]) - 1, start, self._features)
        flight.predicted = float(state.expect(self.view, self._latency, self._features))
        ratio = self._ratio[flight.has_prompt]
        self._duration = flight.predicted * (ratio or 1.0)
        state.set_times(self.view, batch, len(batch), flight.iteration, max(start, self.last_end) + self._duration)
        return flight

    def end(self, flight: Flight, now: float) -> float:
        """A batch has ended: correct its times; returns its seconds."""
        seconds = now - max(flight.start, self.last_end)
        self.last_end = now
        seen = min(max(seconds / flight.predicted, _LEAST), _MOST)
        old = self._ratio[flight.has_prompt]
        self._ratio[flight.has_prompt] = old + _WEIGHT * (seen - old) if old else seen
        state.set_times(self.view, flight.batch, len(flight.batch), flight.iteration, now)
        if flight.iteration == int(self.row[0]["iterations"]) - 1:
            self._duration = seconds
        return seconds

    def look(self, now: float, under_way: float, free: int) -> tuple[int, int]:
        """Bring the shadow to a decision at `now` (s); what runs since `under_way` (s; inf: nothing) ends before it.

        Returns:
            Requests that vLLM should have running, and waiting.
        """
        begins = now if under_way == np.inf else max(now, max(under_way, self.last_end) + self._duration)
        running, waiting = state.look(self.view, begins, self._duration, free)
        return int(running), int(waiting)

    def plan(self) -> Steps:
        """What the policy asks for.

        Raises:
            ShadowError: its plan names nobody who is there.
            Exception: whatever the policy raises.
        """
        empty(self.server)
        self.decode(self.view, self.memory, self.server.plan)
        served, victims, decodes, running = state.read_plan(self.view, self.server.plan, self._steps)
        if served < 0:
            raise ShadowError("a plan that cannot be read")
        rows = self._steps[: served + victims].tolist()
        is_everyone = victims == 0 and served == decodes == running
        return Steps(rows[:served], [row[0] for row in rows[served:]], is_everyone)
