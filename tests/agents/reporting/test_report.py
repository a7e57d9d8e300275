import csv
import gzip
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation

from agents.cli import main
from agents.evaluation.evaluate import Evaluation, evaluate
from agents.evaluation.result import Comparison
from agents.reporting.plot_style import style_of
from agents.reporting.plots import PLOTS, draw_all, png
from agents.reporting.report import definitions, html_text, load_result, write_report
from agents.reporting.tables import csv_text, latex_text, load_label, load_rate, print_tables
from agents.source import Source
from agents.work.files import json_text
from engine.config import EngineConfig
from engine.device.latency import load_profile
from engine.errors import InputError


def make(loads: tuple[float | None, ...], seeds: int, workload: str = "poisson") -> Comparison:
    setup = Evaluation(
        policies=("sarathi", "slai:offset=3"),
        source=Source(None, f"{workload}:lengths=lognormal:5,1,3,1,2000", True, 50),
        loads=loads,
        seeds=seeds,
        reference="sarathi",
        profile=load_profile("rtx6000ada-mistral-7b"),
        config=EngineConfig(),
    )
    return evaluate(setup)


@pytest.fixture(scope="module")
def result() -> Comparison:
    return make((4.0, 8.0), 3)


def test_every_promised_file_is_written(result: Comparison, tmp_path: Path) -> None:
    written = write_report(result, tmp_path / "out", tmp_path / "deep" / "report.html")
    names = {path.name for path in written}
    assert names == {"result.json", "table.csv", "table.tex", "report.html", *(f"{name}.png" for name in PLOTS)}
    assert written[-1] == tmp_path / "deep" / "report.html"
    for path in written:
        assert path.stat().st_size > 300
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_a_report_is_built_again_from_its_json(result: Comparison, tmp_path: Path) -> None:
    first = write_report(result, tmp_path / "first")
    again = write_report(load_result(tmp_path / "first"), tmp_path / "again")
    for a, b in zip(first, again, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
    assert load_result(tmp_path / "first" / "result.json") == load_result(tmp_path / "first")


OLD_RESULT = Path(__file__).parent / "results" / "evaluation.json.gz"
"""What `evaluate` wrote when results were mappings (commit 1e0043a)."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.json"
    path.write_bytes(gzip.decompress(OLD_RESULT.read_bytes()))
    return path


def test_a_result_that_was_written_before_there_were_records_is_read_and_written_as_it_was(old: Path) -> None:
    result = load_result(old)
    assert json_text(result) == old.read_text()
    assert result.labels == ("sarathi", "slai:offset=3", "trail")
    assert {row.load for row in result.summary} == {1.5, 3}


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["config", "loads"], ..., "config: missing key 'loads'"),
        (["config", "engine", "num_blocks"], "many", "config.engine.num_blocks: expected a whole number"),
        (["cells", 2, "report", "tiers"], ..., "cells[2]: report.tiers: expected a mapping, got nothing"),
        (["cells", 0, "seed"], "x", "cells[0].seed: expected a whole number"),
        (["cells", 1, "ttft_quantiles_ms"], [1.0], "cells[1]: ttft_quantiles_ms: expected 103 numbers or none, got 1"),
        (["summary", 0, "verdict"], "fine", "summary[0]: verdict: expected one of unknown, stable"),
        (
            ["summary", 0, "policy"],
            "fcfs",
            "summary: expected one row for each policy and load, 6 in all, got none for",
        ),
        (["summary", 3, "metrics", "p99_ttft_ms"], ..., "expected the metric p99_ttft_ms, got none"),
        (["summary", 3, "metrics", "p99_ttft_ms", "low"], "x", "metrics.p99_ttft_ms.low: expected a number or null"),
        (["paired", 5, "judgement"], 3, "paired[5].judgement: expected text"),
        (["windows", "policies", "trail", "timeline", "waiting"], [], "waiting: expected "),
        (["policies", 0, "label"], ..., "policies[0]: missing key 'label'"),
    ],
)
def test_a_damaged_part_of_a_result_is_named(
    old: Path, where: list[str | int], value: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written either."""
    data = json.loads(old.read_text())
    *path, last = where
    node = data
    for key in path:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    old.write_text(json.dumps(data))
    assert main(["report", str(old), "--out", str(old.parent / "out"), "--no-progress"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"llmsched: {old}: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (old.parent / "out").exists()


def test_the_html_is_self_contained_and_says_what_its_numbers_mean(result: Comparison) -> None:
    text = html_text(result, draw_all(result))
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<script" not in text
    assert text.count("data:image/png;base64,") == len(PLOTS)
    plain = re.sub("</?code>", "`", html.unescape(text))
    for term, meaning in definitions():
        assert f"<dt>{term}</dt><dd>{meaning}</dd>" in plain
    for word in ("sarathi", "slai:offset=3", "4 req/s", "8 req/s", result.config_hash, "RTX 6000 Ada"):
        assert word in text
    assert {trace.trace for trace in result.traces} <= set(re.findall(r"<code>([0-9a-f]{16})</code>", text))


def test_definitions_cover_the_metrics() -> None:
    terms = [term for term, _ in definitions()]
    assert terms[:5] == ["TTFT", "TBT (itl)", "TPOT", "E2E (e2el)", "SLO attainment"]
    assert all(meaning and "\n" not in meaning for _, meaning in definitions())


def test_the_csv_holds_the_means_of_the_json(result: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(result))))
    assert [(row["policy"], float(row["load"])) for row in rows] == [
        (policy, load) for load in (4.0, 8.0) for policy in ("sarathi", "slai:offset=3")
    ]
    for row, known in zip(rows, result.summary, strict=True):
        assert float(row["median_ttft_ms"]) == known["median_ttft_ms"].mean
        assert float(row["median_ttft_ms_low"]) <= float(row["median_ttft_ms"]) <= float(row["median_ttft_ms_high"])
        assert row["verdict"] == known.verdict


def test_the_latex_table_has_a_row_for_each_policy_and_load(result: Comparison) -> None:
    lines = latex_text(result).splitlines()
    rows = [line for line in lines if line.startswith(("4 req/s", "8 req/s"))]
    assert len(rows) == 4
    columns = next(line for line in lines if line.startswith("load &")).count("&")
    assert all(row.count("&") == columns and row.endswith(r"\\") for row in rows)
    assert "SLO met, \\%" in latex_text(result)


def test_names_with_characters_of_latex_are_written_as_they_are(result: Comparison) -> None:
    renamed = Comparison.from_dict(json.loads(json_text(result).replace("slai:offset=3", "runs/a^2_b~c&d%")))
    assert r"runs/a\textasciicircum{}2\_b\textasciitilde{}c\&d\%" in latex_text(renamed)


def test_a_panel_without_a_point_says_so(result: Comparison) -> None:
    """Behaviour is watched from the second minute on; 50 requests at 4/s are over by then."""
    drawn = [axes for axes in PLOTS["behaviour"](result).axes if axes.get_visible() and axes.get_title(loc="left")]
    texts = [[text.get_text() for text in axes.texts] for axes in drawn]
    assert texts[:3] == [["no data"]] * 3
    assert [text.get_text() for text in PLOTS["ttft"](result).axes[0].texts] != ["no data"]


def test_the_offered_load_is_named_inside_the_panel(result: Comparison) -> None:
    rows = []
    for row in result.summary:  # far below what is offered
        mean = row["slo_goodput"]
        less = replace(mean, mean=0.6 * mean.mean, low=0.6 * mean.low, high=0.6 * mean.high)
        rows.append(replace(row, metrics=row.metrics | {"slo_goodput": less}))
    panel = PLOTS["goodput"](replace(result, summary=tuple(rows))).axes[0]
    (named,) = (text for text in panel.texts if isinstance(text, Annotation) and text.get_text() == "offered")
    assert named.xy[1] <= panel.get_ylim()[1] < max(load_rate(result, load) for load in result.setting.loads)


def test_one_load_and_one_seed_make_a_report_without_intervals(tmp_path: Path) -> None:
    result = make((4.0,), 1)
    write_report(result, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "One seed: there are no intervals" in html
    assert "pm" not in latex_text(result)
    assert "<code>vllm bench serve --save-result</code>" in html
    assert "`" not in html.partition("What the numbers mean")[2]


def test_of_one_load_every_policy_has_a_row(result: Comparison) -> None:
    one = make((4.0,), 1)
    panels = [axes for axes in PLOTS["behaviour"](one).axes if axes.get_title(loc="left")]
    for axes in panels[2 : 3 + len(one.cells[0].tiers)]:
        assert axes.get_ylim() == (len(one.labels) - 0.5, -0.5)
        assert {float(y) for line in axes.lines for y in np.asarray(line.get_ydata())} == set(range(len(one.labels)))
        assert axes.get_xlabel() == "4 req/s"
    assert PLOTS["behaviour"](result).axes[2].get_xlabel() == "arrival rate, requests/s"


def test_a_burst_has_no_rate_but_a_report(tmp_path: Path) -> None:
    result = make((None,), 2, "burst")
    assert load_label(result, None) == "all at once"
    write_report(result, tmp_path)
    json.loads((tmp_path / "result.json").read_text())


def test_the_terminal_shows_verdicts_differences_and_notes(result: Comparison) -> None:
    from rich.console import Console

    out = io.StringIO()
    print_tables(result, Console(file=out, width=140))
    text = out.getvalue()
    for word in (
        "4 req/s",
        "slai:offset=3",
        "stable",
        "Difference to sarathi",
        "Time of one decision",
        "Zero in every",
    ):
        assert word in text


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": "other"}', "not json", '{"format": "llmsched-evaluation/1"}']
)
def test_files_that_are_no_result_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"result\.json: expected"):
        load_result(path)


