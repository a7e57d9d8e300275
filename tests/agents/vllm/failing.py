"""Policies that fail every so often, as files that a user might write."""

RAISES = """
from dataclasses import dataclass
import baselines
from engine import Policy

@dataclass(frozen=True)
class Raises(Policy):
    name = "raises"
    every: int = 3

    def memory(self, config, num_requests):
        return [baselines.make("sarathi"), baselines.make("sarathi").memory(config, num_requests), 0]

    def plan(self, view, memory, plan):
        memory[2] += 1
        if memory[2] % self.every == 0:
            raise ValueError("not this time")
        memory[0].plan(view, memory[1], plan)
"""

UNREADABLE = """
from dataclasses import dataclass
import baselines
from engine import Policy, schedule

@dataclass(frozen=True)
class Unreadable(Policy):
    name = "unreadable"
    every: int = 4

    def memory(self, config, num_requests):
        return [baselines.make("sarathi"), baselines.make("sarathi").memory(config, num_requests), 0]

    def plan(self, view, memory, plan):
        memory[2] += 1
        memory[0].plan(view, memory[1], plan)
        if memory[2] % self.every == 0:
            schedule(plan, 0, float("nan"))
"""
