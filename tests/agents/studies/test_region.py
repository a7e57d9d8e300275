"""What routers carry: the linear programme, what theory says of each router, and that simulation agrees."""

import json
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.studies.region import UNFINISHED, Planned, _largest, contestants, study, unfinished
from agents.studies.theorems import run
from agents.studies.worlds import WORLDS
from engine.cluster.router import Router
from engine.errors import InputError

KINDS, BLIND = WORLDS["kinds"], "best split without classes"


def router(name: str) -> Router:
    return next(one.router for one in contestants(KINDS) if one.label == name)


def test_work_is_that_of_the_specification() -> None:
    """Narrow: 2048 / 64 + 31 / 64, 2 + 383 / 64. Wide: 4 (1 + 8 x 0.35) + 31 x 1.35 / 64, 1.7 + 383 x 1.35 / 64."""
    expected = [[32.484375, 32.484375, 15.85390625, 15.85390625], [7.984375, 7.984375, 9.77890625, 9.77890625]]
    assert KINDS.work == pytest.approx(np.array(expected))


def test_the_linear_programme_fills_every_replica_and_sends_each_class_somewhere() -> None:
    capacity, shares = KINDS.plan
    assert capacity == pytest.approx(0.3938, abs=1e-4)
    assert shares.sum(axis=1) == pytest.approx([1.0, 1.0])
    busy = (capacity * KINDS.shares[:, None] * shares * KINDS.work).sum(axis=0)
    assert busy == pytest.approx(np.ones(4))


def test_theory_says_what_blind_routers_lose() -> None:
    """Uniformly random 28 %, the best split blind to classes 19 %; of speeds of 2.75 in all 4 x 1/4 are left."""
    theory = {name: {one.label: one.theory for one in contestants(world)} for name, world in WORLDS.items()}
    assert theory["kinds"]["random"] == pytest.approx(0.72, abs=0.001)
    assert theory["kinds"][BLIND] == pytest.approx(0.809, abs=0.001)
    assert theory["speeds"]["random"] == pytest.approx(4 * 0.25 / 2.75)
    assert theory["speeds"][BLIND] == pytest.approx(1.0)
    assert theory["identical"]["random"] == theory["identical"][BLIND] == pytest.approx(1.0)


@pytest.mark.slow
def test_simulation_agrees_with_theory() -> None:
    def behind(name: str, load: float) -> float:
        return unfinished(KINDS, router(name), load, 40_000, 1)

    assert behind("max_weight", 0.97) < UNFINISHED > behind("split of the programme", 0.97)
    assert behind("random", 0.70) < UNFINISHED < behind("random", 0.74)
    assert behind(BLIND, 0.77) < UNFINISHED < behind(BLIND, 0.83)
    # Who looks at queues but not at classes loses as much; greed costs less, and still too much.
    assert behind("jsq", 0.97) > 0.1
    assert UNFINISHED < behind("least_finish_time", 0.97) < 0.5 * behind("jsq", 0.97)
    assert behind("max_weight", 1.05) > UNFINISHED


def test_the_planned_split_is_drawn_by_class() -> None:
    planned = Planned("kinds")
    memory = planned.memory(4)
    assert memory.row.tolist() == [2048.0, 128.0]
    assert memory.replica.T == pytest.approx(KINDS.plan[1])


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "region.json"
    assert main(["region", "--worlds", "kinds", "--num-requests", "300", "--no-progress", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "kinds: at most 0.3938 requests/unit" in printed
    assert "< 20.0" in printed  # no load at which 75 requests are 98.75 % finished: the end of the search, no result
    assert "equal replicas" not in printed
    data = json.loads(file.read_text())
    assert {one["bound"] for one in data["carried"]} == {"below"}
    assert data["carried"][0]["router"] == "random"
    assert len(data["carried"]) == 6


@pytest.mark.parametrize(
    ("limit", "found"), [(0.0, (0.2, "below")), (0.6, (0.6, "exact")), (1.04, (1.04, "exact")), (2.0, (1.1, "above"))]
)
def test_the_ends_of_the_search_are_no_results(limit: float, found: tuple[float, str]) -> None:
    share, bound = _largest(lambda load: 0.0 if load <= limit else 1.0)
    assert share == pytest.approx(found[0], abs=0.006)
    assert bound == found[1]


def test_above_the_bound_requests_pile_up_behind_any_router_and_scheduler() -> None:
    for router, scheduler in (("random", "RAD"), ("jsq", "RAD"), ("jsq", "Sarathi")):
        one = run(1.1, router, scheduler, 32_000)
        assert 1.5 < one.unfinished / one.unfinished_half_way < 2.6
        assert one.share > one.undone == pytest.approx(1.0 - 1.0 / 1.1)


def test_below_the_bound_rad_keeps_up_behind_a_random_router_and_not_in_short_cycles() -> None:
    one, cycles = (run(0.97, "random", scheduler, 32_000) for scheduler in ("RAD", "RAD, cycles of 64"))
    assert one.undone == 0.0
    assert one.share < 0.02
    assert one.share < 0.6 * run(0.97, "random", "RAD", 8_000).share
    assert cycles.unfinished > 1.7 * cycles.unfinished_half_way
    assert cycles.share > 0.3


def test_an_unknown_world_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="worlds: expected some of identical, speeds, kinds, got 'moon'"):
        study(["moon"], 10, 1)
    assert main(["region", "--worlds", "moon"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
