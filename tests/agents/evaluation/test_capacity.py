from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.evaluation.capacity import Limit, Search, capacity_of, gain_bound, search_capacity
from agents.evaluation.fleet import Alike, Fleet
from agents.evaluation.points import NOBODY_SERVED, Point
from agents.evaluation.statistics import Interval
from agents.reporting.capacity_tables import capacity_grids
from agents.source import Source
from engine.config import EngineConfig
from engine.errors import InputError
from tests.toys import constant


def search(**changes: Any) -> Search:
    """A device of 0.1 s per iteration that serves requests of one iteration, one at a time: at most 10 per second."""
    setup = Search(
        policies=("fastertransformer:batch_cap=1",),
        source=Source(None, "poisson:lengths=fixed:10,1", True, 400),
        seeds=2,
        reference="fastertransformer:batch_cap=1",
        profile=constant(0.1),
        config=EngineConfig(num_blocks=5000),
        low=1.0,
        high=20.0,
        tolerance=0.05,
    )
    return replace(setup, **changes)


def test_capacity_of_a_queue_with_constant_service_is_below_its_service_rate() -> None:
    """M/D/1 with a median wait below 0.4 s: near, but under, 10 requests/s."""
    result = search_capacity(search())
    for row in result.rows:
        assert all(8.0 < rate < 10.5 for rate in row.by_seed)
        assert row.bounds == ("exact", "exact")
        assert row.limited_by == ("median TTFT",)
    for seed in (0, 1):
        points = [point for task in result.points if task.seed == seed for point in task.points]
        rate = result.rows[0].by_seed[seed]
        above = min(point.rate for point in points if point.rate > rate)
        assert above - rate <= 0.05
        assert {p.rate: p.paper for p in points}[rate]
        assert not {p.rate: p.paper for p in points}[above]


def test_a_grid_finds_the_capacity_of_the_bisection_up_to_its_step() -> None:
    rates = tuple(1.0 + 0.5 * k for k in range(30))
    fine = search_capacity(search()).rows
    coarse = search_capacity(search(rates=rates)).rows
    for a, b in zip(fine, coarse, strict=True):
        assert a.criterion == b.criterion
        assert [abs(x - y) <= 0.5 for x, y in zip(a.by_seed, b.by_seed, strict=True)] == [True, True]


