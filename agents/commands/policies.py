"""`llmsched policies`: what can be compared."""

from dataclasses import dataclass, fields

import baselines
from agents.resolve import RANDOM, resolve
from engine.policy import Policy


def describe(kind: type[Policy]) -> str:
    """A policy in a few lines: where it is from, what it knows, its parameters with their defaults."""
    parameters = ", ".join(f"{f.name}={f.default}" for f in fields(kind)) or "none"
    rows = (
        ("paper", kind.paper or "-"),
        ("knows", kind.knows),
        ("evicts", kind.eviction),
        ("evidence", kind.evidence or "-"),
        ("parameters", parameters),
    )
    return "\n".join([kind.name, *(f"    {name:<12}{text}" for name, text in rows)])


@dataclass(frozen=True)
class Command:
    """List the policies: where they come from, what they know, their parameters."""

    def run(self) -> None:
        """Print them."""
        kinds = [*baselines.POLICIES.values(), type(resolve(RANDOM))]
        print("\n\n".join(describe(kind) for kind in kinds))
        print("\nParameters are set after a colon: slai:token_budget=1024,offset=3")
        print("The folder of a training run or of an exported bundle is a policy, too.")
