"""Where a result comes from, in short texts: versions of what made it, its sources, its configuration."""

import hashlib
import json
import platform
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

RUNS = ("llmsched", "numpy", "numba")
"""Distributions that could change what a simulation gives."""
TRAINS = (*RUNS, "gymnasium", "torch", "stable-baselines3")
"""Those that could change what is learned."""


def versions(names: Sequence[str] = RUNS) -> dict[str, str]:
    """Versions of Python and of these distributions; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def source_hash() -> str:
    """16 hexadecimal digits of the SHA-256 of every source file of the four packages."""
    root, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    for package in ("engine", "baselines", "llmsched_env", "agents"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def config_hash(data: dict[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of the data as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
