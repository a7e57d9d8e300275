"""`simulate`: one policy, one trace, one executor -> `Record`."""

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types

from engine.compiled.jit import hot
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import LATENCY_TYPE, Charged, Executor, Latency, LatencyModel, iteration_seconds
from engine.errors import InputError
from engine.own_code import blame
from engine.runs.pieces import PAUSED, OnProgress, Watched, run_in_pieces, second
from engine.runs.steps import HORIZON, KERNEL_TYPE, LIMIT, OVER, STALLED, StepLog, Steps
from engine.server.core import arrive, begin, close, empty, explain, finish, is_over, pause
from engine.server.integrity import FAULTS, lists_fault
from engine.server.policy import Policy
from engine.server.state import MEMORY_TYPE, SERVER_TYPE, Memory, Server, load, new_server


class PolicyError(RuntimeError):
    """A policy broke the rules: an illegal plan, or no progress with requests present."""


class PolicyFault(PolicyError):
    """The code of a policy raised an exception, or changed what it may only read."""


def _run(
    kernel: Any, server: Server, memory: Memory, latency: Latency, horizon: float, count: np.ndarray, stop: int
) -> int:
    """Go on after count[0] decisions until the trace, the horizon or the first error ends the run.

    Comes back with PAUSED after `stop` decisions, and when another second begins. A positive result is an error code of
    `begin`.
    """
    row = server.visible.row[0]
    began, decisions = second(0), count[0]
    if decisions == 0:
        arrive(server)
    while not is_over(server):
        if row.now >= horizon:
            return HORIZON
        if decisions >= stop or (decisions & 63 == 63 and decisions > count[0] and second(0) != began):
            count[0] = decisions
            return PAUSED
        decisions += 1
        empty(server)
        kernel(server.visible, memory, server.plan)
        code = begin(server, True)
        if code != 0:
            return code
        if server.features[0].requests > 0:
            finish(server, iteration_seconds(latency, server.features))
        elif not pause(server):
            return STALLED
    return OVER


@functools.cache
def _compiled_run() -> Any:
    """`_run` for kernels of one type: compiled once, for every policy."""
    arguments = (KERNEL_TYPE, SERVER_TYPE, MEMORY_TYPE, LATENCY_TYPE, types.float64, types.int64[::1], types.int64)
    return hot(_run, types.int64(*arguments))


@dataclass(frozen=True, eq=False)
class Record:
    """Everything that happened to every request; numbers are made of it by `summarize`."""

    policy: str  # spec of the policy
    requests: Requests
    config: EngineConfig
    request: np.ndarray  # REQUEST[requests], final state
    ledger: np.ndarray  # LEDGER[requests], times and counts
    tier: np.ndarray  # TIER[tiers], totals
    gaps: np.ndarray  # int32[tiers, buckets], histogram of gaps between tokens
    row: np.ndarray  # ROW[1], totals
    steps: StepLog | None = None
    fallbacks: int = 0  # decisions that the fallback policy took

    def __repr__(self) -> str:
        """The policy, what was served, medians; not the arrays (`summarize` has the numbers)."""
        from engine.runs.metrics import summarize  # which imports this module

        return f"Record({summarize(self).outline()}; {int(self.row['iterations'][0])} iterations)"


def _decide(policy: Policy, server: Server, memory: Memory) -> int:
    """Let the policy plan and begin that; returns the error code of `begin`."""
    empty(server)
    try:
        policy.plan(server.visible, memory, server.plan)
    except (PolicyError, InputError):
        raise
    except (Exception, SystemExit) as error:
        raise fault(policy, error) from error
    if type(policy).plan is not Policy.plan:
        _require_lists(policy, server)
    return int(begin(server, True))


def _require_lists(policy: Policy, server: Server) -> None:
    """Compiled code indexes with what the view holds, so what Python code was shown is checked each time."""
    if (code := lists_fault(server.visible, server.hidden.tier.shape[0])) != 0:
        raise PolicyFault(f"policy {policy.spec!r} changed the view, which it may only read: {FAULTS[code]}")


