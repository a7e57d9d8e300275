"""`llmsched profiles`, and servers whose memory is that of the profile."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.cli import _parse, main
from agents.device.calibration import batch_seconds
from agents.device.figures import figures
from agents.device.profiling import read_points, read_provenance
from engine.config import EngineConfig
from engine.device.fitting import Batch, residuals
from engine.device.latency import LatencyModel, load_profile, profile_names
from engine.device.memory import server_of
from engine.errors import InputError

ROOT = Path(__file__).parents[3]
DEFAULT = "rtx6000ada-mistral-7b"


def profile_file(folder: Path, **said: object) -> Path:
    """A profile whose provenance says this."""
    path = folder / "mine.json"
    LatencyModel(0.001, 0.01, 1e-5, 0.0, 1e-7, per_mixed=5e-8, name="mine", provenance=said).save(path)
    return path


def engine_of(line: str) -> EngineConfig:
    """The server that a command runs."""
    command, *rest = line.split()
    return _parse(command, rest).engine


def test_every_shipped_profile_stands_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"profiles --json {tmp_path}/p.json".split()) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "p.json").read_text())["profiles"]
    assert [row["name"] for row in rows] == profile_names()
    assert all(name in shown for name in profile_names())
    row = rows[profile_names().index(DEFAULT)]
    assert row["num_blocks"] == EngineConfig().num_blocks
    assert row["beside_chunk"] is None, "never measured"
    assert row["decode_s"]["32"] == pytest.approx(0.0272, abs=1e-4)


def test_profiles_are_compared_by_name_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = profile_file(tmp_path, device="my device", num_blocks=77)
    assert main(f"profiles {path} {DEFAULT}:speed=2".split()) == 0
    shown = capsys.readouterr().out
    assert "my device" in shown
    assert f"{DEFAULT}:speed=2" in shown
    assert main(["profiles", "nosuch"]) == 2
    assert "profile: expected one of" in capsys.readouterr().err


def test_cost_beside_a_chunk_is_relative() -> None:
    said = {"residuals": {"held-out mixed": {"mape": 3.0, "p95": 9.0}}, "validity": {"tokens": [1, 512]}}
    model = LatencyModel(0.001, 0.01, 1e-5, 0.0, 1e-7, per_mixed=5e-8, name="mine", provenance=said)
    found = figures(model)
    assert found.beside_chunk == pytest.approx(1.5)
    assert (found.most_tokens, found.longest, found.engine) == (512, None, "not stated")


def test_the_server_of_a_command_has_the_memory_of_the_profile(tmp_path: Path) -> None:
    path = profile_file(tmp_path, num_blocks=777, kv_bytes_per_token=4096)
    engine = engine_of(f"simulate --profile {path}")
    assert engine == EngineConfig(num_blocks=777, kv_bytes_per_token=4096)
    given = engine_of(f"simulate --profile {path} --engine.num-blocks 99 --tier name=a,tbt=1,ttft=1")
    assert given.num_blocks == 99
    reference = engine_of(f"tune slai --profile {path} --semantics reference")
    assert reference == EngineConfig.reference(num_blocks=777, kv_bytes_per_token=4096)


@pytest.mark.parametrize("speed", ["", ":speed=2"])
def test_the_default_device_is_the_default_server(speed: str) -> None:
    assert server_of(load_profile(DEFAULT + speed)) == EngineConfig()


@pytest.mark.parametrize("blocks", [0, 1.5, "many"])
def test_impossible_memory_is_one_line(blocks: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = profile_file(tmp_path, num_blocks=blocks)
    with pytest.raises(InputError, match=r"profile 'mine': provenance: engine\.num_blocks: expected a whole number"):
        server_of(load_profile(str(path)))
    assert main(f"simulate --profile {path} --num-requests 2".split()) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"residuals": {"held-out mixed": 5}}, "provenance.residuals.held-out mixed: expected a mapping, got 5"),
        (
            {"residuals": {"held-out mixed": {"mape": 1.0}}},
            "residuals.held-out mixed.p95: expected a number, got nothing",
        ),
        ({"residuals": {"held-out decode": {"mape": "x", "p95": 1}}}, "held-out decode.mape: expected a number, got"),
        ({"num_blocks": "many"}, "provenance: engine.num_blocks: expected a whole number >= 1, got 'many'"),
        ({"kv_bytes_per_token": 0}, "provenance: engine.kv_bytes_per_token: expected a whole number >= 1, got 0"),
    ],
)
def test_what_a_profile_cannot_say_is_one_line_of_the_comparison(
    said: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"profiles {profile_file(tmp_path, **said)}".split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_what_a_terminal_would_obey_is_shown(tmp_path: Path) -> None:
    found = figures(load_profile(str(profile_file(tmp_path, device="a\x1b[31mb\nc"))))
    assert found.device == r"'a\x1b[31mb\nc'"


TARGETS = {
    "rtx4090-llama-3.1-8b": (4.0, 11.0),
    "rtxpro6000-llama-3.1-8b": (3.0, 8.0),
    "h100-mistral-7b-fa2": (12.0, 22.0),
}
"""Mean and 95th percentile of the errors on held-out mixed batches, %; FlashAttention 2 on Hopper is worse."""
SERVED = "h200-vllm-mistral-7b"
"""Fitted to what a vLLM server logged, its host included."""
UNFITTED = {DEFAULT, "tile-unit", "cpu-tiny-mistral"}


def test_the_profile_of_a_server_is_what_is_fitted_to_its_log(tmp_path: Path) -> None:
    model, log = load_profile(SERVED), tmp_path / "probe.csv"
    log.write_bytes(gzip.decompress((ROOT / model.provenance["source"]).read_bytes()))
    assert main(f"fit --from vllm-log {log} --out {tmp_path}/p.json".split()) == 0
    found = load_profile(f"{tmp_path}/p.json")
    assert (found.graph_tokens, model.graph_tokens) == (512.0, 512.0)
    for batch in (((), (1000,) * 30), (((400, 0),), (900,) * 20), (((700, 0),), ()), (((3000, 0),), (500,) * 60)):
        said, stated = (batch_seconds(each, Batch(*batch)) for each in (found, model))
        assert said == pytest.approx(stated, rel=1e-3)
    stated_errors = model.provenance["residuals"]
    assert {kind: found.provenance["residuals"][kind]["mape"] for kind in stated_errors} == pytest.approx(
        {kind: error["mape"] for kind, error in stated_errors.items()}, rel=0.02
    )
    assert figures(model).errors["held-out decode"].mean < 3.0
    assert figures(model).errors["held-out mixed"].mean < 7.5


@pytest.mark.parametrize("name", sorted({*profile_names()} - UNFITTED - {SERVED}))
def test_a_shipped_profile_says_what_it_stands_for_and_how_good_it_is(name: str) -> None:
    model = load_profile(name)
    found, (mean, p95) = figures(model), TARGETS.get(name, (5.0, 11.0))
    assert "not stated" not in (found.device, found.engine, found.attention, found.source)
    assert found.num_blocks is not None
    assert found.kv_bytes_per_token == 131_072
    assert (found.most_tokens, found.longest) == (2048, 8192)
    assert (found.errors["held-out mixed"].mean <= mean, found.errors["held-out mixed"].p95 <= p95) == (True, True)
    assert model.overhead == model.provenance["host"]["added_s"]
    assert model.name == name
    one_launch_of_fa2 = "FlashAttention 2, one launch" in found.attention
    assert found.beside_chunk is not None
    assert (found.beside_chunk > 1.5) == one_launch_of_fa2


MEASURED = Path(__file__).parents[2] / "measured"
"""Tables of `llmsched profile` on GPUs, medians of their rounds."""


@pytest.mark.parametrize("table", sorted(MEASURED.glob("*.csv")), ids=lambda table: table.stem)
def test_a_measured_profile_has_the_errors_that_it_states(table: Path) -> None:
    """Else a term means something else than when it was fitted: `docs/results/devices.md` has the commands."""
    model = load_profile(table.stem)
    device = replace(model, overhead=model.overhead - model.provenance["host"]["added_s"])
    stated = {kind: error["mape"] for kind, error in model.provenance["residuals"].items()}
    found = {kind: error["mape"] for kind, error in residuals(device, read_points(table)).items()}
    assert found == pytest.approx(stated, abs=1e-3)
    assert read_provenance(table)["device"] == model.provenance["device"]
