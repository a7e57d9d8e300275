"""The study of SLAI inside vLLM: every row, and a world that is changed in one thing."""

import pytest

from agents.studies.slai_causes import LOADS, SETTINGS, SLAI, STOCK, Task, World, circumstances, main, serve
from engine.config import EngineConfig

WORLD = World("h100-mistral-7b", EngineConfig(num_blocks=20_000, max_num_seqs=256, async_scheduling=True))


def test_every_row_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--requests", "40", "--seeds", "1", "--workers", "1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 + 3 * len(LOADS) + len(SETTINGS) + len(circumstances(WORLD))


def test_circumstances_differ_from_the_world_in_one_thing() -> None:
    for name, world in circumstances(WORLD).items():
        parts = (world.profile != WORLD.profile, world.server != WORLD.server, world.workload != WORLD.workload)
        assert sum(parts) == (name != "none"), name


def test_who_is_never_held_finishes_earlier() -> None:
    """The cause that the page names for the late end, on a short run near capacity."""
    slai, eager, stock = (
        serve(Task(WORLD, policy, 7.0, 300, 0)) for policy in (SLAI, SETTINGS["nobody is held"], STOCK)
    )
    assert slai.e2el.mean > 1.3 * eager.e2el.mean
    assert slai.ttft.p50 < eager.ttft.p50
    assert stock.output_throughput > slai.output_throughput
