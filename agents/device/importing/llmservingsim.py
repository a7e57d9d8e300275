"""`--from llmservingsim DIR`: layers that LLMServingSim's profiler measured inside vLLM.

The folder holds dense.csv (microseconds of each linear and element-wise layer by tokens), per_sequence.csv (of the head
by requests), attention.csv (of one layer's attention by chunk, its KV, decodes and theirs, run together in one batch;
0: absent) and config.json. An iteration is composed of them: layers times those of the model, the largest chunk and
the decodes in one launch, each further chunk as if alone.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.device.importing.model import Shape, read_config, shape_of
from agents.device.importing.source import Imported, Importing, composed
from agents.device.importing.tables import Row, read_rows
from engine.device.fitting import Batch
from engine.errors import InputError
from engine.files.reading import is_there, read_mapping, read_text
from engine.files.yaml_text import parse_yaml
from engine.ranges import COUNT, number

PER_LAYER = {
    "layernorm": 2,
    "qkv_proj": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
"""How often a transformer layer runs each measured one."""
ONCE = ("embedding", "final_layernorm")
PER_REQUEST = ("lm_head", "sampler")
ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
MOST_CELLS = 2_000_000
"""Cells of a grid of attention, measured or not."""
META = ("profile-meta.yaml", "meta.yaml")
_WHAT = "a table of measured layers"
_CELL = number(0.0, 1e12)
_TOP = re.compile(r"\w+: .+")
"""A line of the description that is about the whole; below it are mappings of others."""


class Grid4(NamedTuple):
    """Microseconds of attention over chunk, its KV, decodes and theirs, complete."""

    axes: tuple[np.ndarray, ...]
    values: np.ndarray


class Layers:
    """Seconds of iterations from the tables of one folder."""

    def __init__(self, folder: Path, shape: Shape, joint: bool) -> None:
        from scipy.interpolate import RegularGridInterpolator

        self.layers, self.joint = shape.num_hidden_layers, joint
        self.dense = curves(folder / "dense.csv", "tokens", (*PER_LAYER, *ONCE))
        self.head = curves(folder / "per_sequence.csv", "sequences", PER_REQUEST)
        axes, values = attention_grid(folder / "attention.csv")
        self._attention = RegularGridInterpolator(axes, values, bounds_error=False, fill_value=None)

    def seconds(self, batch: Batch) -> float:
        """Seconds of one batch."""
        tokens, requests = batch.tokens, len(batch.prefills) + len(batch.decodes)
        layer = sum(count * np.interp(tokens, *self.dense[name]) for name, count in PER_LAYER.items())
        once = sum(np.interp(tokens, *self.dense[name]) for name in ONCE)
        head = sum(np.interp(requests, *curve) for curve in self.head.values())
        return float(once + head + self.layers * (layer + self.attention_us(batch))) / 1e6

    def attention_us(self, batch: Batch) -> float:
        """Microseconds of the attention of one layer."""
        chunks = sorted(batch.prefills, reverse=True)
        decodes = (len(batch.decodes), float(np.mean(batch.decodes)) if batch.decodes else 0.0)
        if self.joint or not (chunks and batch.decodes):
            launches = [(*(chunks[0] if chunks else (0, 0)), *decodes), *((*chunk, 0, 0) for chunk in chunks[1:])]
        else:
            launches = [(0, 0, *decodes), *((*chunk, 0, 0) for chunk in chunks)]
        return float(self._attention(np.array(launches, np.float64)).sum())


def _numbers(rows: Sequence[Row], columns: Sequence[str]) -> np.ndarray:
    """Columns of numbers, float64[rows, columns]."""
    found = [[_CELL.parse(row.cells[name], f"{row.where}: {name}") for name in columns] for row in rows]
    return np.array(found, np.float64).reshape(-1, len(columns))


def curves(path: Path, by: str, names: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Counts, rising, and microseconds of each layer.

    Raises:
        InputError: a layer that is not known, is missing, or has only one point.
    """
    rows = read_rows(path, _WHAT, ("layer", by, "time_us"))
    labels = [row.cells["layer"] for row in rows]
    if unknown := [label for label in labels if label not in names]:
        raise InputError(f"{path}: unknown layer {unknown[0]!r}, known: {', '.join(names)}")
    points = _numbers(rows, (by, "time_us"))
    return {name: _curve(points[[label == name for label in labels]], f"{path}: layer {name!r}") for name in names}


