"""A result run again: the same to the last bit, or where it is not, and with what it was made."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.studies.referee.differences import Difference, differences
from agents.studies.referee.verify import compared

SUITE = """
seeds: 2
requests: 30
scenarios:
  - {name: slow, workload: 'poisson:rate=1.5'}
  - {name: fast, workload: 'poisson:rate=6', profile: h100-mistral-7b}
"""
COMPARE, SCORE, EVALUATE, RECORDED, HEADROOM, CAPACITY, GRID, DEVICES = (
    "compare --option watermark=0,0.3 --baseline watermark=0.3",
    "score srtf",
    "evaluate --policies sarathi,vllm_v1,srtf --rates 1.5,2 --seeds 2 --num-requests 30 --no-plots --goodput ttft:500",
    "evaluate --policies sarathi,orca --trace trace.csv --window 1: --seeds 2 --no-plots --horizon 400",
    "headroom slackfit:tuned --tries 2",
    "capacity --policies sarathi,srtf --seeds 1 --num-requests 30 --low 1 --high 2 --tolerance 0.3",
    "capacity --policies sarathi,srtf --seeds 2 --num-requests 30 --rates 1,2",
    "devices --policies slai,srtf --profiles h100-mistral-7b --shares 0.5 --seeds 1 --num-requests 30",
)
OF_SUITES = (COMPARE, SCORE, HEADROOM)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A result of every kind, by the command that made it."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "small.yml").write_text(SUITE)
    rows = [f"{0.7 * k},{100 + 37 * k},{5 + k}" for k in range(20)]
    (folder / "trace.csv").write_text("\n".join(["Timestamp,Request tokens,Response tokens", *rows]) + "\n")
    found: dict[str, Path] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (*OF_SUITES, EVALUATE, RECORDED, CAPACITY, GRID, DEVICES):
            place = f"{line.split()[0]}{len(found)}"
            suite = ["--suite", "small.yml"] if line in OF_SUITES else []
            assert main([*line.split(), *suite, "--workers", "1", "--out", place, "--json", f"{place}.json"]) == 0
            found[line] = folder / f"{place}.json"
    return found


def verified(path: Path, *options: str) -> int:
    return main(["verify", str(path), "--workers", "1", *options])


@pytest.mark.parametrize("line", [*OF_SUITES, EVALUATE, CAPACITY, GRID, DEVICES])
def test_a_result_comes_out_again_to_the_last_bit(
    results: dict[str, Path], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(results[line]) == 0
    assert capsys.readouterr().out.startswith("identical: ")


def test_a_result_on_a_trace_comes_out_again_where_the_trace_is_given(
    results: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = results[RECORDED].parent / "trace.csv"
    assert verified(results[RECORDED], "--trace", str(trace)) == 0
    assert verified(results[RECORDED]) == 2
    assert "config.source: expected the trace trace.csv (--trace FILE), got none" in capsys.readouterr().err
    other = tmp_path / "trace.csv"
    other.write_text(trace.read_text().replace("100,5", "101,5"))
    assert verified(results[RECORDED], "--trace", str(other)) == 2
    assert "config.source: expected a trace with digest" in capsys.readouterr().err
    assert verified(results[EVALUATE], "--trace", str(trace)) == 2
    assert "config.source: expected no trace, got" in capsys.readouterr().err
    assert verified(results[COMPARE], "--trace", str(trace)) == 2
    assert "trace: expected none beside a result of a suite" in capsys.readouterr().err


def test_the_folder_of_a_command_is_its_result(results: dict[str, Path]) -> None:
    assert verified(results[COMPARE].with_suffix("")) == 0


def _number(data: dict[str, Any]) -> None:
    data["cells"][3]["numbers"]["p99_ttft_ms"] += 1e-9


def _trace(data: dict[str, Any]) -> None:
    data["cells"][1]["trace"] = "0" * 16


def _version(data: dict[str, Any]) -> None:
    data["versions"]["numpy"] = "1.0.0"


def _profile(data: dict[str, Any]) -> None:
    data["config"]["worlds"][0]["profile"]["overhead"] = 0.5


def _total(data: dict[str, Any]) -> None:
    data["totals"][0]["changes"]["evictions"]["judgement"] = "better"


def _cell_gone(data: dict[str, Any]) -> None:
    data["cells"].pop()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_number, "differs: slow, watermark=0.3, seed 1: cells[3].numbers.p99_ttft_ms: stored "),
        (_number, "1 of 8 runs differ, 0 of them in their requests"),
        (_trace, "differs: slow, watermark=0.3, seed 0: cells[1].trace: stored '0000000000000000', again '"),
        (_trace, "1 of 8 runs differ, 1 of them in their requests"),
        (_version, "versions.numpy: stored '1.0.0', again '"),
        (_version, "differs in versions alone: 8 runs, every number the same"),
        (_profile, "differs: config.worlds[0].profile.overhead: stored 0.5, again "),
        (_total, "differs: totals[0].changes.evictions.judgement: stored 'better', again '"),
        (_cell_gone, "differs: cells: stored 7 entries, again 8"),
    ],
)
def test_what_comes_out_otherwise_is_named(
    results: dict[str, Path],
    change: Callable[[dict[str, Any]], None],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = json.loads(results[COMPARE].read_text())
    change(data)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(data))
    assert verified(path) == 1
    assert words in capsys.readouterr().out


def test_versions_are_named_beside_the_number_that_differs(results: dict[str, Path]) -> None:
    stored = json.loads(results[SCORE].read_text())
    made = deepcopy(stored)
    made["cells"][2]["point"]["trace"] = made["cells"][0]["point"]["trace"] = "f" * 16
    made["versions"]["numba"] = "9.9"
    found = compared(stored, made)
    assert (found.runs_differ, found.traces_differ) == (2, 2)
    versions, first, counts = found.lines()
    assert versions == f"versions.numba: stored {stored['versions']['numba']!r}, again '9.9'"
    assert first.startswith("differs: slow, srtf, seed 0: cells[0].point.trace: stored ")
    assert counts.startswith("2 of ")


def test_a_point_of_a_search_is_named_by_policy_and_seed(results: dict[str, Path]) -> None:
    stored = json.loads(results[GRID].read_text())
    made = deepcopy(stored)
    made["points"][1]["trace"] = "f" * 16
    first, counts = compared(stored, made).lines()
    assert first.startswith("differs: 1.0, srtf, seed 0: points[1].trace: stored ")
    assert counts == "1 of 8 runs differ, 1 of them in their requests"


def test_runs_that_were_cut_out_are_counted_for_themselves(results: dict[str, Path]) -> None:
    made = json.loads(results[SCORE].read_text())
    stored = deepcopy(made)
    stored["cells"] = stored["cells"][1:3]
    _, counts, missing = compared(stored, made).lines()
    assert counts == "0 of 2 runs differ, 0 of them in their requests"
    assert missing == f"the file holds 2 runs, its configuration makes {len(made['cells'])}"


def test_times_of_decisions_are_no_difference(results: dict[str, Path]) -> None:
    stored = json.loads(results[EVALUATE].read_text())
    made = deepcopy(stored)
    for look in made["windows"]["policies"].values():
        look["decision_us"] = {"mean": 1.0, "median": 1.0, "p99": 1.0}
    assert compared(stored, made).is_identical
    made["windows"]["policies"]["srtf"]["largest_batch_tokens"] += 1
    assert "windows.policies.srtf.largest_batch_tokens" in next(compared(stored, made).lines())


@pytest.mark.parametrize(
    ("stored", "again", "expected"),
    [
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1}, {"a": True}, [("a", "1", "True")]),
        ({"a": 0.1}, {"a": 0.1 + 2e-17}, [("a", "0.1", "0.10000000000000002")]),
        ({"a": None}, {}, [("a", "nothing", "no such entry")]),
        ({}, {"a": {"b": 1}}, [("a", "no such entry", "1 entries")]),
        ({"a": [1, 2]}, {"a": [1, 3, 4]}, [("a[1]", "2", "3"), ("a", "2 entries", "3")]),
        ({"a": [1]}, {"a": "text"}, [("a", "1 entries", "'text'")]),
    ],
)
def test_differences_are_found_where_they_are(stored: Any, again: Any, expected: list[tuple[str, str, str]]) -> None:
    assert list(differences(stored, again)) == [Difference(*one) for one in expected]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read a result (No such file or directory)"),
        ("{", "expected JSON"),
        ("[]", "expected a result"),
        (
            "{}",
            "expected a result with format llmsched-compare/1 or llmsched-score/1 or llmsched-evaluation/2 or",
        ),
        ('{"format": "llmsched-tiles/1"}', "got 'llmsched-tiles/1'"),
        ('{"format": "llmsched-devices/1"}', "missing key"),
        ('{"format": "llmsched-compare/1"}', "compare: missing key 'policy'"),
        ('{"format": "llmsched-score/1", "scored": [], "config": {}}', "missing key 'suite'"),
        ('{"format": "llmsched-score/1", "scored": [], "config": {"suite": {}}}', "config.suite: expected a suite"),
        ('{"format": "llmsched-evaluation/2"}', "missing key"),
        (
            '{"format": "llmsched-headroom/1", "tries": 1e18, "rows": [], "config": {"suite": {}}}',
            "headroom: tries: expected a whole number",
        ),
    ],
)
def test_what_is_no_result_is_one_line(
    text: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.json"
    if text is not None:
        path.write_text(text)
    assert verified(path) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_folder_without_a_result_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(tmp_path) == 2
    assert (
        "expected a folder with one of compare.json, score.json, result.json, capacity.json" in capsys.readouterr().err
    )
