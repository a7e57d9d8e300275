"""What a router is: a small class with parameters and one method, `route`, that says which replica gets a request.

A router sees a `RouterView`: the request that arrives, and every replica twice over. What the router has counted itself
(requests in flight, prompt tokens without an answer) is exact; what the replicas report (queue, KV, tokens left) is as
old as `age` makes it. It remembers what it likes in a `RouterMemory`, and draws numbers by `drawn`. As with policies,
one with a compiled `kernel` runs inside the compiled loop, and one that overrides `route` in plain Python works too,
only slower, with the same results:

    @dataclass(frozen=True)
    class Lightest(Router):
        \"\"\"Sends each request where the fewest prompt tokens wait for an answer.\"\"\"

        name = "lightest"

        def route(self, view, memory):
            return int(view.replica.unanswered.argmin())
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numba import types

from engine.cluster.state import ROUTER_MEMORY_TYPE, ROUTER_VIEW_TYPE, RouterMemory, RouterView
from engine.compiled.jit import inner
from engine.compiled.random import uniform
from engine.config import EngineConfig
from engine.errors import InputError
from engine.ranges import number
from engine.server.parametric import Parametric
from engine.server.policy import Kernel

ROUTE_SIGNATURE = types.int64(ROUTER_VIEW_TYPE, ROUTER_MEMORY_TYPE)
Age = Annotated[float, number(0.0, 1e6, noun="seconds")]
"""Seconds from one report of the replicas to the next; 0: their reports are as of now."""


class RouterKernel(Kernel):
    """A route function that compiles at first use; it makes no arrays."""

    signature = ROUTE_SIGNATURE

    def __init__(self, function: Callable[[Any, Any], int]) -> None:
        """Remember the function; nothing is compiled yet."""
        super().__init__(function, allocates=False)


@dataclass(frozen=True)
class Router(Parametric):
    """A router. Subclass it as a frozen dataclass: the fields are the parameters, in the order of `params`.

    A field `age` is how old reports may be, in seconds from one to the next.
    """

    noun: ClassVar[str] = "router"
    name: ClassVar[str] = "router"
    """Short name, as in `llmsched routers` and in reports."""
    source: ClassVar[str] = ""
    """Where the router comes from."""
    sees: ClassVar[str] = "nothing"
    """What it looks at."""
    replica_memory: ClassVar[int] = 0
    """float64 cells that the router remembers for each replica."""
    row_memory: ClassVar[int] = 0
    """float64 cells that the router remembers beside."""
    kernel: ClassVar[RouterKernel | None] = None
    """The compiled form of `route`, if there is one."""

    def route(self, view: RouterView, memory: RouterMemory) -> int:
        """The place of the replica that gets the request.

        Raises:
            InputError: the subclass gives neither a kernel nor its own `route`.
        """
        if self.kernel is None:
            raise InputError(f"router {self.name!r}: expected a kernel or a route method, found neither")
        return int(self.kernel(view, memory))

    def memory(self, replicas: int) -> RouterMemory:
        """Fresh memory for one run."""
        return RouterMemory(
            self.params(EngineConfig()),
            np.zeros((replicas, max(1, self.replica_memory))),
            np.zeros(max(1, self.row_memory)),
        )

    def remark(self, replicas: int) -> str:
        """A line on parameters that so many replicas leave without effect; empty: there are none."""
        return ""

    @property
    def report_s(self) -> float:
        """Seconds from one report of the replicas to the next, 0: reports are as of now."""
        return float(getattr(self, "age", 0.0))

    @property
    def runs_compiled(self) -> bool:
        """Whether the kernel is the router: there is one, and `route` was not overridden beside it."""
        return self.kernel is not None and type(self).route is Router.route


def router_kernel_of(router: type[Router]) -> Callable[[Callable[[Any, Any], int]], RouterKernel]:
    """Make the function below a router class its kernel: ``@router_kernel_of(JSQ)``."""

    def attach(function: Callable[[Any, Any], int]) -> RouterKernel:
        router.kernel = RouterKernel(function)
        return router.kernel

    return attach


DRAWS = 256
"""Numbers that a decision may draw, beside those that replicas have."""


@inner
def drawn(view: RouterView, k: int) -> float:
    """Number `k` (0 ... DRAWS - 1) that is drawn for this decision, in [0, 1)."""
    row = view.row[0]
    return uniform(row.seed, 2 * (row.index * DRAWS + k))


@inner
def drawn_for(view: RouterView, j: int) -> float:
    """The number that is drawn for replica `j` at this decision, in [0, 1): it goes with the replica, not its place."""
    row = view.row[0]
    return uniform(row.seed, 2 * (row.index * DRAWS + view.replica[j].label) + 1)


@inner
def is_better(view: RouterView, cost: float, j: int, least: float, best: int) -> bool:
    """Whether replica `j` with a cost is to be chosen over the best one so far (-1: none); equal ones are drawn."""
    if best < 0 or cost < least:
        return True
    return bool(cost == least and drawn_for(view, j) < drawn_for(view, best))
