"""From measured batches to a `LatencyModel`: a table for the linear layers, non-negative terms for the rest.

The seconds of a batch are a sum: those of the linear layers at its token count (linear between the counts that were
measured alone), and non-negative multiples of the terms' weights (`engine.device.terms.Weights`). All of it is one
non-negative least squares on relative errors (`engine.device.solving`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from engine.device.latency import LatencyModel, iteration_seconds
from engine.device.solving import Measured, Served, Solution, solve
from engine.device.terms import Weights
from engine.errors import InputError
from engine.server.features import EMPTY, add, new_features, store

TABLE, PREFILL, DECODE, MIXED = "table", "prefill", "decode", "mixed"
"""Sets of points that are fitted: one chunk of each token count, chunks with context, decodes, both."""
HELD_OUT = ("held-out prefill", "held-out decode", "held-out mixed")
"""Sets that are not."""

Clock = Literal["wall", "device"]
"""What a measured batch takes: until its tokens are on the host; or a GPU alone, as where an engine hides its host."""
SERVER = "server"
"""The clock of points that a server logged while it served: `fit` takes them as `engine.device.solving.Served`."""


@dataclass(frozen=True)
class Batch:
    """What is in a batch."""

    prefills: tuple[tuple[int, int], ...] = ()
    """New tokens and KV tokens before of each prompt chunk."""
    decodes: tuple[int, ...] = ()
    """KV tokens that each decode reads, its own included."""

    @property
    def tokens(self) -> int:
        """Tokens through the linear layers."""
        return sum(n for n, _ in self.prefills) + len(self.decodes)

    @property
    def kv_tokens(self) -> int:
        """KV tokens held after the batch."""
        return sum(n + context for n, context in self.prefills) + sum(self.decodes)

    def features(self) -> np.ndarray:
        """What its latency depends on, FEATURES[1]."""
        f, features = EMPTY, new_features()
        for n, context in self.prefills:
            f = add(f, context, n, False)
        for context in self.decodes:
            f = add(f, context - 1, 1, True)
        store(f, 0.0, features)
        return features


@dataclass(frozen=True)
class Point:
    """A measured batch."""

    kind: str
    """TABLE, PREFILL, DECODE, MIXED or one of HELD_OUT."""
    batch: Batch
    seconds: float
    """Median duration (s)."""


def measured(fitted: Sequence[Point], nodes: np.ndarray) -> Measured:
    """Points as arrays, to be solved with a table of these token counts."""
    return Measured(
        seconds=np.array([p.seconds for p in fitted]),
        tokens=np.array([p.batch.tokens for p in fitted], np.float64),
        decodes=np.array([len(p.batch.decodes) for p in fitted], np.float64),
        features=[p.batch.features()[0] for p in fitted],
        nodes=nodes,
    )


def fit(points: Sequence[Point], name: str, provenance: dict[str, Any]) -> LatencyModel:
    """Fit a profile; residuals of every set and the range of the points go into its provenance.

    Of what a server logged (clock "server" in the provenance) it may have a floor of the host.

    Raises:
        InputError: fewer than two token counts measured alone, or no points with decodes.
    """
    fitted = [p for p in points if p.kind in (TABLE, PREFILL, DECODE, MIXED)]
    nodes = np.array(sorted({p.batch.tokens for p in fitted if p.kind == TABLE}), np.float64)
    decodes = sum(p.kind == DECODE for p in fitted)
    if len(nodes) < 2 or decodes == 0:
        raise InputError(
            f"fit: expected at least 2 token counts in set {TABLE!r} and points in set {DECODE!r}, "
            f"got {len(nodes)} and {decodes}"
        )
    is_served, arrays = provenance.get("clock") == SERVER, measured(fitted, nodes)
    found = Served(arrays, np.arange(len(fitted))).solve() if is_served else solve(arrays)
    model = model_of(found, name)
    how = "non-negative least squares on relative errors; linear table at the measured token counts"
    return replace(
        model,
        provenance={
            **provenance,
            "fit": f"{how}; kinds of batches count once, outliers less" if is_served else how,
            "residuals": residuals(model, points),
            "validity": {**provenance.get("validity", {}), **validity(points)},
        },
    )


def model_of(found: Solution, name: str) -> LatencyModel:
    """The model of a solution."""
    smallest = 1e-9  # a table needs seconds > 0
    return LatencyModel(
        overhead=0.0,
        floor=0.0,
        per_token=0.0,
        **dict(zip(Weights._fields, found.terms.tolist(), strict=True)),
        table=tuple((float(n), max(float(t), smallest)) for n, t in zip(found.nodes, found.table, strict=True)),
        **found.traits._asdict(),
        eager_floor=float(found.eager_floor),
        graph_tokens=float(found.graph_tokens),
        name=name,
    )


def predicted(model: LatencyModel, points: Sequence[Point]) -> np.ndarray:
    """What the model says of each point (s)."""
    compiled = model.compiled()
    return np.array([iteration_seconds(compiled, p.batch.features()) for p in points])


def residuals(model: LatencyModel, points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """Relative errors of each set, %: mean, 95th percentile and largest of their absolute values, and how many."""
    found = {}
    for kind in dict.fromkeys(p.kind for p in points):
        chosen = [p for p in points if p.kind == kind]
        seconds = np.array([p.seconds for p in chosen])
        error = 100.0 * np.abs(predicted(model, chosen) / seconds - 1.0)
        found[kind] = {
            "mape": float(error.mean()),
            "p95": float(np.quantile(error, 0.95)),
            "max": float(error.max()),
            "points": len(chosen),
        }
    return found


def validity(points: Sequence[Point]) -> dict[str, list[int]]:
    """The range that was measured: smallest and largest batch tokens and requests, KV tokens of a request."""
    return {
        "tokens": [1, max(p.batch.tokens for p in points)],
        "requests": [1, max(len(p.batch.prefills) + len(p.batch.decodes) for p in points)],
        "context_tokens": [0, max(max([*p.batch.decodes, *(n + k for n, k in p.batch.prefills)]) for p in points)],
    }
