"""The least squares behind a fit: seconds at the nodes of a table and of each term, and what the host takes at least.

What a server logs of its batches is not what an executor measures. Nine of ten are decodes alone, so that each kind of
batch counts once here, however often it ran. The clock is the scheduler's, which sees the tokens of a batch only once
the host has launched the next one: of batches that follow each other the sum is right, not each. And where no CUDA
graph covers a batch the host may take longer than the device: a floor is sought.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, starmap
from typing import Any, NamedTuple

import numpy as np

from engine.device.terms import Traits, weights
from engine.server.features import QUERY_TILE, WIDE_QUERY_TILE

CACHED = (0.0, *(1024.0 * 2**k for k in range(9)))
"""KV tokens that caches may hold; the fit takes the best."""
GRAPHS = (128.0, 256.0, 512.0, 1024.0, 2048.0)
"""Tokens that the largest CUDA graph may have; the fit takes the best, or none."""
_ROUNDS = 8
"""Solutions, each weighted by the errors of the one before."""
_USUAL_ERROR = 0.1
"""Relative error from which a batch counts less (Huber)."""
_FEWEST = 8
"""Batches under a floor that make it one."""
_BETTER = 0.9
"""A floor has to leave less than this share of the loss."""


class Solution(NamedTuple):
    """What explains the seconds of batches best."""

    nodes: np.ndarray
    """Token counts of the table."""
    table: np.ndarray
    """Seconds there."""
    terms: np.ndarray
    """Of each of `engine.device.terms.Weights`."""
    traits: Traits
    graph_tokens: float = 0.0
    eager_floor: float = 0.0


@dataclass(frozen=True)
class Measured:
    """Batches as arrays, one entry each."""

    seconds: np.ndarray
    tokens: np.ndarray
    decodes: np.ndarray
    features: Sequence[Any]
    """Their FEATURES records."""
    nodes: np.ndarray
    """Token counts of the table, rising, at least two."""

    def linear(self, nodes: np.ndarray) -> np.ndarray:
        """Shares of the nodes of a table in the linear layers of each batch."""
        low = np.clip(np.searchsorted(nodes, self.tokens, "right") - 1, 0, len(nodes) - 2)
        share = (self.tokens - nodes[low]) / (nodes[low + 1] - nodes[low])
        found = np.zeros((len(self.tokens), len(nodes)))
        rows = np.arange(len(self.tokens))
        found[rows, low], found[rows, low + 1] = 1.0 - share, share
        return found

    def terms(self, traits: Traits) -> np.ndarray:
        """Weights of the terms in each batch."""
        return np.array([weights(f, traits) for f in self.features])


def _nnls(design: np.ndarray, seconds: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, float]:
    """The non-negative solution of least squares of errors in units of `scale`, and their root."""
    from scipy.optimize import nnls

    solution, norm = nnls(design / scale[:, None], seconds / scale)
    return np.asarray(solution), float(norm)


def solve(measured: Measured) -> Solution:
    """What gives the least relative errors, by what traits of the device."""
    linear = measured.linear(measured.nodes)
    tried = []
    for traits in starmap(Traits, product(CACHED, (QUERY_TILE, WIDE_QUERY_TILE))):
        design = np.hstack([linear, measured.terms(traits)])
        tried.append((*_nnls(design, measured.seconds, measured.seconds), traits))
    solution, _, traits = min(tried, key=lambda found: found[1])
    count = len(measured.nodes)
    return Solution(measured.nodes, solution[:count], solution[count:], traits)


class Served:
    """The log of a server: batches in the order in which they ran, by groups of which only the sums are right.

    Args:
        measured: the batches.
        group: of each batch, int64, rising by 0 or 1 from 0.
    """

    def __init__(self, measured: Measured, group: np.ndarray) -> None:
        self._measured, self._starts = measured, np.flatnonzero(np.diff(group, prepend=-1))
        self.seconds, self._tokens = self._summed(measured.seconds), self._summed(measured.tokens)
        self._traits = Traits(0.0, WIDE_QUERY_TILE)
        self._terms = _without_doubles(measured.terms(self._traits))
        self._share = _shares_of_kinds(self._tokens, self._summed(measured.decodes), self._summed(np.ones(len(group))))

    def _summed(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(np.add.reduceat(values, self._starts, axis=0))

    def solve(self) -> Solution:
        """Kinds of batches count once, outliers less; with a floor of the host where that explains more."""
        best = self._with_floor(np.inf)
        least = _BETTER * self._loss(best)
        for graph_tokens in GRAPHS:
            found = self._with_floor(graph_tokens)
            if found.eager_floor > 0.0 and (loss := self._loss(found)) < least:
                least, best = loss, found
        return best

    def said(self, found: Solution) -> np.ndarray:
        """Seconds of each batch by a solution."""
        device = self._device(found)
        return np.where(self._measured.tokens > found.graph_tokens, np.maximum(device, found.eager_floor), device)

    def _device(self, found: Solution) -> np.ndarray:
        return np.asarray(self._measured.linear(found.nodes) @ found.table + self._terms @ found.terms)

    def _loss(self, found: Solution) -> float:
        """Weighted sum of relative errors, squared up to the usual one."""
        error = np.abs(self.seconds / np.maximum(self._summed(self.said(found)), 1e-9) - 1.0)
        huber = np.where(error < _USUAL_ERROR, error**2, _USUAL_ERROR * (2.0 * error - _USUAL_ERROR))
        return float((self._share * huber).sum())

    def _with_floor(self, graph_tokens: float) -> Solution:
        """A solution with a floor for what is beyond a CUDA graph of so many tokens (0: few batches are under it)."""
        beyond = self._measured.tokens > graph_tokens
        under = beyond & (self._measured.tokens <= 2.0 * graph_tokens)
        scale = self.seconds / np.sqrt(self._share)
        for _ in range(_ROUNDS):
            if under.sum() < _FEWEST:
                under[:] = False
            found = self._solved(under, scale)._replace(graph_tokens=graph_tokens if under.any() else 0.0)
            said = np.maximum(self._summed(self.said(found)), 1e-9)
            error = np.abs(self.seconds / said - 1.0)
            scale = said * np.sqrt(np.maximum(1.0, error / _USUAL_ERROR) / self._share)
            under = beyond & (self._device(found) < found.eager_floor)
        return found

    def _solved(self, under: np.ndarray, scale: np.ndarray) -> Solution:
        """A solution in which all batches under the floor take the same time, and more tokens never take less."""
        nodes = _supported(self._measured.nodes, self._measured.tokens[~under])
        rising = np.tri(len(nodes))  # the table as a sum of steps
        design = np.hstack([self._measured.linear(nodes) @ rising, self._terms]) * ~under[:, None]
        solution, _ = _nnls(self._summed(np.hstack([design, under[:, None]])), self.seconds, scale)
        steps, terms, floor = solution[: len(nodes)], solution[len(nodes) : -1], float(solution[-1])
        return Solution(nodes, rising @ steps, terms, self._traits, 0.0, floor)


def _without_doubles(terms: np.ndarray) -> np.ndarray:
    """The terms, 0 where one weighs what an earlier one does: where nothing is cached all KV is uncached."""
    first = np.unique(terms, axis=1, return_index=True)[1]
    return terms * np.isin(np.arange(terms.shape[1]), first)


def _shares_of_kinds(tokens: np.ndarray, decodes: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """The share of each group in its kind: about as many prompt tokens, decodes and batches."""
    keys = np.round(np.log1p(np.stack([tokens - decodes, decodes, batches], axis=1)) / (0.25, 0.5, 0.5))
    _, which, count = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / count[which.ravel()])


def _supported(nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The nodes of a table between or beside which there is a batch; its ends stay."""
    near = np.zeros(len(nodes) + 1, bool)
    near[np.searchsorted(nodes, tokens, "right")] = True
    kept = near[:-1] | near[1:]
    kept[[0, -1]] = True
    return np.asarray(nodes[kept])
