"""Measure, fit, validate: the pipeline on the tiny model, and tables that are cut off or belong to something else."""

import json
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.device import profiling
from agents.device.profiling import Limits
from engine.device.fitting import HELD_OUT
from engine.device.real import attention
from engine.errors import InputError

SMALL = "--grid.tokens 128 --grid.context 600 --grid.decodes 16 --grid.kv-tokens 8000 --grid.thin 5 --rounds 2"
LIMITS = Limits(tokens=128, context=600, decodes=16, kv_tokens=8000, thin=5)


class Clock:
    """A device on which batch n takes n ms, and which runs out of memory at one of them."""

    def __init__(self, fails_at: int = 0) -> None:
        """Fail at this batch (0: never)."""
        self.count, self.fails_at = 0, fails_at

    def measure(self, prefills: object, decodes: object, repeats: int, warmup: int, clock: object) -> np.ndarray:
        """Count."""
        self.count += 1
        if self.count == self.fails_at:
            raise InputError("executor: expected memory for a batch")
        return np.full(repeats, self.count / 1000.0)

    def provenance(self) -> dict[str, object]:
        """A name."""
        return {"device": "clock"}


def test_pipeline_on_the_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, profile, plot = tmp_path / "t.csv", tmp_path / "tiny.json", tmp_path / "r.png"
    assert main(f"profile --executor transformers:tiny --out {table} {SMALL}".split()) == 0
    assert "measurements to make, about" in capsys.readouterr().out
    assert main(f"fit --table {table} --out {profile} --plot {plot}".split()) == 0
    residuals = json.loads(profile.read_text())["provenance"]["residuals"]
    assert residuals[HELD_OUT[2]]["mape"] < 100.0, "the machine is shared: only a bound against nonsense"
    assert plot.read_bytes().startswith(b"\x89PNG")
    line = f"validate --executor transformers:tiny --profile {profile} --shares 0.5 --json {tmp_path}/v.json"
    assert main([*line.split(), *"--num-requests 3 --workload poisson:lengths=fixed:30,4".split()]) == 0
    assert "ranking by median TTFT" in capsys.readouterr().out
    rows = json.loads((tmp_path / "v.json").read_text())["rows"]
    assert [row["policy"] for row in rows] == ["sarathi", "slai"]
    assert all(row["device"]["median_itl_ms"] > 0.0 < row["surrogate"]["median_itl_ms"] for row in rows)


def test_grid_stays_in_its_limits_and_is_the_same_every_time() -> None:
    points = profiling.grid(LIMITS)
    assert points == profiling.grid(LIMITS)
    assert {kind for kind, _ in points} >= {"table", "prefill", "decode", "mixed", *HELD_OUT}
    for _, batch in points:
        assert batch.tokens <= 128
        assert len(batch.decodes) <= 16
        assert batch.kv_tokens <= 8000


def test_a_profile_that_ran_out_of_memory_keeps_its_points_and_goes_on(tmp_path: Path) -> None:
    table, grid = tmp_path / "t.csv", profiling.grid(LIMITS)
    wanted = profiling.todo(table, grid, {"device": "clock"}, rounds=1)
    assert set(wanted) == set(grid)
    with pytest.raises(InputError, match="expected memory for a batch"):
        list(profiling.measure(Clock(fails_at=4), table, wanted))
    assert [p.seconds for p in profiling.read_points(table)] == [0.001, 0.002, 0.003]
    rest = profiling.todo(table, grid, {"device": "clock"}, rounds=1)
    assert rest == wanted[3:]
    list(profiling.measure(Clock(), table, rest))
    assert [(p.kind, p.batch) for p in profiling.read_points(table)] == wanted
    assert profiling.todo(table, grid, {"device": "clock"}, rounds=1) == []


def test_buffers_of_a_profile_hold_its_batches_in_whole_pages() -> None:
    assert profiling.PAGE == attention.PAGE
    for _, batch in profiling.grid(profiling.Limits()):
        ends = [*(n + k for n, k in batch.prefills), *(k + 1 for k in batch.decodes)]
        assert sum(-(-end // attention.PAGE) * attention.PAGE for end in ends) <= profiling.Limits().capacity_tokens


def test_a_point_is_the_median_of_its_rounds_and_each_round_covers_the_grid(tmp_path: Path) -> None:
    table, grid = tmp_path / "t.csv", profiling.grid(LIMITS)
    wanted = profiling.todo(table, grid, {}, rounds=3)
    thirds = [wanted[k : k + len(grid)] for k in range(0, len(wanted), len(grid))]
    assert [set(third) for third in thirds] == [set(grid)] * 3
    assert thirds[0] != thirds[1]
    device = Clock()
    list(profiling.measure(device, table, wanted[:-2]))
    assert profiling.todo(table, grid, {}, rounds=3) == wanted[-2:]
    list(profiling.measure(device, table, wanted[-2:]))
    point = next(p for p in profiling.read_points(table) if (p.kind, p.batch) == grid[0])
    assert point.seconds == (len(grid) + thirds[1].index(grid[0]) + 1) / 1000.0, "the second of three rising times"


def test_a_line_that_was_cut_off_is_measured_again_but_not_fitted(tmp_path: Path) -> None:
    table, grid = tmp_path / "t.csv", profiling.grid(LIMITS)
    wanted = profiling.todo(table, grid, {}, rounds=1)
    list(profiling.measure(Clock(), table, wanted[:3]))
    whole = table.read_text()
    table.write_text(whole[:-9])
    with pytest.raises(InputError, match=r"t.csv, line 4: expected a measured batch, got"):
        profiling.read_points(table)
    assert profiling.todo(table, grid, {}, rounds=1) == wanted[2:]


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    profiling.todo(table, [], {"model": "a"})
    with pytest.raises(InputError, match="model: expected a table of 'b', got one of 'a'"):
        profiling.todo(table, [], {"model": "b"})
    (tmp_path / "t.csv.json").write_text("{}")
    with pytest.raises(InputError, match="expected format 'llmsched-measurements/2'"):
        profiling.read_provenance(table)
    (tmp_path / "t.csv.json").unlink()
    with pytest.raises(InputError, match="cannot read the description that `llmsched profile` writes"):
        profiling.read_provenance(table)