def fault(policy: Policy, error: BaseException) -> PolicyFault:
    """What the code of a policy raised, as one line with the file and the line of that code."""
    code = policy.kernel.function.__code__ if policy.kernel else None
    place = f"{code.co_filename}, kernel in line {code.co_firstlineno}" if code else ""
    return PolicyFault(f"policy {policy.spec!r}: {blame(error, place)}")


class _Sealed:
    """Decides like a policy whose `plan` is Python code, and notices where that writes into the server's own arrays.

    The counters are compared at each decision, all that a policy sees at the first ones and then at every 64th.
    """

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, policy: Policy, server: Server, memory: Memory) -> int:
        view = server.visible
        watched = view if self.calls < 64 or self.calls % 64 == 0 else (view.row,)
        self.calls += 1
        before = [array.tobytes() for array in watched]
        empty(server)
        try:
            policy.plan(view, memory, server.plan)
        except (PolicyError, InputError):
            raise
        except (Exception, SystemExit) as error:
            raise fault(policy, error) from error
        if before != [array.tobytes() for array in watched]:
            raise PolicyFault(
                f"policy {policy.spec!r} changed the view at t={view.row[0].now:.3f} s, which it may only read "
                "(what it wants to remember belongs into memory.row and memory.request)"
            )
        _require_lists(policy, server)
        return int(begin(server, True))


class _Guarded:
    """Decides like a policy; where that fails, plans illegally or gets stuck, like another one."""

    def __init__(self, fallback: Policy, config: EngineConfig, num_requests: int) -> None:
        self.fallback = fallback
        self.memory = fallback.memory(config, num_requests)
        self.count = 0

    def __call__(self, policy: Policy, server: Server, memory: Memory) -> int:
        arrays = (*server.visible, server.hidden.ledger, server.features)
        saved = [array.copy() for array in arrays]
        with contextlib.suppress(PolicyError, ArithmeticError, ValueError, IndexError):
            if _decide(policy, server, memory) == 0 and not _is_stuck(server):
                return 0
        for array, before in zip(arrays, saved, strict=True):
            array[...] = before
        self.count += 1
        return _decide(self.fallback, server, self.memory)


def _memory(policy: Policy, config: EngineConfig, num_requests: int) -> Memory:
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
    shapes = (1, None), (2, num_requests), (1, None)
    arrays = memory if isinstance(memory, Memory) else ()
    if len(arrays) != 3 or not all(
        isinstance(a, np.ndarray)
        and a.dtype == np.float64
        and a.ndim == dimensions
        and a.flags.c_contiguous
        and rows in (None, a.shape[0])
        for a, (dimensions, rows) in zip(arrays, shapes, strict=True)
    ):
        raise InputError(
            f"policy {policy.name!r}: memory: expected Memory(params, request, row) of contiguous float64 arrays with "
            f"shapes (any,), ({num_requests}, any), (any,)"
        )
    return memory


def _is_stuck(server: Server) -> bool:
    """An empty plan with requests present, when nothing else will come."""
    row = server.visible.row[0]
    return bool(
        server.plan.size[0] == 0
        and server.plan.wake[0] == np.inf
        and row.next_arrival == row.num_requests
        and row.num_waiting + row.num_running > 0
    )


def _drive(
    policy: Policy,
    server: Server,
    memory: Memory,
    executor: Executor,
    horizon: float,
    max_decisions: int,
    steps: Steps | None,
    decide: Callable[[Policy, Server, Memory], int] = _decide,
) -> int:
    """The same loop as `_run`, step by step from Python: for plain-Python policies and real devices."""
    row = server.visible.row[0]
    decisions = 0
    arrive(server)
    while not is_over(server):
        if row.now >= horizon:
            return HORIZON
        if decisions >= max_decisions:
            return LIMIT
        decisions += 1
        began = time.perf_counter()
        if (code := decide(policy, server, memory)) != 0:
            return code
        decision_s = time.perf_counter() - began if executor.real_time else 0.0
        start = float(row.now)
        since = steps.planned(server) if steps else 0
        has_batch = server.features[0].requests > 0
        if has_batch:
            finish(server, decision_s + executor.seconds(server))
        if steps:
            steps.done(server, start, since)
        if not has_batch and not pause(server):
            return STALLED
    return OVER


