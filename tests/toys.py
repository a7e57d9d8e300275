"""Toys that several tests share: a device of constant speed, and policies made of one function."""

from collections.abc import Callable
from typing import ClassVar

from engine.device.latency import LatencyModel
from engine.server.policy import Kernel, Policy
from engine.server.state import Memory, Plan, View

Planner = Callable[[View, Memory, Plan], None]


def constant(seconds: float) -> LatencyModel:
    """A device on which every iteration takes the same time (s)."""
    return LatencyModel(overhead=seconds, floor=0.0, per_token=0.0, per_pair=0.0, per_context=0.0)


class Improvised(Policy):
    """A plain-Python policy around one function."""

    name: ClassVar[str] = "improvised"

    def __init__(self, planner: Planner) -> None:
        """Plan with this function."""
        object.__setattr__(self, "planner", planner)

    planner: Planner

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        """Whatever the function does."""
        self.planner(view, memory, plan)


def compiled(name: str, kernel: Kernel) -> Policy:
    """A policy without parameters whose plan is this kernel."""
    policy: Policy = type(name, (Policy,), {"name": name, "kernel": kernel})()
    return policy
