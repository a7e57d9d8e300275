"""A simulated engine that sees the tokens of a batch once it has launched the next one (`agents.vllm.late`).

The host is busy with the launch of a batch that no CUDA graph covers; with any other it is done before the device is.
What a policy is told of durations is what the shadow of the server expects (`agents.vllm.correction`).
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from agents.vllm.correction import Correction
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel, iteration_seconds
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.server.core import begin, empty, finish
from engine.server.policy import Policy
from engine.server.state import Memory, Plan, Server, View


class Host(NamedTuple):
    """What launches batches."""

    launch_s: float
    """Of a batch that no graph covers."""
    graph_tokens: float
    """Of the largest batch that one does."""

    def busy_s(self, server: Server) -> float:
        """With the batch that has begun."""
        return self.launch_s if server.features["tokens"][0] > self.graph_tokens else 0.0


class _Steered(Policy):
    """A policy that is told how long the batch before is expected to take, and can be asked what it would plan next."""

    name = "steered"

    def __init__(self, policy: Policy, engine: "_Engine") -> None:
        object.__setattr__(self, "policy", policy)
        object.__setattr__(self, "engine", engine)

    policy: Policy
    engine: "_Engine"

    @property
    def spec(self) -> str:
        """Of the policy."""
        return self.policy.spec

    def on(self, model: Any) -> "_Steered":
        """Itself: the policy was told its device."""
        return self

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """Of the policy."""
        return self.policy.memory(config, num_requests)

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        """As the policy plans."""
        row = view.row[0]
        seen, row["last_duration"] = float(row["last_duration"]), self.engine.expected
        self.policy.plan(view, memory, plan)
        row["last_duration"] = seen
        self.engine.ahead = self.policy, memory


def _copied(parts: Any) -> Any:
    """A copy of named tuples of arrays."""
    return parts.copy() if isinstance(parts, np.ndarray) else type(parts)(*map(_copied, parts))


def _has_prompt(server: Server) -> bool:
    """Whether the next batch can have one: of who waits, has begun, or has come when this one was launched."""
    row = server.visible.row[0]
    if row["num_waiting"] + row["num_prefilling"]:
        return True
    comes = int(row["next_arrival"])
    return comes < row["num_requests"] and bool(server.visible.request["arrival"][comes] <= row["now"])


class _Engine:
    """An executor: the device, its host, and what the shadow of the server expects."""

    real_time = False

    def __init__(self, device: LatencyModel, told: LatencyModel, config: EngineConfig, host: Host) -> None:
        self._device, self._told, self._host = device.compiled(config), told.compiled(), host
        self.ahead: tuple[Policy, Memory] | None = None

    def start(self, requests: Requests) -> None:
        """Begin anew."""
        self.expected = 0.0
        self._correction = Correction()
        self._under_way: tuple[bool, float, float] | None = None  # has a prompt, seconds seen, predicted
        self._done = self._scheduled = self._seen = -np.inf

    def seconds(self, server: Server) -> float:
        """How long it takes until the result of the batch is seen."""
        now, features = float(server.visible.row["now"][0]), server.features
        if now > self._seen:  # nothing was under way
            self._scheduled = now
        launched = self._scheduled + self._host.busy_s(server)
        took = float(iteration_seconds(self._device, features))
        self._done = max(max(self._done, self._scheduled) + took, launched)
        self._scheduled = now
        self._seen = max(self._done, now + self._next_busy_s(server, self._done - now))
        self._expect(features, self._seen - now)
        return self._seen - now

    def _next_busy_s(self, server: Server, seconds: float) -> float:
        """How long the next batch is launched, if it were planned with this one's result seen after so many seconds."""
        if self.ahead is None or not _has_prompt(server):
            return 0.0
        policy, memory = self.ahead
        after = _copied(server)
        finish(after, max(seconds, 1e-6))
        empty(after)
        policy.plan(after.visible, _copied(memory), after.plan)
        return self._host.busy_s(after) if begin(after, True) == 0 else 0.0

    def _expect(self, features: np.ndarray, seconds: float) -> None:
        """What the shadow expects of this batch, knowing those before it."""
        has_prompt = bool(features["requests"][0] > features["decodes"][0])
        predicted = float(iteration_seconds(self._told, features))
        self.expected = self._correction.expected(has_prompt, predicted)
        if self._under_way:
            self._correction.learn(*self._under_way)
        self._under_way = has_prompt, seconds, predicted


def serve(
    policy: Policy, requests: Requests, device: LatencyModel, told: LatencyModel, config: EngineConfig, host: Host
) -> Record:
    """As `simulate`, in an engine that launches before it looks.

    Args:
        policy: decides; it knows its device.
        requests: the trace, with the deadlines that the policy sees.
        device: how long batches take, with the launch where that is longer.
        told: the profile that the shadow in the engine predicts with.
        config: the limits of the server.
        host: launches.
    """
    engine = _Engine(replace(device, eager_floor=0.0), told, config, host)
    return simulate(_Steered(policy, engine), requests, engine, config)