def _raise(code: int, policy: Policy, server: Server, max_decisions: int) -> None:
    row = server.visible.row[0]
    present = f"{row.num_waiting} waiting, {row.num_running} running"
    if code > 0:
        raise PolicyError(f"policy {policy.spec!r}: {explain(server, code)}")
    if code == STALLED:
        raise PolicyError(
            f"policy {policy.spec!r} planned nothing at t={row.now:.3f} s with {present} and no arrival to wait for"
        )
    if code == LIMIT:
        raise PolicyError(f"policy {policy.spec!r} made no end within {max_decisions} decisions ({present})")


def simulate(
    policy: Policy,
    requests: Requests,
    executor: Executor,
    config: EngineConfig | None = None,
    *,
    horizon_s: float = float("inf"),
    log_steps: bool = False,
    fallback: Policy | None = None,
    on_progress: OnProgress | None = None,
) -> Record:
    """Serve a whole trace with one policy.

    Args:
        policy: decides every batch.
        requests: the trace; it holds all randomness, so the same call gives the same record bit for bit.
        executor: how long a batch takes; with a `LatencyModel` and a compiled policy the whole loop is compiled.
        config: limits and semantics of the server.
        horizon_s: stop at the first iteration that starts at or after this time; the rest counts as unfinished.
        log_steps: also keep what each iteration did.
        fallback: decides where the policy raises an error, plans illegally or gets stuck, instead of a PolicyError
            (drives the loop from Python; `Record.fallbacks` counts).
        on_progress: told about once a second how many requests have left, of how many.

    Returns:
        The record of the run.

    Raises:
        InputError: a request that can never be served (raised where the config keeps delivered tokens), or a
            policy that needs predictions and requests without.
        PolicyError: the policy made an illegal plan, stalled, or decided far more often than there are tokens.
    """
    config = config or EngineConfig()
    if any(array.flags.writeable for array in (requests.arrival, requests.prompt, requests.output, requests.tier)):
        requests = requests.replace()  # the plain constructor checks nothing, and `create` freezes what it has checked
    if not horizon_s >= 0.0:
        raise InputError(f"horizon_s: expected seconds >= 0, got {horizon_s!r}")
    if config.eviction_keeps_output:
        requests.check_servable(config)
    if policy.channel and np.isnan(requests.prediction).any():
        raise InputError(
            f"policy {policy.name!r}: expected requests with predictions (`engine.demand.predictions.predict`)"
        )
    server = new_server(len(requests), len(requests.tiers), len(requests.forecast.total))
    load(server, config, requests)
    memory = _memory(policy, config, len(requests))
    total = int(requests.prompt.sum(dtype=np.int64) + requests.output.sum(dtype=np.int64))
    max_decisions = 8 * total + 1000
    steps = Steps(len(requests)) if log_steps else None
    guard = _Guarded(fallback, config, len(requests)) if fallback else None
    if isinstance(executor, LatencyModel) and policy.runs_compiled and not guard:
        assert policy.kernel is not None
        run = steps.run if steps else functools.partial(run_in_pieces, _compiled_run(), on_progress=on_progress)
        latency, kernel = executor.compiled(config), policy.kernel.compiled
        try:
            code = run(kernel, server, memory, latency, horizon_s, max_decisions)
        except Exception as error:  # of the kernel: nothing else in the loop can raise
            raise fault(policy, error) from error
    else:
        charged = Charged(Watched(executor, on_progress) if on_progress else executor, config)
        charged.start(requests)
        if policy.kernel is not None and type(policy).plan is Policy.plan:
            assert policy.kernel.compiled  # not while the clock runs
        decide = guard or (_decide if type(policy).plan is Policy.plan else _Sealed())
        code = _drive(policy, server, memory, charged, horizon_s, max_decisions, steps, decide)
    _raise(code, policy, server, max_decisions)
    close(server)
    view, hidden = server.visible, server.hidden
    return Record(
        policy.spec,
        requests,
        config,
        view.request,
        hidden.ledger,
        hidden.tier,
        hidden.gaps,
        view.row,
        steps.result() if steps else None,
        guard.count if guard else 0,
    )
