"""The device matrix: loads follow from each device, differences are to the best rival, and misses are named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.evaluation.capacity import Search, search_capacity
from agents.evaluation.points import Point
from agents.evaluation.setup import Setup
from agents.reporting.device_tables import balance_grid, balance_lines, markdown_text, matrix_grid, numbers_grid
from agents.source import Source
from agents.studies.devices.judging import balance_of, standings_of
from agents.studies.devices.matrix import RESOLUTION, Devices, compare_devices, device_names
from agents.studies.devices.records import Cell, DeviceMatrix
from engine.config import EngineConfig
from engine.device.latency import LatencyModel, load_profile
from engine.errors import InputError

ONE, TWO = "fastertransformer:batch_cap=1", "fastertransformer:batch_cap=2"
"""One request at a time and two: the second carries about twice as much where iterations take the same time."""


def device(seconds: float, name: str) -> LatencyModel:
    """Iterations of about the same time, whatever is in them."""
    model = LatencyModel(overhead=seconds, floor=0.0, per_token=0.001 * seconds, per_pair=0.0, per_context=0.0)
    return replace(model, name=name)


def devices(**changes: Any) -> Devices:
    """Two devices, the second twice as fast."""
    profiles = (device(0.1, "slow"), device(0.05, "fast"))
    setups = tuple(
        Setup(
            policies=(ONE, TWO),
            source=Source(None, "poisson:lengths=fixed:10,1", True, 200),
            seeds=2,
            reference=ONE,
            profile=profile,
            config=EngineConfig(num_blocks=5000, max_batched_tokens=40),
        )
        for profile in profiles
    )
    return replace(Devices(setups=setups, shares=(0.4, 0.9), rivals=(ONE, TWO)), **changes)


@pytest.fixture(scope="module")
def matrix() -> DeviceMatrix:
    return compare_devices(devices())


def test_the_capacity_of_a_device_is_that_of_its_best_policy(matrix: DeviceMatrix) -> None:
    for setup, found in zip(devices().setups, matrix.devices, strict=True):
        bound = setup.bound(None) or 0.0
        assert found.bound == bound
        search = Search(**(vars_of(setup) | {"low": 0.1, "high": bound, "tolerance": RESOLUTION * bound}))
        best = max(
            (row for row in search_capacity(search).rows if row.criterion == "sound"), key=lambda row: row.capacity.mean
        )
        assert found.best == (best.policy, best.policy) == (TWO, TWO)
        assert found.capacity.mean == pytest.approx(best.capacity.mean, abs=2 * RESOLUTION * bound)
    slow, fast = matrix.devices
    assert fast.capacity.mean > 1.9 * slow.capacity.mean


def vars_of(setup: Setup) -> dict[str, Any]:
    """The fields of a setup."""
    names = ("policies", "source", "seeds", "reference", "profile", "config")
    return {name: getattr(setup, name) for name in names}


def test_loads_are_shares_of_each_capacity_and_the_rival_is_the_best_other(matrix: DeviceMatrix) -> None:
    capacity = {found.profile: found.capacity.mean for found in matrix.devices}
    assert len(matrix.standings) == 2 * 2 * 2
    for row in matrix.standings:
        assert row.rate == pytest.approx(row.share * capacity[row.profile])
        assert row.rival == (TWO if row.policy == ONE else ONE)
        runs = {
            (cell.policy, cell.seed): cell.point
            for cell in matrix.cells
            if (cell.profile, cell.share) == (row.profile, row.share)
        }
        gaps = [(runs[row.policy, s].slo_goodput or 0.0) - (runs[row.rival, s].slo_goodput or 0.0) for s in range(2)]
        assert row.difference.mean == pytest.approx(sum(gaps) / 2)
        assert {runs[row.policy, s].trace for s in range(2)} == {runs[row.rival, s].trace for s in range(2)}
    heavy = {row.policy: row for row in matrix.on("slow") if row.share == 0.9}
    assert heavy[ONE].is_behind
    assert not heavy[TWO].is_behind


def test_workers_and_interruptions_change_nothing(matrix: DeviceMatrix, tmp_path: Path) -> None:
    assert compare_devices(devices(), workers=2) == matrix

    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) in (("cells", 3), ("capacity of the devices", 2)) and not (tmp_path / stage).exists():
            (tmp_path / stage).touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_devices(devices(), folder=tmp_path, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        compare_devices(devices(), folder=tmp_path, resume=True, progress=interrupt)
    done: list[tuple[str, int, int]] = []
    again = compare_devices(devices(), folder=tmp_path, resume=True, progress=lambda *piece: done.append(piece))
    assert again == matrix
    assert done[0] == ("cells", 4, 16)
    judged = compare_devices(devices(rivals=(ONE,)), folder=tmp_path, resume=True)
    assert judged.cells == matrix.cells
    assert {row.rival for row in judged.standings} == {ONE}
    with pytest.raises(InputError, match="expected cells of configuration"):
        compare_devices(devices(shares=(0.5,)), folder=tmp_path, resume=True)
    with pytest.raises(InputError, match="cells to resume"):
        compare_devices(devices(), folder=tmp_path / "none", resume=True)


def _cell(policy: str, seed: int, goodput: float, strict_ms: float, share: float = 0.5) -> Cell:
    point = Point(
        rate=1.0,
        arrival_rate=1.0,
        paper=True,
        sound=True,
        failures=(),
        trace="",
        mean_ttft_ms=150.0,
        median_ttft_ms=100.0,
        p99_ttft_ms=500.0,
        p99_itl_ms={"strict": strict_ms, "free": None},
        kept_up_share=1.0,
        slo_goodput=goodput,
        slo_attainment=1.0,
        iterations=1,
    )
    return Cell("gpu", policy, share, seed, point)


def test_what_a_policy_keeps_and_misses_is_counted() -> None:
    cells = [
        *(_cell("slai", s, 1.0 + 0.001 * s, 90.0) for s in range(3)),
        *(_cell("sarathi", s, 0.8, 120.0) for s in range(3)),
        *(_cell("own", s, 0.95 + 0.001 * s, 90.0 + 10.0 * s) for s in range(3)),
        *(_cell("slai", s, 1.0, 120.0, 0.9) for s in range(3)),
        *(_cell("sarathi", s, 1.1, 120.0, 0.9) for s in range(3)),
        *(_cell("own", s, 1.2 + 0.01 * s, 130.0, 0.9) for s in range(3)),
    ]
    standings = list(standings_of(cells, ("slai", "sarathi"), {"strict": 0.1, "free": 0.5}))
    own = {row.share: row for row in standings if row.policy == "own"}
    assert (own[0.5].rival, own[0.5].outcome, own[0.5].late) == ("slai", "loses", ())
    assert (own[0.9].rival, own[0.9].outcome, own[0.9].late) == ("sarathi", "wins", ("strict",))
    assert own[0.5].relative == pytest.approx(-0.05 / 1.001)
    balance = balance_of(standings, "own", "slai")
    assert (balance.points, balance.wins, balance.ties, balance.loses, balance.full) == (2, 1, 0, 1, 2)
    assert [(place.profile, place.share) for place in balance.behind] == [("gpu", 0.5)]
    # Where slai is late itself, others may be; a tier without gaps has nothing late.
    assert (balance.deadlines, balance.late) == (3, ())
    late = balance_of(standings, "sarathi", "slai").late
    assert [(place.share, place.tier) for place in late] == [(0.5, "strict")]


def test_the_tables_say_it(matrix: DeviceMatrix) -> None:
    grid = matrix_grid(matrix)
    assert [part.title.partition(":")[0] for part in grid.parts] == ["slow", "fast"]
    assert [[row[0] for row in part.rows] for part in grid.parts] == [["0.4", "0.9"]] * 2
    assert len(numbers_grid(matrix).parts[0].rows) == 4
    assert {row[0]: row[1:5] for row in balance_grid(matrix).parts[0].rows}.keys() == {ONE, TWO}
    devices_text, _, balances_text, _ = markdown_text(matrix).split("\n\n")
    slow = devices_text.splitlines()[2]
    assert slow.startswith("| `slow` | ")
    assert slow.count(" / ") == 2
    assert [line.split(" | ")[0] for line in balances_text.splitlines()[2:]] == [f"| {ONE}", f"| {TWO}"]
    lines = list(balance_lines(replace(matrix, rivals=(ONE,))))
    assert lines[0].startswith(f"Deadlines: {TWO} keeps p99 TBT within the tier's at 8 of the 8 points and tiers")
    assert lines[1].startswith(f"Goodput: {TWO} is not more than 1% below the best of {ONE} at 4 of 4 points;")
    assert len(lines) == 2


def test_a_device_that_nobody_can_serve_is_left_out(tmp_path: Path) -> None:
    late = device(1.0, "late")
    setups = tuple(replace(setup, profile=late) for setup in devices().setups[:1])
    result = compare_devices(devices(setups=setups))
    assert (result.devices[0].capacity.mean, result.standings) == (0.0, ())
    assert "no policy meets the sound criterion" in matrix_grid(result).parts[0].title


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"setups": ()}, "profiles: expected at least one, each once, got none"),
        ({"setups": devices().setups[:1] * 2}, "profiles: expected at least one, each once, got slow, slow"),
        ({"shares": (0.5, 0.5)}, "shares: expected at least one, each once"),
        ({"rivals": ("slai",)}, "rivals: expected policies among"),
        ({"rivals": ()}, "rivals: expected at least one"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        devices(**changes)


def test_shipped_devices_say_their_memory_and_range() -> None:
    assert "rtx6000ada-mistral-7b" in device_names()
    assert not {"tile-unit", "cpu-tiny-mistral"} & set(device_names())
    changed = load_profile("rtx6000ada-mistral-7b:per_request=2e-5")
    assert changed.per_request == 2e-5


def test_the_command_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    line = "--policies slai,sarathi --rivals slai --shares 0.5 --num-requests 30 --seeds 2 --workers 1"
    profiles = "rtx6000ada-mistral-7b,rtx6000ada-mistral-7b:mixed=2"
    command = ["devices", *line.split(), "--out", str(out)]
    assert main([*command, "--profiles", profiles]) == 0
    text = capsys.readouterr().out
    assert "Goodput: sarathi is not more than 1% below the best of slai" in text
    assert "Sensitivity: sarathi on rtx6000ada-mistral-7b, as it is: " in text
    assert "; mixed=2: " in text
    data = json.loads((out / "devices.json").read_text())
    assert [one["profile"] for one in data["devices"]] == profiles.split(",")
    assert len(data["standings"]) == 4
    html = (out / "report.html").read_text()
    assert html.count("capacity") >= 4
    assert "http" not in html
    assert main([*command, "--profiles", ""]) == 2
    assert "profiles: expected at least one" in capsys.readouterr().err
    assert main([*command, "--profile", "tile-unit"]) == 2
    assert "expected --profiles here" in capsys.readouterr().err
    assert main([*command, "--engine.num-blocks", "99"]) == 2
    assert "engine.num_blocks: expected none here" in capsys.readouterr().err
