"""Runs driven from Python: how a policy decides there, what is noticed of its faults, the loop over its decisions."""

import contextlib
import time
from collections.abc import Callable

import numpy as np

from engine.config import EngineConfig
from engine.device.latency import Executor
from engine.errors import InputError
from engine.own_code import blame
from engine.runs.steps import HORIZON, LIMIT, OVER, STALLED, Steps
from engine.server.core import arrive, begin, empty, finish, is_over, pause
from engine.server.integrity import FAULTS, lists_fault
from engine.server.policy import Policy
from engine.server.state import Memory, Server


class PolicyError(RuntimeError):
    """A policy broke the rules: an illegal plan, or no progress with requests present."""


class PolicyFault(PolicyError):
    """The code of a policy raised an exception, or changed what it may only read."""


def fault(policy: Policy, error: BaseException) -> PolicyFault:
    """What the code of a policy raised, as one line with the file and the line of that code."""
    code = policy.kernel.function.__code__ if policy.kernel else None
    place = f"{code.co_filename}, kernel in line {code.co_firstlineno}" if code else ""
    return PolicyFault(f"policy {policy.spec!r}: {blame(error, place)}")


def decide(policy: Policy, server: Server, memory: Memory) -> int:
    """Let the policy plan and begin that; returns the error code of `begin`."""
    _let_plan(policy, server, memory)
    if type(policy).plan is not Policy.plan:
        _require_lists(policy, server)
    return int(begin(server, True))


def _let_plan(policy: Policy, server: Server, memory: Memory) -> None:
    """Let the policy plan; what its code raises is a fault of the policy."""
    empty(server)
    try:
        policy.plan(server.visible, memory, server.plan)
    except (PolicyError, InputError):
        raise
    except (Exception, SystemExit) as error:
        raise fault(policy, error) from error


def _require_lists(policy: Policy, server: Server) -> None:
    """Compiled code indexes with what the view holds, so what Python code was shown is checked each time."""
    if (code := lists_fault(server.visible, server.hidden.tier.shape[0])) != 0:
        raise PolicyFault(f"policy {policy.spec!r} changed the view, which it may only read: {FAULTS[code]}")


class Sealed:
    """Decides like a policy whose `plan` is Python code, and notices where that writes into the server's own arrays.

    The counters are compared at each decision, all that a policy sees at the first ones and then at every 64th.
    """

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, policy: Policy, server: Server, memory: Memory) -> int:
        """As `decide`.

        Raises:
            PolicyFault: the policy's code raised something, or changed the view.
        """
        view = server.visible
        watched = view if self.calls < 64 or self.calls % 64 == 0 else (view.row,)
        self.calls += 1
        before = [array.tobytes() for array in watched]
        _let_plan(policy, server, memory)
        if before != [array.tobytes() for array in watched]:
            raise PolicyFault(
                f"policy {policy.spec!r} changed the view at t={view.row[0].now:.3f} s, which it may only read "
                "(what it wants to remember belongs into memory.row and memory.request)"
            )
        _require_lists(policy, server)
        return int(begin(server, True))


class Guarded:
    """Decides like a policy; where that fails, plans illegally or gets stuck, like another one."""

    def __init__(self, fallback: Policy, config: EngineConfig, num_requests: int) -> None:
        self.fallback = fallback
        self.memory = fallback.memory(config, num_requests)
        self.count = 0

    def __call__(self, policy: Policy, server: Server, memory: Memory) -> int:
        """As `decide`, by the fallback where the policy fails."""
        arrays = (*server.visible, server.hidden.ledger, server.features)
        saved = [array.copy() for array in arrays]
        with contextlib.suppress(PolicyError, ArithmeticError, ValueError, IndexError):
            if decide(policy, server, memory) == 0 and not _is_stuck(server):
                return 0
        for array, before in zip(arrays, saved, strict=True):
            array[...] = before
        self.count += 1
        return decide(self.fallback, server, self.memory)


def _is_stuck(server: Server) -> bool:
    """An empty plan with requests present, when nothing else will come."""
    row = server.visible.row[0]
    return bool(
        server.plan.size[0] == 0
        and server.plan.wake[0] == np.inf
        and row.next_arrival == row.num_requests
        and row.num_waiting + row.num_running > 0
    )


def memory_of(policy: Policy, config: EngineConfig, num_requests: int) -> Memory:
    """The memory of a policy, checked before compiled code indexes into it.

    Raises:
        InputError: arrays of another type or size.
        PolicyFault: the policy's own code raised something.
    """
    try:
        memory = policy.memory(config, num_requests)
    except (PolicyError, InputError):
        raise
    except Exception as error:
        raise fault(policy, error) from error
    if not isinstance(memory, Memory) and not policy.runs_compiled:
        return memory  # whatever its own Python code remembers
    arrays = memory if isinstance(memory, Memory) and len(memory) == 3 else (None,) * 3
    shapes = (None,), (num_requests, None), (None,)
    if not all(are_cells(array, shape) for array, shape in zip(arrays, shapes, strict=True)):
        raise InputError(
            f"policy {policy.name!r}: memory: expected Memory(params, request, row) of contiguous float64 arrays with "
            f"shapes (any,), ({num_requests}, any), (any,)"
        )
    return memory


def are_cells(array: object, shape: tuple[int | None, ...]) -> bool:
    """Whether these are contiguous float64 cells of a shape (None: any length)."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float64 or not array.flags.c_contiguous:
        return False
    return array.ndim == len(shape) and all(want in (None, n) for want, n in zip(shape, array.shape, strict=True))


def drive(
    decide: Callable[[], int],
    server: Server,
    executor: Executor,
    horizon_s: float,
    max_decisions: int,
    steps: Steps | None = None,
) -> int:
    """The loop of `engine.runs.simulate` step by step from Python: for plain-Python policies and real devices.

    Args:
        decide: plans, and begins that; returns the error code of `begin`.
        server: with the trace loaded.
        executor: runs the batches.
        horizon_s: an iteration that would start at or after it ends the run.
        max_decisions: so many end it with LIMIT.
        steps: notes what each iteration does.

    Returns:
        OVER, STALLED, LIMIT or HORIZON; a positive number is an error code of `begin`.
    """
    row, decisions = server.visible.row[0], 0
    arrive(server)
    while not is_over(server):
        if row.now >= horizon_s:
            return HORIZON
        if decisions >= max_decisions:
            return LIMIT
        decisions += 1
        began = time.perf_counter()
        if (code := decide()) != 0:
            return code
        decision_s = time.perf_counter() - began if executor.real_time else 0.0
        if not _carry_out(server, executor, decision_s, steps):
            return STALLED
    return OVER


def _carry_out(server: Server, executor: Executor, decision_s: float, steps: Steps | None) -> bool:
    """Run the batch that has begun, or let the time pass until something comes; False if nothing will."""
    start = float(server.visible.row[0].now)
    since = steps.planned(server) if steps else 0
    has_batch = server.features[0].requests > 0
    if has_batch:
        finish(server, decision_s + executor.seconds(server))
    if steps:
        steps.done(server, start, since)
    return has_batch or bool(pause(server))