def _many(result: Comparison, labels: list[str]) -> Comparison:
    """The same result with as many policies as there are labels: copies of the first under these names."""
    first = result.policies[0].label
    assert result.windows is not None
    windows = replace(result.windows, policies=dict.fromkeys(labels, result.windows.policies[first]))
    return replace(
        result,
        cells=tuple(replace(row, policy=label) for label in labels for row in result.cells if row.policy == first),
        summary=tuple(replace(row, policy=label) for label in labels for row in result.summary if row.policy == first),
        behaviour=tuple(replace(r, policy=label) for label in labels for r in result.behaviour if r.policy == first),
        policies=tuple(replace(result.policies[0], label=label) for label in labels),
        windows=windows,
        paired=(),
    )


def test_24_policies_have_24_styles() -> None:
    styles = [style_of(k) for k in range(24)]
    assert len({(str(s["color"]), s["marker"], str(s["linestyle"])) for s in styles}) == 24
    assert len({(str(s["color"]), str(s["linestyle"])) for s in styles}) == 24
    assert len({str(style_of(k)) for k in range(48)}) == 48
    assert "linestyle" in style_of(3)


LONG = "slackfit:" + ",".join(f"parameter_{k}={k}.5" for k in range(8))


@pytest.mark.parametrize("count", [1, 3, 9, 16, 25])
@pytest.mark.parametrize("loads", [1, 2])
def test_plots_of_many_policies_keep_everything_inside_and_apart(result: Comparison, count: int, loads: int) -> None:
    """Legends and axes lie within the figure and do not overlap; each policy looks the same everywhere."""
    config = result.config | {"loads": result.config["loads"][:loads]}
    kept: dict[str, Any] = {
        name: tuple(row for row in getattr(result, name) if row.load in config["loads"])
        for name in ("cells", "summary", "behaviour", "paired")
    }
    many = _many(replace(result, config=config, **kept), [LONG, *(f"policy {k}" for k in range(1, count))])
    looks: dict[str, set[str]] = {}
    for name, plot in PLOTS.items():
        figure = plot(many)
        png(figure)
        width, height = figure.bbox.size
        found = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible() and axes.axison]
        boxes = [box for box in found if box is not None]
        legends = [legend.get_window_extent() for legend in figure.legends]
        for box in [*boxes, *legends]:
            assert box.width > 0, name
            assert box.x0 > -2, name
            assert box.y0 > -2, name
            assert box.x1 < width + 2, name
            assert box.y1 < height + 2, name
        assert not [(a, b) for a in legends for b in boxes if a.overlaps(b)], name
        for axes in figure.axes:
            for line in axes.get_lines():
                label = str(line.get_label())
                if label.startswith(("policy", "slackfit")):
                    looks.setdefault(label, set()).add(f"{line.get_color()} {line.get_marker()} {line.get_linestyle()}")
    assert all(len(seen) == 1 for seen in looks.values()), looks
    assert len({next(iter(seen)) for seen in looks.values()}) == count
