"""`simulate`: one policy, one trace, one executor -> `Record`."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from engine.compiled.jit import hot
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import LATENCY_TYPE, Charged, Executor, Latency, LatencyModel, iteration_seconds
from engine.device.memory import default_server
from engine.errors import InputError, expect
from engine.runs.driving import Guarded, PolicyError, Sealed, decide, drive, fault, memory_of
from engine.runs.pieces import PAUSED, Watched, run_in_pieces, second
from engine.runs.record import Record
from engine.runs.steps import HORIZON, KERNEL_TYPE, LIMIT, OVER, STALLED, Loop, StepLog, Steps
from engine.server.core import arrive, begin, close, empty, explain, finish, is_over, pause
from engine.server.policy import Policy
from engine.server.state import MEMORY_TYPE, SERVER_TYPE, Memory, Server, load, new_server


def _run(
    kernel: Callable[..., Any],
    server: Server,
    memory: Memory,
    latency: Latency,
    horizon: float,
    count: np.ndarray,
    stop: int,
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


def what_ended(code: int, policy: Policy, server: Server, max_decisions: int) -> str:
    """What a policy did that ended a run with this code, in one line; "" if the run went to its end."""
    row = server.visible.row[0]
    present = f"{row.num_waiting} waiting, {row.num_running} running"
    if code > 0:
        return f"policy {policy.spec!r}: {explain(server, code)}"
    if code == STALLED:
        at = f"at t={row.now:.3f} s with {present} and no arrival to wait for"
        return f"policy {policy.spec!r} planned nothing {at}"
    if code == LIMIT:
        return f"policy {policy.spec!r} made no end within {max_decisions} decisions ({present})"
    return ""


def _check_kinds(policy: object, requests: object, executor: object, config: object) -> None:
    """Find a spec, a name or a class in the place of the object that it stands for."""
    runs_batches = not isinstance(executor, type) and hasattr(executor, "start") and hasattr(executor, "seconds")
    expect(isinstance(policy, Policy), "policy", "a policy such as baselines.make('sarathi')", policy)
    expect(isinstance(requests, Requests), "requests", "Requests such as Workload(...).generate(seed=0)", requests)
    expect(runs_batches, "executor", "an executor such as load_profile('rtx6000ada-mistral-7b')", executor)
    expect(isinstance(config, EngineConfig), "config", "an EngineConfig", config)


def servable(policy: Policy, requests: Requests, config: EngineConfig, horizon_s: float) -> Requests:
    """Check that the policy can serve the requests; returns them in arrays that nobody writes to."""
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
    return requests


def _run_compiled(policy: Policy, loop: Loop, executor: Executor, max_decisions: int, steps: Steps | None) -> int:
    on_progress = executor.on_progress if isinstance(executor, Watched) else None
    try:
        if steps:
            return steps.run(loop, max_decisions)
        return run_in_pieces(_compiled_run(), loop, max_decisions, on_progress)
    except Exception as error:  # of the kernel: nothing else in the loop can raise
        raise fault(policy, error) from error


def simulate(
    policy: Policy,
    requests: Requests,
    executor: Executor,
    config: EngineConfig | None = None,
    *,
    horizon_s: float = float("inf"),
    log_steps: bool = False,
    fallback: Policy | None = None,
) -> Record:
    """Serve a whole trace with one policy.

    Args:
        policy: decides every batch; it and the fallback are told the device, where the executor is the model of one
            (`Policy.on`).
        requests: the trace; it holds all randomness, so the same call gives the same record bit for bit.
        executor: how long a batch takes; with a `LatencyModel` and a compiled policy the whole loop is compiled. Inside
            a `engine.runs.pieces.Watched` it is told how far the run is.
        config: limits and semantics of the server (None: the default ones, with the KV memory that a model's profile
            says).
        horizon_s: stop at the first iteration that starts at or after this time; the rest counts as unfinished.
        log_steps: also keep what each iteration did.
        fallback: decides where the policy raises an error, plans illegally or gets stuck, instead of a PolicyError
            (drives the loop from Python; `Record.fallbacks` counts).

    Returns:
        The record of the run.

    Raises:
        InputError: an argument of another kind, a request that can never be served (raised where the config keeps
            delivered tokens), or a policy that needs predictions and requests without.
        PolicyError: the policy made an illegal plan, stalled, or decided far more often than there are tokens.
    """
    model = executor.executor if isinstance(executor, Watched) else executor
    config = default_server(model) if config is None else config
    _check_kinds(policy, requests, executor, config)
    if isinstance(model, LatencyModel):
        policy, fallback = policy.on(model), fallback.on(model) if fallback else None
    requests = servable(policy, requests, config, horizon_s)
    server = new_server(len(requests), len(requests.tiers), len(requests.forecast.total))
    load(server, config, requests)
    memory = memory_of(policy, config, len(requests))
    max_decisions = most_decisions(requests)
    steps = Steps(len(requests)) if log_steps else None
    guard = Guarded(fallback, config, len(requests)) if fallback else None
    if isinstance(model, LatencyModel) and policy.runs_compiled and not guard:
        assert policy.kernel is not None
        loop = Loop(policy.kernel.compiled, server, memory, model.compiled(config), horizon_s)
        code = _run_compiled(policy, loop, executor, max_decisions, steps)
    else:
        charged = Charged(executor, config)
        charged.start(requests)
        decides = functools.partial(guard or _decider(policy), policy, server, memory)
        code = drive(decides, server, charged, horizon_s, max_decisions, steps)
    if fault_line := what_ended(code, policy, server, max_decisions):
        raise PolicyError(fault_line)
    close(server)
    fallbacks = guard.count if guard else 0
    return _record(policy, requests, config, server, steps.result() if steps else None, fallbacks)


def most_decisions(requests: Requests) -> int:
    """Decisions beyond which a policy makes no progress: far more than there are tokens."""
    return 8 * int(requests.prompt.sum(dtype=np.int64) + requests.output.sum(dtype=np.int64)) + 1000


def _record(
    policy: Policy, requests: Requests, config: EngineConfig, server: Server, steps: StepLog | None, fallbacks: int
) -> Record:
    view, hidden = server.visible, server.hidden
    return Record(
        policy=policy.spec,
        requests=requests,
        config=config,
        request=view.request,
        ledger=hidden.ledger,
        tier=hidden.tier,
        gaps=hidden.gaps,
        row=view.row,
        steps=steps,
        fallbacks=fallbacks,
    )


def _decider(policy: Policy) -> Any:
    """What lets a policy decide from Python."""
    if type(policy).plan is not Policy.plan:
        return Sealed()
    if policy.kernel is not None:
        assert policy.kernel.compiled  # not while the clock runs
    return decide
