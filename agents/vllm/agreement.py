"""An A/B in a vLLM engine beside its simulation: the profile that it is predicted with, and each number twice."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from agents.policies import resolve
from agents.vllm.fitted import profile_of
from agents.vllm.late import GRAPH_TOKENS, Late, late_of
from agents.vllm.launching import Host, serve
from agents.vllm.orders import Difference, Numbers, Pair, Rank, errors
from agents.vllm.plan import PLAIN
from agents.vllm.results import Measured, numbers_in, numbers_of
from agents.vllm.settings import STOCK
from engine.device.latency import LatencyModel, load_profile
from engine.runs.distribution import finite
from engine.runs.simulate import simulate
from engine.server.policy import Policy


def fit_profile(cells: Sequence[Measured], name: str) -> LatencyModel:
    """The profile of the engine, from what its scheduler logged where vLLM decided (everywhere, if it did nowhere).

    Raises:
        InputError: too few batches.
    """
    logged = [cell for cell in cells if cell.steps]
    chosen = [cell for cell in logged if cell.cell.policy == STOCK] or logged
    head = chosen[0].steps[0]
    lines = [line for cell in chosen for line in cell.steps[1:]]
    return profile_of("\n".join([head, *lines]) + "\n", name)


def _told(policy: Policy, model: LatencyModel) -> Policy:
    """The policy told this device for good, as it was in the engine; the simulated one does not change that."""
    told = copy(policy.on(model))
    object.__setattr__(told, "on", lambda _: told)
    return told


def _simulated(cell: Measured, model: LatencyModel, late: Late) -> Numbers:
    """The numbers of a simulation in which the policy is told what it was told in the engine.

    The clock is more exact here: in the engine the batch under way ends when it is expected to.
    """
    config, settings = cell.config(), cell.settings()
    requests = cell.plan.requests(cell.cell).replace(tiers=settings.told_tiers())
    told = load_profile(settings.profile)
    if settings.policy in (STOCK, PLAIN):
        limits = f"max_num_batched_tokens={config.max_batched_tokens},max_num_seqs={config.max_num_seqs}"
        policy = resolve(f"vllm_v1:{limits}")
        config = config.replace(watermark=0.0)
    else:
        policy = _told(resolve(settings.policy), told)
    front_s = 0.0 if np.isnan(late.front_s) else late.front_s
    if not late.launch_s > model.eager_floor or not config.async_scheduling:  # else the profile has the launches
        return numbers_in(simulate(policy, requests, model, config), cell.tiers(), front_s)
    host = Host(late.launch_s, model.graph_tokens or GRAPH_TOKENS)
    return numbers_in(serve(policy, requests, model, told, config, host), cell.tiers(), front_s)


def compare(cells: Sequence[Measured], model: LatencyModel | None) -> list[Pair]:
    """The numbers of each cell, and those of its simulation on a profile, where there is one and limits are known.

    Raises:
        InputError: a policy that there is not here.
    """
    late = late_of(cells)
    return [
        Pair(
            cell,
            numbers_of(cell.served, cell.tiers()),
            _simulated(cell, model, late) if model is not None and cell.limits else None,
        )
        for cell in cells
    ]


def to_dict(
    pairs: Sequence[Pair], found: Sequence[Rank], differing: Sequence[Difference], model: LatencyModel | None
) -> dict[str, Any]:
    """Everything, for a file."""
    cells = [
        {
            **vars(p.measured.cell),
            "measured": _finite(p.real),
            "predicted": _finite(p.predicted) if p.predicted else None,
            "counters": p.measured.counters,
        }
        for p in pairs
    ]
    name, residuals = (model.name, model.provenance.get("residuals")) if model else (None, None)
    return {
        "cells": cells,
        "ranks": [_finite(vars(one)) for one in found],
        "errors": errors(pairs),
        "differences": [_finite(vars(one)) | {"told_apart": one.is_told} for one in differing],
        "profile": name,
        "residuals": residuals,
    }


def _finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers as JSON has them: null for what is none."""
    return {name: finite(value) if isinstance(value, float) else value for name, value in numbers.items()}
