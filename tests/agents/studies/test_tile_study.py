import json
from pathlib import Path

import pytest

from agents.cli import main
from agents.commands.tiles import Command
from agents.studies import tile_study
from engine.demand.workload import Workload


@pytest.fixture(scope="module")
def result() -> tile_study.Tiles:
    return tile_study.study(num_requests=6000, seed=1)


def share(result: tile_study.Tiles, name: str) -> float:
    return result.row(name).share_of_bound["0"]


def test_bound_of_equal_requests_is_the_one_counted_by_hand() -> None:
    requests = Workload(arrivals="burst", num_requests=10, lengths="fixed:130,65").generate(0)
    # 3 columns for the prompt, 64 decodes at 1/64 column each.
    assert tile_study.bounds(requests, 64).padded == 1 / 4
    # Two chunks of 128 pay t0 once each; a decode pays its 64th part of t0.
    assert tile_study.bounds(requests, 64, t0=1.0).padded == 1 / 7
    assert tile_study.bounds(requests, 64).tokens == 64 / (130 + 64)


def test_full_drain_nears_the_bound_as_cycles_grow(result: tile_study.Tiles) -> None:
    shares = [share(result, f"RAD full drain, N = {n}") for n in (64, 256, 1024)]
    assert shares == sorted(shares)
    assert shares == pytest.approx([0.57, 0.86, 0.97], abs=0.04)


def test_the_papers_cycles_near_the_bound_as_they_grow_and_without_an_end_they_reach_it(
    result: tile_study.Tiles,
) -> None:
    shares = [share(result, f"RAD cycle, N = {n}") for n in (16, 64, 256, 1024)]
    assert shares == sorted(shares)
    assert shares == pytest.approx([0.27, 0.56, 0.845, 0.955], abs=0.02)
    assert share(result, "RAD carry, N = 1") > 0.99


@pytest.mark.parametrize("prefills", [1, 16, 64])
def test_carry_reaches_the_bound_and_never_beats_it(result: tile_study.Tiles, prefills: int) -> None:
    assert 0.98 < share(result, f"RAD carry, N = {prefills}") <= 1.0


@pytest.mark.parametrize(("cap", "least", "most"), [(64, 0.14, 0.20), (128, 0.08, 0.14)])
def test_one_request_beyond_a_tile_costs_a_tenth_or_more(
    result: tile_study.Tiles, cap: int, least: float, most: float
) -> None:
    assert least < tile_study.loss(result, f"vLLM, cap {cap}", f"vLLM, cap {cap + 1}") < most


def test_budget_off_the_tile_loses(result: tile_study.Tiles) -> None:
    lost = tile_study.loss(result, "Sarathi, cap 128, budget 512", "Sarathi, cap 128, budget 500")
    assert 0.01 < lost < 0.05


def test_packed_tails_beat_padded_prompts_but_not_the_token_bound(result: tile_study.Tiles) -> None:
    throughput = {row.name: row.throughput["0"] for row in result.rows}
    packed = throughput["RAD carry, packed tails, N = 64"]
    assert throughput["RAD carry, N = 64"] * 1.02 < packed <= result.bounds["0"].tokens


def test_fixed_cost_makes_wider_decode_batches_better(result: tile_study.Tiles) -> None:
    throughput = {row.name: row.throughput["1"] for row in result.rows}
    assert throughput["RAD carry, decode batch 256, chunk 2048"] > 1.3 * throughput["RAD carry, N = 64"]


def test_no_row_serves_more_than_its_tokens_allow(result: tile_study.Tiles) -> None:
    # With every prompt in batches of any kind a token still costs 1/64 column.
    assert all(row.throughput["0"] <= result.bounds["0"].tokens for row in result.rows)


def test_same_seed_gives_the_same_table() -> None:
    rows = [tile_study.Case("carry", tile_study.rad(4))]
    first, second = (tile_study.study(200, seed=3, rows=rows) for _ in range(2))
    assert first == second
    assert first != tile_study.study(200, seed=4, rows=rows)


def test_command_prints_the_readings_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Command(num_requests=300, json=tmp_path / "out" / "tiles.json").run()
    printed = capsys.readouterr().out
    assert all(f"({mark}) " in printed for mark in ("i", "ii", "iii", "iv"))
    written = json.loads((tmp_path / "out" / "tiles.json").read_text())
    assert {row["name"] for row in written["rows"]} == {case.name for case in tile_study.cases()}


def test_command_refuses_an_empty_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiles", "--num-requests", "0"]) == 2
    assert "num_requests: expected a whole number >= 1, got 0" in capsys.readouterr().err
