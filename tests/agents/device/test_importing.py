"""Data of others become tables and profiles: measured layers, logs of a server; what does not fit is one line."""

import csv
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from agents.device.importing import llmservingsim
from agents.device.importing.model import Shape, read_config, shape_of
from agents.device.profiling import read_points, read_provenance
from engine.device.fitting import HELD_OUT, Batch
from engine.device.latency import LatencyModel, load_profile
from engine.errors import InputError

SHARED = Path(os.environ.get("LLMSCHED_DATA", Path(__file__).parents[4] / "shared" / "data")) / "llmservingsim"
CONFIG = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512}
PREFILL_US, DECODE_US, JOINT = 2e-4, 3e-3, 2.0
"""Attention of the made-up device: microseconds per pair and per KV token, how much dearer that is beside a chunk."""


def attention_us(chunk: int, before: int, decodes: int, context: int) -> float:
    """One launch of the made-up device."""
    return 5.0 + PREFILL_US * chunk * (before + chunk / 2) + DECODE_US * decodes * context * (JOINT if chunk else 1.0)


def write_rows(path: Path, heads: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Write a csv file."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([heads.split(","), *rows])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables of a made-up device, as LLMServingSim's profiler writes them; the attention holds two grids, with gaps."""
    layers = (*llmservingsim.PER_LAYER, *llmservingsim.ONCE)
    dense = [(name, n, 3.0 + 0.05 * n) for name in layers for n in (1, 64, 512, 2048)]
    head = [(name, n, 10.0 + n) for name in llmservingsim.PER_REQUEST for n in (1, 256)]
    kv, counts = [16, 1024, 8192], [1, 16, 128]
    cells = [(0, 0, n, k) for n in (*counts, 256) for k in kv]
    cells += [(c, b, 0, 0) for c in (16, 512, 2048) for b in (0, *kv)]
    cells += [(c, b, n, k) for c, b, n, k in itertools.product((16, 512, 2048), (0, *kv), counts, kv)]
    cells += [(24, 768, 4, 768)]  # of another grid
    write_rows(tmp_path / "dense.csv", "layer,tokens,time_us", dense)
    write_rows(tmp_path / "per_sequence.csv", "layer,sequences,time_us", head)
    rows: list[tuple[object, ...]] = [(*cell, attention_us(*cell)) for cell in cells]
    write_rows(tmp_path / "attention.csv", ",".join((*llmservingsim.ATTENTION, "time_us")), rows)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "meta.yaml").write_text("gpu: Made Up\nvllm_version: 9.9.9\nper_tp:\n  1:\n    method: none\n")
    return tmp_path


