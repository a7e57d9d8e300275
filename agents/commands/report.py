"""`llmsched report`: the report of an evaluation, built again from its JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.options import ProgressOptions, TableOptions
from agents.reporting.grid import terminal_console
from agents.reporting.report import load_result, write_report
from agents.reporting.tables import print_tables
from agents.work.files import check_writable, claimed
from agents.work.progress import bars
from engine.extras import need


@dataclass(frozen=True)
class Command(TableOptions, ProgressOptions):
    """Build the report of a finished evaluation again from its folder or JSON file."""

    result: Annotated[Path, tyro.conf.Positional] = Path("out/evaluate")
    """Folder of an evaluation, or its JSON file."""
    out: Path | None = None
    """Folder for the files (default: that of the result)."""
    html: Path | None = None
    """Put the HTML report here (default: report.html in OUT)."""

    def run(self) -> None:
        """Read, print, write.

        Raises:
            InputError: not the result of an evaluation, or a place that cannot be written.
        """
        need("report", "report")
        result = load_result(self.result)
        folder = self.out or (self.result if self.result.is_dir() else self.result.parent)
        check_writable(self.html)
        with claimed(folder, "evaluate", "demo"), bars(self.progress) as progress:
            written = write_report(result, folder, self.html, progress=progress)
        console = terminal_console()
        print_tables(result, console, self.wide)
        console.print(f"written: {written[-1]}", style="dim", highlight=False)
