"""The sources that `llmsched fit --from` knows: a new one is a file of this folder and a line here."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from agents.device.importing import aiconfigurator, llmservingsim, vllm_log
from agents.device.importing.source import Imported, Importing
from agents.device.profiling import write_points
from engine.errors import InputError


class Source(NamedTuple):
    """A kind of data."""

    read: Callable[[Path, Importing], Imported]
    data: str
    """What stands behind its name, for messages; "": nothing."""
    takes: tuple[str, ...]
    """The options among `Importing` that mean something to it."""


SOURCES = {
    "llmservingsim": Source(llmservingsim.read, "DIR", ("model", "attention")),
    "aiconfigurator": Source(aiconfigurator.read, "", ("model", "tp", "system", "backend", "version")),
    "vllm-log": Source(vllm_log.read, "FILE", ("model", "tp", "system", "backend", "version")),
}


def source_of(given: tuple[str, ...]) -> tuple[str, Path]:
    """Name and data from the words behind --from; of a source without data the folder that the command runs in.

    Raises:
        InputError: no such source, or its data are missing.
    """
    name, *data = given or ("",)
    if name not in SOURCES:
        raise InputError(f"from: expected one of {', '.join(SOURCES)}, got {name!r}")
    wanted = SOURCES[name].data
    if len(data) != bool(wanted):
        raise InputError(f"from: expected {f'{name} {wanted}'.strip()}, got {' '.join(given)!r}")
    return name, Path(*data)


def import_table(given: tuple[str, ...], options: Importing, table: Path) -> None:
    """Write the table of measurements that a source gives, and beside it what it was measured on.

    Args:
        given: the words behind --from.
        options: what of the data is meant.
        table: the CSV file.

    Raises:
        InputError: no such source, an option that it does not take, or data that cannot be read.
    """
    name, data = source_of(given)
    options.refuse_others(SOURCES[name].takes, name)
    found = SOURCES[name].read(data, options)
    known = {key: value for key, value in found.provenance.items() if value is not None}
    write_points(table, found.points, {**known, "imported_from": name})
