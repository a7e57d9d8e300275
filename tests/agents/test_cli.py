import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from agents.cli import commands, main

ROOT = Path(__file__).resolve().parents[2]


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    code = main(line.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


SMALL = "--workload poisson:lengths=lognormal:5,1,3,1,2000 --num-requests 30 --seeds 2 --workers 1"

TRACES = {
    "columns.csv": "a,b\n1,2\n",
    "empty.csv": "",
    "headonly.csv": "num_prefill_tokens,num_decode_tokens\n",
    "negative.csv": "num_prefill_tokens,num_decode_tokens\n-5,2\n",
    "nan.csv": "arrived_at,num_prefill_tokens,num_decode_tokens\nnan,5,2\n",
    "unsorted.csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n5,5,2\n1,5,2\n",
    "long.csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n0,20000,2\n",
}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nosuch", "expected a command"),
        ("evaluate --policies nosuch", "got 'nosuch'"),
        ("evaluate --policies runs/nosuch", "got 'runs/nosuch'"),
        ("evaluate --policies slai:nosuch=1", "got 'nosuch=1'"),
        ("evaluate --policies slai:offset=x", "got 'x'"),
        ("evaluate --policies slai:offset=-1", "offset"),
        ("evaluate --policies ,", "at least one"),
        ("evaluate --policies slai,slai", "twice"),
        ("evaluate --reference slai --policies vllm,orca", "reference"),
        ("evaluate --seeds 0", "seeds"),
        ("evaluate --seeds x", "--seeds"),
        ("evaluate --workers 0", "workers"),
        ("evaluate --num-requests 0", "num_requests"),
        ("evaluate --rate -1", "rate"),
        ("evaluate --rate nan", "rate"),
        ("evaluate --rates 2:1:1", "rates"),
        ("evaluate --rates 1:2:0", "rates"),
        ("evaluate --rates 1,1", "each load once"),
        ("evaluate --rate 1 --rates 1,2", "got both"),
        ("evaluate --rate-scale 0.5", "rate_scale"),
        ("evaluate --workload nosuch", "got 'nosuch'"),
        ("evaluate --workload poisson:nosuch=1", "got 'nosuch=1'"),
        ("evaluate --workload poisson:rate=2 --rate 3", "rate: expected once"),
        ("evaluate --profile nosuch", "profile"),
        ("evaluate --engine.num-blocks 0", "num_blocks"),
        ("evaluate --engine.num-blocks 10", "prompt + output"),
        ("evaluate --engine.nosuch 1", "nosuch"),
        ("evaluate --horizon -1", "horizon"),
        ("evaluate --prediction nosuch", "channel: expected one of oracle"),
        ("evaluate --policies ltr --prediction rank:tau=2", "tau"),
        ("simulate --engine.swap-bandwidth -1", "swap_bandwidth"),
        ("evaluate --warmup -1", "warmup"),
        ("evaluate --policies slai:tuned=nowhere", "tuned settings slai:tuned=poisson, slai:tuned=FILE, got"),
        ("evaluate --rate x", "evaluate: --rate: expected a number, got 'x'"),
        ("evaluate --seeds 1.5", "evaluate: --seeds: expected a whole number, got '1.5'"),
        ("evaluate --workers x", "evaluate: --workers: expected a whole number, got 'x'"),
        ("train --learning-rate x", "train: --learning-rate: expected a number, got 'x'"),
        ("train --env.rates x", "train: --env.rates: expected other values, got 'x'"),
        ("evaluate --engine.max-num-seqs 0", "evaluate: engine.max_num_seqs: expected a whole number >= 1, got 0"),
        ("evaluate --workload poisson:num_requests=5 --num-requests 6", "num_requests: expected once"),
        ("starvation --reference slai", "reference: expected none"),
        ("train --device cuda:99", "device: expected one that torch finds here, got 'cuda:99'"),
        ("tune nosuch", "got 'nosuch'"),
        ("tune slai --rates 0", "rates"),
        ("tune slai --seeds 0", "seeds"),
        ("tune slai --workers 0", "workers"),
        ("evolve --recipe nosuch.yml", "cannot read a recipe"),
        ("evolve --generations 0", "generations"),
        ("evolve --workers 0", "workers"),
        ("train --teacher slai", "teacher: expected slackfit"),
        ("evaluate --resume", "to resume"),
        ("evaluate --nosuch", "--nosuch"),
        ("evaluate --trace nosuch.csv", "nosuch.csv"),
        ("evaluate --trace columns.csv", "columns.csv, line 1"),
        ("evaluate --trace empty.csv", "empty.csv"),
        ("evaluate --trace headonly.csv", "headonly.csv"),
        ("evaluate --trace negative.csv", "negative.csv, line 2"),
        ("evaluate --trace nan.csv", "nan.csv, line 2"),
        ("evaluate --trace unsorted.csv", "unsorted.csv, line 3"),
        ("evaluate --trace long.csv --workers 1", "max_model_len"),
        ("evaluate --out columns.csv", "columns.csv"),
        ("evaluate --report columns.csv/report.html", "report.html"),
        ("evaluate --json .", "got a folder"),
        ("simulate --policy nosuch", "got 'nosuch'"),
        ("fluid --bounds 64,x", "bounds: expected token counts such as 64,128,256, got '64,x'"),
        ("fluid --bounds 64,64", "bounds: expected rising token counts"),
        ("fluid --limit 0", "limit: expected a whole number >= 1, got 0"),
        ("fluid --rate 0", "rate"),
        ("simulate --executor nosuch", "executor: expected transformers"),
        ("simulate --executor transformers:nosuch,device=cpu", "expected a folder with config.json"),
        ("profile --executor transformers:tiny,dtype=fp8", "dtype: expected bf16 or fp32"),
        ("profile --executor transformers:tiny --grid.tokens 0", "grid.tokens"),
        ("profile --executor transformers:tiny --rounds 0", "rounds"),
        ("fit --table nosuch.csv", "nosuch.csv: cannot read"),
        ("fit --table columns.csv", "columns.csv, line 1: expected the columns"),
        ("validate --executor transformers:tiny --shares x", "got 'x'"),
        ("simulate --seed -1", "seed"),
        ("capacity --low 2 --high 1", "low, high"),
        ("capacity --rates 2,1", "ascending"),
        ("capacity --trace unsorted.csv", "unsorted.csv"),
        ("report nosuch", "nosuch"),
        ("report columns.csv", "columns.csv"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    for name, text in TRACES.items():
        Path(name).write_text(text)
    code, out, err = run(capsys, line)
    assert (code, out) == (2, "")
    assert err.startswith("llmsched")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert words in err
    assert "Traceback" not in err


def test_help_of_a_command_may_be_asked_for_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "tiles"]) == 0
    assert capsys.readouterr().out.startswith("usage: llmsched tiles")
    assert main(["help", "nosuch"]) == 2