def layers_of(folder: Path, joint: bool = True) -> llmservingsim.Layers:
    """The tables of a folder."""
    return llmservingsim.Layers(folder, shape_of(read_config(folder), "config"), joint)


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    assert main(line.split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    return said


def test_an_iteration_is_the_sum_of_its_layers(folder: Path) -> None:
    layers = layers_of(folder)
    dense = 3.0 + 0.05 * 520
    expected = (4 * 8 + 2) * dense + 2 * (10.0 + 9) + 4 * attention_us(512, 1024, 8, 1024)
    # 8 decodes lie between those that were measured: linear there as on the device.
    assert layers.seconds(Batch(((512, 1024),), (1024,) * 8)) == pytest.approx(expected / 1e6, rel=1e-9)
    alone = layers_of(folder, joint=False).attention_us(Batch(((512, 1024),), (1024,) * 8))
    assert alone == pytest.approx(attention_us(512, 1024, 0, 0) + attention_us(0, 0, 8, 1024))


def test_a_further_chunk_counts_as_if_alone(folder: Path) -> None:
    layers = layers_of(folder)
    both = layers.attention_us(Batch(((16, 0), (512, 1024)), (16,)))
    assert both == pytest.approx(attention_us(512, 1024, 1, 16) + attention_us(16, 0, 0, 0))


def test_of_several_grids_the_largest_complete_one_is_taken(folder: Path) -> None:
    axes, values = llmservingsim.attention_grid(folder / "attention.csv")
    assert [axis.astype(int).tolist() for axis in axes] == [
        [0, 16, 512, 2048],
        [0, 16, 1024, 8192],
        [0, 1, 16, 128],
        [0, 16, 1024, 8192],
    ]
    assert not np.isnan(values).any()


def test_a_folder_becomes_a_table_and_a_profile(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "mine.json"
    assert main(f"fit --from llmservingsim {folder} --out {out} --overhead 0.001 --num-blocks 77".split()) == 0
    assert f"written: {folder}/mine.csv" in capsys.readouterr().out
    model = load_profile(str(out))
    said = model.provenance
    assert (said["device"], said["engine"], said["num_blocks"]) == ("Made Up", "vLLM 9.9.9", 77)
    assert said["kv_bytes_per_token"] == 2 * 4 * 2 * 64 * 2
    assert model.overhead == said["host"]["added_s"] == 0.001
    assert len(read_points(folder / "mine.csv")) == sum(row["points"] for row in said["residuals"].values())
    assert read_provenance(folder / "mine.csv")["imported_from"] == "llmservingsim"
    assert model.per_context == pytest.approx(4 * DECODE_US * 1e-6, rel=0.1)
    assert model.per_mixed / model.per_context == pytest.approx(JOINT - 1.0, rel=0.1)


def drop(file: str, column: str) -> Callable[[Path], None]:
    """A folder without a column of one of its tables."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace(column, "other", 1))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            drop("dense.csv", "tokens"),
            "dense.csv, line 1: expected the columns layer, tokens, time_us, found no tokens",
        ),
        (drop("attention.csv", "kv_prefill"), "attention.csv, line 1: expected the columns prefill_chunk, kv_prefill"),
        (drop("dense.csv", "act_fn"), "dense.csv: unknown layer 'other', known: layernorm, qkv_proj"),
        (lambda f: (f / "config.json").unlink(), "config.json: expected the config.json of a model, found none"),
        (lambda f: (f / "config.json").write_text("{}"), "expected the config.json of a language model, found no num_"),
        (lambda f: (f / "per_sequence.csv").unlink(), "per_sequence.csv: cannot read a table of measured layers"),
        (
            lambda f: write_rows(f / "per_sequence.csv", "layer,sequences,time_us", [("lm_head", 1, 2.0)]),
            "per_sequence.csv: layer 'lm_head': expected 2 or more points, got 1",
        ),
        (
            lambda f: write_rows(f / "per_sequence.csv", "layer,sequences,time_us", [("lm_head", 1)]),
            "per_sequence.csv, line 2: expected 3 cells, got 2",
        ),
        (
            lambda f: write_rows(
                f / "attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", [(0, 0, 1, 16, 2)]
            ),
            "attention.csv: prefill_chunk: expected measured values of a whole grid",
        ),
        (
            lambda f: write_rows(
                f / "attention.csv",
                "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us",
                [(k, k, k, k, 1) for k in range(50)],
            ),
            "attention.csv: expected a grid of at most 2000000 cells, got values of 6250000",
        ),
        (
            lambda f: (f / "run-meta.json").write_text('{"kv_cache": {"num_gpu_blocks": true}}'),
            "run-meta.json: kv_cache.num_gpu_blocks: expected a whole number >= 1",
        ),
        (
            lambda f: write_rows(f / "dense.csv", "layer,tokens,time_us", [("act_fn", 1, "fast")]),
            "dense.csv, line 2: time_us: expected a number",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(
    change: Callable[[Path], None], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder)
    assert said in refused(f"fit --from llmservingsim {folder} --out {folder}/x.json", capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--from vidur", "from: expected one of llmservingsim, aiconfigurator, vllm-log, got 'vidur'"),
        ("--from llmservingsim", "from: expected llmservingsim DIR, got 'llmservingsim'"),
        ("--from aiconfigurator here", "from: expected aiconfigurator, got 'aiconfigurator here'"),
        ("--from vllm-log x.csv --attention separate", "attention: expected none here (vllm-log takes model, tp,"),
        ("--tp 2 --table t.csv", "tp: expected none here (they go with --from), got 2"),
        ("", "table: expected a table of `llmsched profile` or a place for that of --from, got none"),
        ("--table t.csv --overhead 1 --match tpot=3@1", "overhead, match: expected one of them, got both"),
        ("--table t.csv --match ttft=3@1", "match: expected tpot=MS@BATCH or tpot=MS@BATCHxCONTEXT"),
        ("--table t.csv --match tpot=3", "match: expected tpot=MS@BATCH or tpot=MS@BATCHxCONTEXT"),
        ("--table t.csv --match tpot=-3@8", "match: expected tpot=MS@BATCH or tpot=MS@BATCHxCONTEXT"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(f"fit {options}", capsys)


def test_one_published_number_calibrates_the_host(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"fit --from llmservingsim {folder} --out {folder}/a.json".split()) == 0
    line = f"fit --table {folder}/a.csv --out {folder}/b.json --match"
    assert main([*line.split(), "tpot=40@64x512"]) == 0
    capsys.readouterr()
    batch, model = Batch((), (512,) * 64), load_profile(f"{folder}/b.json")
    assert seconds(model, batch) == pytest.approx(0.040)
    assert "64 decodes of 512 KV tokens takes 40 ms" in model.provenance["host"]["reason"]
    assert "match: expected more than the" in refused(f"{line} tpot=0.001@64", capsys)


def seconds(model: LatencyModel, batch: Batch) -> float:
    """What a model says of a batch."""
    from agents.device.calibration import batch_seconds

    return batch_seconds(model, batch)


TRUTH = LatencyModel(
    overhead=0.002, floor=0.01, per_token=4e-5, per_pair=2e-9, per_context=1.2e-7, per_mixed=1e-7, per_request=1e-5
)


def log_rows(count: int = 900) -> Sequence[tuple[object, ...]]:
    """Iterations of a server that is TRUTH, as it would log them."""
    rng, rows = np.random.default_rng(3), []
    for _ in range(count):
        decodes = int(rng.integers(0, 64))
        tokens = int(np.exp(rng.uniform(2, 7))) if rng.random() < 0.4 or not decodes else 0
        before = int(rng.integers(0, 2000)) if tokens else 0
        contexts = tuple(int(k) for k in rng.integers(16, 3000, decodes))
        batch = Batch(((tokens, before),) if tokens else (), contexts)
        rows.append((7, tokens, decodes, sum(contexts), before, f"{seconds(TRUTH, batch):.9g}"))
    return rows


LOG = "step,prompt_tokens,decodes,context,prompt_context,seconds"


def test_a_servers_log_gives_back_the_device_that_wrote_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = tmp_path / "log.csv", tmp_path / "p.json"
    write_rows(log, LOG, log_rows())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"head_dim": 32, "dtype": "float32"}))
    assert main(f"fit --from vllm-log {log} --out {out} --model {tmp_path} --system mine --tp 2".split()) == 0
    model = load_profile(str(out))
    assert {kind: row["mape"] < 2.0 for kind, row in model.provenance["residuals"].items() if kind in HELD_OUT} == {
        kind: True for kind in HELD_OUT
    }
    assert len(model.table) <= 16
    assert model.provenance["kv_bytes_per_token"] == 2 * 4 * 1 * 32 * 4, "one KV head for each of two devices"
    for batch in (Batch((), (800,) * 40), Batch(((700, 300),), (900,) * 20)):
        assert seconds(model, batch) == pytest.approx(seconds(TRUTH, batch), rel=0.04)


@pytest.mark.parametrize(
    ("heads", "row", "said"),
    [
        (
            "prompt_tokens,decodes,seconds",
            (1, 2, 3),
            "line 1: expected the columns prompt_tokens, decodes, context, se",
        ),
        (
            "prompt_tokens,decodes,context,seconds",
            (0, 0, 0, 1),
            "line 2: expected prompt_tokens or decodes > 0, got an",
        ),
        ("prompt_tokens,decodes,context,seconds", (0, 9, 8, 1), "line 2: expected a context of 9 or more for as many"),
        ("prompt_tokens,decodes,context,seconds", (0, 9, 90, 0), "line 2: seconds: expected a number > 0, got 0"),
        ("prompt_tokens,decodes,context,seconds", (0.5, 9, 90, 1), "line 2: prompt_tokens: expected a whole number"),
        ("prompt_tokens,decodes,context,seconds,prompts", (3, 0, 0, 1, 4), "line 2: expected 4 or more prompt_tokens"),
        ("prompt_tokens,decodes,context,seconds", (0, 9, 90), "line 2: expected 4 cells, got 3"),
        ("prompt_tokens,decodes,context,seconds,seconds", (0, 9, 90, 1, 2), "line 1: expected each column once, got"),
    ],
)
def test_a_log_that_does_not_fit_is_one_line(
    heads: str, row: tuple[object, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "log.csv", heads, [row] * 40)
    assert said in refused(f"fit --from vllm-log {tmp_path}/log.csv --out {tmp_path}/x.json", capsys)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("log.json", "table: expected a new file for that of --from, or such a table, got {}/log.csv"),
        ("new.csv", "table, out: expected two files, got {}/new.csv for both"),
        (".", "{}: expected a file to write, got a folder"),
    ],
)
def test_a_file_of_others_is_not_written_over(
    out: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "log.csv", LOG, log_rows(40))
    before = (tmp_path / "log.csv").read_bytes()
    assert said.format(tmp_path) in refused(f"fit --from vllm-log {tmp_path}/log.csv --out {tmp_path}/{out}", capsys)
    assert (tmp_path / "log.csv").read_bytes() == before
    assert main(f"fit --from vllm-log {tmp_path}/log.csv --out {tmp_path}/x.json".split()) == 0
    assert main(f"fit --from vllm-log {tmp_path}/log.csv --out {tmp_path}/x.json".split()) == 0, "our own table"


@pytest.mark.parametrize("devices", ["two", None, 0, 1.5])
def test_a_table_of_no_number_of_devices_is_one_line(
    devices: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("set,prefills,decodes,seconds\ntable,16@0,,0.1\n")
    about = {"format": "llmsched-measurements/2", "model": CONFIG, "tp": devices}
    (tmp_path / "t.csv.json").write_text(json.dumps(about))
    said = refused(f"fit --table {tmp_path}/t.csv --out {tmp_path}/x.json", capsys)
    assert "provenance.tp: expected a whole number" in said


def test_a_table_of_one_point_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "log.csv", LOG, log_rows(1))
    said = refused(f"fit --from vllm-log {tmp_path}/log.csv --out {tmp_path}/x.json", capsys)
    assert "expected 32 or more iterations, got 1" in said
    (tmp_path / "t.csv").write_text("set,prefills,decodes,seconds\ntable,16@0,,0.1\n")
    (tmp_path / "t.csv.json").write_text('{"format": "llmsched-measurements/2"}')
    said = refused(f"fit --table {tmp_path}/t.csv --out {tmp_path}/x.json", capsys)
    assert "fit: expected at least 2 token counts in set 'table' and points in set 'decode', got 1 and 0" in said


@pytest.mark.parametrize(
    ("changes", "kv_bytes"),
    [
        ({}, 2 * 4 * 2 * 64 * 2),
        ({"head_dim": 128}, 2 * 4 * 2 * 128 * 2),
        ({"num_key_value_heads": None}, 2 * 4 * 8 * 64 * 2),
        ({"torch_dtype": "float32"}, 2 * 4 * 2 * 64 * 4),
    ],
)
def test_kv_bytes_follow_the_config(changes: dict[str, object], kv_bytes: int) -> None:
    assert shape_of({**CONFIG, **changes}, "x").kv_bytes_per_token() == kv_bytes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 513}, "x: expected head_dim or a hidden_size of whole heads, got 513"),
        ({"torch_dtype": "int3"}, "x: model.dtype: expected one of bfloat16, float16, float32, got 'int3'"),
        ({"num_hidden_layers": 0}, "x: model.num_hidden_layers: expected a whole number >= 1, got 0"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        shape_of({**CONFIG, **changes}, "x")


def test_a_kv_head_is_never_divided() -> None:
    shape = Shape(32, 32, 8, 128)
    assert [shape.kv_bytes_per_token(tp) for tp in (1, 4, 16)] == [131_072, 32_768, 16_384]


def test_aiconfigurator_needs_its_extra(capsys: pytest.CaptureFixture[str]) -> None:
    from engine.extras import missing

    if missing("aiconfigurator") is None:
        pytest.skip("aiconfigurator-core is installed")
    said = refused("fit --from aiconfigurator --system h100_sxm --model config.json", capsys)
    assert "llmsched[aiconfigurator]" in said


@pytest.mark.skipif(not SHARED.exists(), reason="the measured tables are not part of the project (LLMSCHED_DATA)")
@pytest.mark.parametrize(
    ("device", "mean", "p95"), [("rtx4090-llama-3.1-8b", 4.0, 11.0), ("rtxpro6000-llama-3.1-8b", 3.0, 8.0)]
)
def test_measured_tables_are_fitted_within_the_targets(device: str, mean: float, p95: float, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    assert main(f"fit --from llmservingsim {SHARED / device} --out {out}".split()) == 0
    error = load_profile(str(out)).provenance["residuals"]["held-out mixed"]
    assert (error["mape"] <= mean, error["p95"] <= p95) == (True, True)
