"""Writes the result of an evaluation: JSON, CSV, LaTeX, PNG and one self-contained HTML file."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agents.evaluation.result import Comparison, Setting
from agents.reporting.page import page
from agents.reporting.tables import (
    TEXTS,
    Column,
    check_shown,
    columns,
    criteria,
    difference_text,
    differences,
    load_label,
    remarks,
    with_interval,
)
from agents.work.files import json_text, write_atomically
from agents.work.progress import OnProgress, unseen
from engine.demand.tiers import describe_tiers
from engine.errors import InputError
from engine.files.reading import LARGE, read_mapping
from engine.runs import metrics

RESULT_FILE = "result.json"

CAPTIONS = {
    "ttft": "Time to first token against load. Bands: 95 % interval of the mean over seeds (of up to 8 policies; the "
    "tables have all).",
    "tbt": "99th percentile of the gaps between tokens, tier by tier, with the tier's deadline.",
    "goodput": "Requests per second that met every deadline, and their share.",
    "cdf": "Distribution of the time to first token, mean over seeds.",
    "timeline": "What the batches of a few seconds were made of, and how many requests waited meanwhile.",
    "behaviour": "What the policies do differently, in five minutes of seed 0 at each load. Prompts that came earlier: "
    "of the others present when one runs; 0 is first come first served.",
}


def definitions() -> list[tuple[str, str]]:
    """(term, meaning) of every metric, as `engine.runs.metrics` defines them."""
    text = (metrics.__doc__ or "").partition("\n\n")[2]
    items = re.split(r"^- ", text, flags=re.MULTILINE)[1:]
    pairs = [" ".join(item.split()).partition(": ") for item in items]
    return [(term, meaning) for term, _, meaning in pairs]


def load_result(path: Path) -> Comparison:
    """The result in a JSON file or in the folder of an evaluation.

    Raises:
        InputError: no such file, or not the result of an evaluation; names the place in it.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    data = read_mapping(file, "the result of an evaluation", LARGE)
    try:
        result = Comparison.from_dict(data)
        check_shown(result)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return result


def _setup(result: Comparison) -> Iterator[tuple[str, str]]:
    """The lines of the setup table."""
    yield from _requests(result)
    yield from _server(result.setting)
    yield "Configuration", result.config_hash
    yield "Versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())


def _requests(result: Comparison) -> Iterator[tuple[str, str]]:
    """What was served."""
    setting, loads = result.setting, result.setting.loads
    requests = re.sub(r", (tiers by )?seed \d+$", "", result.traces[0].source)
    yield "Requests", re.sub(r" at [\d.]+/s", "", requests) if len(loads) > 1 else requests
    if setting.source.trace:
        yield "Trace file", f"{setting.source.trace} (SHA-256 {setting.source.trace_sha256}...)"
    yield "Loads", ", ".join(load_label(result, load) for load in loads)
    yield "Seeds", f"0 to {setting.seeds - 1}" if setting.seeds > 1 else "0"
    yield "Tiers", describe_tiers(setting.tiers)
    channels = {cell.policy: cell.prediction for cell in result.cells if cell.prediction}
    if channels:
        yield "Length predictions", ", ".join(f"{name}: {channel}" for name, channel in channels.items())


def _server(setting: Setting) -> Iterator[tuple[str, str]]:
    """On what."""
    said = {"device": "not stated", "model": "not stated"} | setting.profile.provenance
    device, model = said["device"], said.get("model_name") or said["model"]
    yield "Profile", f"{setting.profile.name}: {device}; {model}"
    yield "KV memory", f"{setting.engine.num_blocks} blocks of {setting.engine.block_size} tokens"
    real = "real engine: the prompt's last iteration yields token 1"
    yield "Semantics", real if setting.engine.prompt_emits else "reference"


class _Row(NamedTuple):
    """A policy in the table of one load, as text."""

    policy: str
    values: list[str]
    paper: str
    sound: str
    verdict: str


def _summary_tables(result: Comparison, shown: list[Column]) -> Iterator[tuple[str, list[_Row]]]:
    """The loads, each with a row for each policy."""
    for load in result.setting.loads:
        rows = [
            _Row(row.policy, [with_interval(row[c.key], c) for c in shown], *criteria(row), row.verdict)
            for row in result.at(load)
        ]
        yield load_label(result, load), rows


class _Differences(NamedTuple):
    """How a policy differs from the reference at one load: each difference as text, and one word for its colour."""

    load: str
    policy: str
    cells: list[tuple[str, str]]


def _differences(result: Comparison, shown: list[Column]) -> Iterator[_Differences]:
    for (load, policy), found in differences(result).items():
        cells = [(difference_text(found[c.key], c), found[c.key].judgement.split()[0]) for c in shown]
        yield _Differences(load_label(result, load), policy, cells)


def html_text(result: Comparison, images: dict[str, bytes]) -> str:
    """The report as one HTML file without outside references; plots are inlined."""
    shown = columns(result)
    compared = {row.metric for row in result.paired}
    difference_columns = [column for column in shown if column.key in compared]
    plots = [(CAPTIONS[name], base64.b64encode(image).decode()) for name, image in images.items()]
    return page(
        "report.html",
        result=result,
        columns=shown,
        difference_columns=difference_columns,
        setup=list(_setup(result)),
        tables=list(_summary_tables(result, shown)),
        differences=list(_differences(result, difference_columns)),
        plots=plots,
        windows=result.windows.policies if result.windows else {},
        window_load=load_label(result, result.windows.load) if result.windows else "",
        remarks=remarks(result),
        definitions=definitions(),
    )


def write_report(
    result: Comparison, folder: Path, html: Path | None = None, plots: bool = True, progress: OnProgress = unseen
) -> list[Path]:
    """Write all files of a report.

    Args:
        result: of `evaluate`.
        folder: gets result.json, the tables, and with `plots` the PNG files and report.html.
        html: where the HTML goes instead; it is then written even without `plots`.
        plots: draw.
        progress: called before each plot.

    Returns:
        The files, the HTML last.

    Raises:
        InputError: a place that cannot be written.
    """
    files: dict[Path, str | bytes] = {folder / RESULT_FILE: json_text(result)}
    files |= {folder / name: text(result) for name, text in TEXTS.items()}
    if plots or html is not None:
        from agents.reporting.plots import draw_all

        images = draw_all(result, progress)
        files |= {folder / f"{name}.png": image for name, image in images.items()}
        files[html or folder / "report.html"] = html_text(result, images)
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)