def test_the_search_does_not_depend_on_the_number_of_workers_or_on_interruptions(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    alone = search_capacity(search(), workers=1)
    assert search_capacity(search(), workers=2) == alone

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_capacity(search(), cells_path=path, on_cell=interrupt)
    assert search_capacity(search(), cells_path=path, resume=True) == alone


def _points(*passing: bool) -> list[Point]:
    rest: dict[str, Any] = {name.name: None for name in fields(Point)} | {"p99_itl_ms": {}, "trace": ""}
    failures = ("median TTFT", "p99 TTFT")
    found = []
    for k, ok in enumerate(passing):
        found.append(Point(**(rest | {"rate": 1.0 + k, "paper": ok, "sound": ok, "failures": () if ok else failures})))
    return found


def test_capacity_is_the_last_rate_before_the_first_failure() -> None:
    assert capacity_of(_points(True, True, False, True), "paper") == Limit(2.0, "exact", "median TTFT")
    assert capacity_of(_points(True, True), "paper") == Limit(2.0, "above", "")
    assert capacity_of(_points(False, True), "paper") == Limit(0.0, "below", "median TTFT")


def test_gains_are_relative_to_the_reference_on_the_same_traces() -> None:
    policies = ("fastertransformer:batch_cap=1", "fastertransformer:batch_cap=2")
    result = search_capacity(search(policies=policies, rates=(4.0, 8.0, 12.0, 16.0), high=20.0))
    base, double = (r for r in result.rows if r.criterion == "paper")
    assert (base.gain, double.by_seed) == (None, (16.0, 16.0))
    assert base.by_seed == (8.0, 8.0)
    assert double.gain == Interval(1.0, 1.0, 1.0, 2)
    paper, sound = (grid.parts[0] for grid in capacity_grids(result))
    assert [row[2] for row in paper.rows] == ["8.00", ">= 16.00"]
    assert [row[3] for row in paper.rows] == ["-", ">= +100.0%"]
    assert "no growing queue" in sound.title


def test_gains_at_a_limit_of_the_search_are_bounds() -> None:
    assert gain_bound(["exact", "exact"], ["exact", "exact"]) == "exact"
    assert gain_bound(["exact", "above"], ["exact", "exact"]) == "at least"
    assert gain_bound(["exact", "exact"], ["above", "exact"]) == "at most"
    assert gain_bound(["below", "exact"], ["exact", "exact"]) == "at most"
    assert gain_bound(["above", "above"], ["above", "exact"]) == "open"


def _figures(rates: tuple[float, ...]) -> list[Any]:
    policies = ("fastertransformer:batch_cap=1", "fastertransformer:batch_cap=2")
    result = search_capacity(search(policies=policies, rates=rates))
    return [list(row[1:4]) for row in capacity_grids(result)[0].parts[0].rows]


def test_runs_that_end_before_anybody_is_served_have_no_capacity() -> None:
    result = search_capacity(search(rates=(1.0, 2.0), horizon_s=1e-6))
    assert all(list(row[1:4]) == ["-", "-", "-"] for grid in capacity_grids(result) for row in grid.parts[0].rows)
    assert {reason for row in result.rows for reason in row.limited_by} == {NOBODY_SERVED}


def test_capacities_beyond_the_rates_that_were_tried_say_which_side_they_are_on() -> None:
    assert _figures((4.0, 8.0)) == [[">= 8.000", ">= 8.00", "-"], [">= 8.000", ">= 8.00", "-"]]
    assert _figures((4.0, 12.0)) == [["4.000", "4.00", "-"], [">= 12.000", ">= 12.00", ">= +200.0%"]]
    assert _figures((14.0, 16.0)) == [["< 14.000", "< 14.00", "-"], [">= 16.000", ">= 16.00", "-"]]


@pytest.mark.parametrize(
    "changes",
    [{"seeds": 0}, {"low": 3.0, "high": 2.0}, {"tolerance": 0.0}, {"rates": (2.0, 1.0)}, {"reference": "slai"}],
)
def test_searches_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        search(**changes)


def fleet(router: str, *counts_and_seconds: tuple[int, float], policy: str = "") -> Fleet:
    config = EngineConfig(num_blocks=5000)
    kinds = tuple(Alike(count, policy, constant(seconds), config) for count, seconds in counts_and_seconds)
    return Fleet(router, kinds)


def test_one_replica_behind_any_router_has_the_capacity_of_the_server() -> None:
    alone, behind = search_capacity(search()), search_capacity(search(fleet=fleet("jsq", (1, 0.1))))
    assert behind.points == alone.points
    assert behind.rows == alone.rows
    assert behind.bound == alone.bound
    assert alone.config_hash != behind.config_hash


def test_a_fleet_carries_what_its_replicas_carry_together() -> None:
    """Ten requests/s each: two behind JSQ carry near 20 of them, and behind lots drawn less."""
    low_and_high = {"low": 10.0, "high": 30.0, "tolerance": 0.5}
    jsq, drawn = (search_capacity(search(fleet=fleet(name, (2, 0.1)), **low_and_high)) for name in ("jsq", "random"))
    assert jsq.bound == pytest.approx(2.0 * (search().bound(None) or 0.0))
    assert 17.0 < drawn.rows[0].capacity.mean < jsq.rows[0].capacity.mean < 21.0
    assert "2 replicas, each with the policy, behind jsq" in jsq.notes[0]


def test_the_bound_of_a_mixed_fleet_is_that_of_its_fastest_and_its_own_policies_stay() -> None:
    own = Fleet("jsq", (*fleet("", (2, 0.1)).kinds, *fleet("", (1, 0.05), policy="vllm").kinds))
    assert search(fleet=own).bound(None) == pytest.approx(3 * 2.0 * (search().bound(None) or 0.0))
    assert [seat.policy for seat in own.seats("slai")] == ["slai", "slai", "vllm"]
    assert search(fleet=own).to_dict()["fleet_sources"] == ["jsq", "vllm"]
    assert Fleet.of("jsq", own.seats("")) == own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--router jsq", "router: expected --replicas or --fleet beside it, got neither"),
        ("--replicas 0", "replicas: expected a whole number >= 1, got 0"),
        ("--replicas 2 --router joiner", "router: expected one of random, "),
        ("--replicas 2 --fleet x.yml", "replicas, fleet: expected one of them, got both"),
        ("--fleet x.yml", "x.yml: cannot read a fleet"),
        ("--replicas 2 --engine.num-blocks 20", "replica 0: request 0: expected prompt + output"),
    ],
)
def test_bad_fleets_are_one_line(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rest = "--policies sarathi --num-requests 30 --seeds 1 --workers 1 --no-progress"
    assert main(["capacity", *rest.split(), *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"llmsched: {message}"), said
    assert said.count("\n") == 1
