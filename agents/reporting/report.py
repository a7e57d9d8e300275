"""Writes the result of an evaluation: JSON, CSV, LaTeX, PNG and one self-contained HTML file."""

import base64
import re
from importlib import resources
from pathlib import Path
from typing import Any

from agents.evaluation.comparison import Loads
from agents.evaluation.evaluate import FORMAT
from agents.reporting.tables import (
    TEXTS,
    Column,
    Result,
    columns,
    criteria,
    difference_text,
    load_label,
    remarks,
    with_interval,
)
from agents.work.files import json_text, write_atomically
from agents.work.progress import OnProgress, unseen
from engine.demand.tiers import describe_tiers, parse_tiers
from engine.errors import InputError
from engine.fields import convert
from engine.files.reading import LARGE, kind_of, read_mapping
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


_PARTS = {"config": dict[str, Any], **dict.fromkeys(("cells", "summary", "paired", "traces"), list[dict[str, Any]])}


def load_result(path: Path) -> Result:
    """The result in a JSON file or in the folder of an evaluation.

    Raises:
        InputError: no such file, or not the result of an evaluation.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    result = read_mapping(file, "the result of an evaluation", LARGE)
    if result.get("format") != FORMAT:
        got = result.get("format")
        again = " of an older llmsched: run evaluate again" if str(got).startswith("llmsched-evaluation/") else ""
        raise InputError(f"{file}: expected a result with format {FORMAT!r}, got {kind_of(got)}{again}")
    for part, kind in _PARTS.items():
        if part in result:
            convert(result[part], kind, f"{file}: {part}")
    missing = {"config", "cells", "summary", "paired", "windows", "traces", "policies"} - set(result)
    if missing or not result["cells"]:
        raise InputError(f"{file}: expected {', '.join(sorted(missing)) or 'cells'} in the result, got none")
    return result


def _setup(result: Result) -> list[tuple[str, str]]:
    config, engine = result["config"], result["config"]["engine"]
    profile, source = config["profile"], config["source"]
    semantics = "real engine: the prompt's last iteration yields token 1" if engine["prompt_emits"] else "reference"
    device, model = (profile["provenance"].get(key, "not stated") for key in ("device", "model"))
    requests = re.sub(r", (tiers by )?seed \d+$", "", result["traces"][0]["source"])
    if len(config["loads"]) > 1:
        requests = re.sub(r" at [\d.]+/s", "", requests)
    rows = [
        ("Requests", requests),
        ("Loads", ", ".join(load_label(result, load) for load in config["loads"])),
        ("Seeds", f"0 to {config['seeds'] - 1}" if config["seeds"] > 1 else "0"),
        ("Tiers", describe_tiers(parse_tiers(config.get("tiers", ())))),
        ("Profile", f"{profile['name']}: {device}; {model}"),
        ("KV memory", f"{engine['num_blocks']} blocks of {engine['block_size']} tokens"),
        ("Semantics", semantics),
        ("Configuration", result["config_hash"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in result["versions"].items())),
    ]
    channels = {cell["policy"]: cell["prediction"] for cell in result["cells"] if cell.get("prediction")}
    if channels:
        rows.insert(4, ("Length predictions", ", ".join(f"{name}: {channel}" for name, channel in channels.items())))
    if source.get("trace"):
        rows.insert(1, ("Trace file", f"{source['trace']} (SHA-256 {source['trace_sha256']}...)"))
    return rows


def _summary_tables(result: Result, shown: list[Column]) -> list[dict[str, Any]]:
    tables = []
    loads: Loads = result["config"]["loads"]
    for load in loads:
        rows = []
        for row in (row for row in result["summary"] if row["load"] == load):
            paper, sound = criteria(row)
            rows.append(
                {
                    "policy": row["policy"],
                    "values": [with_interval(row["metrics"][column.key], column) for column in shown],
                    "paper": paper,
                    "sound": sound,
                    "verdict": row["verdict"],
                }
            )
        tables.append({"load": load_label(result, load), "rows": rows})
    return tables


def _differences(result: Result, shown: list[Column]) -> list[dict[str, Any]]:
    rows = {(row["load"], row["policy"], row["metric"]): row for row in result["paired"]}
    lines = []
    for load, policy in dict.fromkeys((load, policy) for load, policy, _ in rows):
        found = [(rows[load, policy, column.key], column) for column in shown]
        cells = [(difference_text(row, column), row["judgement"].split()[0]) for row, column in found]
        lines.append({"load": load_label(result, load), "policy": policy, "cells": cells})
    return lines


def html_text(result: Result, images: dict[str, bytes]) -> str:
    """The report as one HTML file without outside references; plots are inlined."""
    from jinja2 import Environment

    template = (resources.files("agents.reporting") / "templates" / "report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = columns(result)
    compared = {row["metric"] for row in result["paired"]}
    difference_columns = [column for column in shown if column.key in compared]
    plots = [(CAPTIONS[name], base64.b64encode(image).decode()) for name, image in images.items()]
    return environment.from_string(template).render(
        result=result,
        columns=shown,
        difference_columns=difference_columns,
        setup=_setup(result),
        tables=_summary_tables(result, shown),
        differences=_differences(result, difference_columns),
        plots=plots,
        windows=result["windows"].get("policies", {}),
        window_load=load_label(result, result["windows"].get("load")) if result["windows"] else "",
        remarks=remarks(result),
        definitions=definitions(),
    )


def write_report(
    result: Result, folder: Path, html: Path | None = None, plots: bool = True, progress: OnProgress = unseen
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
