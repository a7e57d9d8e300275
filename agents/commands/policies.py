"""`llmsched policies`: what can be compared."""

from dataclasses import dataclass, fields

from rich.table import Table

import baselines
from agents.reporting.tables import console_for_tables
from agents.resolve import RANDOM, resolve
from engine.policy import Policy


def cells(kind: type[Policy]) -> tuple[str, ...]:
    """A policy in the columns of the table: name, paper, what it knows, preemption, evidence, parameters."""
    told = f" ({kind.prediction})" if kind.prediction else ""
    parameters = "\n".join(f"{f.name}={f.default}" for f in fields(kind))
    paper = kind.paper.replace(", ", ",\n").replace("; ", ";\n")
    return kind.name, paper or "-", kind.knows + told, kind.eviction, kind.evidence or "-", parameters or "-"


@dataclass(frozen=True)
class Command:
    """List the policies: where they come from, what they know, how they preempt, their parameters."""

    def run(self) -> None:
        """Print the table."""
        table = Table(caption="in brackets: channel of predicted output lengths, if --prediction names no other")
        for title in ("policy", "paper", "knows", "preemption", "evidence", "parameters"):
            table.add_column(title, no_wrap=title in ("policy", "paper", "parameters"))
        for kind in (*baselines.POLICIES.values(), type(resolve(RANDOM))):
            table.add_row(*cells(kind), end_section=True)
        console_for_tables().print(table)
        print("Parameters are set after a colon: slai:token_budget=1024,offset=3")
        print("The folder of a training run or of an exported bundle is a policy, too.")
