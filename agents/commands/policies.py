"""`llmsched policies`: what can be compared."""

from dataclasses import dataclass, fields

from rich.text import Text

import baselines
from agents.options import TableOptions
from agents.policies import RANDOM, resolve
from agents.reporting.grid import Grid, Head, Kind, Part, show, terminal_console
from engine.server.policy import Policy

COLUMNS: dict[str, tuple[Kind, int]] = {
    "policy": ("name", 0),
    "paper": ("prose", 2),
    "knows": ("prose", 3),
    "preemption": ("prose", 4),
    "evidence": ("prose", 5),
    "parameters": ("prose", 0),
}
"""Kind of each column, and which are left out first."""


def cells(kind: type[Policy]) -> tuple[str, ...]:
    """A policy in the columns of the table: name, paper, what it knows, preemption, evidence, parameters."""
    told = f" ({kind.prediction})" if kind.prediction else ""
    parameters = ", ".join(f"{f.name}={f.default}" for f in fields(kind))
    return kind.name, kind.paper or "-", kind.knows + told, kind.eviction, kind.evidence or "-", parameters or "-"


@dataclass(frozen=True)
class Command(TableOptions):
    """List the policies: where they come from, what they know, how they preempt, their parameters."""

    def run(self) -> None:
        """Print the table."""
        rows = [cells(kind) for kind in (*baselines.POLICIES.values(), type(resolve(RANDOM)))]
        heads = [Head(title, kind, order) for title, (kind, order) in COLUMNS.items()]
        caption = "in brackets: channel of predicted output lengths, if --prediction names no other"
        grid = Grid(heads, [Part(rows, ends=frozenset(range(len(rows))))], caption)
        console = terminal_console()
        show(grid, console, self.wide)
        console.print(Text("Parameters are set after a colon: slai:token_budget=1024,offset=3"))
        console.print(Text("The folder of a training run or of an exported bundle is a policy, too."))
