"""What only the simulator knows: the right numbers, free of scale; and rows that are put into the state of another."""

from dataclasses import replace

import numpy as np
import pytest

from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from llmsched_env import EnvConfig
from llmsched_env.actions import Slackfit
from llmsched_env.fleet import Fleet
from llmsched_env.privileged import (
    PRIVILEGED,
    PRIVILEGED_SIZE,
    TOKENS_LEFT,
    Known,
    describe,
    foresee,
    prices,
    privileged_names,
    request_work,
    work_until,
)

ENV = EnvConfig(
    action=Slackfit(hold=2),
    skip_decode_only=True,
    workload=Workload(rate=1.8, num_requests=300, lengths="fixed:900,400"),
)


def look(fleet: Fleet, price: np.ndarray, trace: Requests) -> np.ndarray:
    out = np.zeros((fleet.rows, PRIVILEGED_SIZE), np.float32)
    work = np.tile(work_until(price, trace.prompt.astype(float), trace.output.astype(float)), (fleet.rows, 1))
    cells = price.view(np.float64).reshape(1, -1)
    servers = fleet.servers
    known = Known(servers.visible, servers.hidden.output, work, cells, np.zeros(fleet.rows, np.int64))
    foresee(known, out, 0, fleet.rows)
    return out


def test_entries_count_the_work_that_is_left() -> None:
    fleet, trace = Fleet(1, ENV), ENV.workload.generate(0)
    price = describe(load_profile(ENV.profile), trace, 1.8)
    fleet.start(0, trace)
    for _ in range(60):
        fleet.step(np.array([[4, 4, 2]]))
    o = look(fleet, price, trace)[0].view(PRIVILEGED)[0]
    view, p = fleet.servers.visible, price[0]
    row, output = view.row[0, 0], fleet.servers.hidden.output[0]
    running = view.request[0][view.running[0, : row.num_running]]
    left = output[view.running[0, : row.num_running]] - running.generated
    decodes = running.prefilled == running.prompt
    seconds = left * (p["step"] + p["context"] * (running.length + 0.5 * left))
    assert decodes.sum() > 2
    assert o.decoding == pytest.approx(seconds[decodes].sum() / (12.0 * p["unit"]), rel=1e-5)
    assert o.kv_held == pytest.approx((running.blocks * left).sum() / (row.num_blocks * 250.0), rel=1e-5)
    assert o.freed[0] == pytest.approx(
        4.0 * running.blocks[decodes & (left <= TOKENS_LEFT[0])].sum() / row.num_blocks, rel=1e-5
    )
    assert o.no_first_token == pytest.approx(np.sqrt(row.no_first_token))
    window = row.now + 36.0 * p["unit"]
    comes = (trace.arrival > row.now) & (trace.arrival <= window)
    comes[: row.next_arrival] = False
    work = request_work(price, trace.prompt.astype(float), trace.output.astype(float))
    expected = work[comes].sum() - 1.8 * p["unit"] * 36.0 * p["unit"]
    assert o.arriving[0] == pytest.approx(expected / (p["spread"] * np.sqrt(1.8 * 36.0 * p["unit"])), rel=1e-4)


def test_a_faster_device_under_the_same_load_looks_the_same() -> None:
    slow, fast = ENV, replace(ENV, profile=f"{ENV.profile}:speed=2")
    trace = ENV.workload.generate(1)
    tiers = tuple(replace(tier, tbt_s=0.5 * tier.tbt_s, ttft_s=0.5 * tier.ttft_s) for tier in trace.tiers)
    halved = trace.replace(arrival=0.5 * trace.arrival, tiers=tiers)
    found = []
    for env, requests, rate in ((slow, trace, 1.8), (fast, halved, 3.6)):
        fleet, price = Fleet(1, env), describe(load_profile(env.profile), requests, rate)
        fleet.start(0, requests)
        # With all decodes in every batch there are no deadlines in what the action does.
        fleet.step(np.array([[8, 0, 2]]))
        found.append(look(fleet, price, requests)[0])
    assert found[0] == pytest.approx(found[1], abs=2e-3)


def test_prices_are_those_of_the_profile() -> None:
    model = load_profile("rtx6000ada-mistral-7b")
    found = prices(model)
    assert found.token == pytest.approx(model.per_token)
    assert (found.pair, found.context) == (model.per_pair, model.per_context)
    assert len(privileged_names()) == PRIVILEGED_SIZE
    assert len(set(privileged_names())) == PRIVILEGED_SIZE


def test_a_row_in_the_state_of_another_goes_on_like_it() -> None:
    fleet, choice = Fleet(3, ENV), np.array([[4, 4, 2]] * 3)
    for e in range(3):
        fleet.start(e, ENV.workload.generate(e))
    for _ in range(20):
        fleet.step(choice)
    fleet.copy_row(1, range(3))
    for _ in range(20):
        fleet.step(choice)
        assert (fleet.outcome.observation == fleet.outcome.observation[1]).all()
        assert (fleet.outcome.reward == fleet.outcome.reward[1]).all()
    assert (fleet.returns == fleet.returns[1]).all()
    fleet.check_rows("test")


def test_one_row_advances_as_in_a_step_of_all() -> None:
    alone, together = Fleet(2, ENV), Fleet(2, ENV)
    for fleet in (alone, together):
        for e in range(2):
            fleet.start(e, ENV.workload.generate(e))
    before = alone.outcome.observation[1].copy()
    for _ in range(5):
        alone.advance(0, np.array([4, 4, 2]))
        together.step(np.array([[4, 4, 2]] * 2))
    assert (alone.outcome.observation[0] == together.outcome.observation[0]).all()
    assert (alone.outcome.observation[1] == before).all()
    assert alone.returns[0] == together.returns[0]
