"""Whatever a policy in Python writes into a plan or a view is one line; compiled code never indexes with it."""

import subprocess
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import baselines
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.runs.driving import PolicyError
from engine.runs.simulate import simulate
from engine.server.plan import schedule
from engine.server.policy import Policy

PROFILE = load_profile("rtx6000ada-mistral-7b")
REQUESTS = Workload(rate=4.0, num_requests=30).generate(seed=0)


class Writes(Policy):
    """Plans as Sarathi does; from the tenth decision on, does something else before."""

    name = "writes"
    after = 10

    def act(self, view: Any, plan: Any) -> None:
        """What it does else."""

    def plan(self, view: Any, memory: Any, plan: Any) -> None:
        """Plan."""
        sarathi = baselines.make("sarathi")
        sarathi.plan(view, sarathi.memory(None, len(view.request)), plan)  # type: ignore[arg-type]
        object.__setattr__(self, "count", getattr(self, "count", 0) + 1)
        if getattr(self, "count", 0) > self.after:
            self.act(view, plan)


@pytest.mark.parametrize("tokens", [2**32 + 1, -(2**32) + 1, 2**62, 0.5, float("nan"), float("inf"), 1e300, -7, 0])
def test_token_counts_that_an_entry_cannot_hold_are_illegal(tokens: Any) -> None:
    class Own(Writes):
        def act(self, view: Any, plan: Any) -> None:
            plan.size[0] = 0
            schedule(plan, int(view.queue[0] if view.row[0].num_waiting else view.running[0]), tokens)

    with pytest.raises(PolicyError, match="entry 0") as error:
        simulate(Own(), REQUESTS, PROFILE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("request_", [2**32, 2**32 + 3, -(2**32), -1, 10**6, 2**62, 0.5, float("nan")])
def test_requests_that_there_are_not_are_illegal(request_: Any) -> None:
    class Own(Writes):
        def act(self, view: Any, plan: Any) -> None:
            plan.size[0] = 0
            schedule(plan, request_, 1)

    with pytest.raises(PolicyError, match="entry 0") as error:
        simulate(Own(), REQUESTS, PROFILE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [-1, -(2**62), 2**62, 10**6])
def test_plans_of_impossible_size(size: int) -> None:
    class Own(Writes):
        after = 3

        def act(self, view: Any, plan: Any) -> None:
            plan.size[0] = size

    with pytest.raises(PolicyError) as error:
        simulate(Own(), REQUESTS, PROFILE)
    assert "\n" not in str(error.value)


CRASH = """
import numpy as np, sys
sys.path.insert(0, ".")
from tests.engine.test_plans import PROFILE, REQUESTS, Writes
from engine.runs.driving import PolicyError
from engine.runs.simulate import simulate
found = 0
def queue(view): view.queue[:] = 10**8
def running(view): view.running[:] = -(10**8)
def twice(view): view.queue[1] = view.queue[0]
def tier(view): view.request["tier"] = 100
def waiting(view): view.row["num_waiting"] = 10**9
def status(view): view.request["status"] = 2
for write in (queue, running, twice, tier, waiting, status):
    for after in (5, 70, 100):
        class Own(Writes):
            def act(self, view, plan, write=write):
                if self.count > after and view.row[0].num_waiting > 1 and view.row[0].num_running > 0:
                    write(view)
        try:
            simulate(Own(), REQUESTS, PROFILE)
        except PolicyError as error:
            found += "\\n" not in str(error)
print(found)
"""


def test_what_python_code_writes_into_the_view_never_reaches_compiled_code() -> None:
    run = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, timeout=240, check=False)
    assert (run.returncode, run.stdout) == (0, "18\n"), run.stderr[-600:]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "x", None, -(10**30)])
def test_parameters_of_baselines_are_checked(value: Any) -> None:
    for name in baselines.names():
        policy = baselines.make(name)
        for field in (f.name for f in fields(policy)):
            if isinstance(getattr(policy, field), int | float) and not isinstance(getattr(policy, field), bool):
                with pytest.raises(InputError):
                    type(policy)(**{field: value})


def test_memories_of_another_size_are_refused() -> None:
    for part, array in (("params", np.zeros((2, 2))), ("request", np.zeros((3, 1))), ("row", np.zeros(2, np.int64))):

        class Own(Writes):
            def memory(self, config: Any, num_requests: int, part: str = part, array: Any = array) -> Any:
                return super().memory(config, num_requests)._replace(**{part: array})

        with pytest.raises(InputError, match="memory"):
            simulate(Own(), REQUESTS, PROFILE)
