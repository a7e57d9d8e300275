"""`llmsched profiles`: devices side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.device.calibration import CONTEXT
from agents.device.figures import DECODES, PROMPTS, Figures, figures
from agents.options import TableOptions
from agents.reporting.grid import Grid, Head, Part, figure, show, terminal_console
from agents.work.files import check_writable, write_json
from engine.device.fitting import HELD_OUT
from engine.device.latency import load_profile, profile_names

HEADS = (
    Head("profile", "name"),
    *(Head(f"decode {count}") for count in DECODES),
    *(Head(f"prefill {tokens}") for tokens in PROMPTS),
    Head("overhead", "number", 5),
    Head("beside a chunk", "number", 3),
    *(Head(f"error {kind.removeprefix('held-out ')}, %", "number", 4) for kind in HELD_OUT),
    Head("tokens", "number", 6),
    Head("context", "number", 6),
    Head("KV blocks", "number", 2),
    Head("attention", "prose", 5),
    Head("engine", "prose", 7),
    Head("device", "prose", 8),
)
CAPTION = (
    f"ms of an iteration of so many decodes ({CONTEXT} KV tokens each) or of one prompt; overhead: of every one, in "
    "the others; beside a chunk: cost of a KV token that a decode reads, relative to a batch without a prompt; errors: "
    "mean / p95 on batches that the fit did not see; tokens and context: largest batch and request that were measured"
)


def cells(of: Figures) -> tuple[str, ...]:
    """A profile in the columns of the table."""
    errors = [of.errors.get(kind) for kind in HELD_OUT]
    return (
        of.name,
        *(f"{1e3 * seconds:.2f}" for seconds in (*of.decode_s.values(), *of.prefill_s.values())),
        f"{1e3 * of.overhead_s:.2f}",
        figure(of.beside_chunk, ".2f"),
        *("-" if error is None else f"{error.mean:.1f} / {error.p95:.1f}" for error in errors),
        *(figure(value, "d") for value in (of.most_tokens, of.longest, of.num_blocks)),
        of.attention,
        of.engine,
        of.device,
    )


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions):
    """List hardware profiles: seconds of typical batches, errors of the fit, range, KV memory, what they stand for."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Shipped names and .json files, perhaps with changes such as :speed=2,mixed=2 (default: everything that ships)."""
    json: Path | None = None
    """Also write every figure to this file."""

    def run(self) -> None:
        """Print the table, write.

        Raises:
            InputError: no such profile, or a file that cannot be written.
        """
        check_writable(self.json)
        found = [figures(load_profile(name)) for name in self.names or profile_names()]
        write_json(self.json, {"profiles": [one.to_dict() for one in found]})
        show(Grid(HEADS, [Part([cells(one) for one in found])], CAPTION), terminal_console(), self.wide)
