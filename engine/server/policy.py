"""What a scheduler is: a small class with parameters and one method, `plan`.

A policy reads a `View`, remembers what it likes in a `Memory`, and lists the next iteration in a `Plan`:

    schedule(plan, i, 1)        decode one token of request i
    schedule(plan, i, n)        prefill a chunk of n tokens of request i (admits it if it waits)
    evict(plan, i)              take the KV of request i away; it goes to the head of the queue
    swap(plan, i)               move the KV of request i to the host; it goes to the head of the queue, to go on there
    drop(plan, i)               refuse to serve the waiting request i

Requests that the plan does not name are held: they keep their KV. Whoever plans with the moves of `engine.server.moves`
(`decode`, `chunk`, `admit`, `take_kv`, ...) need not count: they keep the books of tokens, KV, seats and queue in
``plan.draft[0]``. What is remembered gets names by `record` and `records` (`engine.compiled.records`). A policy
with a compiled `kernel` runs inside compiled loops; one that overrides `plan` in plain Python works everywhere too,
only slower, with the same results.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Self

import numpy as np
from numba import types

from engine.compiled.jit import hot
from engine.compiled.kept import kept
from engine.compiled.own_cache import settle
from engine.config import EngineConfig
from engine.errors import InputError
from engine.own_code import blame, is_ours
from engine.server.parametric import Parametric
from engine.server.state import MEMORY_TYPE, PLAN_TYPE, VIEW_TYPE, Memory, Plan, View

Space = Mapping[str, tuple[Any, ...]]
"""What `llmsched tune` tries: parameter -> values."""
KERNEL_SIGNATURE = types.void(VIEW_TYPE, MEMORY_TYPE, PLAN_TYPE)


class Kernel:
    """A plan function that compiles at first use: ``@Kernel def plan(view, memory, plan): ...``."""

    signature: ClassVar[Any] = KERNEL_SIGNATURE
    """What it takes and gives."""

    def __init__(self, function: Callable[..., Any], allocates: bool = True) -> None:
        """Remember the function; nothing is compiled yet.

        Args:
            function: the plan function.
            allocates: whether it makes arrays; without, it is compiled as the engine's own hot path is (`HotKernel`).
        """
        self.function = function
        self.allocates = allocates
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self._compiled: Any = None

    @property
    def compiled(self) -> Any:
        """The compiled function, all of one type, so that one compiled loop serves every policy.

        Raises:
            InputError: the kernel of a user cannot be compiled (names the line).
        """
        if self._compiled is None:
            try:
                settle(self.function)
                self._compiled = (kept if self.allocates else hot)(self.function, self.signature)
            except Exception as error:
                if is_ours(self.function.__code__.co_filename):
                    raise
                raise InputError(
                    f"kernel {self.__name__!r}: cannot be compiled: {blame(error, self._place)}"
                ) from error
        return self._compiled

    @property
    def _numba_type_(self) -> Any:
        """What numba takes it for: other kernels call it by its name, or where they close over it."""
        return types.Dispatcher(self.compiled)

    def __reduce__(self) -> tuple[Any, ...]:
        """By its name: numba finds what closes over it in its cache by the pickled form."""
        return _kernel_named, (self.function.__module__, self.__name__)

    @property
    def _place(self) -> str:
        return f"{self.function.__code__.co_filename}, line {self.function.__code__.co_firstlineno}"

    def __call__(self, *arguments: Any) -> Any:
        """Call it, compiled."""
        return self.compiled(*arguments)


def _kernel_named(module: str, name: str) -> Any:
    """The kernel at the top of a module."""
    return getattr(import_module(module), name)


def HotKernel(function: Callable[[Any, Any, Any], None]) -> Kernel:
    """A kernel that makes no arrays, without numba's reference counting: about twice as fast."""
    return Kernel(function, allocates=False)


@dataclass(frozen=True)
class Policy(Parametric):
    """A scheduler. Subclass it as a frozen dataclass: the fields are the parameters, in the order of `params`."""

    noun: ClassVar[str] = "policy"
    name: ClassVar[str] = "policy"
    """Short name, as in `llmsched policies` and in reports."""
    paper: ClassVar[str] = ""
    """Where the policy comes from."""
    knows: ClassVar[str] = "prompt length"
    """What it knows about a request."""
    prediction: ClassVar[str] = ""
    """Channel of length predictions that its paper has (`engine.demand.predictions`); "" if it needs none."""
    eviction: ClassVar[str] = "none"
    """Which requests it evicts."""
    request_memory: ClassVar[int] = 0
    """float64 cells that the policy remembers for each request."""
    row_memory: ClassVar[int] = 0
    """float64 cells that the policy remembers for the server."""
    kernel: ClassVar[Kernel | None] = None
    """The compiled form of `plan`, if there is one."""
    space: ClassVar[Space] = {}
    """What `llmsched tune` tries: parameter -> values."""
    named: ClassVar[Mapping[str, str]] = {}
    """Settings of a baseline that have a name, which a spec may begin with: name -> settings."""

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        """Fill `plan` for the next iteration; it comes in empty.

        Raises:
            InputError: the subclass gives neither a kernel nor its own `plan`.
        """
        if self.kernel is None:
            raise InputError(f"policy {self.name!r}: expected a kernel or a plan method, found neither")
        self.kernel(view, memory, plan)

    def on(self, model: Any) -> Self:
        """The same policy told the device on which it is going to run; one that predicts no durations is itself.

        Runs and environments call it before they ask for memory. A policy around another one passes it on.

        Args:
            model: an `engine.device.latency.LatencyModel`.
        """
        return self

    def _told(self, model: object) -> Self:
        """A copy that has the device as its `_model`, for policies whose `on` only remembers it."""
        told = copy(self)
        object.__setattr__(told, "_model", model)
        return told

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """Fresh memory for one run."""
        return Memory(
            self.params(config),
            np.zeros((num_requests, max(1, self.request_memory))),
            np.zeros(max(1, self.row_memory)),
        )

    @property
    def channel(self) -> str:
        """Channel of length predictions that this policy is given unless a run says otherwise; "" if it needs none."""
        return self.prediction

    @property
    def runs_compiled(self) -> bool:
        """Whether the kernel is the policy: there is one, and `plan` was not overridden beside it."""
        return self.kernel is not None and type(self).plan is Policy.plan


def kernel_of(policy: type[Policy]) -> Callable[[Callable[[Any, Any, Any], None]], Kernel]:
    """Make the function below a policy class its kernel, one that makes no arrays: ``@kernel_of(Sarathi)``."""

    def attach(function: Callable[[Any, Any, Any], None]) -> Kernel:
        policy.kernel = HotKernel(function)
        return policy.kernel

    return attach