def test_an_interrupt_while_code_is_imported_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("agents.cli._run_to_the_end", interrupted)
    assert main(["tiles"]) == 130
    assert capsys.readouterr().err == "llmsched: interrupted\n"


def test_the_overview_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("", "--help", "help"):
        code, out, _ = run(capsys, line)
        assert code == 0
        for name in commands():
            (text,) = (row for row in out.splitlines() if row.split()[:1] == [name])
            assert len(text.split()) > 3


@pytest.mark.parametrize("name", ["evaluate", "simulate", "capacity", "report", "policies", "workloads"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, err = run(capsys, f"{name} --help")
    assert (code, err) == (0, "")
    assert f"usage: llmsched {name}" in out


@pytest.mark.parametrize("name", commands())
@pytest.mark.parametrize("width", [44, 80])
def test_help_fits_the_terminal_and_shows_groups_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, short, err = run(capsys, f"{name} --help")
    assert (code, err) == (0, "")
    assert run(capsys, f"{name} -h")[1] == short
    code, whole, err = run(capsys, f"{name} --help-all")
    assert (code, err) == (0, "")
    for text in (short, whole):
        assert max(map(len, text.splitlines())) <= width
        assert f"usage: llmsched {name}" in " ".join(text.split())
    groups = re.findall(r"^--(\S+)\.\*", short, re.M)
    for group in groups:
        assert re.search(rf"^│ --{re.escape(group)}\.[a-z]", whole, re.M)
        assert not re.search(rf"^│ --{re.escape(group)}\.", short, re.M)
    assert ("--help-all" in short) == bool(groups) == (short != whole)


@pytest.mark.parametrize("name", commands())
def test_help_breaks_a_line_only_where_it_is_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Texts come from docstrings, whose lines end elsewhere."""
    monkeypatch.setenv("COLUMNS", "80")
    out = run(capsys, f"{name} --help-all")[1]
    inside = [line[2:-2].rstrip() for line in out.splitlines() if line.startswith("│")]
    for line, after in pairwise(inside):
        column = len(after) - len(after.lstrip())
        if column > 2 and column == len(line) - len(line.lstrip()):
            assert len(f"{line} {after.split()[0]}") > 76, (line, after)
    assert all(len(line) <= 80 for line in out.splitlines())


def test_help_without_a_utf_8_terminal_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["evaluate", "--help"]) == 0
    sys.stdout.flush()
    assert b"+- options -" in raw.getvalue()


def test_evaluate_prints_and_writes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, f"evaluate {SMALL} --policies sarathi,random --rates 4,8 --report r/x.html --json j.json"
    )
    assert (code, err) == (0, "")
    assert "Difference to sarathi" in out
    result = json.loads(Path("j.json").read_text())
    assert len(result["cells"]) == 8
    assert result == json.loads(Path("out/evaluate/result.json").read_text())
    assert Path("r/x.html").read_text().startswith("<!doctype html>")
    assert len(Path("out/evaluate/cells.jsonl").read_text().splitlines()) == 9
    Path("r/x.html").unlink()
    code, out, err = run(capsys, "report j.json --out again")
    assert (code, err) == (0, "")
    assert Path("again/report.html").is_file()


def test_simulate_writes_the_keys_of_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "simulate --workload toy --policy sarathi --json j.json")
    assert (code, err) == (0, "")
    assert "8 of 8 requests finished" in out
    data = json.loads(Path("j.json").read_text())
    assert data["completed"] == 8
    # One chunk of 512 tokens: 7.64 ms + 512 x 83.6 us + pairs and nothing else.
    assert data["median_ttft_ms"] == pytest.approx(7.64 + 512 * 0.0836 + 512 * 513 / 2 * 5.8254e-6, rel=1e-3)


def test_each_policy_gets_its_own_predictions_or_those_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """One trace for all, whatever is predicted about it; who needs nothing is told nothing."""
    seen = []
    for flag in ("", " --prediction rank:tau=0.9"):
        code, out, err = run(capsys, f"evaluate {SMALL} --policies sarathi,ltr,trail --json j.json{flag}")
        assert (code, err) == (0, "")
        cells = json.loads(Path("j.json").read_text())["cells"]
        seen.append({cell["policy"]: cell["prediction"] for cell in cells})
        assert len({cell["trace"] for cell in cells}) == 2, "two seeds"
    assert seen == [
        {"sarathi": "", "ltr": "rank", "trail": "refined"},
        {"sarathi": "", "ltr": "rank:tau=0.9", "trail": "rank:tau=0.9"},
    ]
    report = Path("out/evaluate/report.html").read_text()
    assert "ltr: rank:tau=0.9, trail: rank:tau=0.9" in report
    code, out, err = run(capsys, "simulate --policy ltr --num-requests 20 --prediction oracle")
    assert "predictions of output lengths: oracle" in out


def test_semantics_are_presets_that_single_fields_override(capsys: pytest.CaptureFixture[str]) -> None:
    def engine(flags: str) -> dict[str, object]:
        code, _, err = run(capsys, f"evaluate {SMALL} --policies sarathi --no-plots --json j.json {flags}")
        assert (code, err) == (0, "")
        found: dict[str, object] = json.loads(Path("j.json").read_text())["config"]["engine"]
        return found

    assert engine("")["prompt_emits"] is True
    reference = engine("--semantics reference")
    assert (reference["prompt_emits"], reference["max_model_len"]) == (False, 8192)
    changed = engine("--semantics reference --engine.max-model-len 16_384 --engine.prompt-emits")
    assert (changed["prompt_emits"], changed["max_model_len"], changed["zero_gaps"]) == (True, 16384, True)


def test_policies_and_workloads_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "policies")
    assert code == 0
    for word in ("sarathi", "arXiv 2508.01002", "evidence", "token_budget=512", "random"):
        assert word in out
    code, out, _ = run(capsys, "workloads")
    assert code == 0
    for word in ("gamma", "openchat_sharegpt4", "lognormal:", "Mooncake"):
        assert word in out


def test_fluid_prints_quotas_that_the_policies_take(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "fluid --rate 1.2 --num-requests 200 --bounds 50,500 --limit 2000 --json fluid.json")
    assert code == 0
    figures = json.loads((tmp_path / "fluid.json").read_text())
    assert [row["up_to"] for row in figures["types"]][:2] == [50, 500]
    assert sum(row["rate"] for row in figures["types"]) == pytest.approx(1.2)
    assert figures["stable"]
    assert figures["load"] < 1.0
    for policy in ("wait", "nested_wait"):
        assert figures[policy] in out
        assert run(capsys, f"simulate --num-requests 20 --policy {figures[policy]}")[0] == 0
    code, out, _ = run(capsys, "fluid --rate 9 --num-requests 200")
    assert code == 0
    assert "NOT stable" in out


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agents.cli", *arguments]


def test_comparing_baselines_loads_no_torch() -> None:
    code = "import sys; from agents.cli import main; main(sys.argv[1:]); print(sorted(sys.modules))"
    line = f"evaluate {SMALL} --policies sarathi --no-plots".split()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *line], capture_output=True, text=True, env=environment, check=True
    )
    modules = done.stdout.splitlines()[-1]
    for heavy in ("'torch'", "'pandas'", "'matplotlib'", "'stable_baselines3'", "'transformers'"):
        assert heavy not in modules
    assert "'engine.runs.metrics'" in modules


@pytest.mark.parametrize("line", ["--help", "--version", "policies"])
def test_a_reader_that_has_seen_enough_ends_it_in_silence(line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(_python(line), stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_is_one_line_exit_code_130_and_leaves_finished_cells(workers: str) -> None:
    arguments = ["evaluate", "--rates", "1:3:0.02", "--policies", "sarathi", "--workers", workers, "--no-plots"]
    process = subprocess.Popen(
        _python(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    cells = Path("out/evaluate/cells.jsonl")
    deadline = time.monotonic() + 120.0
    while not (cells.is_file() and len(cells.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # As a terminal does: to the whole process group.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "llmsched: interrupted\n")
    lines = cells.read_text().splitlines()
    assert 3 < len(lines) < 304
    assert all("report" in json.loads(line) for line in lines[1:])
