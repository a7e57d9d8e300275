"""A real executor behind the environment: the same step, run from Python, with the executor in place of the profile."""

import time
from typing import Any

import numpy as np

from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import Charged, Executor
from engine.errors import InputError
from engine.server.state import Server
from llmsched_env.config import EnvConfig
from llmsched_env.inputs import show
from llmsched_env.rows import Rows
from llmsched_env.step import step_row


def find_executor(executor: Executor | str, engine: EngineConfig) -> Executor:
    """An executor by its spec (`engine.device.real.executor.make_executor`); others are passed through.

    Raises:
        InputError: another spec, no such device or folder, not enough memory.
    """
    if not isinstance(executor, str):
        if not all(hasattr(executor, name) for name in ("real_time", "seconds", "start")):
            raise InputError(f"executor: expected a spec or an engine.device.latency.Executor, got {show(executor)}")
        return executor
    from engine.device.real.executor import ROOM, make_executor

    return make_executor(executor, int(ROOM * engine.capacity_tokens))


class Live:
    """Steps one server with an executor.

    With one that runs in real time, the seconds between two batches are charged too: they are what the agent takes for
    its decision. An action outside the action space (or not finite) is replaced by a batch of Sarathi, and counted.
    """

    def __init__(self, executor: Executor, config: EnvConfig) -> None:
        self.executor = Charged(executor, config.engine)
        self.sizes = np.array(config.action.sizes)
        self.fallbacks = 0
        self._since = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of.

        Raises:
            InputError: the executor is a real device, of which there is one.
        """
        if self.executor.real_time:
            raise InputError("copy: expected an environment on a profile, an executor in real time cannot be copied")
        return dict(vars(self))

    def start(self, requests: Requests) -> None:
        """Get ready for an episode with this trace.

        Raises:
            InputError: the executor has no room for one of the requests.
        """
        self.executor.start(requests)
        self.fallbacks = 0
        self._since = time.perf_counter()

    def seconds(self, server: Server) -> float:
        """Run the planned batch; its seconds and those since the last one."""
        waited = time.perf_counter() - self._since if self.executor.real_time else 0.0
        took = self.executor.seconds(server)
        self._since = time.perf_counter()
        return waited + took

    def step(self, fleet: Any, action: object, opens: bool) -> int:
        """Take one decision on the only row of a fleet (`llmsched_env.fleet.Fleet`); returns -1: none is refused."""
        legal = opens or self._is_legal(action)
        self.fallbacks += not legal
        rows = Rows(fleet.servers, fleet.memories, self, fleet.rules, fleet.outcome, fleet.world)
        if legal:
            step_row(fleet.kernels, _whole(action), rows, 0, opens)
        else:
            step_row(fleet.kernels[:1], fleet.rules.fallback[None], rows, 0, opens)
        return -1

    def _is_legal(self, action: object) -> bool:
        try:
            values = np.asarray(action).reshape(-1)
        except Exception:  # whatever the conversion of a foreign object raises: it is no action
            return False
        return (
            values.dtype.kind in "iuf"
            and len(values) == len(self.sizes)
            and bool(np.all((values >= 0) & (values < self.sizes) & (values == np.floor(values))))
        )


def _whole(action: object) -> np.ndarray:
    return np.asarray(action, np.int64).reshape(1, -1)
