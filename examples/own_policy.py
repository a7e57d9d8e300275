"""A scheduler of one's own, compiled, with a number that it remembers of each request; compared with Sarathi-Serve.

python examples/own_policy.py
llmsched evaluate --policies sarathi,examples/own_policy.py:Patient:patience=6 --rates 1.4,1.8
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import tyro

import baselines
from engine import (
    Memory,
    Plan,
    Policy,
    View,
    Workload,
    admit,
    cells_of,
    continue_prefills,
    decode,
    decode_oldest_first,
    first_waiting,
    fits_decode,
    inner,
    is_decode,
    is_named,
    kernel_of,
    load_profile,
    params_of,
    record,
    records,
    simulate,
    summarize,
)
from engine.ranges import whole

REMEMBERED = np.dtype([("held", "i8")])  # iterations in a row in which a decode did not run


@dataclass(frozen=True)
class Patient(Policy):
    """Prompts before decodes, in order of arrival; but no decode is held back more than `patience` times in a row."""

    token_budget: Annotated[int, whole(1)] = 512
    """Tokens of a batch from which on no prompt is added."""
    patience: Annotated[int, whole(0)] = 3
    """Iterations in a row for which a decode may be left out."""

    name: ClassVar[str] = "patient"
    request_memory: ClassVar[int] = cells_of(REMEMBERED)
    space: ClassVar = {"token_budget": (256, 512, 1024), "patience": (0, 1, 3, 6)}


_parameters, _requests = record(params_of(Patient)), records(REMEMBERED)


@kernel_of(Patient)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    parameters, request, row = _parameters(memory.params), _requests(memory.request), view.row[0]
    budget, last = int(parameters.token_budget), row.num_running
    if row.free_blocks < row.num_running:  # not enough for everybody's next token: take KV from the youngest
        last = decode_oldest_first(view, plan)
    else:
        _decode_those(view, plan, request, int(parameters.patience), row.max_batched_tokens)
    continue_prefills(view, plan, last, budget)
    while plan.draft[0].tokens < budget:
        i = first_waiting(view, plan)
        if i < 0 or not admit(view, plan, i, budget - plan.draft[0].tokens):
            break
    _decode_those(view, plan, request, 0, budget)
    for j in range(row.num_running):
        i = view.running[j]
        request[i].held = 0 if is_named(plan, i) else request[i].held + 1


@inner
def _decode_those(view: View, plan: Plan, request: np.ndarray, held: int, most: int) -> None:
    """A token for decodes that were held back at least so often, oldest first, until the batch has `most` tokens."""
    for j in range(view.row[0].num_running - plan.draft[0].victims):
        i = view.running[j]
        if (
            request[i].held >= held
            and is_decode(view.request[i])
            and not is_named(plan, i)
            and plan.draft[0].tokens < most
            and fits_decode(view, plan, i)
        ):
            decode(view, plan, i)


def main(rate: float = 1.6, num_requests: int = 2000) -> dict[str, float]:
    """Serve the same requests with Sarathi-Serve and with more and more patience.

    Args:
        rate: arrivals per second.
        num_requests: of the trace.

    Returns:
        Median TTFT in seconds by spec.
    """
    requests = Workload(rate=rate, num_requests=num_requests).generate(seed=0)
    profile, medians = load_profile("rtx6000ada-mistral-7b"), {}
    for policy in (baselines.make("sarathi"), Patient(patience=0), Patient(patience=1), Patient(patience=3)):
        report = summarize(simulate(policy, requests, profile))
        medians[policy.spec] = report.ttft.p50
        gaps = ", ".join(f"{tier.name} {tier.itl.p99:.3f} s" for tier in report.tiers)
        print(
            f"{policy.spec:28} median TTFT {report.ttft.p50:.3f} s; p99 TBT {gaps}; {report.slo_attainment:.1%} in time"
        )
    return medians


if __name__ == "__main__":
    tyro.cli(main)
