"""Where a command that fills a folder puts its result: NAME.json, table.md and report.html, or elsewhere as asked."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.work.files import check_writable, write_atomically, write_json
from engine.extras import command, missing, need


@dataclass(frozen=True)
class ResultFolder:
    """The places of one result."""

    folder: Path
    name: str
    """What it is called there: NAME.json."""
    json: Path | None
    """Where the JSON goes, too."""
    report: Path | None
    """Where the HTML goes instead."""

    def check(self) -> None:
        """Look whether all can be written before the work begins.

        Raises:
            InputError: a place that cannot, or HTML is asked for and what draws it is not installed.
        """
        check_writable(self.json, self.report)
        if self.report is not None:
            need("report", "report")

    def write(
        self, result: object, table: str, html: Callable[[], str], images: Mapping[str, bytes] | None = None
    ) -> None:
        """Write everything; no HTML where what draws it is not installed.

        Args:
            result: what the JSON holds.
            table: Markdown for a page of documentation.
            html: makes the page.
            images: plots by name; each becomes NAME.png.

        Raises:
            InputError: a place that cannot be written.
        """
        for path in (self.folder / f"{self.name}.json", self.json):
            write_json(path, result)
        write_atomically(self.folder / "table.md", table)
        for name, image in (images or {}).items():
            write_atomically(self.folder / f"{name}.png", image)
        if missing("report") is None:
            write_atomically(self.report or self.folder / "report.html", html())

    def lines(self) -> Iterator[str]:
        """What was not written, and where to look."""
        if (name := missing("report")) is not None:
            yield f"no HTML report: there is no {name}; {command('report')}"
        yield f"written: {self.json or self.folder / f'{self.name}.json'}"
