"""Does a simulation tell what a real server did? The requests of its run once more, on a profile with its limits.

Times mean the same on both sides: TTFT, E2E and queueing count from a request's arrival, TPOT is what the output tokens
behind the first one took on average, the makespan lasts from the first arrival to the last token.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

import baselines
from agents.policies import resolve, with_setting
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.server_run import LOGGED, ServerRun
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.runs.distribution import Distribution, finite
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.server.policy import Policy
from engine.server.state import FINISHED
from engine.spec import Spec

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NUMBERS = ("mean", "p50", "p90", "p99", "max")
"""What of a distribution is compared."""
POLICY_LIMITS = {
    **{"token_budget": "max_batched_tokens", "batch_cap": "max_num_seqs"},
    **{"max_num_batched_tokens": "max_batched_tokens", "max_num_seqs": "max_num_seqs"},
}
"""Settings of policies that say the same as a limit of the server."""
MOST_TIMES = 100_000
"""Times at most at which a simulation without a log beside it is looked at."""


@dataclass(frozen=True)
class Pair:
    """One number of the run and of its simulation; None where there is none."""

    measured: float | None
    simulated: float | None

    @property
    def relative(self) -> float | None:
        """By which share the simulated one is larger."""
        if self.measured is None or self.simulated is None or self.measured == 0.0:
            return None
        return self.simulated / self.measured - 1.0

    def to_dict(self) -> dict[str, float | None]:
        """Both, and how they differ."""
        return {"measured": self.measured, "simulated": self.simulated, "relative": self.relative}


@dataclass(frozen=True)
class Series:
    """One of `LOGGED` at the times of a `Replay`."""

    measured: list[float] | None
    """None for a run without a log; 0 after its end."""
    simulated: list[float]

    def mean_difference(self) -> float | None:
        """How far the two are apart at a time, in the mean over all of them."""
        return None if self.measured is None else float(np.abs(np.subtract(self.simulated, self.measured)).mean())


@dataclass(frozen=True)
class Replay:
    """A run and its simulation side by side."""

    run: str
    """File of the requests."""
    about: str
    """What the run ran on what."""
    requests: int
    unfinished: int
    """Requests of the run that did not finish, which are left out."""
    policy: str
    profile: str
    limits: EngineConfig
    stated: list[str]
    """Those of the limits that the run states."""
    finished: int
    """Requests that finished in the simulation."""
    iterations: int
    """Of the simulation: no log has those of the run."""
    evictions: Pair
    makespan_s: Pair
    times_s: dict[str, dict[str, Pair]]
    """TTFT, TPOT, E2E and queueing: `NUMBERS` of each."""
    t_s: list[float]
    """Times of the series."""
    seconds: dict[str, Series]
    """Requests running and waiting at these times, tokens/s in the time before each."""


@dataclass(frozen=True, eq=False)
class Served:
    """When requests were served, float64[n] each (s, from the first arrival), and their output tokens, int64[n]."""

    arrival: FloatArray
    scheduled: FloatArray
    first_token: FloatArray
    last_token: FloatArray

    output: IntArray

    def chosen(self, which: npt.NDArray[np.bool_]) -> "Served":
        """Some of the requests."""
        return Served(*(getattr(self, own.name)[which] for own in fields(self)))

    def distributions(self) -> dict[str, Distribution]:
        """Seconds by what they are."""
        behind = (self.last_token - self.first_token) / np.maximum(self.output - 1, 1)
        samples = {
            "ttft": self.first_token - self.arrival,
            "tpot": behind[self.output > 1],
            "e2e": self.last_token - self.arrival,
            "queueing": self.scheduled - self.arrival,
        }
        return {name: Distribution.of(sample) for name, sample in samples.items()}


def with_limits(spec: str, limits: Mapping[str, object]) -> Policy:
    """The policy of a spec with the limits of a server in those of its settings that the spec says nothing about.

    Raises:
        InputError: no such policy, or a limit that it cannot have.
    """
    policy, given = resolve(spec), Spec(*baselines.base_of(baselines.expand(spec))).given
    for setting, limit in POLICY_LIMITS.items():
        if limit in limits and hasattr(policy, setting) and setting not in given:
            spec = with_setting(spec, setting, str(limits[limit]))
    return resolve(spec)


def requests_of(run: ServerRun, config: EngineConfig) -> Requests:
    """The requests of a run as it was sent them, with the output lengths that they had.

    Raises:
        InputError: one is longer than the limits allow; names its line.
    """
    too_long = run.prompt + run.output > config.max_request_tokens
    if too_long.any():
        index = int(np.argmax(too_long))
        raise InputError(
            f"{run.path}, line {run.line[index]}: expected input_toks + output_toks <= {config.max_request_tokens} "
            f"(num_blocks, block_size, watermark and max_model_len), got {run.prompt[index]} + {run.output[index]}; "
            f"{int(too_long.sum())} of {len(run.line)} requests do not fit"
        )
    return Requests.create(run.arrival, run.prompt, run.output, source=f"{run.path.name} as it was served")


def replay(run: ServerRun, policy: Policy, model: LatencyModel, config: EngineConfig, seed: int = 0) -> Replay:
    """Serve the requests of a run once more, on a model.

    Args:
        run: the run.
        policy: what decided in it.
        model: stands in for its device.
        config: limits of its server.
        seed: draws predictions of output lengths, if the policy needs any.

    Raises:
        InputError: requests that do not fit the limits.
        PolicyError: the policy broke the rules.
    """
    requests = requests_of(run, config)
    told = predict(requests, policy.channel, seed) if policy.channel else requests
    record = simulate(policy, told, model, config, log_steps=True)
    ledger, finished = record.ledger, record.request["status"] == FINISHED
    measured = Served(run.arrival, run.scheduled, run.first_token, run.last_token, run.output)
    scheduled, first, last = (ledger[name] for name in ("first_scheduled", "first_token", "completed"))
    simulated = Served(run.arrival, scheduled, first, last, run.output).chosen(finished)
    t, seconds = _seconds(run, record)
    return Replay(
        run=str(run.path),
        about=run.about,
        requests=len(requests),
        unfinished=run.unfinished,
        policy=policy.spec,
        profile=model.name,
        limits=config,
        stated=list(run.limits),
        finished=int(finished.sum()),
        iterations=int(record.row["iterations"][0]),
        evictions=Pair(run.log.evictions if run.log else None, int(record.request["evictions"].sum())),
        makespan_s=Pair(float(run.last_token.max()), float(ledger["completed"].max())),
        times_s=_times(measured.distributions(), simulated.distributions()),
        t_s=t.tolist(),
        seconds=seconds,
    )


def _times(measured: dict[str, Distribution], simulated: dict[str, Distribution]) -> dict[str, dict[str, Pair]]:
    """`NUMBERS` of each distribution."""
    return {
        name: {key: Pair(*(finite(getattr(side[name], key)) for side in (measured, simulated))) for key in NUMBERS}
        for name in measured
    }


def _seconds(run: ServerRun, record: Record) -> tuple[FloatArray, dict[str, Series]]:
    """Times, and what there was at them: those of the run's log, and every second behind it."""
    logged, width = (run.log.t, run.log.step) if run.log else (np.zeros(0), 1.0)
    since, end = float(logged[-1]) if run.log else 0.0, float(record.row["now"][0])
    step = max(width, (end - since) / MOST_TIMES)
    behind = since + step * np.arange(1, max(0, math.ceil((end - since) / step)) + 1)
    t = np.append(logged, behind)
    simulated = {name: values.tolist() for name, values in _simulated(record, t, width).items()}
    if run.log is None:
        return t, {name: Series(None, simulated[name]) for name in LOGGED}
    measured = {name: np.append(run.log.values[name], 0.0 * behind).tolist() for name in LOGGED}
    return t, {name: Series(measured[name], simulated[name]) for name in LOGGED}


