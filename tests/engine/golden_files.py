"""Files with decision traces of real schedulers: those that ship, and those of the folder in ``LLMSCHED_GOLDEN``."""

import gzip
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

GIVEN = os.environ.get("LLMSCHED_GOLDEN")
ENDS = (".json", ".json.gz")


def files(shipped: Path, form: str) -> list[Path]:
    """The traces of a form: of a folder of this project, and of the one given."""
    folders = [shipped, *([Path(GIVEN)] if GIVEN else [])]
    found = [path for folder in folders for path in sorted(folder.iterdir()) if path.name.endswith(ENDS)]
    return [path for path in found if _form(read(path)) == form]


def _form(trace: dict[str, Any]) -> str:
    """The oldest one does not say what it is."""
    return str(trace.get("format", "slai-golden/1")) if "steps" in trace else ""


def ids(paths: list[Path]) -> list[str]:
    """The file names; a second file of the same name has its folder in front."""
    seen: set[str] = set()
    found = []
    for path in paths:
        name = path.name.removesuffix(".gz").removesuffix(".json")
        found.append(f"{path.resolve().parent.name}/{name}" if name in seen else name)
        seen.add(name)
    return found


@cache
def read(path: Path) -> dict[str, Any]:
    """A trace; nothing of what is none."""
    data = path.read_bytes()
    trace = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return trace if isinstance(trace, dict) else {}
