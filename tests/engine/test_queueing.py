"""One request at a time and a constant time per token: the engine as an M/G/1 queue with known mean response times.

Jobs are exponential with mean 1 s, made of tokens of 1/100 s. The first token comes out of a one-token prompt, so a
job of n tokens takes n iterations. Preemption holds the KV of the preempted job: the plan just does not name it.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
from numba import njit

from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.runs.simulate import simulate
from engine.server.plan import schedule
from engine.server.policy import Kernel
from engine.server.state import Memory, Plan, View
from tests.toys import compiled, constant

TOKENS_PER_SECOND = 100
TOKEN_S = 1.0 / TOKENS_PER_SECOND
DEVICE = constant(TOKEN_S)
SERVER = EngineConfig(num_blocks=2_000_000, max_num_seqs=1_000_000, max_model_len=10_000, watermark=0.0)

JOBS, SEEDS, BLOCK = 8_000, range(4), 1_000

TABLE = {
    0.5: {"fifo": 2.000, "sjf": 1.713, "spjf": 1.795, "srpt": 1.425, "sprpt": 1.653},
    0.8: {"fifo": 5.000, "sjf": 2.882, "spjf": 3.376, "srpt": 2.353, "sprpt": 3.117},
}
"""Mean response time in mean service times, exponential predictions for SP*: Mitzenmacher, "Scheduling with
Predictions and the Price of Misprediction", table 1."""


@njit(cache=True)
def _run_one(view: View, plan: Plan, best: Any) -> None:
    if best >= 0:
        schedule(plan, best, 1)


@Kernel
def _fifo(view: View, memory: Memory, plan: Plan) -> None:
    row = view.row[0]
    _run_one(view, plan, view.running[0] if row.num_running else view.queue[0] if row.num_waiting else -1)


@Kernel
def _shortest_job(view: View, memory: Memory, plan: Plan) -> None:
    best, row = -1, view.row[0]
    for k in range(row.num_waiting):
        i = view.queue[k]
        if best < 0 or view.request[i].prediction < view.request[best].prediction:
            best = i
    _run_one(view, plan, view.running[0] if row.num_running else best)


@Kernel
def _shortest_remaining(view: View, memory: Memory, plan: Plan) -> None:
    best, least, row = -1, np.inf, view.row[0]
    for k in range(row.num_running + row.num_waiting):
        i = view.running[k] if k < row.num_running else view.queue[k - row.num_running]
        left = view.request[i].prediction - view.request[i].generated
        if left < least:
            best, least = i, left
    _run_one(view, plan, best)


COLUMNS = {
    "fifo": compiled("fifo", _fifo),
    "sjf": compiled("sjf", _shortest_job),
    "spjf": compiled("spjf", _shortest_job),
    "srpt": compiled("srpt", _shortest_remaining),
    "sprpt": compiled("sprpt", _shortest_remaining),
}
"""Served in order of arrival; shortest prediction next, each job to its end; least predicted work left, preempting.
SJF and SRPT are told the truth, SPJF and SPRPT noisy predictions."""


def jobs(rate: float, seed: int, exact: bool) -> Requests:
    """Poisson arrivals at `rate` jobs/s; predictions are the truth or exponential with the truth as their mean."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1.0 / rate, JOBS))
    output = np.maximum(1, np.rint(rng.exponential(TOKENS_PER_SECOND, JOBS)))
    prediction = output if exact else np.maximum(1e-9, rng.exponential(output))
    return Requests.create(arrival, np.ones(JOBS), output, prediction=prediction)


@cache
def responses(column: str, rate: float, seed: int) -> np.ndarray:
    """Seconds from arrival to completion of every job."""
    requests = jobs(rate, seed, exact=not column.startswith("sp"))
    record = simulate(COLUMNS[column], requests, DEVICE, SERVER)
    assert record.row["evictions"][0] == 0
    assert record.row["batch_requests"][0] == record.row["iterations"][0] == requests.output.sum()
    return record.ledger["completed"] - requests.arrival


@cache
def lindley(rate: float, seed: int) -> np.ndarray:
    """FIFO response times by Lindley's recursion, without the engine."""
    requests = jobs(rate, seed, exact=True)
    response, ready = np.empty(JOBS), 0.0
    for i in range(JOBS):
        ready = max(ready, requests.arrival[i]) + requests.output[i] * TOKEN_S
        response[i] = ready - requests.arrival[i]
    return response


@pytest.mark.parametrize("rate", list(TABLE))
def test_fifo_follows_lindleys_recursion_job_by_job(rate: float) -> None:
    for seed in SEEDS:
        assert responses("fifo", rate, seed) == pytest.approx(lindley(rate, seed), abs=1e-6)


@pytest.mark.parametrize("rate", list(TABLE))
def test_shortest_remaining_time_is_the_best_order_on_every_trace(rate: float) -> None:
    for seed in SEEDS:
        means = {column: responses(column, rate, seed).mean() for column in COLUMNS}
        assert min(means, key=means.__getitem__) == "srpt", means


@pytest.mark.parametrize("column", list(COLUMNS))
@pytest.mark.parametrize("rate", list(TABLE))
def test_mean_response_times_are_those_of_the_mg1_table(rate: float, column: str) -> None:
    """Tolerance: four standard errors, plus one token for the granularity of preemption.

    FIFO on the same arrivals, whose mean is known, is the control variate of every other column; the slope is the
    least-squares one over blocks of 1000 jobs, and the standard error that of the corrected block means (a block is
    ten relaxation times at load 0.8). It is 0.3 to 1 % of the mean; for FIFO itself, uncorrected, 2 to 4 %.
    """
    blocks = np.concatenate([responses(column, rate, seed).reshape(-1, BLOCK).mean(axis=1) for seed in SEEDS])
    control = np.concatenate([lindley(rate, seed).reshape(-1, BLOCK).mean(axis=1) for seed in SEEDS])
    if column != "fifo":
        slope = np.cov(control, blocks)[0, 1] / control.var(ddof=1)
        blocks = blocks - slope * (control - 1.0 / (1.0 - rate))
    error = blocks.std(ddof=1) / np.sqrt(len(blocks))
    assert blocks.mean() == pytest.approx(TABLE[rate][column], abs=4.0 * error + TOKEN_S)
