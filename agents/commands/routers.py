"""`llmsched routers`: what can stand in front of a fleet."""

from dataclasses import dataclass, fields

from rich.text import Text

from agents.options import TableOptions
from agents.reporting.grid import Grid, Head, Kind, Part, show, terminal_console
from baselines.routers import ROUTERS
from engine.cluster.router import Router

COLUMNS: dict[str, tuple[Kind, int]] = {
    "router": ("name", 0),
    "source": ("prose", 1),
    "sees": ("prose", 2),
    "evidence": ("prose", 3),
    "parameters": ("prose", 0),
}
"""Kind of each column, and which are left out first."""


def cells(kind: type[Router]) -> tuple[str, ...]:
    """A router in the columns of the table."""
    parameters = ", ".join(f"{f.name}={f.default}" for f in fields(kind))
    return kind.name, kind.source, kind.sees, kind.evidence, parameters or "-"


@dataclass(frozen=True)
class Command(TableOptions):
    """List the routers: where they come from, what they look at, their parameters."""

    def run(self) -> None:
        """Print the table."""
        rows = [cells(kind) for kind in ROUTERS.values()]
        heads = [Head(title, kind, order) for title, (kind, order) in COLUMNS.items()]
        caption = "age: seconds from one report of the replicas to the next, 0: reports are as of now"
        console = terminal_console()
        show(Grid(heads, [Part(rows, ends=frozenset(range(len(rows))))], caption), console, self.wide)
        console.print(Text("Parameters are set after a colon: power_of_d:d=3,age=1"))
        console.print(Text("Learned ones: pretrained-router, or the folder of one: pretrained-router:age=1"))