def _curve(points: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    counts, first = np.unique(points[:, 0], return_index=True)
    if len(counts) < 2:
        raise InputError(f"{where}: expected 2 or more points, got {len(counts)}")
    return counts, points[first, 1]


def attention_grid(path: Path) -> Grid4:
    """The measured attention on the largest grid that is complete.

    A table may hold several grids, and leave out large batches: values of an axis go, those with most gaps first, until
    none is left.

    Raises:
        InputError: not such a table, or too little of it.
    """
    rows = _numbers(read_rows(path, _WHAT, (*ATTENTION, "time_us")), (*ATTENTION, "time_us"))
    axes = [np.unique(np.append(column, 0.0)) for column in rows.T[:4]]
    if (cells := math.prod(len(axis) for axis in axes)) > MOST_CELLS:
        raise InputError(f"{path}: expected a grid of at most {MOST_CELLS} cells, got values of {cells}")
    values = np.full([len(axis) for axis in axes], np.nan)
    values[tuple(np.searchsorted(axis, column) for axis, column in zip(axes, rows.T[:4], strict=True))] = rows.T[4]
    values[0, :] = values[0, :1]  # without a chunk its KV says nothing,
    values[:, :, 0, :] = values[:, :, 0, :1]  # nor theirs without decodes
    values[0, :, 0, :] = 0.0
    values[:, :, 1:, 0] = values[:, :, 1:, 1] if len(axes[3]) > 1 else np.nan  # one that reads nothing: as the fewest
    grid = _without_gaps(Grid4(tuple(axes), values))
    for name, axis in zip(ATTENTION, grid.axes, strict=True):
        if len(axis) < 2:
            raise InputError(f"{path}: {name}: expected measured values of a whole grid, got too few of them")
    return grid


def _without_gaps(grid: Grid4) -> Grid4:
    axes, values = grid
    while (gaps := np.isnan(values)).any():
        shares = [gaps.mean(axis=tuple(k for k in range(4) if k != axis)) for axis in range(4)]
        axis = int(np.argmax([share.max(initial=0.0) for share in shares]))
        kept = np.arange(len(axes[axis])) != int(np.argmax(shares[axis]))
        axes = tuple(one[kept] if k == axis else one for k, one in enumerate(axes))
        values = values.compress(kept, axis=axis)
    return Grid4(axes, values)


def _meta(folder: Path) -> dict[str, Any]:
    """What the profiler says of its machine, in the folder or the one above; empty where it says nothing."""
    for path in (place / name for place in (folder, folder.parent) for name in META):
        if is_there(path):
            said = read_text(path, "the description of a profile").splitlines()
            data = parse_yaml("\n".join(filter(_TOP.fullmatch, said)), path)
            return data if isinstance(data, dict) else {}
    return {}


def _num_blocks(folder: Path) -> int | None:
    """KV blocks of a real run on the same machine, if one is there."""
    path = folder / "run-meta.json"
    memory = read_mapping(path, "the description of a run").get("kv_cache") if is_there(path) else None
    blocks = memory.get("num_gpu_blocks") if isinstance(memory, dict) else None
    return None if blocks is None else COUNT.check(blocks, f"{path}: kv_cache.num_gpu_blocks")


def read(data: Path, options: Importing) -> Imported:
    """Compose the grid from a folder.

    Raises:
        InputError: a file or a column is missing, or a layer is not known.
    """
    config = read_config(options.model or data)
    shape, meta = shape_of(config, "config.json"), _meta(data)
    joint = options.attention == "joint"
    launch = "one launch for prompts and decodes" if joint else "separate launches for prompts and decodes"
    provenance = {
        "device": meta.get("gpu", "not stated"),
        "model": shape.to_dict(),
        "model_name": meta.get("model", "not stated"),
        "engine": f"vLLM {meta.get('vllm_version', 'not stated')}",
        "attention": f"FlashAttention 2, {launch}",
        "cuda": meta.get("cuda_version", "not stated"),
        "date": str(meta.get("profiled_at", "not stated"))[:10],
        "source": "casys-kaist/LLMServingSim (MIT), tables of its profiler",
        "method": "layers measured, iterations composed: the largest chunk beside the decodes, others as if alone"
        if joint
        else "layers measured alone, iterations composed as their sum",
        "num_blocks": _num_blocks(data),
    }
    return Imported(composed(Layers(data, shape, joint)), provenance)
