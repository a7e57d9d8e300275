"""A scheduler with a memory of its own is made of the public names of `engine` alone, and plans the same uncompiled."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from engine import (
    QUEUE,
    QUEUED,
    SPF,
    EngineConfig,
    HotKernel,
    InputError,
    Kernel,
    Memory,
    Plan,
    Policy,
    Queue,
    View,
    Workload,
    admit_chunks,
    cells_of,
    continue_prefills,
    decode,
    fits_decode,
    is_decode,
    is_named,
    load_profile,
    params_of,
    record,
    records,
    simulate,
    take_kv,
)

REQUEST = np.dtype([("queue", QUEUED), ("turns", "i8")], align=True)


@dataclass(frozen=True)
class Turns(Policy):
    """Decodes take turns: in an iteration, those run that have run at most `lead` times more than the least served."""

    lead: int = 1
    token_budget: int = 256

    name: ClassVar[str] = "turns"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(QUEUE)


_params, _queue, _requests = record(params_of(Turns)), record(QUEUE), records(REQUEST)


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p, requests = view.row[0], _params(memory.params), _requests(memory.request)
    least = 1 << 30
    for j in range(row.num_running):
        if is_decode(view.request[view.running[j]]):
            least = min(least, requests[view.running[j]].turns)
    for j in range(row.num_running):
        i = view.running[j]
        if not is_decode(view.request[i]) or requests[i].turns > least + p.lead or is_named(plan, i):
            continue
        if fits_decode(view, plan, i):
            decode(view, plan, i)
            requests[i].turns += 1
        else:
            take_kv(view, plan, i)
    if plan.draft[0].victims == 0:
        continue_prefills(view, plan, row.num_running, int(p.token_budget))
        admit_chunks(view, plan, Queue(_queue(memory.row), requests.queue), SPF, int(p.token_budget))


class Compiled(Turns):
    """In compiled loops."""

    kernel: ClassVar[Kernel | None] = _plan


class Interpreted(Turns):
    """The same function in plain Python."""

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        """Plan uncompiled."""
        _plan.function(view, memory, plan)


@pytest.mark.parametrize("config", [EngineConfig(), EngineConfig(num_blocks=600)])
def test_a_policy_of_moves_plans_the_same_compiled_and_in_python(config: EngineConfig) -> None:
    requests, device = Workload(rate=4.0, num_requests=40).generate(0), load_profile("rtx6000ada-mistral-7b")
    compiled, interpreted = (simulate(cls(), requests, device, config) for cls in (Compiled, Interpreted))
    assert compiled.row["finished"][0] == 40
    for name in ("request", "ledger", "row", "gaps"):
        assert np.array_equal(getattr(compiled, name).view(np.uint8), getattr(interpreted, name).view(np.uint8)), name


def test_a_record_does_not_fit_into_fewer_cells_and_takes_no_name_of_numpy() -> None:
    with pytest.raises(ValueError, match="more cells than the memory has"):
        _queue(np.zeros(2))
    with pytest.raises(InputError, match="'mean'"):
        record(np.dtype([("mean", "f8")]))