def _simulated(record: Record, t: FloatArray, width: float) -> dict[str, FloatArray]:
    """What a server would have logged; a prompt counts where vLLM counts it: at its first token.

    Args:
        record: of the simulation, with its steps.
        t: times of the log (s).
        width: seconds before each in which tokens count.
    """
    steps, ledger = record.steps, record.ledger
    assert steps is not None
    ended = steps.start_s + steps.duration_s
    at = np.searchsorted(ended, t, side="right")
    order = np.argsort(ledger["first_token"], kind="stable")
    prompt = np.where(ledger["first_token"] >= 0.0, record.requests.prompt, 0.0)
    return {
        "prompt": _rates(ledger["first_token"][order], prompt[order], t, width),
        "output": _rates(ended, steps.emitted, t, width),
        "running": np.append(0, steps.running)[at].astype(np.float64),
        "waiting": np.append(0, steps.waiting)[at].astype(np.float64),
    }


def _rates(when: FloatArray, tokens: FloatArray, t: FloatArray, width: float) -> FloatArray:
    """Tokens per second of so many seconds before each time (that included); `when` rises."""
    until = np.append(0.0, np.cumsum(tokens))
    here, before = (np.searchsorted(when, edge, side="right") for edge in (t, t - width))
    return np.asarray((until[here] - until[before]) / width)
